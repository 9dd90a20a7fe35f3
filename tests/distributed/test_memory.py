"""Out of memory on one of two processes: a batch that fits is found without asking the other one for anything."""

import time
from functools import partial

import torch
import torch.distributed as dist
from spawn import on_ranks
from torch import nn

from ssl import distributed, failures, optim
from ssl.augment import View
from ssl.batch_norm import synchronise
from ssl.heads import projector
from ssl.training.forward import Embed, blank_batch, try_step


class Hungry(nn.Module):
    """Embeddings of at most 4 images at a time."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), projector(3 * 8 * 8, "16-16", batch_norm=True))

    def forward(self, *views):
        if len(views[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return tuple(self.layers(x) for x in views)


def explain_on_one_rank() -> dict:
    """On rank 0 the words of an error; on rank 1 whether its all-reduce had ended before; on both its sum."""
    device, group = torch.device("cpu"), dist.distributed_c10d._get_default_store()
    torch.manual_seed(0)
    model = synchronise(Hungry())
    optimizer = optim.build("lars", optim.parameter_groups(model, 0.1, 0.1, 0.0, 0.0), 0.1)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).clone()
    embed = Embed(distributed.parallel(model, device), [View(size=8)] * 2, ([0.0] * 3, [1.0] * 3), device, None)
    step = partial(try_step, model, embed, optimizer, (3, 8, 8))
    failures.advise(partial(failures.batch_that_fits, step, 8, 1))
    embed(blank_batch(2, 4, (3, 8, 8), device))  # memory runs out in the loss: DDP waits for a backward pass
    found = {"sum": torch.tensor(float(dist.get_rank() + 1))}
    if dist.get_rank():  # its backward pass waits for rank 0
        work = dist.all_reduce(found["sum"], async_op=True)
        group.wait(["explained"])
        time.sleep(0.5)
        found["ended"] = work.is_completed()
        group.set("looked", "")
        work.wait()
    else:
        found["words"] = failures.explain(torch.OutOfMemoryError("CUDA out of memory"))
        group.set("explained", "")
        group.wait(["looked"])
        dist.all_reduce(found["sum"])
    found["same"] = torch.equal(before, torch.nn.utils.parameters_to_vector(model.parameters()))
    return found


def test_a_batch_that_fits_is_found_without_a_collective(tmp_path):
    first, second = on_ranks(explain_on_one_rank, [2], tmp_path)[2]
    assert "--batch_size 4 --accumulate 2 should fit" in first["words"]
    assert not second["ended"] and first["sum"] == second["sum"] == 3
    assert first["same"] and second["same"]

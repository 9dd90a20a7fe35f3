"""What a training sends between processes, counted on one: messages and bytes of a step, by what sends them.

python benchmarks/collectives.py --world 32 --json FILE [any setting of train.py]

train.py runs for two steps as rank 0 of a world that is not there: PyTorch's process group `fake` sends nothing, and
every other rank is taken to hold what this one does. Batch norm sends what it sends on GPUs. Counted are the second
step with its reading of health and its log line, and the evaluation before the first, if --eval_at_start asks for it.
Bytes are what one rank sends in a ring. Without settings: ResNet-50, projector 8192-8192-8192, the published 2,048
images a step; of 32 pixels, because their size changes no message.
"""

import sys
from pathlib import Path

import ssl

ROOT = Path(__file__).resolve().parents[1]
ssl.__path__ = [str(ROOT / "ssl")]  # see ssl/__init__.py
sys.path += [str(ROOT), str(ROOT / "tests")]  # for train.py; for the kernels of a GPU

import argparse
import collections
import contextlib
import os
import tempfile
from unittest import mock

import kernels  # noqa: F401
import torch
import torch.distributed as dist
from measure import write_json
from torch.testing._internal.distributed.fake_pg import FakeStore
from traffic import Counted

import train
from ssl import distributed
from ssl.batch_norm import SyncBatchNorm
from ssl.console import table
from ssl.training.session import Session

KINDS = {  # by the file whose line sends; of several on the stack the innermost
    "ssl/batch_norm.py": "batch norm",
    "ssl/losses/": "loss",
    "ssl/training/stopping.py": "stop requests",
    "ssl/training/guard.py": "guard",
    "ssl/training/health": "health, a reading",
    "ssl/training/feature_spread.py": "health, a reading",
    "ssl/training/judging.py": "evaluation",
    "ssl/evaluation/": "evaluation",
    "ssl/data/bad_images.py": "log line",
    "ssl/training/": "log line",
}
A_STEP = ("gradients", "batch norm", "loss", "stop requests", "guard")


class ByKind(Counted):
    """Notes in `sent` what it is for, too: (kind, bytes)."""

    def note(self, size: float) -> None:
        self.sent.append((kind(), size))


def kind() -> str:
    frame = sys._getframe(1)
    while frame:
        place = os.path.relpath(frame.f_code.co_filename, ROOT)
        for start, name in KINDS.items():
            if place.startswith(start) and not place.startswith("ssl/distributed"):
                return name
        frame = frame.f_back
    return "?"


def exchange_gradients(counted: ByKind, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP's all-reduce of a bucket, which sends nothing: a mode does not see the one that C++ calls."""
    counted.sent.append(("gradients", counted.ring(bucket.buffer().nbytes)))
    done = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


@contextlib.contextmanager
def pretended(world: int):
    """Rank 0 of `world` ranks, the others of which are not there. Yields the counter of what it sends."""
    plain, counted = dist.init_process_group, ByKind(world, pretended=True)

    def join(*_, **__) -> None:
        plain("fake", rank=0, world_size=world, store=FakeStore())

    group, parallel = dist.new_group, distributed.parallel

    def wrapped(*args):
        net = parallel(*args)
        net.register_comm_hook(counted, exchange_gradients)
        return net

    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world), "MASTER_ADDR": "none", "MASTER_PORT": "0"}
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(dist, "init_process_group", join),
        mock.patch.object(dist, "new_group", lambda *args, **kwargs: group(backend="fake")),
        mock.patch.object(distributed, "parallel", wrapped),
        mock.patch.object(SyncBatchNorm, "_by_sums", SyncBatchNorm._by_kernels),
        counted,
    ):
        yield counted


def second_step(world: int, arguments: list[str]) -> dict[str, dict]:
    """Messages and bytes of the second step of train.py, by kind. The evaluation is that after it."""
    begins = []
    read = Session.read

    def noted(session, *args, **kwargs):
        begins.append(len(counted.sent))
        return read(session, *args, **kwargs)

    with tempfile.TemporaryDirectory() as folder, pretended(world) as counted:
        always = ["--max_steps", "2", "--log_every", "1", "--health_every", "1", "--device", "cpu", "--workers", "0"]
        always += ["--output_dir", f"{folder}/run"]
        with (
            mock.patch.object(sys, "argv", ["train.py", *always, *arguments]),
            mock.patch.object(Session, "read", noted),
        ):
            train.main()
    found: dict[str, dict] = collections.defaultdict(lambda: dict(messages=0, megabytes=0.0))
    judged = [sent for sent in counted.sent[: begins[0]] if sent[0] == "evaluation"]
    for name, size in judged + counted.sent[begins[1] :]:
        found[name]["messages"] += 1
        found[name]["megabytes"] += size / 1e6
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int, default=8, help="ranks")
    parser.add_argument("--json", help="write the numbers to this file")
    options, arguments = parser.parse_known_args()
    published = {"encoder": "resnet50", "projector": "8192-8192-8192", "dataset": "fake", "image_size": 32, "epochs": 9}
    published["batch_size"] = 2048 // options.world
    given = {word for word in arguments if word.startswith("--")}
    if "--data_dir" in given:
        del published["dataset"]
    own = [str(x) for name, value in published.items() if f"--{name}" not in given for x in (f"--{name}", value)]
    found = second_step(options.world, own + arguments)
    rows = [["", "messages", "MB"]]
    rows += [[name, str(row["messages"]), f"{row['megabytes']:.3f}"] for name, row in found.items()]
    print(f"\n{options.world} ranks, {' '.join(own + arguments)}\n{table(rows)}")
    step = [row for name, row in found.items() if name in A_STEP]
    print(f"a step: {sum(r['messages'] for r in step)} messages, {sum(r['megabytes'] for r in step):.1f} MB a rank")
    if options.json:
        write_json(
            options.json, dict(world=options.world, settings=own + arguments, torch=torch.__version__, sent=found)
        )


if __name__ == "__main__":
    main()

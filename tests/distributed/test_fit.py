"""An estimator's fit and transform on two processes are those of one."""

import pytest
import torch
from spawn import on_ranks
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ssl.distributed import rank, world_size
from ssl.errors import UserError
from ssl.estimators import BarlowTwins


class Encoder(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())


def noisy(sample):
    return sample + 0.1 * torch.randn_like(sample)


def do_fit():
    x = torch.randn(41, 6, generator=torch.Generator().manual_seed(0))
    model = BarlowTwins(
        Encoder, proj_input_dim=8, proj_hidden_dim=8, proj_output_dim=8, max_epochs=3, random_state=0, device="cpu",
        views=noisy, batch_size=8 // world_size(), learning_rate=0.01, optimizer="sgd",
    )  # fmt: skip
    start = model.encoder[0].weight.detach().clone()
    h = model.fit(x).transform(x)
    told = ""
    batch = [x, x, x] if rank() == world_size() - 1 else [x, x]
    try:
        model.training_step(batch, 0)
    except ValueError as error:
        told = str(error)
    refused = []
    few = DataLoader(
        TensorDataset(x, x), batch_size=8 + 8 * rank(), sampler=DistributedSampler(x, world_size(), rank())
    )
    for do in (lambda: model.save("/nowhere/model.pt"), lambda: model.fit(x, few), lambda: model.transform(few)):
        try:
            do()
        except UserError as error:
            refused.append(str(error))
    return {"refused": refused, "features": h, "moved": model.encoder[0].weight.detach() - start, "told": told}


def test_two_processes_learn_and_transform_as_one(tmp_path):
    results = on_ranks(do_fit, [1, 2], tmp_path)
    one = results[1][0]
    assert one["moved"].norm() > 1e-3
    for result in results[2]:
        for name in ("moved", "features"):
            torch.testing.assert_close(result[name], one[name], rtol=1e-3, atol=1e-5)
        assert "rank 1: batch should be" in result["told"]  # and rank 0 does not wait for it
        for words, error in zip(
            ("save: /nowhere", "val: every process needs", "a DistributedSampler"), result["refused"]
        ):
            assert words in error
        assert len(result["refused"]) == 3
    assert one["features"].shape == (41, 8) and pytest.approx(0) != float(one["features"].std())

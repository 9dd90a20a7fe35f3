"""An estimator's fit and transform on two processes are those of one, and an interruption changes no bit."""

import contextlib
import io
import os
import tempfile
from functools import partial

import pytest
import torch
from spawn import on_ranks
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, TensorDataset

from ssl.distributed import broadcast_object, is_main, rank, world_size
from ssl.errors import UserError
from ssl.estimators import BarlowTwins, fit


class Encoder(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())


def noisy(sample):
    return sample + 0.1 * torch.randn_like(sample)


def do_fit():
    x = torch.randn(41, 6, generator=torch.Generator().manual_seed(0))
    model = BarlowTwins(
        Encoder,
        proj_input_dim=8,
        proj_hidden_dim=8,
        proj_output_dim=8,
        max_epochs=3,
        random_state=0,
        device="cpu",
        views=noisy,
        batch_size=8 // world_size(),
        learning_rate=0.01,
        optimizer="sgd",
    )
    start = model.encoder[0].weight.detach().clone()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
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
    other = BarlowTwins(**model.get_params() | {"num_views": 2 + rank(), "max_epochs": 1})
    more = [x] * (2 + rank())
    for do in (
        lambda: model.save("/nowhere/model.pt"),
        lambda: model.fit(x, few),
        lambda: model.transform(few),
        lambda: other.fit(x),
        lambda: other.training_step(more),
    ):
        try:
            do()
        except UserError as error:
            refused.append(str(error))
    moved = model.encoder[0].weight.detach() - start
    return {"refused": refused, "features": h, "moved": moved, "told": told, "printed": printed.getvalue()}


def test_two_processes_learn_and_transform_as_one(tmp_path):
    results = on_ranks(do_fit, [1, 2], tmp_path)
    one = results[1][0]
    assert one["moved"].norm() > 1e-3
    for result in results[2]:
        for name in ("moved", "features"):
            torch.testing.assert_close(result[name], one[name], rtol=1e-3, atol=1e-5)
        assert "rank 1: batch should be" in result["told"]  # and rank 0 does not wait for it
        expected = ["save: /nowhere", "val: every process needs", "a DistributedSampler"]
        expected += 2 * ["num_views: every process needs the same value, got [2, 3]"]
        for words, error in zip(expected, result["refused"], strict=True):
            assert words in error
    last_lines = [result["printed"].splitlines()[-1:] for result in [one, *results[2]]]
    assert last_lines[0][0].startswith("fit: 15 steps in ") and last_lines[1][0].startswith("fit: 15 steps in ")
    assert last_lines[2] == []  # rank 1 prints nothing
    assert one["features"].shape == (41, 8) and pytest.approx(0) != float(one["features"].std())


def fit_by_batch_sampler():
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    sizes = dict(proj_input_dim=8, proj_hidden_dim=8, proj_output_dim=8, max_epochs=1, random_state=0, device="cpu")
    said = []
    for sampler in (DistributedSampler(x, world_size(), rank()), RandomSampler(x)):
        loader = DataLoader(TensorDataset(x, x), batch_sampler=BatchSampler(sampler, 8, True))
        try:
            said.append(BarlowTwins(Encoder, **sizes).fit(loader).step)
        except UserError as error:
            said.append(str(error))
    return said


def test_a_batch_sampler_may_share_the_samples_out(tmp_path):
    for learnt, refused in on_ranks(fit_by_batch_sampler, [2], tmp_path)[2]:
        assert learnt == 2 and "every process would train on the same batches" in refused


class OwnStatistics(nn.Sequential):
    """An encoder whose running statistics are each rank's own in training."""

    def __init__(self):
        norm = nn.InstanceNorm1d(2, track_running_stats=True)
        super().__init__(nn.Unflatten(1, (2, 3)), norm, nn.Flatten(), nn.Linear(6, 8))
        self.register_buffer("strided", torch.arange(12.0)[::2] + 100 * rank())


def transform_and_save(path):
    """(running mean in the validation, features, features by the file) of this rank."""
    sizes = dict(proj_input_dim=8, proj_hidden_dim=8, proj_output_dim=8, max_epochs=1, random_state=0, device="cpu")
    model = BarlowTwins(OwnStatistics, views=noisy, batch_size=4, **sizes)
    x = 3 + torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    seen = []
    model.validation_step = lambda *batch: seen.append(model.encoder[1].running_mean.clone()) or {"loss": 0.0}
    h = model.fit(x, TensorDataset(x)).fit(x).transform(x)
    model.save(path / "model.pt")
    assert model.encoder.strided.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]  # rank 0's
    return [seen[0], h, BarlowTwins.load(path / "model.pt", encoder=OwnStatistics).transform(x)]


def test_all_processes_validate_and_transform_with_one_encoder(tmp_path):
    (seen, h, loaded), (others, *_) = on_ranks(partial(transform_and_save, tmp_path), [2], tmp_path)[2]
    assert torch.equal(seen, others) and seen.abs().min() > 0.1
    assert torch.equal(h, loaded)


def save_and_say(path):
    """Whether this rank is the one that prints and writes, and whether it wrote the file of an estimator."""
    os.environ["RANK"] = "1"  # of a job around this group
    own = path / f"rank {rank()} of {world_size()}.pt"
    BarlowTwins(Encoder, proj_input_dim=8).save(own)
    return [is_main(), own.exists()]


def test_one_rank_of_a_group_is_the_main_one_whatever_the_environment_says(tmp_path):
    assert on_ranks(partial(save_and_say, tmp_path), [1, 2], tmp_path) == {
        1: [2 * [True]],
        2: [2 * [True], 2 * [False]],
    }


def fit_spoilt(precision):
    """What a fit says whose loss is not finite on the last rank alone, and its weights."""
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    made = dict(proj_input_dim=8, proj_hidden_dim=8, proj_output_dim=8, max_epochs=3, random_state=0, device="cpu")
    model = BarlowTwins(Encoder, views=noisy, batch_size=4, precision=precision, **made)

    def spoilt(batch, number):
        out = BarlowTwins.training_step(model, batch, number)
        spoils = model.step == 8 and rank() == world_size() - 1
        return out | {"loss": out["loss"] + (torch.inf if spoils else 0)}

    model.training_step = spoilt
    with pytest.raises(UserError) as raised:
        model.fit(x)
    return {
        "words": str(raised.value),
        "step": model.step,
        "weights": torch.cat([p.flatten() for p in model.net.parameters()]).detach(),
    }


@pytest.mark.parametrize("precision", ["off", "fp16"])
def test_all_processes_end_at_a_step_that_is_not_finite_on_one(precision, tmp_path):
    found = on_ranks(partial(fit_spoilt, precision), [2], tmp_path)[2]
    for result in found:
        assert "at step 8 loss or gradient is not finite" in result["words"] and result["step"] == 8
        assert torch.equal(result["weights"], found[0]["weights"]) and result["weights"].isfinite().all()


class Spare(nn.Module):
    """With a layer that nothing goes through."""

    def __init__(self):
        super().__init__()
        self.layers, self.spare = Encoder(), nn.Linear(8, 3)

    def forward(self, x):
        return self.layers(x)


def fit_spare():
    """Weights after a fit of two epochs, after one that is resumed, and what DDP says where nothing is frozen."""
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    model = BarlowTwins(
        Spare,
        proj_input_dim=8,
        proj_hidden_dim=8,
        proj_output_dim=8,
        max_epochs=2,
        random_state=0,
        device="cpu",
        views=noisy,
        batch_size=8 // world_size(),
        learning_rate=0.01,
        optimizer="sgd",
        lr_scheduler="none",
    )

    def values():
        return torch.cat([parameter.detach().flatten() for parameter in model.net.parameters()])

    start, spare = values(), model.encoder.spare.weight.detach().clone()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        whole = values() if model.fit(x) else None
    model.set_params(max_epochs=1).fit(x)
    resumed = values() if model.set_params(max_epochs=2).fit(x, resume=True) else None
    found = {"start": start, "whole": whole, "resumed": resumed, "said": said.getvalue()}
    found["kept"] = torch.equal(model.encoder.spare.weight, spare)
    found["trainable"] = all(parameter.requires_grad for parameter in model.net.parameters())
    kept, fit.trainable.freeze_unused = fit.trainable.freeze_unused, lambda *arguments: None
    try:
        model.fit(x)
    except RuntimeError as error:
        found["control"] = str(error)
    fit.trainable.freeze_unused = kept
    return found


def test_two_processes_train_an_encoder_with_a_spare_layer_as_one_does(tmp_path):
    results = on_ranks(fit_spare, [1, 2], tmp_path)
    one = results[1][0]
    assert not torch.allclose(one["whole"], one["start"]) and "control" not in one
    for found in results[2]:
        torch.testing.assert_close(found["whole"], one["whole"], rtol=1e-3, atol=1e-5)
        assert torch.equal(found["resumed"], found["whole"]) and found["kept"] and found["trainable"]
        assert "Expected to have finished reduction" in found["control"]
    line = "not used    'encoder.spare.weight', 'encoder.spare.bias': no sample reaches these parameters"
    assert results[2][0]["said"].startswith(line)


class Wide(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1))


def fit_interrupted():
    """Weights and running statistics after a fit; after one that is saved in between; after that without rehearsal."""
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    path = broadcast_object(tempfile.mkdtemp()) + "/model.pt"
    made = dict(
        proj_input_dim=64,
        proj_hidden_dim=32,
        proj_output_dim=32,
        max_epochs=3,
        random_state=0,
        device="cpu",
        batch_size=4,
        learning_rate=0.01,
    )

    def state(model):
        return torch.cat([value.double().flatten() for value in model.net.state_dict().values()])

    model = BarlowTwins(Wide, views=noisy, **made)
    whole = state(model.fit(x))

    def interrupted(batch, number):
        if model.step == 6:  # in the midst of an epoch
            raise KeyboardInterrupt
        return BarlowTwins.training_step(model, batch, number)

    model.training_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        model.fit(x)
    model.save(path)
    continued = state(BarlowTwins.load(path, encoder=Wide, views=noisy).fit(x, resume=True))
    kept, fit.rehearse = fit.rehearse, lambda *arguments: None
    control = state(BarlowTwins.load(path, encoder=Wide, views=noisy).fit(x, resume=True))
    fit.rehearse = kept
    return {"steps": model.step, "whole": whole, "continued": continued, "control": control}


def test_on_three_processes_an_interrupted_fit_ends_in_the_same_bits(tmp_path):
    for found in on_ranks(fit_interrupted, [3], tmp_path)[3]:
        assert found["steps"] == 6
        assert torch.equal(found["continued"], found["whole"])
        assert not torch.equal(found["control"], found["whole"])

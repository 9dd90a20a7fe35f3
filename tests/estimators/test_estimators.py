"""Estimators: documented arguments, steps and errors; the same fit from the same random_state; scikit-learn's ways."""

import copy
import io
import math
import os
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.models import VisionTransformer

from ssl.encoders import SmallResNet, build_encoder
from ssl.errors import UserError
from ssl.estimators import BarlowTwins, SimCLR, progress, samples
from ssl.losses import barlow_twins, info_nce

ROOT = Path(__file__).resolve().parents[2]
BOTH = pytest.mark.parametrize("kind", [BarlowTwins, SimCLR])


class Encoder(nn.Module):
    """Anything (N, ...) with six numbers a sample -> (N, 8)."""

    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(6, width), nn.ReLU(), nn.Dropout(0.1))

    def forward(self, x):
        return self.layers(x)


def noisy(sample):
    return sample + 0.1 * torch.randn_like(sample)


def numbers(n=40):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(0))


def make(kind=BarlowTwins, encoder=Encoder, **changes):
    small = dict(proj_input_dim=8, proj_hidden_dim=8, proj_output_dim=8, max_epochs=3, random_state=0, batch_size=8)
    return kind(encoder, **small | {"views": noisy} | changes)


def pairs(n=40, labels=False, batch_size=8):
    x = numbers(n)
    data = [((a, a + 0.1), i % 2) if labels else (a, a + 0.1) for i, a in enumerate(x)]
    return DataLoader(data, batch_size=batch_size, shuffle=True)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.net.parameters()])


def test_the_documented_defaults():
    assert BarlowTwins(Encoder).get_params() | {"encoder": None} == dict(
        encoder=None,
        encoder_kwargs=None,
        proj_input_dim=2048,
        proj_hidden_dim=2048,
        proj_output_dim=2048,
        lambd=0.005,
        optimizer="adamW",
        learning_rate=0.0003,
        weight_decay=0.0005,
        exclude_bias_and_norm_wd=True,
        optimizer_kwargs=None,
        lr_scheduler="warmup_cosine",
        lr_scheduler_kwargs=None,
        max_epochs=None,
        max_steps=-1,
        random_state=None,
        device="auto",
        precision="off",
        callbacks=None,
        num_views=2,
        views=None,
        batch_size=64,
        num_workers=0,
        limit_train_batches=None,
        check_val_every_n_epoch=1,
        num_sanity_val_steps=0,
        verbose=True,
    )


@BOTH
@pytest.mark.parametrize("labels", [False, True])
def test_fit_on_a_loader_and_transform(kind, labels):
    model = make(kind).fit(pairs(labels=labels))
    h = model.transform(DataLoader(numbers(), batch_size=7))
    with torch.no_grad():
        torch.testing.assert_close(h, model.encoder.eval()(numbers()))
    assert len(model.history) == 3 and model.step == 15
    targets = torch.arange(40)
    features, seen = model.transform_with_targets(DataLoader(TensorDataset(numbers(), targets), batch_size=7))
    assert torch.equal(features, h) and torch.equal(seen, targets)


def test_a_step_returns_the_loss_of_the_embeddings():
    x1, x2 = numbers(), numbers() + 0.1
    for kind, loss in ((BarlowTwins, barlow_twins), (SimCLR, info_nce)):
        model = make(kind)
        model.net.eval()
        for step in (model.training_step, model.validation_step):
            out = step(([x1, x2], torch.arange(40)), 0)
            assert set(out) == {"loss", "z1", "z2", "y"} and torch.equal(out["y"], torch.arange(40))
            assert not out["z1"].requires_grad and out["z1"].shape == (40, 8)
            torch.testing.assert_close(out["loss"].detach(), loss(out["z1"], out["z2"])[0])
        assert model.training_step([x1, x2], 0)["y"] is None
        assert model.test_step([x1, x2], 0) is None
        assert torch.equal(model.transform_step(x1, 0), model.encoder(x1))


def test_the_first_two_of_many_views_are_those_of_two():
    def batches(kind, **how):
        source = samples.FromSamples(numbers(), noisy, batch_size=8, seed=0, **how)
        return next(getattr(source, kind)(*((0, 0) if kind == "epoch" else ())))

    for kind in ("epoch", "once"):
        two, sixteen = batches(kind, num_views=2), batches(kind, num_views=16)
        assert len(sixteen) == 16 and all(torch.equal(a, b) for a, b in zip(two, sixteen))
        assert len(torch.stack(sixteen).flatten(1).unique(dim=0)) == 16


@BOTH
def test_three_views_are_trained_on_from_samples_and_from_a_loader(kind, tmp_path):
    x = numbers()
    model = make(kind, num_views=3, max_epochs=2, lr_scheduler="none")
    assert clone(model).num_views == 3 and "num_views=3" in repr(model)
    start = weights(model).clone()
    model.fit(x, TensorDataset(x, x))
    assert model.step == 10 and not torch.allclose(weights(model), start) and "val_loss" in model.history[-1]
    model.save(tmp_path / "model.pt")
    again = kind.load(tmp_path / "model.pt", encoder=Encoder, views=noisy, max_epochs=3)
    assert again.num_views == 3
    again.fit(x, resume=True)
    assert torch.equal(weights(again), weights(make(kind, num_views=3, lr_scheduler="none").fit(x)))
    out = again.training_step(([x, x + 0.1, x - 0.1], x[:, 0]))
    assert set(out) == {"loss", "z1", "z2", "z3", "y"} and out["z3"].shape == (40, 8)
    loss = barlow_twins if kind is BarlowTwins else info_nce
    torch.testing.assert_close(out["loss"].detach(), loss(out["z1"], out["z2"], out["z3"])[0])
    loader = DataLoader([(a, a + 0.1, a - 0.1) for a in x], batch_size=8)
    assert make(kind, num_views=3).fit(loader).step == 15
    with pytest.raises(ValueError, match=r"batch should be `\[X1, …, X3\]` or .* got list of 2 .*; num_views is 3"):
        again.training_step([x, x])
    with pytest.raises(TypeError, match="X1 to X3 should be tensors"):
        again.training_step([x, x, 1])
    with pytest.raises(ValueError, match="X3 is not finite"):
        again.training_step([x, x, x + torch.nan])


X = torch.zeros(4, 6)


@pytest.mark.parametrize(
    "batch, error, words",
    [
        (X, ValueError, r"batch should be `\[X1, X2\]` or `\(\[X1, X2\], y\)`, got Tensor \(4, 6\)"),
        ([X, X, X], ValueError, r"batch should be .* got list of 3 \[Tensor"),
        (([X], X), ValueError, "batch should be"),
        (([X, X, X], X), ValueError, "batch should be"),
        ([X, 3], TypeError, "should be tensors, got list of 2"),
        ([X, X[1:]], ValueError, r"same shape, got .*\(4, 6\), Tensor \(3, 6\)"),
        (([X, X], [1, 2]), ValueError, "with a tensor y"),
        (([X, X], X[1:, 0]), ValueError, r"y should have a row for each of X1, got .*Tensor \(3,\)"),
        (([X, X], X[0, 0]), ValueError, "y should have a row"),
        ([X, X + torch.nan], UserError, "not finite"),
    ],
)
def test_bad_batches(batch, error, words):
    with pytest.raises(error, match=words):
        make().training_step(batch, 0)


@pytest.mark.parametrize(
    "changes, error, words",
    [
        (dict(num_views=1), ValueError, "num_views: expected a whole number of at least 2, got 1"),
        (dict(num_views=2.0), ValueError, "num_views: expected a whole number"),
        (dict(num_views=17), ValueError, "num_views: expected at most 16, got 17"),
        (dict(encoder="resnet18"), TypeError, "Encoder must be a PyTorch nn.Module, or a class inheriting"),
        (dict(encoder=lambda: Encoder()), TypeError, "Encoder must be"),
        (dict(optimizer="lion"), ValueError, "Optimizer 'lion' is not implemented. Please use one of the available"),
        (dict(optimizer=nn.Linear), TypeError, "optimizer: expected a name"),
        (dict(lr_scheduler="cosine"), ValueError, "Unknown `lr_scheduler`: 'cosine'"),
        (dict(lr_scheduler_kwargs={"interval": "batch"}), ValueError, "Unknown interval: batch"),
        (dict(lr_scheduler_kwargs={"warmup_epoch": 1}), ValueError, "did you mean 'warmup_epochs'"),
        (dict(max_epoch=3), ValueError, "there is no argument 'max_epoch'; did you mean 'max_epochs'"),
        (dict(precision="half"), ValueError, "none of auto, bf16, fp16, off"),
        (dict(device="gpu"), ValueError, "none of auto, cpu, cuda"),
        (dict(random_state=np.random.RandomState(0)), ValueError, "random_state: expected a whole number"),
        (dict(max_steps=1e3), ValueError, "max_steps: expected a whole number"),
        (dict(max_steps=0), ValueError, "max_steps: expected a whole number of at least 1, or -1 for no limit, got 0"),
        (dict(max_steps=-2), ValueError, "max_steps: .* got -2"),
        (dict(max_steps=True), ValueError, "max_steps: .* got True"),
        (dict(batch_size=0), ValueError, "batch_size: expected a whole number of at least 1, got 0"),
        (dict(batch_size=True), ValueError, "batch_size: .* got True"),
        (dict(random_state=True), ValueError, "random_state: .* got True"),
        (dict(lambd=True), ValueError, "lambd: expected a number of at least 0, got True"),
        (dict(exclude_bias_and_norm_wd="no"), ValueError, "exclude_bias_and_norm_wd: expected True or False, got 'no'"),
        (dict(lr_scheduler_kwargs={"warmup_epochs": True}), ValueError, "warmup_epochs: .* got True"),
        (dict(lr_scheduler_kwargs={"min_lr": math.inf}), ValueError, "min_lr: .* got inf"),
        (
            dict(optimizer=torch.optim.SGD([X], 0.1), optimizer_kwargs={"momentum": 0.9}),
            ValueError,
            "optimizer_kwargs: optimizer is an instance, which is used as it is; pass optimizer_kwargs=None",
        ),
        (dict(encoder=Encoder(), encoder_kwargs={"width": 8}), ValueError, "encoder_kwargs: encoder is an instance"),
        (
            dict(
                lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([X], 0.1)),
                lr_scheduler_kwargs={"min_lr": 0.1},
            ),
            ValueError,
            "lr_scheduler_kwargs: an instance .* of these pass interval only",
        ),
        (dict(accelerator="cpu", device="cuda"), ValueError, "accelerator='cpu' and device='cuda' do not agree"),
        (dict(learning_rate="3e-4"), ValueError, "learning_rate: expected a number"),
        (dict(optimizer_kwargs={"weight_decay": 0.1}), ValueError, "optimizer_kwargs: weight_decay has an argument of"),
        (dict(lr_scheduler_kwargs={"warmup_epochs": "5"}), ValueError, "warmup_epochs: expected a number"),
        (dict(callbacks=[print, 3]), TypeError, "callbacks: 3 is no callable"),
        (dict(limit_train_batches=0), ValueError, "limit_train_batches: expected a whole number of batches, a share"),
        (dict(limit_train_batches=1.5), ValueError, "limit_train_batches: expected"),
        (dict(limit_train_batches=True), ValueError, "limit_train_batches: expected"),
        (dict(check_val_every_n_epoch=0), ValueError, "check_val_every_n_epoch: expected a whole number of at least 1"),
        (dict(num_sanity_val_steps=-2), ValueError, "num_sanity_val_steps: expected"),
        (dict(verbose="no"), ValueError, "verbose: expected True or False, got 'no'"),
        (dict(verbose=-1), ValueError, "verbose: expected True or False, got -1"),
        (dict(accelerator="tpu"), ValueError, "accelerator: 'tpu' is none of auto, cpu, gpu, cuda"),
        (
            dict(devices=2),
            ValueError,
            "devices=2 of Lightning's Trainer is not done here; start the script by torchrun",
        ),
        (dict(logger=True), ValueError, "logger=True .*; read `history`"),
        (dict(limit_val_batches=1), ValueError, "limit_val_batches=1 .*; pass fewer samples as val"),
        (dict(precision="64-true"), ValueError, "'64-true' is none of auto, bf16, fp16, off"),
        (dict(acelerator="cpu"), ValueError, "there is no argument 'acelerator'"),
    ],
)
def test_bad_arguments(changes, error, words):
    with pytest.raises(error, match=words):
        make(**changes)


@pytest.mark.parametrize(
    "changes, error, words",
    [
        (dict(max_epochs=None), ValueError, "`max_epoch` must be set"),
        (dict(max_epochs=0), ValueError, "`max_epoch` must be set"),
        (dict(max_epochs=-1), ValueError, "`max_epoch` must be set"),
        (dict(max_epochs=True), ValueError, "`max_epoch` must be set: .* got True"),
        (dict(proj_input_dim=5), ValueError, r"Encoder output dim \(8\) does not match proj_input_dim \(5\). Either"),
        (dict(encoder=nn.Identity, views=lambda s: s.mean()), RuntimeError, "Encoder output must be"),
        (dict(lr_scheduler_kwargs={"warmup_epochs": 3}), ValueError, "warmup_epochs 3 must be at least 0 and less"),
        (dict(views=None), ValueError, "views: samples need a callable"),
        (dict(batch_size=41), ValueError, "larger than the data"),
        (dict(learning_rate=1e-7), ValueError, "learning_rate: .* must be above warmup_start_lr"),
    ],
)
def test_bad_fits(changes, error, words):
    fitted = make().fit(numbers())
    before = weights(fitted).clone()
    if "encoder" not in changes and "proj_input_dim" not in changes:  # which make a new network
        with pytest.raises(error, match=words):
            fitted.set_params(**changes).fit(numbers())
        assert torch.equal(weights(fitted), before) and fitted.step == 15
    model = make(**changes)
    with pytest.raises(error, match=words):
        model.fit(numbers())
    with pytest.raises(RuntimeError, match=f"This {type(model).__name__} instance is not fitted yet. Call 'fit'"):
        model.transform(numbers())


class Backwards(torch.utils.data.Sampler):
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return iter(range(len(self.data) - 1, -1, -1))

    def __len__(self):
        return len(self.data)


def test_transform_takes_all_rows_in_their_order_and_no_other_loader():
    x, model = numbers(), make().fit(numbers())
    expected, utils = model.transform(x), torch.utils.data
    for loader in (
        DataLoader(x, batch_size=7),
        DataLoader(x, batch_size=8, drop_last=True),  # which drops none of 40
        DataLoader(x, batch_sampler=utils.BatchSampler(utils.SequentialSampler(x), 7, False)),
        DataLoader(
            TensorDataset(x),
            batch_size=None,
            sampler=utils.BatchSampler(utils.SequentialSampler(x), 7, False),
            collate_fn=lambda rows: rows[0],
        ),
        iter([x[:7], x[7:]]),
    ):
        assert torch.allclose(model.transform(loader), expected, atol=1e-6)
    shuffled = utils.BatchSampler(utils.RandomSampler(x), 7, False)
    for changes, words in (
        (dict(shuffle=True), "shuffles, and the features would be in another order than the data; pass shuffle=False"),
        (dict(sampler=utils.SubsetRandomSampler(range(9))), "shuffles a part of the rows; pass a loader of"),
        (dict(sampler=utils.WeightedRandomSampler([1.0] * 40, 40)), "shuffles and repeats rows"),
        (dict(sampler=utils.DistributedSampler(x, 1, 0)), "pads by a DistributedSampler"),
        (dict(sampler=Backwards(x)), "may change the order or leave rows out by its Backwards"),
        (dict(sampler=[3, 1]), "leave rows out by its list"),
        (dict(batch_sampler=shuffled), "shuffles, and the features"),
        (dict(batch_sampler=[[1, 0], [2]]), "may change the order by its list; pass batch_size"),
        (dict(batch_size=7, drop_last=True), "leaves the last rows out by its drop_last; pass drop_last=False"),
    ):
        with pytest.raises(UserError, match=f"transform: the loader.*{words}"):
            model.transform(DataLoader(x, **changes))
    pairs = TensorDataset(x, torch.arange(40))  # each row keeps its target
    features, targets = model.transform_with_targets(DataLoader(pairs, batch_size=7, shuffle=True))
    assert torch.allclose(features, expected[targets], atol=1e-6)
    with pytest.raises(UserError, match="drop_last"):
        model.transform_with_targets(DataLoader(pairs, batch_size=7, drop_last=True))


def test_targets_of_other_rows_are_refused():
    with pytest.raises(ValueError, match=r"y should have a row for each of X, got .*\(3,\)"):
        make().fit(numbers()).transform_with_targets(iter([(X, X[1:, 0]), (X, torch.zeros(5))]))


def test_a_built_encoder_loads_what_a_class_learnt(tmp_path):
    model = make(encoder_kwargs={"width": 8}).fit(numbers())
    model.save(tmp_path / "model.pt")
    loaded = BarlowTwins.load(tmp_path / "model.pt", encoder=Encoder())
    assert torch.equal(loaded.transform(numbers()), model.transform(numbers()))


def test_a_loader_of_pairs_or_labels_is_no_input_of_transform():
    model = make().fit(numbers())
    with pytest.raises(ValueError, match=r"got list of 2 .*; for batches \(X, y\) call transform_with_targets"):
        model.transform(DataLoader(TensorDataset(numbers(), numbers()), batch_size=8))


# The same fit -------------------------------------------------------------------------


def test_the_same_random_state_is_the_same_init_and_fit_whatever_was_drawn_before():
    torch.manual_seed(1)
    one = make(encoder_kwargs={"width": 8})
    torch.manual_seed(2)
    other = make(encoder_kwargs={"width": 8})
    assert torch.equal(weights(one), weights(other))
    assert not torch.equal(weights(one), weights(make(random_state=1)))
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    one.fit(pairs())
    assert torch.equal(torch.get_rng_state(), state[0]) and (np.random.get_state()[1] == state[1]).all()
    torch.rand(5)
    other.fit(pairs())
    assert torch.equal(weights(one), weights(other))
    once = weights(one).clone()
    assert torch.equal(weights(one.fit(pairs())), once)  # a second fit begins anew


def test_views_depend_on_sample_and_epoch_and_not_on_workers():
    def mixed(sample):
        return (sample + torch.rand(())).numpy() + np.random.rand(6)  # of type float64

    one, two = (make(views=mixed, num_workers=workers, max_epochs=1).fit(numbers()) for workers in (0, 2))
    assert torch.equal(weights(one), weights(two))


def test_the_callers_objects_stay_as_they_are():
    kwargs = dict(
        encoder_kwargs={"width": 8}, optimizer_kwargs={"betas": (0.8, 0.9)}, lr_scheduler_kwargs={"min_lr": 0}
    )
    before = copy.deepcopy(kwargs)
    encoder, x = Encoder(), numbers()
    model = make(**kwargs).fit(x)
    assert kwargs == before and model.get_params()["lr_scheduler_kwargs"] is kwargs["lr_scheduler_kwargs"]
    used = make(encoder=encoder, views=lambda s: s.add_(1)).fit(x)
    assert used.encoder is encoder and torch.equal(x, numbers())


def test_assigned_and_refused_arguments():
    model = make()
    model.max_epochs, model.lambd, model.proj_hidden_dim = 1, 0.5, np.int64(4)
    copied = clone(model)
    for one in (copied, model.fit(numbers())):
        assert one.get_params()["lambd"] == one.loss.lambd == 0.5 and one.projection_head[0].out_features == 4
    with pytest.raises(ValueError, match="not implemented"):
        model.set_params(optimizer="lion", lambd=0.1)
    assert model.get_params() == copied.get_params() and model.loss.lambd == 0.5


@pytest.mark.parametrize("seed", [0, None])
def test_an_argument_set_to_its_present_value_changes_nothing(seed):
    options = dict(encoder_kwargs={"width": 8}, proj_hidden_dim=np.int64(8), random_state=seed, max_epochs=4)
    model = make(**options, max_steps=15).fit(numbers())
    learnt, parts = weights(model).clone(), (model.net, model.optimizer, model.history)
    for changes in (model.get_params(), dict(encoder_kwargs={"width": 8}, proj_hidden_dim=np.int64(8)), {}):
        model.set_params(**changes)
        assert model.step == 15 and torch.equal(weights(model), learnt)
        assert all(a is b for a, b in zip(parts, (model.net, model.optimizer, model.history)))
    model.set_params(**model.get_params() | {"max_steps": -1, "lambd": 0.5}).fit(numbers(), resume=True)
    assert model.step == 20 and model.loss.lambd == 0.5 and len(model.history) == 4
    model.set_params(**model.get_params() | {"proj_hidden_dim": 4})
    assert model.step == 0 and model.projection_head[0].out_features == 4


def test_what_was_assigned_counts_whatever_is_set_after_it():
    model = make(encoder_kwargs={"width": 8})
    model.proj_hidden_dim = 4
    assert model.set_params(batch_size=4).projection_head[0].out_features == 4
    model.precision = "bf16-mixed"  # Lightning's word
    assert model.set_params(max_epochs=1).precision == "bf16"
    model.encoder_kwargs["width"] = model.proj_input_dim = 5  # the caller's dict, changed in place
    assert model.fit(numbers()).transform(numbers()).shape == (40, 5)
    model.batch_size = 5
    assert model.set_params(batch_size=4).batch_size == 4


def test_a_change_that_the_encoder_refuses_changes_nothing():
    model = make(encoder_kwargs={"width": 8}).fit(numbers())
    learnt, kwargs = weights(model).clone(), model.encoder_kwargs
    for _ in range(2):
        with pytest.raises(TypeError, match="depth"):
            model.set_params(encoder_kwargs={"depth": 8}, lambd=0.5)
        assert model.step == 15 and torch.equal(weights(model), learnt)
        assert model.encoder_kwargs is kwargs and model.lambd == model.loss.lambd == 0.005


def test_loaders_that_would_fail_after_an_epoch_are_refused_before():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield numbers(1)[0], numbers(1)[0]

    for loader, words in ((DataLoader(Endless()), "give its IterableDataset a __len__"), (pairs(41), "drop_last=True")):
        for data in ((loader, None), (numbers(), loader)):
            with pytest.raises(UserError, match=words):
                make().fit(*data)


def test_without_a_gpu_it_says_what_to_write_in_python(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="in Python device='cpu'"):
        make(device="cuda").fit(numbers())


@BOTH
def test_a_batch_of_one_sample_is_refused_in_words(kind):
    one = DataLoader([(a, a + 0.1) for a in numbers(4)], batch_size=1)
    for data, size in ((numbers(), 1), (one, 8)):
        with pytest.raises(UserError, match="compare samples and need at least 2"):
            make(kind, batch_size=size).fit(data)


def test_a_dataset_with_labels_is_transformed_as_it_was_fitted():
    data = TensorDataset(numbers(), torch.arange(40))
    model = make()
    assert torch.equal(model.fit_transform(data), model.transform(numbers()))
    assert torch.equal(model.transform_with_targets(data)[1], torch.arange(40))


def test_numbers_of_numpy_are_arguments(tmp_path):
    plain = dict(max_epochs=2, batch_size=8, num_views=3, num_workers=0, limit_train_batches=3, proj_output_dim=8)
    of_numpy = {name: np.array([value])[0] for name, value in plain.items()}
    model, x = make(**of_numpy), numbers()
    assert torch.equal(model.fit_transform(x), make(**plain).fit_transform(x))
    model.save(tmp_path / "model.pt")
    assert torch.equal(BarlowTwins.load(tmp_path / "model.pt", Encoder).transform(x), model.transform(x))
    search = GridSearchCV(
        make(max_epochs=1), {"batch_size": np.array([4, 8])}, cv=2, scoring=lambda model, x, y=None: model.batch_size
    )
    assert search.fit(x.numpy()).transform(x).shape == (40, 8) and search.best_params_ == {"batch_size": 8}


class Listed(torch.utils.data.Dataset):
    """Samples of a list, perhaps with a label."""

    def __init__(self, items, labels):
        self.items, self.labels = items, labels

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return (self.items[index], index) if self.labels else self.items[index]


X_OF_NUMPY = np.random.default_rng(0).integers(0, 255, (40, 2, 3))
STORED = {  # each holds the numbers of X_OF_NUMPY
    "float64": X_OF_NUMPY.astype(np.float64),
    "big-endian": X_OF_NUMPY.astype(">f4"),
    "big-endian whole numbers": X_OF_NUMPY.astype(">i2"),
    "from right to left": X_OF_NUMPY[:, :, ::-1].copy().astype(np.float32)[:, :, ::-1],
    "upside down, float64": X_OF_NUMPY[:, ::-1].copy().astype(np.float64)[:, ::-1],
    "backwards": X_OF_NUMPY[::-1].copy().astype(np.float32)[::-1],
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("kind", ["array", "list", "dataset", "dataset with labels"])
def test_samples_are_the_same_however_numpy_stores_them(kind, stored):
    def given(x):
        return {"array": x, "list": list(x)}.get(kind, Listed(x, labels="labels" in kind))

    def views(sample):
        seen.add(type(sample))
        return noisy(torch.from_numpy(np.ascontiguousarray(sample, np.float32)) / 255)

    seen, x = set(), STORED[stored]
    if kind.startswith("dataset") and "whole" in stored:
        x = x.astype(">f4")  # encoders take no whole numbers, and a Dataset's samples keep their type
    h = make(views=views, max_epochs=1).fit_transform(given(X_OF_NUMPY.astype(np.float32)))
    model = make(views=views, max_epochs=1)
    assert torch.equal(model.fit_transform(given(x), given(x)), h) and len(seen) == 1
    if "labels" in kind:
        features, targets = model.transform_with_targets(given(x))
        assert torch.equal(features, h) and torch.equal(targets, torch.arange(40))
    assert (x == X_OF_NUMPY).all()


@pytest.mark.parametrize("stored", [np.uint8, np.float16, np.float32, ">f4", ">u2"])
def test_views_may_be_arrays_of_any_strides_and_keep_their_type(stored):
    def batch(views):
        return next(samples.FromSamples(numbers(8).abs(), views, 2, batch_size=8, seed=0).epoch(0, 0))[0]

    plain = batch(lambda sample: (sample.numpy() * 20).astype(np.dtype(stored).newbyteorder("=")))
    turned = batch(lambda sample: (sample.numpy() * 20).astype(stored)[::-1])
    assert turned.dtype == plain.dtype == getattr(torch, np.dtype(stored).newbyteorder("=").name)
    assert torch.equal(turned, plain.flip(1))


def test_constant_features_give_no_nan():
    class Constant(Encoder):
        def forward(self, x):
            return super().forward(x) * 0

    assert math.isfinite(make(encoder=Constant).fit(numbers()).history[-1]["loss"])


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_the_schedule_never_rises_above_the_rate_and_ends_at_its_floor(interval):
    lrs = []
    options = dict(interval=interval, warmup_epochs=1.5, min_lr=1e-5)

    class Seen(torch.optim.SGD):
        def step(self, closure=None):
            lrs.append(self.param_groups[0]["lr"])
            return super().step(closure)

    model = make(optimizer=Seen, lr_scheduler_kwargs=options, max_epochs=7, max_steps=33).fit(numbers())
    assert len(lrs) == model.step == 33 and lrs[0] == pytest.approx(1e-6)
    assert max(lrs) == pytest.approx(3e-4) and lrs[-1] < 6e-5  # N1: 2.0 times the rate there
    peak = lrs.index(max(lrs))
    assert lrs[peak:] == sorted(lrs[peak:], reverse=True)
    short = make(max_epochs=2).fit(numbers())  # N2: ten epochs of warm-up are longer than this run
    assert short.optimizer.param_groups[0]["lr"] == pytest.approx(0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamW", "adamw", "lars", "lamb", torch.optim.RMSprop])
def test_every_optimizer_spares_biases_and_norms_the_decay(optimizer):
    model = make(optimizer=optimizer, max_epochs=1).fit(numbers())
    decays = {group["name"]: group["weight_decay"] for group in model.optimizer.param_groups}
    assert decays == {"weights": 0.0005, "biases": 0.0}
    model = make(optimizer=optimizer, max_epochs=1, exclude_bias_and_norm_wd=False).fit(numbers())
    assert {group["weight_decay"] for group in model.optimizer.param_groups} == {0.0005}


def test_instances_of_optimizer_and_scheduler():
    encoder = Encoder()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    model = make(
        encoder=encoder, optimizer=optimizer, lr_scheduler=scheduler, lr_scheduler_kwargs={"interval": "epoch"}
    )
    model.fit(numbers())
    assert model.optimizer is optimizer and optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 8)
    assert model.fit(numbers()).step == 15  # the encoder is the same, the projection head is not in the optimizer
    with pytest.raises(ValueError, match="holds parameters that are not of this network"):
        make(optimizer=optimizer).fit(numbers())


def test_an_optimizer_of_the_network_before_is_refused():
    """Else it would train the encoder alone: a second fit makes a new projection head."""
    model = make(encoder=Encoder())
    model.set_params(optimizer=torch.optim.SGD(model.net.parameters(), lr=0.1)).fit(numbers())
    learnt, history = weights(model).clone(), [*model.history]
    with pytest.raises(UserError, match=r"not of this network.*or give the encoder as an instance"):
        model.fit(numbers())
    assert model.step == 15 and torch.equal(weights(model), learnt) and model.history == history
    assert model.set_params(optimizer="sgd").fit(numbers()).step == 15


@pytest.mark.parametrize("learnt", [0, 15])
def test_what_was_made_from_an_argument_cannot_be_assigned(learnt):
    model = make()
    if learnt:
        model.fit(numbers())
    kept = model.encoder, model.optimizer, model.lr_scheduler
    instance = torch.optim.SGD(model.net.parameters(), lr=0.1)
    for name, value in (("optimizer", "sgd"), ("optimizer", instance), ("lr_scheduler", None), ("encoder", Encoder())):
        with pytest.raises(UserError, match=rf"{name}: .*; call set_params\({name}=…\)"):
            setattr(model, name, value)
    assert (model.encoder, model.optimizer, model.lr_scheduler) == kept and model.step == learnt
    model.set_params(optimizer="sgd", lr_scheduler=None).fit(numbers())
    assert isinstance(model.optimizer, torch.optim.SGD) and model.lr_scheduler is None


# Interruptions ------------------------------------------------------------------------


def stop_at(model, step, data):
    """Fit, as somebody does who interrupts it before that step."""
    steps = model.training_step

    def interrupted(batch, number):
        if model.step == step:
            raise KeyboardInterrupt
        return steps(batch, number)

    model.training_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        model.fit(data)
    del model.training_step


@pytest.mark.parametrize("loader", [False, True])
def test_resume_after_an_interruption_ends_in_the_same_weights(loader, tmp_path):
    data = pairs() if loader else numbers()
    whole = make().fit(data)
    stopped = make()
    stop_at(stopped, 7, data)  # in the midst of an epoch
    assert stopped.step == 7 and stopped.transform(numbers()).isfinite().all()
    stopped.save(tmp_path / "model.pt")
    loaded = BarlowTwins.load(tmp_path / "model.pt", encoder=Encoder, views=noisy)
    for model in (stopped, loaded):
        assert not torch.equal(weights(model), weights(whole))
        assert torch.equal(weights(model.fit(data, resume=True)), weights(whole))


@pytest.mark.parametrize("how", ["interrupted", "max_steps", "saved"])
def test_an_epoch_that_was_interrupted_has_the_history_of_one_that_was_not(how, tmp_path):
    constant = dict(lr_scheduler="none")  # the schedule would be another with max_steps
    whole, cut = make(**constant).fit(numbers()).history, make(**constant)
    if how == "max_steps":
        cut.set_params(max_steps=7).fit(numbers())
        assert len(cut.history) == 2 and cut.history[1]["loss"] != whole[1]["loss"]  # of two steps of five
        cut.set_params(max_steps=-1)
    else:
        stop_at(cut, 7, numbers())
    if how == "saved":
        cut.save(tmp_path / "model.pt")
        cut = BarlowTwins.load(tmp_path / "model.pt", encoder=Encoder, views=noisy)
        content = torch.load(tmp_path / "model.pt", weights_only=True)
        del content["partial"]  # as earlier versions wrote it: it continues, and averages what it sees
        torch.save(content, tmp_path / "old.pt")
        old = BarlowTwins.load(tmp_path / "old.pt", encoder=Encoder, views=noisy).fit(numbers(), resume=True).history
        assert old[0] == whole[0] and old[1] != whole[1] and old[2] == whole[2]
    assert cut.fit(numbers(), resume=True).history == whole


@pytest.mark.filterwarnings("error:Detected call")
@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize(("step", "options"), [(10, {}), (15, {}), (7, {"max_steps": 7})])
@pytest.mark.parametrize("schedule", ["step", "epoch", "StepLR", "ReduceLROnPlateau"])
def test_a_fit_that_was_interrupted_in_a_validation_ends_as_one_that_was_not(schedule, step, options, saved, tmp_path):
    def parts():
        if schedule in ("step", "epoch"):
            return dict(encoder=Encoder, lr_scheduler_kwargs={"interval": schedule})
        torch.manual_seed(0)
        encoder = Encoder()
        optimizer = torch.optim.SGD(encoder.parameters(), lr=0.5)
        kwargs = {"step_size": 1, "gamma": 0.5} if schedule == "StepLR" else {"patience": 0, "threshold": 1}
        scheduler = getattr(torch.optim.lr_scheduler, schedule)(optimizer, **kwargs)
        return dict(
            encoder=encoder, optimizer=optimizer, lr_scheduler=scheduler, lr_scheduler_kwargs={"interval": "epoch"}
        )

    def interrupted(batch, number):
        if model.step == step and number == 1:
            raise KeyboardInterrupt
        return BarlowTwins.validation_step(model, batch, number)

    data, told = (numbers(), TensorDataset(numbers(20))), []
    whole = make(**parts() | options).fit(*data)
    model = make(**parts() | options)
    model.validation_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        model.fit(*data)
    assert model.step == step and len(model.history) == (step - 1) // 5  # of the epochs before
    del model.validation_step
    if saved:
        model.save(tmp_path / "model.pt")
        model = BarlowTwins.load(
            tmp_path / "model.pt", views=noisy, **parts() | {"lr_scheduler_kwargs": model.lr_scheduler_kwargs}
        )
    model.set_params(callbacks=lambda model, epoch, metrics: told.append(epoch)).fit(*data, resume=True)
    assert model.history == whole.history and torch.equal(weights(model), weights(whole))
    assert model.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
    assert told == [line["epoch"] for line in whole.history][(step - 1) // 5 :]
    model.fit(*data, resume=True)  # there is nothing left to do
    assert model.history == whole.history and len(told) == len(whole.history) - (step - 1) // 5


def test_what_a_file_could_not_hold_may_be_set_after_load(tmp_path):
    how = dict(optimizer=torch.optim.RMSprop, lr_scheduler="none")
    model = make(**how, max_steps=7).fit(numbers())
    model.save(tmp_path / "model.pt")
    loaded = BarlowTwins.load(tmp_path / "model.pt", encoder=Encoder, views=noisy, max_steps=-1)
    with pytest.raises(UserError, match="could not hold optimizer"):
        loaded.fit(numbers(), resume=True)
    loaded.set_params(optimizer=torch.optim.RMSprop).fit(numbers(), resume=True)
    assert torch.equal(weights(loaded), weights(make(**how).fit(numbers())))


def test_paths_may_be_samples(tmp_path):
    for number, x in enumerate(numbers(16)):
        np.save(tmp_path / f"{number}.npy", x.numpy())
    paths = [tmp_path / f"{number}.npy" for number in range(16)]
    found = make(views=lambda path: noisy(torch.from_numpy(np.load(path)))).fit(paths)
    assert torch.equal(weights(found), weights(make().fit(numbers(16))))


class Drawn(torch.utils.data.Dataset):
    """Views that the workers draw."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        x = numbers(16)[index]
        return noisy(x), noisy(x)


def test_workers_that_live_on_draw_as_new_ones_do():
    def learnt(persistent):
        loader = DataLoader(Drawn(), batch_size=8, num_workers=1, persistent_workers=persistent)
        return loader, weights(make().fit(loader))

    _, expected = learnt(False)
    loader, once = learnt(True)
    assert torch.equal(once, expected)
    assert torch.equal(weights(make().fit(loader)), expected)  # the same loader again


class Sharded(torch.utils.data.BatchSampler):
    """A user's batch sampler; its sampler is told of the epochs."""


class Own(torch.utils.data.BatchSampler):
    """Without the parts of its parent."""

    def __init__(self, count: int):
        self.count = count

    def __iter__(self):
        return iter(torch.arange(self.count).split(8))

    def __len__(self):
        return self.count // 8


def test_a_batch_sampler_of_the_user_needs_no_parts_of_its_parent():
    data = TensorDataset(numbers(16), numbers(16))
    assert make().fit(DataLoader(data, batch_sampler=Own(16))).step


def test_a_batch_sampler_is_told_the_epoch():
    class Told(torch.utils.data.SequentialSampler):
        epochs = ()

        def set_epoch(self, epoch):
            self.epochs += (epoch,)

    for kind in (torch.utils.data.BatchSampler, Sharded):
        sampler = Told(range(16))
        data = TensorDataset(numbers(16), numbers(16))
        make().fit(DataLoader(data, batch_sampler=kind(sampler, 8, False)))
        assert sampler.epochs == (0, 1, 2)


def test_what_is_changed_between_fit_and_resume_counts(tmp_path):
    lrs = []
    model = make(callbacks=lambda model, epoch, metrics: lrs.append(metrics["lr"])).fit(numbers())
    model.set_params(max_epochs=4, learning_rate=0.1, weight_decay=0.2).fit(numbers(), resume=True)
    assert lrs[2] == 0 and model.step == 20 and lrs[3] == 0
    assert [(g["initial_lr"], g["weight_decay"]) for g in model.optimizer.param_groups] == [(0.1, 0.2), (0.1, 0.0)]
    model.set_params(lr_scheduler="none", max_epochs=5).fit(numbers(), resume=True)
    assert lrs[4] == 0.1
    model.set_params(optimizer="sgd").save(tmp_path / "model.pt")  # what was learnt is AdamW's still
    with pytest.raises(UserError, match="optimizer was AdamW so far and is SGD now"):
        model.fit(numbers(), resume=True)
    assert model.set_params(optimizer="adamW", max_epochs=6).fit(numbers(), resume=True).step == 30
    whole, parted = [], []
    options = dict(lr_scheduler_kwargs={"interval": "epoch"}, max_epochs=4)
    make(callbacks=lambda *told: whole.append(told[2]["lr"]), **options).fit(numbers())
    model = make(callbacks=lambda *told: parted.append(told[2]["lr"]), max_steps=7, **options).fit(numbers())
    model.set_params(max_steps=-1).fit(numbers(), resume=True)
    assert parted[-3:] == whole[-3:] != parted[:3]


@pytest.mark.parametrize("how", ["batch size", "less data", "limit", "loader"])
def test_a_fit_is_not_resumed_where_an_epoch_has_other_steps(how, tmp_path):
    model = make().fit(numbers())
    model.save(tmp_path / "model.pt")
    loaded = BarlowTwins.load(tmp_path / "model.pt", encoder=Encoder, views=noisy)
    changes = {"batch size": {"batch_size": 20}, "limit": {"limit_train_batches": 3}}.get(how, {})
    data = {"less data": numbers(25), "loader": pairs(24)}.get(how, numbers())
    now = 2 if how == "batch size" else 3
    for one in (model, loaded):
        before = weights(one).clone()
        one.set_params(max_epochs=6, **changes)
        with pytest.raises(UserError, match=f"resume: an epoch had 5 steps so far and has {now} now; pass as much"):
            one.fit(data, resume=True)
        assert one.step == 15 and one.steps_per_epoch == 5 and torch.equal(weights(one), before)
        one.set_params(batch_size=8, limit_train_batches=None).fit(numbers(), resume=True)
        assert one.step == 30 and [line["epoch"] for line in one.history] == [*range(6)]
        assert one.set_params(**changes).fit(data).step == 6 * now


def test_a_file_that_does_not_say_how_many_steps_an_epoch_has_goes_on_with_any(tmp_path):
    options, losses = dict(lr_scheduler="none", max_epochs=3), []
    make(**options).fit(numbers()).save(tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert content.pop("steps_per_epoch") == 5 and content["partial"] == {}
    torch.save(content, tmp_path / "old.pt")
    model = BarlowTwins.load(tmp_path / "old.pt", encoder=Encoder, views=noisy)

    def step(batch, number):
        out = BarlowTwins.training_step(model, batch, number)
        losses.append(out["loss"].item())
        return out

    model.training_step = step
    model.set_params(max_epochs=5).fit(numbers(32), resume=True)  # 15 steps are three epochs of four, and three steps
    assert model.step == 20 and model.history[-2]["step"] == 16
    assert model.history[-2]["loss"] == pytest.approx(losses[-5]) and len(losses) == 5
    torch.save(content | {"steps_per_epoch": "5"}, tmp_path / "old.pt")
    with pytest.raises(UserError, match="not a file of an estimator"):
        BarlowTwins.load(tmp_path / "old.pt", encoder=Encoder)


def test_an_instance_of_an_optimizer_resumes_under_the_schedule():
    model = make()
    model.set_params(optimizer=torch.optim.SGD(model.net.parameters(), lr=0.1)).fit(numbers())
    model.set_params(max_epochs=5).fit(numbers(), resume=True)
    assert model.step == 25 and model.optimizer.param_groups[0]["initial_lr"] == 0.1


def test_a_pickle_resumes_as_the_estimator_itself():
    model = make(random_state=12345).fit(numbers())
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        one.set_params(max_epochs=4).fit(numbers(), resume=True)
        assert one.step == 20 and torch.equal(weights(one), weights(model))


def test_a_step_that_is_not_finite_leaves_no_trace_in_running_statistics():
    calls = []

    def exploding(sample):
        calls.append(1)
        return sample * (1e30 if len(calls) > 4 * 8 else 1) + torch.rand(())

    class Squared(nn.Linear):
        def forward(self, x):
            return super().forward(x) ** 2

    model = make(encoder=nn.Sequential(Squared(6, 8), nn.BatchNorm1d(8)), views=exploding)
    with pytest.raises(ValueError, match="not finite"):
        model.fit(numbers())
    assert model.step == 2 and all(buffer.isfinite().all() for buffer in model.net.buffers())
    assert model.transform(numbers()).isfinite().all()


def test_a_gradient_that_is_not_finite_changes_nothing():
    model = make().fit(numbers())
    before, loss = weights(model).clone(), model.loss
    model.set_params(max_epochs=4)
    model.loss = lambda z1, z2: loss(z1, z2) * torch.inf
    with pytest.raises(UserError, match="not finite"):
        model.fit(numbers(), resume=True)
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("optimizer", ["adamW", "sgd", "lamb", torch.optim.RMSprop])
def test_a_fit_goes_on_from_before_a_step_that_was_not_finite(optimizer, interrupted):
    """The device leaves out such a step and those after it; the host reads later that it did."""
    options = dict(optimizer=optimizer, lr_scheduler="none")
    model, whole = make(**options), make(**options).fit(numbers())

    def spoilt(batch, number):
        if model.step == 8 and interrupted:
            raise KeyboardInterrupt
        out = BarlowTwins.training_step(model, batch, number)
        return out | {"loss": out["loss"] * (torch.nan if model.step == 6 else 1)}

    model.training_step = spoilt
    reached = isinstance(optimizer, str)  # the host reads at once whether an optimizer of the user may make its step
    with pytest.raises(KeyboardInterrupt if interrupted and reached else UserError) as raised:
        model.fit(numbers())
    assert "at step 6 loss or gradient is not finite" in str(raised.value) or (interrupted and reached)
    before = make(max_steps=6, **options).fit(numbers()).net.state_dict()
    assert model.step == 6
    for name, value in model.net.state_dict().items():
        assert torch.equal(value, before[name]), name
    del model.training_step
    model.fit(numbers(), resume=True)
    assert torch.equal(weights(model), weights(whole)) and model.history == whole.history


def test_a_float16_scaler_leaves_steps_out_until_its_scale_is_right():
    model, start = make(precision="fp16", device="cpu"), weights(make())

    def large(batch, number):
        out = BarlowTwins.training_step(model, batch, number)
        return out | {"loss": out["loss"] * (30 if model.step < 12 else torch.nan)}

    model.training_step = large
    with pytest.raises(UserError, match="at step 12 loss or gradient is not finite"):
        model.fit(numbers())
    made = max(int(state["step"]) for state in model.optimizer.state.values())
    assert 0 < made < 12 == model.step and len(model.history) == 2
    assert weights(model).isfinite().all() and not torch.equal(weights(model), start)


class Loud(BarlowTwins):
    """Its loss is so large that a new float16 scaler leaves out some ten steps."""

    def training_step(self, batch, number=0, loader=0):
        out = super().training_step(batch, number)
        return out | {"loss": out["loss"] * 30}


def test_a_resumed_fit_knows_the_scale_of_float16(tmp_path):
    how = dict(precision="fp16", device="cpu", max_epochs=4)
    whole, stopped = make(Loud, **how).fit(numbers()), make(Loud, **how)
    stop_at(stopped, 17, numbers())
    stopped.save(tmp_path / "model.pt")
    loaded = Loud.load(tmp_path / "model.pt", encoder=Encoder, views=noisy)
    for model in (copy.deepcopy(stopped), stopped, loaded):
        assert torch.equal(weights(model.fit(numbers(), resume=True)), weights(whole))
    made = max(int(state["step"]) for state in whole.optimizer.state.values())
    assert 0 < made < 17 < whole.step


def test_after_a_loss_that_is_not_finite_nothing_changes_under_a_float16_scaler_either():
    options = dict(precision="fp16", device="cpu", lr_scheduler="none")
    model, start = make(**options), weights(make())

    def spoilt(batch, number):
        out = BarlowTwins.training_step(model, batch, number)
        return out | {"loss": out["loss"] * (torch.nan if model.step == 6 else 1)}  # the fit reads it at step 10

    model.training_step = spoilt
    with pytest.raises(UserError, match=r"at step 6 loss or gradient is not finite \(loss nan\)"):
        model.fit(numbers())
    assert model.step == 6 and model.epoch_sums["steps"] == 1
    before = weights(make(max_steps=6, **options).fit(numbers()))
    assert torch.equal(weights(model), before) and not torch.equal(before, start)


@pytest.mark.parametrize("optimizer", ["adamW", torch.optim.RMSprop])
def test_a_step_in_which_the_optimizer_fails_is_not_counted(optimizer):
    model, whole = make(optimizer=optimizer), make(optimizer=optimizer).fit(numbers())

    def failing():
        raise MemoryError

    def step(batch, number):
        if model.step == 7:
            model.optimizer.step = failing
        return BarlowTwins.training_step(model, batch, number)

    model.training_step = step
    with pytest.raises(MemoryError):
        model.fit(numbers())
    assert model.step == 7 and model.epoch_sums["steps"] == 2
    del model.training_step, model.optimizer.step
    model.fit(numbers(), resume=True)
    assert torch.equal(weights(model), weights(whole)) and model.history == whole.history


def test_the_loss_of_a_validation_may_be_a_plain_number():
    model = make()
    model.validation_step = lambda batch, number: {"loss": 0.25 + number}
    model.fit(numbers(), TensorDataset(numbers(16)))
    assert [line["val_loss"] for line in model.history] == [0.75] * 3


def test_a_validation_that_is_not_finite_is_told():
    class Failing(Encoder):
        def forward(self, x):
            return super().forward(x) * (1 if self.training else torch.nan)

    with pytest.raises(UserError, match="val: the loss is not finite"):
        make(encoder=Failing).fit(numbers(), TensorDataset(numbers(20)))


# Files --------------------------------------------------------------------------------


def test_a_file_is_read_without_code_and_checked(tmp_path):
    path = tmp_path / "model.pt"
    model = make().fit(numbers())
    model.save(path)
    torch.load(path, weights_only=True)
    assert torch.equal(BarlowTwins.load(path, encoder=Encoder).transform(numbers()), model.transform(numbers()))
    for kind, encoder, words in (
        (BarlowTwins, None, "pass that class"),
        (BarlowTwins, nn.Flatten, "does not fit"),
        (SimCLR, Encoder, "holds a BarlowTwins"),
    ):
        with pytest.raises(UserError, match=words):
            kind.load(path, encoder=encoder)
    content = torch.load(path, weights_only=True)
    for spoilt in ({"model": None}, {"params": {1: 2}}, {"params": {"encoder": 3}}, {"progress": 3}, {"step": -1}):
        torch.save(content | spoilt, path)
        with pytest.raises(UserError, match="not a file of an estimator"):
            BarlowTwins.load(path, encoder=Encoder)


def test_a_process_of_a_job_without_a_group_is_alone(tmp_path, monkeypatch):
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "1")
    model = make()
    model.save(tmp_path / "model.pt")
    assert BarlowTwins.load(tmp_path / "model.pt", encoder=Encoder).seed == model.seed
    with pytest.raises(UserError, match=r"RANK.* WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not.*unset RANK"):
        model.fit(numbers())


def test_numbers_of_numpy_are_saved_and_a_missing_folder_is_told(tmp_path):
    model = make(lambd=np.float64(0.5), lr_scheduler_kwargs={"min_lr": np.float64(0)}).fit(numbers())
    model.save(tmp_path / "model.pt")
    loaded = BarlowTwins.load(tmp_path / "model.pt", encoder=Encoder)
    assert loaded.lambd == loaded.loss.lambd == 0.5 and loaded.lr_scheduler_kwargs == {"min_lr": 0.0}
    with pytest.raises(UserError, match=r"save: .*nowhere"):
        model.save(tmp_path / "nowhere" / "model.pt")


class Kept(Encoder):
    """What its state_dict holds beside the weights is `extra`."""

    extra = None

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        pass


class Rate:
    def __init__(self, kept):
        self.kept = kept

    def __call__(self, step):
        return 1.0


@pytest.mark.parametrize("kept", [frozenset([1]), lambda: None, (i for i in ())], ids=["frozenset", "lambda", "other"])
def test_the_weights_are_saved_where_no_file_can_hold_the_state_of_the_schedule(kept, tmp_path, capsys):
    path, encoder = tmp_path / "model.pt", Kept()
    optimizer = torch.optim.SGD(encoder.parameters(), 0.1)
    parts = dict(optimizer=optimizer, lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, Rate(kept)))
    model = make(encoder=encoder, **parts).fit(numbers())
    capsys.readouterr()
    model.save(path)
    assert capsys.readouterr().out.count("no file can hold the state of optimizer or scheduler") == 1
    for _ in range(2):
        loaded = BarlowTwins.load(path, encoder=Kept(), views=noisy)
        assert torch.equal(weights(loaded), weights(model)) and loaded.step == 15
        with pytest.raises(UserError, match=r"resume: .*the state of optimizer or scheduler; call fit without resume"):
            BarlowTwins.load(path, encoder=encoder, views=noisy, **parts).fit(numbers(), resume=True)
        loaded.save(path)
    assert loaded.fit(numbers()).step == 15
    path.unlink()
    encoder.extra = kept  # and the network's
    with pytest.raises(UserError, match=r"^save: .*model\.pt cannot be written"):
        model.save(path)
    assert not list(tmp_path.iterdir())


def test_an_encoder_of_ours_needs_no_naming(tmp_path):
    images = torch.rand(8, 2, 8, 8)
    model = make(encoder=SmallResNet, encoder_kwargs=dict(width=4, stages=1, in_channels=2), max_epochs=1).fit(images)
    model.save(tmp_path / "model.pt")
    assert torch.equal(BarlowTwins.load(tmp_path / "model.pt").transform(images), model.transform(images))


class Powered(Encoder):
    """Its argument changes no weight's shape."""

    def __init__(self, power=1):
        super().__init__()
        self.power = power

    def forward(self, x):
        return super().forward(x) ** self.power


def test_an_encoder_that_was_an_instance_is_not_built_by_default(tmp_path):
    path, x = tmp_path / "model.pt", numbers()
    model = make(encoder=Powered(2)).fit(x)
    model.save(path)
    with pytest.raises(
        UserError, match=r"an instance of .*Powered.*pass one that is built alike .*or .*encoder_kwargs"
    ):
        BarlowTwins.load(path, encoder=Powered)
    for how in (dict(encoder=Powered(2)), dict(encoder=Powered, encoder_kwargs={"power": 2})):
        assert torch.equal(BarlowTwins.load(path, **how).transform(x), model.transform(x))
    assert not torch.equal(BarlowTwins.load(path, Powered, encoder_kwargs={}).transform(x), model.transform(x))
    images, sizes = torch.rand(8, 2, 8, 8), dict(width=4, stages=1, in_channels=2)
    model = make(encoder=SmallResNet(**sizes), max_epochs=1).fit(images)
    model.save(path)
    for encoder in (None, SmallResNet):
        with pytest.raises(UserError, match=r"an instance of ssl\..*SmallResNet"):
            BarlowTwins.load(path, encoder=encoder)
        loaded = BarlowTwins.load(path, encoder=encoder, encoder_kwargs=sizes)
        assert torch.equal(loaded.transform(images), model.transform(images))


def test_a_vit_of_torchvision_is_trained_saved_and_continued(tmp_path):
    sizes = dict(patch_size=8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, dropout=0.2)
    vit = dict(encoder=VisionTransformer, encoder_kwargs=sizes | {"image_size": 16, "num_classes": 8})
    images = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    whole, model = make(**vit).fit(images), make(**vit)
    stop_at(model, 4, images)
    model.save(tmp_path / "model.pt")
    model = BarlowTwins.load(tmp_path / "model.pt", views=noisy).fit(images, resume=True)
    assert torch.equal(weights(model), weights(whole)) and model.transform(images).shape == (24, 8)
    names = {id(p): name for name, p in model.net.named_parameters()}
    biases = {
        names[id(p)] for group in model.optimizer.param_groups if group["name"] == "biases" for p in group["params"]
    }
    assert {"encoder.class_token", "encoder.encoder.pos_embedding"} <= biases
    without_classifier, width = build_encoder("torchvision.models.VisionTransformer", 16, kwargs=sizes)
    model = make(encoder=without_classifier, proj_input_dim=width).fit(images)
    torch.testing.assert_close(model.transform(images), without_classifier.eval()(images).detach())
    with pytest.raises(TypeError, match=r"Encoder must be a PyTorch nn\.Module, or a class"):
        make(encoder=lambda: without_classifier)


# As under Lightning -------------------------------------------------------------------


def test_lightnings_words_that_mean_something_here_are_taken():
    said = make(accelerator="cpu", precision="bf16-mixed", devices=1, logger=False, enable_progress_bar=False)
    assert said.get_params() == make(device="cpu", precision="bf16", verbose=False).get_params()
    assert [make(precision=p).precision for p in (32, "32-true", None, 16, "16-mixed")] == ["off"] * 3 + ["fp16"] * 2
    assert clone(said).device == "cpu" and said.set_params(accelerator="gpu").device == "cuda"
    assert make(accelerator="cpu", device="auto").device == make(accelerator="cpu", device="cpu").device == "cpu"
    assert [make(enable_progress_bar=value).verbose for value in (True, None, False)] == [True, True, False]
    assert not make(barebones=True).verbose and make().set_params(enable_progress_bar=True).verbose is True
    with pytest.raises(UserError, match="enable_progress_bar=True and verbose=False do not agree; pass one of them"):
        make(enable_progress_bar=True, verbose=False)


# All arguments of lightning.pytorch.Trainer, 2.6.
TRAINER = """
accelerator strategy devices num_nodes precision logger callbacks fast_dev_run max_epochs min_epochs max_steps min_steps
max_time limit_train_batches limit_val_batches limit_test_batches limit_predict_batches overfit_batches
val_check_interval check_val_every_n_epoch num_sanity_val_steps log_every_n_steps enable_checkpointing
enable_progress_bar enable_model_summary accumulate_grad_batches gradient_clip_val gradient_clip_algorithm deterministic
benchmark inference_mode use_distributed_sampler profiler detect_anomaly barebones plugins sync_batchnorm
reload_dataloaders_every_n_epochs default_root_dir enable_autolog_hparams model_registry
"""


@pytest.mark.parametrize("name", TRAINER.split())
def test_every_word_of_lightnings_trainer_is_known(name):
    with pytest.raises((UserError, TypeError), match=f"^(?!.*there is no argument).*{name.rstrip('s')}"):
        make(**{name: "nonsense"}).fit(numbers())


def test_what_the_trainer_does_not_do_unasked_may_be_said():
    nothing = dict(
        benchmark=False,
        detect_anomaly=False,
        inference_mode=True,
        plugins=None,
        barebones=False,
        reload_dataloaders_every_n_epochs=0,
        limit_test_batches=1.0,
        limit_predict_batches=1.0,
        limit_val_batches=1.0,
        model_registry=None,
        enable_autolog_hparams=True,
    )
    assert make(**nothing).get_params() == make().get_params()
    for name, value, words in (
        ("benchmark", True, "set torch.backends.cudnn.benchmark"),
        ("limit_predict_batches", 3, "pass fewer samples to transform"),
        ("reload_dataloaders_every_n_epochs", 1, "each epoch iterates the loader again"),
    ):
        with pytest.raises(UserError, match=f"{name}={value} of Lightning's Trainer is not done here; {words}"):
            make(**{name: value})


@pytest.mark.parametrize(("limit", "steps"), [(3, 3), (99, 5), (0.5, 2), (0.01, 1), (1.0, 5), (None, 5)])
def test_an_epoch_is_as_many_batches_as_it_is_limited_to(limit, steps):
    for data in (numbers(), pairs()):
        model = make(limit_train_batches=limit).fit(data)
        assert (model.step, len(model.history)) == (3 * steps, 3)
    seen = []
    model = make(limit_train_batches=limit, max_epochs=1)
    model.training_step = lambda batch, number: seen.append(batch[0]) or type(model).training_step(model, batch, number)
    model.fit(numbers())
    whole = []
    model = make(max_epochs=1)
    model.training_step = lambda batch, number: (
        whole.append(batch[0]) or type(model).training_step(model, batch, number)
    )
    model.fit(numbers())
    assert len(seen) == steps and all(torch.equal(a, b) for a, b in zip(seen, whole))


def test_validation_comes_as_often_as_it_is_asked_for_and_first_of_all_where_it_might_fail():
    val = TensorDataset(numbers(20))
    model = make(max_epochs=5, check_val_every_n_epoch=2).fit(numbers(), val)
    assert ["val_loss" in line for line in model.history] == [False, True, False, True, False]
    plain = make(max_epochs=5).fit(numbers(), val)
    assert plain.history[1]["val_loss"] == model.history[1]["val_loss"]
    broken = DataLoader([(numbers(8), numbers(8)[:4])], batch_size=None)
    for steps, learnt in ((0, 5), (1, 0), (-1, 0)):
        model = make(num_sanity_val_steps=steps)
        with pytest.raises(ValueError, match="same shape"):
            model.fit(numbers(), broken)
        assert model.step == learnt
    sane = make(num_sanity_val_steps=2).fit(numbers(), val)
    assert torch.equal(weights(sane), weights(make().fit(numbers(), val)))  # nothing of it is kept
    encoder = Encoder()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    seen, plateau = [], torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    step = plateau.step
    plateau.step = lambda value: seen.append(value) or step(value)
    model = make(encoder=encoder, optimizer=optimizer, lr_scheduler=plateau, check_val_every_n_epoch=2, max_epochs=4)
    assert seen == [line["val_loss"] for line in model.fit(numbers(), val).history if "val_loss" in line]


def test_losses_are_printed_as_nidls():
    from ssl.losses import BarlowTwinsLoss, InfoNCELoss

    assert str(BarlowTwinsLoss(lambd=0.01)) == "BarlowTwinsLoss(lambd=0.01)"
    assert (
        str(BarlowTwinsLoss(loss_scale=0.5, form="gram")) == "BarlowTwinsLoss(lambd=0.005, loss_scale=0.5, form='gram')"
    )
    assert str(InfoNCELoss(0.2)) == "InfoNCELoss(temperature=0.2)"


# What fit shows -----------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


Notebook = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})  # its isatty() is False


@pytest.mark.parametrize("stream", [Terminal, Notebook])
def test_a_fit_shows_a_bar_where_somebody_looks_and_sums_up(stream, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", stream())
    shown = make().fit(numbers(), TensorDataset(numbers(20)))
    bar, said = sys.stderr.getvalue().split("\r")[-1], capsys.readouterr().out
    assert "15/15" in bar and f"epoch 3/3  loss {shown.history[-1]['loss']:.4g}  " in bar and " samples/s]" in bar
    assert re.fullmatch(r"fit: 15 steps in \d\d:\d\d: .*\d+% computing.*\n", said)
    monkeypatch.setattr(sys, "stderr", stream())
    silent = make(verbose=False).fit(numbers())
    assert sys.stderr.getvalue() == capsys.readouterr().out == ""
    assert torch.equal(weights(silent), weights(shown))


def test_without_a_terminal_a_fit_prints_lines(capsys):
    make(max_epochs=2).fit(pairs())
    said = capsys.readouterr()
    *_, last, summary = said.out.splitlines()
    assert last.startswith("step 10/10") and "epoch 2/2  loss" in last and summary.startswith("fit: 10 steps in")
    assert said.err == ""


def test_an_interrupted_fit_closes_its_bar_and_goes_on_from_where_it_stood(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    model = make()
    stop_at(model, 7, numbers())
    assert sys.stderr.getvalue().endswith("\n") and capsys.readouterr().out == ""
    model.fit(numbers(), resume=True)
    assert "15/15" in sys.stderr.getvalue() and capsys.readouterr().out.startswith("fit: 8 steps in")
    model.fit(numbers(), resume=True)  # there is nothing left to do
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["samples", "loader"])
def test_the_last_line_says_where_the_time_went(kind, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def spend(seconds, result):
        clock[0] += seconds
        return result

    model = make(
        max_epochs=1, views=lambda sample: spend(1, noisy(sample)), callbacks=lambda *_: spend(60, None)
    )  # 16 views a batch
    model.training_step = lambda *batch: spend(4, BarlowTwins.training_step(model, *batch))
    model.validation_step = lambda *batch: spend(20, {"loss": 0.0})
    loader = DataLoader([(x, x) for x in numbers()], 8, collate_fn=lambda rows: spend(16, default_collate(rows)))
    model.fit(numbers() if kind == "samples" else loader, DataLoader(TensorDataset(numbers(), numbers()), 20))
    assert capsys.readouterr().out.splitlines()[-1] == (
        "fit: 5 steps in 03:20: 40% waiting for data, 20% validating, 30% in callbacks, 10% computing; "
        "with num_workers other processes make the batches meanwhile"
    )


# scikit-learn and others --------------------------------------------------------------


@BOTH
def test_clone_set_params_and_pipeline(kind):
    model = make(kind, encoder_kwargs={"width": 8})
    copied = clone(model.fit(numbers()))
    assert copied.step == 0 and repr(copied) == repr(model)
    assert torch.equal(copied.fit(numbers()).transform(numbers()), model.transform(numbers()))
    x, y = numbers().numpy().astype(np.float64), (numbers()[:, 0] > 0).long().numpy()
    pipe = make_pipeline(make(kind), LogisticRegression())
    assert pipe.set_params(**{f"{kind.__name__.lower()}__max_epochs": 2}).fit(x, y).score(x, y) > 0.6
    assert pipe[0].step == 10 and "val_loss" not in pipe[0].history[-1]  # labels are no validation
    with pytest.raises(UserError, match="did you mean 'batch_size'"):
        model.set_params(batch_sise=3)
    model.set_params(batch_size=4)
    assert model.step == 15 and "batch_size=4" in repr(model)  # what was learnt is still there


@BOTH
def test_a_pipeline_may_end_in_an_estimator(kind):
    x = numbers()
    pipe = make_pipeline(StandardScaler(), make(kind))
    with pytest.raises(NotFittedError):
        pipe.transform(x)
    assert torch.equal(pipe.fit(x).transform(x), pipe[1].transform(pipe[0].transform(x)))
    check_is_fitted(pipe[1])
    with pytest.raises(NotFittedError):
        check_is_fitted(clone(pipe[1]))


def test_validation_and_callbacks():
    seen = []

    class Listener:
        def on_epoch_end(self, estimator, epoch, metrics):
            seen.append((epoch, metrics["val_loss"]))

    plain, listened = make(), make(callbacks=[Listener(), lambda model, epoch, metrics: seen.append(model.step)])
    listened.fit(numbers(), TensorDataset(numbers(20)))
    assert [item for item in seen if isinstance(item, int)] == [5, 10, 15] and len(seen) == 6
    assert torch.equal(weights(listened), weights(plain.fit(numbers())))  # validation changes nothing


@pytest.mark.parametrize(
    "shape, layers",
    [
        (
            (1, 6, 6, 6),
            lambda: nn.Sequential(nn.Conv3d(1, 8, 3), nn.BatchNorm3d(8), nn.AdaptiveAvgPool3d(1), nn.Flatten()),
        ),
        ((2, 30), lambda: nn.Sequential(nn.Conv1d(2, 8, 5), nn.BatchNorm1d(8), nn.AdaptiveAvgPool1d(1), nn.Flatten())),
        (
            (7, 9, 9),
            lambda: nn.Sequential(nn.Conv2d(7, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        ),
    ],
    ids=["volumes", "signals", "seven channels"],
)
@BOTH
def test_any_kind_of_sample(kind, shape, layers):
    x = torch.rand(16, *shape).numpy()
    h = make(kind, encoder=layers(), max_epochs=1).fit_transform(x)
    assert h.shape == (16, 8) and h.isfinite().all()


def test_in_a_notebook_that_has_the_standard_ssl_already(tmp_path):
    code = (
        f"import sys, ssl; assert not hasattr(ssl, '__path__'); ROOT = {str(ROOT)!r}\n"
        "sys.path.insert(0, ROOT); ssl.__path__ = [ROOT + '/ssl']\n"
        "from ssl.estimators import BarlowTwins, SimCLR; print(BarlowTwins.__name__, ssl.SSLContext.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.stdout == "BarlowTwins SSLContext\n", done.stderr


def test_the_example_of_volumes_runs(tmp_path, monkeypatch, capsys):
    volumes = np.random.default_rng(0).integers(0, 255, (128, 8, 8, 8), dtype=np.uint8)
    splits = {f"{split}_images": volumes for split in ("train", "val", "test")}
    np.savez(tmp_path / "x.npz", **splits, **{name[:-6] + "labels": np.arange(128)[:, None] % 2 for name in splits})
    monkeypatch.setattr(sys, "argv", ["volumes.py", str(tmp_path / "x.npz"), "--seeds", "0", "--epochs", "1"])
    runpy.run_path(str(ROOT / "examples" / "volumes.py"), run_name="__main__")
    assert "seed 0: AUC val / test, untrained" in capsys.readouterr().out

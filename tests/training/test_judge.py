"""Judging while training: nothing of training changes, nothing is judged on what was learnt from, nothing is lost."""

import contextlib
import dataclasses
import functools
import json
import math
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn import class_folders
from PIL import Image
from running import options, recipe
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from ssl import distributed
from ssl.checkpoints import run_folder, torch_file
from ssl.data.hold_out import split_validation
from ssl.data.images import Images
from ssl.data.order import Order
from ssl.encoders import SmallResNet
from ssl.errors import UserError
from ssl.evaluation import features, fixed_head, probes
from ssl.evaluation.feature_rows import Rows
from ssl.evaluation.intervals import wilson
from ssl.evaluation.metrics import share
from ssl.files import json_lines
from ssl.sources import datasets, validation
from ssl.training import guard, health, judging, stopping, watchdog
from ssl.training.forward import Embed
from ssl.training.log import Metrics

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "distributed")]
from spawn import on_ranks

import evaluate
import train


class Dropping(nn.Module):
    """An encoder with dropout, batch norm and a part that its owner keeps in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.body, self.drop = SmallResNet(width=8, stages=2), nn.Dropout(0.3)
        self.still = nn.BatchNorm2d(3)

    def train(self, mode: bool = True):
        super().train(mode)
        self.still.eval()
        return self

    def forward(self, x):
        return self.drop(self.body(self.still(x)))


TINY = {
    "config": recipe("barlow_twins"),
    "encoder": "test_judge.Dropping",
    "encoder_kwargs": "{}",
    "projector": "16-16",
    "image_size": 32,
    "batch_size": 16,
    "epochs": 3,
    "warmup_epochs": 1,
    "log_every": 1,
    "health_every": 2,
    "workers": 1,
    "amp": "off",
    "max_bad_fraction": 1.0,
}
JUDGED = {"eval_every": 1, "eval_at_start": "true", "ssl_val_interval": 1}
EVALUATIONS = ("knn_acc1", "linear_acc1", "val_loss")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Class folders: 64 to train on (four steps an epoch), 21 for validation, and test images that nobody can read."""
    folder = class_folders(tmp_path_factory.mktemp("images"), {"train": (64, 0), "val": (21, 1), "test": (6, 2)})
    for path in (folder / "test").rglob("*.png"):
        path.write_bytes(b"whoever reads this reads the test split")
    return folder


def learn(images: Path, folder: Path, pictures: bool = False, **settings) -> Path:
    """Train in this process, as `python train.py` does; to leave when asked to stop is an end like others."""
    chosen = TINY | {"data_dir": images, "output_dir": folder} | settings
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        if not pictures:  # they take longer than all else
            patch.setattr(judging.plots, "evaluation", lambda path, lines: True)
        patch.setattr(sys, "argv", ["train.py", *(str(w) for name, v in chosen.items() for w in (f"--{name}", v))])
        try:
            train.main()
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before:
                signal.signal(number, handler)
    return folder


def trained(folder: Path) -> dict:
    """What a run ends in, besides what it was judged by."""
    state = torch_file.load(folder / "checkpoint.pt")
    lines = [line for line in json_lines(folder / "metrics.jsonl") if not any(name in line for name in EVALUATIONS)]
    timed = ("samples_per_second", "data_wait", "health_data_wait")
    return {
        **{name: state[name] for name in ("model", "optimizer", "guard", "scaler", "step")},
        "encoder": torch_file.load(folder / "encoder.pt"),
        "metrics": [{name: value for name, value in line.items() if name not in timed} for line in lines],
    }


def judged(folder: Path) -> dict:
    """What a run was judged by: lines, and the files of the best encoder."""
    lines = [line for line in json_lines(folder / "metrics.jsonl") if any(name in line for name in EVALUATIONS)]
    return {"lines": lines, **{name: (folder / name).read_bytes() for name in ("encoder_best.pt", "best.json")}}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def unjudged(images, tmp_path_factory) -> Path:
    return learn(images, tmp_path_factory.mktemp("unjudged"))


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory) -> Path:
    return learn(images, tmp_path_factory.mktemp("judged"), **JUDGED)


# Training is not touched


def test_a_judged_training_is_the_same_to_the_bit(unjudged, whole):
    assert same(trained(whole), trained(unjudged))
    assert [line["step"] for line in judged(whole)["lines"]] == [0, 4, 8, 12]


def test_so_is_one_that_accumulates_and_ends_between_evaluations(images, tmp_path):
    how = {"config": recipe("simclr"), "method": "simclr", "projector": "16-8", "batch_size": 8, "accumulate": 2}
    how["epochs"] = 2
    learn(images, tmp_path / "off", **how)
    learn(images, tmp_path / "on", **how, eval_every=5, ssl_val_interval=1)
    assert same(trained(tmp_path / "on"), trained(tmp_path / "off"))
    first, last = judged(tmp_path / "on")["lines"]
    assert first["step"] == 4 and last["step"] == 8
    assert "linear_acc1" not in first and "linear_acc1" in last  # the end is judged, whole intervals or not
    assert 0 <= first["val_acc1"] <= first["val_acc5"] <= 1


def test_features_are_there_once_and_judged_as_copies_would_be(images, tmp_path, monkeypatch):
    found, accuracies = [], judging.accuracies

    def compared(fit, held, *rest):
        copies = [(Rows((rows[torch.arange(len(rows))],), rows.device), labels) for rows, labels in (fit, held)]
        found.append([part.data_ptr() for part in fit[0].parts] == [part.data_ptr() for part in held[0].parts])
        values = accuracies(fit, held, *rest)
        assert values == accuracies(*copies, *rest)
        return values

    monkeypatch.setattr(judging, "accuracies", compared)
    learn(images, tmp_path, eval_every=2)
    assert found and all(found)


def test_control_without_the_copy_it_would_not_be_the_same(images, unjudged, tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "copied", lambda net: net)  # left in evaluation mode
    learn(images, tmp_path, **JUDGED, health_every="null")
    assert not same(trained(tmp_path)["model"], trained(unjudged)["model"])


class Keeping(Dropping):
    """It keeps tensors of its forward pass, each of which knows its graph."""

    def forward(self, x):
        self.last = super().forward(x)
        self.kept = [{"squared": self.last**2}]
        return self.last


def test_an_encoder_that_keeps_what_it_computed_is_judged_as_one_that_does_not(images, whole, tmp_path):
    learn(images, tmp_path, encoder="test_judge.Keeping", **JUDGED)
    assert judged(tmp_path)["lines"] == judged(whole)["lines"] and same(trained(tmp_path), trained(whole))


@pytest.mark.parametrize("kept", [True, False])
def test_random_numbers_are_put_back(images, tmp_path, monkeypatch, kept):
    if not kept:  # the control
        monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    states = []
    judge = judging.Judge.judge

    def watched(self, *args):
        torch.manual_seed(5)
        modes = [module.training for module in self.model.modules()]
        before = torch.get_rng_state()
        found = judge(self, *args)
        assert modes == [module.training for module in self.model.modules()]
        states.append(torch.equal(before, torch.get_rng_state()))
        return found

    monkeypatch.setattr(judging.Judge, "judge", watched)
    learn(images, tmp_path, epochs=2, max_steps=1, **JUDGED)
    assert states == [kept]


class Drawing(Dropping):
    """It draws whenever it is run, also in evaluation mode."""

    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, training=True)


def test_an_encoder_that_draws_is_judged_the_same_whatever_was_drawn_before(images, tmp_path, monkeypatch):
    found, features = [], judging.Judge._features
    monkeypatch.setattr(judging.Judge, "_features", lambda *a: found.append(features(*a)) or found[-1])

    def twice(self, step, metrics, alive):
        for seed in (5, 6):
            torch.manual_seed(seed)
            self._accuracies(self.model.encoder.eval(), alive)  # the control: only what is in the fork
            torch.manual_seed(seed)
            self._values(step, alive)

    monkeypatch.setattr(judging.Judge, "judge", twice)
    learn(images, tmp_path, encoder="test_judge.Drawing", max_steps=1, eval_every=1, eval_at_start="true")
    assert len(found) == 8  # train and val, drawn and seeded, twice
    assert not same(found[0:2], found[4:6]) and same(found[2:4], found[6:8])


def judged_and_not(images: Path, folder: Path) -> list[dict]:
    """What this rank's network is after a training that was not judged, and after one that was."""
    models, model = [], train.Model
    train.Model = lambda *arguments: models.append(model(*arguments)) or models[-1]
    distributed.join, distributed.leave = lambda *a, **k: torch.device("cpu"), lambda: None
    for name, more in (("off", {}), ("on", JUDGED)):
        learn(images, folder / name, batch_size=8, epochs=2, sync_bn="false", **more)
    return [run_folder.copied(model.state_dict()) for model in models]


def test_so_is_one_on_two_processes_whose_running_statistics_differ(images, tmp_path):
    ranks = on_ranks(functools.partial(judged_and_not, images, tmp_path), [2], tmp_path)[2]
    assert all(same(*states) for states in ranks)
    assert not same(ranks[0][0], ranks[1][0])  # or to share them would show nowhere
    assert same(trained(tmp_path / "on"), trained(tmp_path / "off"))
    lines = judged(tmp_path / "on")["lines"]
    assert [line["step"] for line in lines] == [0, 4, 8]  # once each, by one of the two
    # What two processes say is what one says of the encoder that they leave.
    assert lines[-1]["knn_acc1"] == pytest.approx(reference(images, tmp_path / "on")["knn_acc1"], abs=1e-6)


# What is judged, and on what


def reference(images: Path, folder: Path) -> dict:
    """Of the encoder that a run leaves, without ssl.training.judging: files read one by one, k-NN by scikit-learn."""
    encoder = Dropping()
    encoder.load_state_dict(torch_file.load(folder / "encoder.pt"))
    encoder.eval()
    mean, std = (np.array(x, np.float32) for x in datasets.IMAGENET)
    found = {}
    for split in ("train", "val"):
        paths = sorted((images / split).rglob("*.png"))
        pixels = [(np.asarray(Image.open(path), np.float32) / 255 - mean) / std for path in paths]
        with torch.no_grad():
            h = encoder(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)).double()
        found[split] = F.normalize(h).numpy(), np.array([path.parent.name for path in paths])
    votes = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07))  # cosine of unit vectors
    return {"knn_acc1": votes.fit(*found["train"]).score(*found["val"])}


def test_knn_is_that_of_an_independent_reading_of_the_validation_split(images, whole):
    assert judged(whole)["lines"][-1]["knn_acc1"] == pytest.approx(reference(images, whole)["knn_acc1"], abs=1e-6)


def test_an_untrained_encoder_is_as_good_as_evaluate_finds_it(images, tmp_path, monkeypatch, capsys):
    """The same images are judged: what validates the training is the test split of another folder."""
    learn(
        images,
        tmp_path / "run",
        **JUDGED | {"ssl_val_interval": "null"},
        keep_checkpoints=9,
        save_epochs=1,
        max_steps=4,
    )
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("judge ")]
    assert "k-NN and evaluate.py's probe, of 64 images on 21" in said[0]
    online_values = judged(tmp_path / "run")["lines"][0]
    shutil.copytree(images / "train", tmp_path / "data" / "train")
    shutil.copytree(images / "val", tmp_path / "data" / "test")
    first = next(path for path in torch_file.kept(tmp_path / "run") if torch_file.load(path)["step"] == 0)
    network = {"model_path": first, "encoder": TINY["encoder"], "encoder_kwargs": "{}", "image_size": 32}
    arguments = options(**network, data_dir=tmp_path / "data", batch_size=16, workers=0)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    evaluate.main()
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert online_values["step"] == found["of"]["weights"]["steps"] == 0 and online_values["judged_n"] == 21
    assert online_values["knn_acc1"] == pytest.approx(found["knn"]["acc1"], abs=1e-6)
    assert online_values["linear_acc1"] == pytest.approx(found["probe"]["acc1"], abs=1e-6)
    assert online_values["linear_acc1_interval"] == pytest.approx(found["probe"]["acc1_interval"], abs=1e-5)


def test_features_that_hardly_vary_are_judged_by_what_is_in_them():
    """As those of an untrained encoder. The control: the fixed head, which does not standardise, learns nothing."""

    def nearly_alike(count, seed):
        labels = torch.arange(count) % 3
        noise = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
        return Rows((1 + 1e-3 * (noise + 3 * F.one_hot(labels, 8)),), torch.device("cpu")), labels

    fit, held = nearly_alike(90, 1), nearly_alike(60, 2)
    probed, plain = (
        judging.accuracies(fit, held, 3, how, 0, lambda: None) for how in (None, fixed_head.HeadSettings())
    )
    assert probed["linear_acc1"] > 0.8 and plain["linear_acc1"] < 0.5
    parts = probes.hold_out_tenth(fit, 0)
    assert probed["linear_acc1"] == probes.probe(*parts, held, 3)["acc1"]
    assert {name: probed[name] for name in ("judged_n", "knn_acc1")} == {
        name: plain[name] for name in ("judged_n", "knn_acc1")
    }


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("how", [None, fixed_head.HeadSettings()])
def test_judging_of_groups_is_evaluates_to_the_bit(split, how):
    """Groups of the images that could be read, in the order of their features. They change the probe and intervals."""
    generator = torch.Generator().manual_seed(0)
    data = labelled(240, [str(i // 6) for i in range(240)])
    own = labelled(90, [f"own {i // 9}" for i in range(90)]) if split else None
    chosen, _ = choose(data, own)
    of = data.groups + (own.groups if split else [])
    labels = chosen.labels()
    offsets = torch.randn(len(of) // 3, 8, generator=generator).repeat_interleave(3, 0)
    rows = Rows((offsets + torch.randn(len(of), 8, generator=generator) + F.one_hot(labels, 8),), torch.device("cpu"))
    read = torch.rand(len(of), generator=generator) > 0.1
    index = chosen.split(read)
    groups = [chosen.groups(part) for part in index]
    assert groups == [[of[i] for i in part.tolist()] for part in index]
    pairs = [(rows.subset(part), labels[part]) for part in index]
    online, plain = (judging.accuracies(*pairs, 3, how, 0, lambda: None, *more) for more in ([groups], []))
    protocols, head = ["knn", "probe" if how is None else "fixed"], how or fixed_head.HeadSettings()
    groups_of = dict(zip(("train", "test"), groups))
    later = evaluate.judge(*pairs, ["a", "b", "c"], evaluate.Settings(seed=0), protocols, head, groups_of, "")
    for judge, name in zip(("knn", "linear"), protocols):
        assert online[f"{judge}_acc1"] == later[name]["acc1"]
        assert online[f"{judge}_acc1_interval"] == later[name]["acc1_interval"] != plain[f"{judge}_acc1_interval"]
    assert later["knn"]["groups"] == len(set(groups[1]))
    assert (online["linear_train_acc1"] != plain["linear_train_acc1"]) == (how is None)  # another tenth is held out


@pytest.mark.parametrize(
    "count, how",
    [
        (90, fixed_head.HeadSettings()),
        (103, fixed_head.HeadSettings(linear_batch=40)),
        (
            103,
            fixed_head.HeadSettings(
                linear_epochs=7, linear_batch=40, linear_lr=0.5, linear_weight_decay=0.01, linear_momentum=0.5
            ),
        ),
    ],
)
def test_the_studys_head_is_the_published_one(count, how):
    """Against softmax regression written out in numpy: momentum, decay, cosine by epoch, rate × batch / 256."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, generator=generator)
    y = torch.randint(3, (count,), generator=generator)
    calls, epochs, batch = [], how.linear_epochs, min(how.linear_batch, count)
    head = fixed_head.fit_head(x, y, 3, how, 7, lambda: calls.append(1))
    assert len(calls) == epochs
    torch.manual_seed(7)
    plain = nn.Linear(6, 3)
    w, b = plain.weight.detach().double().numpy(), plain.bias.detach().double().numpy()
    moving_w, moving_b = np.zeros_like(w), np.zeros_like(b)
    orders = torch.Generator().manual_seed(7)
    data, truth = x.double().numpy(), np.eye(3)[y.numpy()]
    for epoch in range(epochs):
        lr = how.linear_lr * batch / 256 * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        order = torch.randperm(count, generator=orders).numpy()
        for rows in (order[i : i + batch] for i in range(0, count - batch + 1, batch)):
            scores = np.exp(data[rows] @ w.T + b)
            error = (scores / scores.sum(1, keepdims=True) - truth[rows]) / batch
            moving_w = how.linear_momentum * moving_w + error.T @ data[rows] + how.linear_weight_decay * w
            moving_b = how.linear_momentum * moving_b + error.sum(0) + how.linear_weight_decay * b
            w, b = w - lr * moving_w, b - lr * moving_b
    assert np.abs(head.weight.detach().numpy() - w).max() < 1e-5
    assert np.abs(head.bias.detach().numpy() - b).max() < 1e-5


def settings(**changed) -> train.Settings:
    return dataclasses.replace(train.Settings(), **{"eval_every": 1, **changed})


def labelled(count: int = 200, groups=None, classes: int = 3, **more) -> Images:
    labels = torch.arange(count) % classes
    return Images(
        "folder",
        labels,
        [str(i) for i in range(classes)],
        resident=torch.zeros(count, 3, 4, 4, dtype=torch.uint8),
        groups=groups,
        **more,
    )


def choose(data: Images, own: Images | None = None, learns: bool = False, **changed):
    asked = []

    def load(split: str) -> Images | None:
        asked.append(split)
        return {"train": data, "val": own}[split]

    return validation.find_validation(settings(**changed), data, load, learns), asked


def test_without_a_split_a_tenth_is_held_out_and_no_head_learns_it():
    chosen, asked = choose(labelled())
    fit, held = chosen.split()
    assert asked == ["val"] and chosen.seen  # the test split is not even read
    assert torch.equal(held, split_validation(labelled().labels, 0.1, 0)[1])
    assert len(held) == len(chosen.images) == 21 and sorted([*fit.tolist(), *held.tolist()]) == list(range(200))
    read = torch.ones(200, dtype=torch.bool)
    read[fit[0]] = read[held[0]] = False
    assert [len(rows) for rows in chosen.split(read)] == [len(fit) - 1, len(held) - 1]  # neither learnt nor scored


def test_whole_groups_are_held_out():
    groups = [str(i // 6) for i in range(200)]
    chosen, _ = choose(labelled(groups=groups))
    fit, held = ({groups[i] for i in rows.tolist()} for rows in chosen.split())
    assert held and not fit & held
    cut = split_validation(labelled().labels, 0.1, 0)  # the control: image by image, groups are on both sides
    assert {groups[i] for i in cut[0].tolist()} & {groups[i] for i in cut[1].tolist()}


def test_a_validation_split_is_scored_and_unlabelled_images_are_neither_learnt_nor_scored():
    data = labelled(50)
    data.labels[:10] = -1
    chosen, _ = choose(data, labelled(20))
    fit, held = chosen.split()
    assert fit.tolist() == list(range(10, 50)) and held.tolist() == list(range(50, 70)) and not chosen.seen


@pytest.mark.parametrize(
    "how, words",
    [
        ({"data": Images("array", torch.full((9,), -1), [])}, "eval_every: needs labels, and array has none here"),
        ({"data": labelled(classes=1)}, "images of only one class, '0'"),
        ({"data": labelled(), "learns": True}, "eval_every: this run learns from the labels of all its images"),
        ({"data": labelled(), "own": labelled(classes=4)}, "the classes 0, 1, 2, 3, train of 3 channels and 0, 1, 2"),
        ({"data": labelled(3), "own": labelled(20)}, "of the 3 labelled training images no two are of one class"),
        ({"data": labelled(3)}, "no image of the 3 can be held out"),
        ({"data": labelled(), "eval_every": None, "eval_at_start": True}, "set that, too"),
        ({"data": labelled(groups=["a"] * 200), "own": labelled(groups=["a"] * 200)}, "leak: 1 patients"),
    ],
)
def test_what_cannot_be_judged_is_one_error_before_anything_starts(how, words):
    with pytest.raises(UserError, match=words):
        choose(**how)


def test_what_learns_from_labels_is_judged_by_a_split_of_its_own():
    assert choose(labelled(), labelled(20), learns=True)[0] is not None
    assert choose(labelled(), eval_every=None)[0] is None
    unlabelled = dataclasses.replace(labelled(), labels=torch.full((200,), -1), classes=[])
    assert len(choose(unlabelled, eval_every=None, ssl_val_interval=2)[0].images) == 20


# The loss on validation images


def test_validation_batches_are_as_large_as_trainings_or_as_there_are_images():
    of_training = Order(1000, 16, 2, 1, 0)
    order = validation.validation_order(settings(), 100, of_training)
    assert order.global_batch == 32 and order.steps_per_epoch == 3
    order = validation.validation_order(settings(), 21, of_training)
    assert order.global_batch == 20 and order.steps_per_epoch == 1
    order = validation.validation_order(settings(accumulate_mode="split"), 100, of_training)
    assert order.global_batch == 16 and order.accumulate == 1  # the loss is of one micro-batch, as in training
    with pytest.raises(UserError, match="ssl_val_interval: 1 validation images are too few"):
        validation.validation_order(settings(), 1, of_training)


def test_its_views_are_the_same_every_time_and_no_trainings(images, tmp_path, monkeypatch):
    data = datasets.load("folder", str(images), "train", image_size=32)
    own = datasets.load("folder", str(images), "val", image_size=32)
    asked = dataclasses.replace(settings(eval_every=None, ssl_val_interval=1), batch_size=8, image_size=32)
    chosen, _ = choose(data, own, eval_every=None, ssl_val_interval=1)
    seen = []

    def loss_of(embed, criterion, net, micro_batches):
        seen.append(micro_batches[0])
        return torch.tensor(float(len(seen))), {"contrastive_acc1": torch.tensor(0.5)}

    monkeypatch.setattr(judging, "whole_loss", loss_of)
    judge = judge_of(asked, chosen, tmp_path, Order(64, 8, 1, 1, 0))
    metrics = Metrics(tmp_path / "metrics.jsonl", 0)
    judge.judge(8, metrics, lambda: None)
    judge.judge(16, metrics, lambda: None)
    first, again = seen[:2], seen[2:]
    assert len(torch.cat([batch.index for batch in first]).unique()) == 16  # whole batches of 8 of the 21
    for a, b in zip(first, again):
        assert torch.equal(a.index, b.index) and same(a.views, b.views)
    lines = json_lines(tmp_path / "metrics.jsonl")
    assert [line["val_loss"] for line in lines] == [1.5, 3.5] and lines[0]["val_acc1"] == 0.5
    # Training shows the same images in the same first epoch otherwise.
    views = train.make_views(asked)
    of_training = next(
        judging.training_batches(own, views, Order(21, 8, 1, 1, asked.seed), 0, 1, 0, torch.device("cpu"))
    )
    assert not torch.equal(of_training.index, first[0].index)
    assert not set(map(tuple, of_training.views[0][1].tolist())) & set(map(tuple, first[0].views[0][1].tolist()))


class Undefined(Dropping):
    """NaN in evaluation mode alone."""

    def forward(self, x):
        return super().forward(x) * (1.0 if self.training else math.nan)


@pytest.mark.parametrize("bad", [True, False])
def test_features_that_are_not_finite_end_a_run_unless_its_last_step_was_bad(
    images, tmp_path, monkeypatch, capsys, bad
):
    monkeypatch.setattr(guard.Guard, "last_step_was_bad", lambda self: bad)  # then it goes back, or leaves them behind
    with contextlib.nullcontext() if bad else pytest.raises(UserError, match="NaN or Inf"):
        learn(images, tmp_path, encoder="test_judge.Undefined", eval_every=1, epochs=2)
    assert capsys.readouterr().out.count("is not judged: the network gives NaN or Inf") == (2 if bad else 0)
    assert not any("linear_acc1" in line for line in json_lines(tmp_path / "metrics.jsonl"))


def test_after_a_bad_step_images_that_cannot_be_read_end_a_run_still(images, tmp_path, monkeypatch):
    """Perhaps one rank alone cannot read them: if it went on, it would wait for the others and they for it."""

    def unreadable(*_):
        raise UserError("a dozen images in a row cannot be read")

    monkeypatch.setattr(guard.Guard, "last_step_was_bad", lambda self: True)
    monkeypatch.setattr(judging, "whole_loss", unreadable)
    with pytest.raises(UserError, match="a dozen images in a row"):
        learn(images, tmp_path, ssl_val_interval=1, epochs=2)


def test_images_that_cannot_be_read_are_left_out_and_told(images, tmp_path, capsys):
    mean, std = datasets.IMAGENET
    how = settings(image_size=8, eval_every=None, mean=mean, std=std)
    judge = judge_of(how, None, tmp_path, Order(9, 9, 1, 1, 0))
    files = [*map(str, sorted((images / "val").rglob("*.png"))[:4]), *map(str, (images / "test").rglob("*.png"))]
    data = Images("folder", torch.zeros(10, dtype=torch.long), ["a"], paths=files)
    features, read = judge._features(nn.Flatten(), data, 8, lambda: None)
    assert features.shape == (10, 3 * 8 * 8) and read.tolist() == [True] * 4 + [False] * 6
    assert "left out    6 of 10 images that judge the encoder" in capsys.readouterr().out
    with pytest.raises(UserError, match="none of the 6 images that judge the encoder can be read"):
        judge._features(nn.Flatten(), data.subset(torch.arange(4, 10)), 8, lambda: None)
    lost = Images("folder", torch.zeros(11, dtype=torch.long), ["a"], paths=[f"/nowhere/{i}.png" for i in range(11)])
    with pytest.raises(UserError, match="11 of 11 images cannot be read, more than the 10 allowed"):
        judge._features(nn.Flatten(), lost, 8, lambda: None)


def test_images_of_two_sizes_are_judged_at_one(tmp_path, monkeypatch):
    """Small images are shown whole; the network reads those of validation at the size of train's, as evaluate.py."""
    larger = torch.zeros(20, 3, 6, 6, dtype=torch.uint8)
    larger[:, :, 2:4, 2:4] = 255
    chosen, _ = choose(labelled(60), dataclasses.replace(labelled(20), resident=larger))
    mean, std = datasets.IMAGENET
    judge = judge_of(settings(image_size=8, mean=mean, std=std), chosen, tmp_path, Order(60, 9, 1, 1, 0))
    found = []
    monkeypatch.setattr(judging, "accuracies", lambda *how: found.extend(rows[torch.arange(20)] for rows, _ in how[:2]))
    judge._accuracies(nn.Flatten(), lambda: None)
    shown = [
        rows.view(20, 3, 4, 4) * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1) for rows in found
    ]
    assert shown[0].abs().max() < 1e-5
    assert torch.allclose(shown[1], F.interpolate(larger / 255, (4, 4), mode="bilinear", antialias=True), atol=0.06)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Flatten()


def judge_of(settings: train.Settings, validation, folder: Path, order: Order) -> judging.Judge:
    model, run = Model(), SimpleNamespace(folder=folder)
    embed = Embed(model, train.make_views(settings), datasets.IMAGENET, torch.device("cpu"), None)
    return judging.Judge(settings, validation, run, order, 0, model=model, embed=embed, criterion=None)


# Nothing is lost, nothing comes twice


@pytest.mark.parametrize("stop", [4, 7])
def test_an_interrupted_run_is_judged_as_one_that_was_not(images, whole, tmp_path, stop):
    learn(images, tmp_path, **JUDGED, max_steps=stop)
    learn(images, tmp_path, **JUDGED)
    assert judged(tmp_path) == judged(whole) and same(trained(tmp_path), trained(whole))


def put_back(saved: Path, folder: Path) -> None:
    """As a kill leaves it: metrics and the best encoder are of later steps than the newest checkpoint."""
    for path in torch_file.kept(folder):
        path.unlink()
    shutil.copy(saved, folder / "checkpoint.pt")


@pytest.mark.parametrize("kept", [True, False])
def test_a_killed_run_is_judged_as_one_that_was_not(images, whole, tmp_path, monkeypatch, kept):
    """Asked to stop in the midst of the evaluation at step 4, continued, and killed at step 9 without a checkpoint."""
    answers = iter([None] * 8 + ["SIGTERM"])
    with monkeypatch.context() as patch:
        patch.setattr(stopping.StopRequests, "answer", lambda self: next(answers, None))
        patch.setattr(judging, "accuracies", lambda *a, **k: pytest.fail("it was not given up"))
        learn(images, tmp_path, **JUDGED | {"eval_at_start": "false"})
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["saved_step"]) == ("preempted", 4) and not (tmp_path / "best.json").exists()
    shutil.copy(tmp_path / "checkpoint.pt", tmp_path / "saved")
    learn(images, tmp_path, **JUDGED, max_steps=9)
    put_back(tmp_path / "saved", tmp_path)
    if not kept:  # the control: lines by their step alone
        monkeypatch.setattr(judging.Judge, "reached", lambda self, line: True)
    learn(images, tmp_path, **JUDGED)
    undisturbed = judged(whole)
    undisturbed["lines"] = undisturbed["lines"][1:]  # without the one before the first step
    steps = [line["step"] for line in judged(tmp_path)["lines"]]
    assert steps == [4, 8, 12] if kept else steps == [4, 4, 8, 12]
    assert not kept or judged(tmp_path)["lines"] == undisturbed["lines"]
    assert same(trained(tmp_path), trained(whole))
    assert not list(tmp_path.glob("*partial*"))


@pytest.mark.parametrize("newest", ["checkpoint.1.pt", "checkpoint.2.pt"])  # written after that evaluation, before it
def test_the_evaluation_before_the_first_step_is_there_once_after_a_kill(images, whole, tmp_path, newest):
    learn(images, tmp_path, **JUDGED, max_steps=2, keep_checkpoints=3)
    shutil.copy(tmp_path / newest, tmp_path / "saved")
    state = torch_file.load(tmp_path / "saved")
    assert state["step"] == 0 and state["judge"]["judged"] == (0 if newest == "checkpoint.1.pt" else -1)
    put_back(tmp_path / "saved", tmp_path)
    learn(images, tmp_path, **JUDGED)
    assert judged(tmp_path) == judged(whole) and same(trained(tmp_path), trained(whole))


def test_the_end_is_judged_after_a_stop_that_came_with_it(images, whole, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopping.StopRequests, "answer", lambda self: "SIGTERM" if patched(self) else None)

        def patched(self) -> bool:
            found = json_lines(tmp_path / "metrics.jsonl")
            return bool(found) and found[-1]["step"] == 11

        learn(images, tmp_path, **JUDGED)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["step"]) == ("preempted", 12)
    learn(images, tmp_path, **JUDGED)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"
    assert judged(tmp_path) == judged(whole)


@pytest.mark.parametrize("length, state", [(1, "finished"), (2, "preempted")])
def test_a_stop_that_comes_with_the_last_step_leaves_a_finished_run(images, tmp_path, monkeypatch, length, state):
    monkeypatch.setattr(stopping.StopRequests, "answer", lambda self: "SIGTERM")
    learn(images, tmp_path, max_steps=length)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["step"]) == (state, 1)


def test_a_finished_run_can_be_judged_later_and_is_once(images, tmp_path, monkeypatch):
    learn(images, tmp_path)
    learnt = trained(tmp_path)
    learn(images, tmp_path, eval_every=1)
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 12
    assert same(trained(tmp_path)["model"], learnt["model"])
    monkeypatch.setattr(judging.Judge, "_values", lambda *a: pytest.fail("judged again"))
    learn(images, tmp_path, eval_every=1)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"


def scripted(monkeypatch, values: list[float]) -> None:
    shown = iter(values)
    monkeypatch.setattr(
        judging.Judge,
        "_values",
        lambda self, step, go_on: {
            "judged_n": 20,
            "linear_train_acc1": 1.0,
            **share("knn_acc1", 5, 20),
            **share("linear_acc1", round(20 * next(shown)), 20),
        },
    )


def test_the_best_encoder_is_kept_and_the_first_of_equals(images, tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, [0.25, 0.5, 0.5])
    how = JUDGED | {"eval_at_start": "false", "save_epochs": 1, "keep_checkpoints": 9}
    learn(images, tmp_path, pictures=True, **how)
    assert json.loads((tmp_path / "best.json").read_text()) == {
        "step": 8,
        "epoch": 2.0,
        "chosen_by": "linear_acc1",
        "head": "probe",
        "value": 0.5,
        "interval": wilson(10, 20),
        "n": 20,
    }
    best, last = (torch_file.load(tmp_path / name) for name in ("encoder_best.pt", "encoder.pt"))
    at_8 = next(state for state in map(torch_file.load, torch_file.kept(tmp_path)) if state["step"] == 8)
    assert best.keys() == last.keys() and not same(best, last)
    assert same(best, {name[8:]: x for name, x in at_8["model"].items() if name.startswith("encoder.")})
    printed = capsys.readouterr().out
    assert "epoch 2  k-NN 25.0 % (11.2–46.9)  linear 50.0 % (29.9–70.1), train 100.0 %" in printed
    assert f"best        {tmp_path / 'encoder_best.pt'}: linear 50.0 % (29.9–70.1) at epoch 2" in printed
    assert (tmp_path / "evaluation.png").stat().st_size > 1000


def test_the_best_of_one_head_is_not_compared_with_anothers(images, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.75, 0.5, 0.25])
    how = JUDGED | {"eval_at_start": "false"}
    learn(images, tmp_path, **how, max_steps=5)
    learn(images, tmp_path, **how | {"eval_head": "fixed"})
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["step"], best["head"], best["value"]) == (8, "fixed", 0.5)


def test_a_best_that_cannot_be_written_is_tried_again_and_never_called_another(images, tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, [0.5, 0.75, 0.25])
    save, tries = torch_file.save, []

    def full(value, path, *rest):
        if path.name == "encoder_best.pt":
            tries.append(sorted(p.name for p in tmp_path.glob("*best*")))
            if len(tries) == 2:
                raise OSError(28, "No space left on device")
        save(value, path, *rest)

    monkeypatch.setattr(torch_file, "save", full)
    learn(images, tmp_path, **JUDGED | {"eval_at_start": "false", "save_epochs": 1})
    # While the best at 8 is not there, the one at 4 lies there without a word about it.
    assert tries == [[], ["encoder_best.pt"], ["encoder_best.pt"]]
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 8
    assert "could not save: [Errno 28]" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [True, False])
def test_the_time_of_an_evaluation_is_not_trainings(images, tmp_path, monkeypatch, kept):
    clock = {"ahead": 0.0}
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + clock["ahead"])
    judge = judging.Judge.judge

    def long(self, *args):
        clock["ahead"] += 1e7
        return judge(self, *args)

    if kept:
        monkeypatch.setattr(judging.Judge, "judge", long)
    else:  # the control: as long, where it counts
        take = train.set_lr
        monkeypatch.setattr(train, "set_lr", lambda *a: (clock.update(ahead=clock["ahead"] + 1e7), take(*a)))
    learn(images, tmp_path, **JUDGED, max_steps=5, timeout_minutes=1e9, save_minutes=1e9)
    rates = [line["samples_per_second"] for line in json_lines(tmp_path / "metrics.jsonl") if "loss" in line]
    assert all((rate > 1e-3) == kept for rate in rates)


def test_it_says_that_it_lives_all_through_on_every_rank_alike(images, tmp_path, monkeypatch):
    """The watchdog hears of it, and a stop is asked for, at every batch of features and every epoch of the head."""
    beats = []
    beat = watchdog.Watchdog.beat
    monkeypatch.setattr(
        watchdog.Watchdog, "beat", lambda self, step, doing: (beats.append((step, doing)), beat(self, step, doing))
    )
    learn(images, tmp_path, **JUDGED, max_steps=1)
    # 4 + 2 batches of features, one part of the queries, 30 epochs, one batch of views
    assert beats.count((0, "evaluating")) == 4 + 2 + 1 + 30 + 1
    assert beats[-2:] == [(0, "reading data"), (0, "computing")]
    phases = [watchdog.PHASES.index(doing) for _, doing in beats]
    assert phases == sorted(phases)  # in this order ranks are said to be behind one another


def test_the_setting_may_change_from_one_start_to_the_next(images, unjudged, tmp_path, monkeypatch):
    learn(images, tmp_path, max_steps=4)
    learn(images, tmp_path, **JUDGED, max_steps=9)

    def is_best(health, step: int, epoch: float) -> bool:  # whenever it is asked
        health.best = {"step": step, "epoch": epoch, "chosen_by": "a score", "value": 0.0}
        return True

    monkeypatch.setattr(health.Health, "_is_best", is_best)
    learn(images, tmp_path)
    assert same(trained(tmp_path), trained(unjudged))
    assert [line["step"] for line in judged(tmp_path)["lines"]] == [4, 8]
    assert run_folder.copied(torch_file.load(tmp_path / "checkpoint.pt")["judge"])["judged"] == 8
    assert json.loads(judged(tmp_path)["best.json"])["chosen_by"] == "linear_acc1"  # what labels chose stays chosen


# The study's head ---------------------------------------------------------------------


def test_the_command_at_the_end_of_a_run_judges_the_best_encoder_by_the_head_of_the_run(tmp_path, monkeypatch, capsys):
    data = class_folders(tmp_path / "images", {"train": (64, 0), "val": (21, 1), "test": (21, 2)})
    how = fixed_head.HeadSettings(
        linear_epochs=4, linear_batch=32, linear_lr=0.05, linear_weight_decay=0.1, linear_momentum=0.5
    )
    used, fit_head = [], judging.fit_head
    monkeypatch.setattr(judging, "fit_head", lambda *a: used.append(a[3]) or fit_head(*a))
    net = {"encoder": "ssl.encoders.SmallResNet", "encoder_kwargs": "{width: 8, stages: 2}"}
    learn(data, tmp_path / "run", epochs=2, eval_every=1, eval_head="fixed", **net, **dataclasses.asdict(how))
    assert {name: getattr(used[0], name) for name in dataclasses.asdict(how)} == dataclasses.asdict(how)
    (command,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("judge best")]
    monkeypatch.setattr(sys, "argv", [*shlex.split(command)[3:], "features", "--workers", "0"])
    evaluate.main()
    found = json.loads((tmp_path / "run" / "results.json").read_text())["fixed"]
    assert {name: found[name] for name in dataclasses.asdict(how)} == dataclasses.asdict(how)
    splits = features.load(tmp_path / "run").splits
    head = fixed_head.fit_head(*splits["train"].pair(), 3, how, 0, lambda: None)
    x, y = splits["test"].pair()
    assert found["n"] == 21
    assert found["acc1"] == pytest.approx((head(x[torch.arange(21)]).argmax(1) == y).double().mean().item())


def test_settings_of_a_head_that_does_not_judge_are_refused():
    with pytest.raises(UserError, match="linear_lr: only the fixed head has it; set --eval_head fixed"):
        train.check(train.Settings(linear_lr=0.2, eval_every=1))
    train.check(train.Settings(linear_lr=0.2, eval_every=1, eval_head="fixed"))


def test_a_runs_settings_of_the_head_are_checked():
    assert (
        fixed_head.settings_of({}) == fixed_head.HeadSettings(90, 4096, 0.1, 0.0, 0.9)
        and fixed_head.settings_of({"linear_lr": 1}).linear_lr == 1.0
    )
    for wrong in ({"linear_batch": 0}, {"linear_momentum": 1.0}, {"linear_lr": "fast"}, {"linear_epochs": None}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            fixed_head.settings_of(wrong)


def test_a_head_that_ends_in_nan_is_no_result():
    x, y = torch.full((8, 2), 1e38), torch.arange(8) % 2
    with pytest.raises(UserError, match="protocol fixed: the head ended in NaN or Inf"):
        fixed_head.judge((x, y), (x, y), 2, fixed_head.HeadSettings(), 0)

"""When a fine-tuning ends, and which epoch it takes."""

import contextlib
import math

import pytest
import torch

import finetune
from ssl.data.images import Images
from ssl.errors import UserError
from ssl.sources.labelled import choose_labels
from ssl.training import early_stopping


def test_training_ends_when_patience_does_and_the_first_best_is_taken():
    settings = finetune.Settings(patience=3, epochs=10)
    losses = [0.9, 0.5, 0.6, 0.5, 0.7]
    history = [{"epoch": i + 1, "val_loss": loss} for i, loss in enumerate(losses)]
    assert [early_stopping.finished(history[:n], settings) for n in range(6)] == [False] * 5 + [True]
    assert early_stopping.best_of(history, settings)["epoch"] == 2
    history = [{"epoch": i + 1, "val_loss": 1 / (i + 1)} for i in range(10)]
    assert not early_stopping.finished(history[:9], settings) and early_stopping.finished(history, settings)


def test_the_last_epoch_may_be_taken_whatever_validation_says():
    settings = finetune.Settings(watch="last", patience=1, epochs=5)
    history = [{"epoch": i + 1, "val_loss": float(i)} for i in range(5)]
    assert [early_stopping.finished(history[:n], settings) for n in range(6)] == [False] * 5 + [True]
    assert [early_stopping.keeps_newest(history[:n], settings) for n in range(1, 6)] == [False] * 4 + [True]
    with pytest.raises(UserError, match="watch: last compares no epochs, and schedule plateau has to"):
        finetune.check(finetune.Settings(watch="last", dataset="shapes"))


def test_validation_that_chooses_nothing_is_made_about_twenty_times_and_at_the_end():
    for epochs in (1, 7, 20, 39, 40, 61, 1000):
        last, loss = (finetune.Settings(watch=watch, epochs=epochs) for watch in ("last", "loss"))
        made = [epoch for epoch in range(1, epochs + 1) if early_stopping.is_validated(epoch, last)]
        assert made[-1] == epochs and min(epochs, 20) <= len(made) < 40
        assert len(made) == -(-epochs // early_stopping.validated_every(epochs))
        assert all(early_stopping.is_validated(epoch, loss) for epoch in range(1, epochs + 1))
    some = [{"epoch": 1, "train_loss": 1.0}, {"epoch": 2, "train_loss": 1.0, "val_loss": 9.0, "val_auc": 0.1}]
    for watch in ("loss", "auc"):  # --resume_force may change what chooses
        assert early_stopping.best_of(some, finetune.Settings(watch=watch))["epoch"] == 2


@pytest.mark.parametrize("watch", ["loss", "last"])
def test_more_epochs_than_there_are_to_make_are_all(watch):
    """As --resume_force leaves them where it sets fewer."""
    settings = finetune.Settings(watch=watch, epochs=2)
    history = [{"epoch": i + 1, "val_loss": 1 / (i + 1)} for i in range(4)]
    assert early_stopping.finished(history, settings) and early_stopping.keeps_newest(history, settings)


@pytest.mark.parametrize(
    ("watch", "epochs", "kept", "fits"),
    [
        ("loss", 9, 2, True),
        ("loss", 2, 2, True),
        ("loss", 9, 3, False),  # the best by another measure
        ("loss", 9, None, False),  # of a run that takes its last
        ("last", 9, None, True),  # it is still to be made
        ("last", 9, 2, True),
        ("last", 3, 3, True),
        ("last", 2, 3, True),
        ("last", 3, 2, False),
        ("last", 2, None, False),
    ],
)
def test_a_run_continues_only_with_the_weights_that_its_settings_choose(watch, epochs, kept, fits):
    history = [{"epoch": i + 1, "val_loss": loss} for i, loss in enumerate([0.9, 0.5, 0.6])]
    best = {} if kept is None else {"best": history[kept - 1]}
    settings = finetune.Settings(watch=watch, epochs=epochs)
    with contextlib.nullcontext() if fits else pytest.raises(UserError, match=f"watch: {watch} chooses epoch"):
        early_stopping.require_kept(history, best, settings)
    early_stopping.require_kept([], {}, settings)


def test_a_loss_that_is_not_finite_ends_the_run():
    with pytest.raises(UserError, match="not finite in epoch 4; training has diverged"):
        early_stopping.require_finite({"epoch": 4, "train_loss": math.nan, "val_loss": 1.0})


def test_what_is_watched_may_be_the_auc():
    settings = finetune.Settings(watch="auc")
    history = [{"epoch": 1, "val_loss": 0.1, "val_auc": 0.7}, {"epoch": 2, "val_loss": 0.2, "val_auc": 0.8}]
    assert early_stopping.best_of(history, settings)["epoch"] == 2
    labels = torch.tensor([0, 1, 1, 0])
    splits = {"train": Images("folder", labels, ["a", "b"]), "val": Images("folder", labels[:1], ["a", "b"])}
    with pytest.raises(UserError, match="needs validation images of every class"):  # before training
        choose_labels(settings, splits, 0)
    choose_labels(finetune.Settings(), splits, 0)
    with pytest.raises(UserError, match="undefined; they need every class"):
        early_stopping.best_of([{"epoch": 1, "val_loss": 0.1, "val_auc": "undefined"}], settings)

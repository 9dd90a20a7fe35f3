"""When a fine-tuning ends, and which epoch it takes."""

import math

import pytest
import torch

import finetune
from ssl.data.images import Images
from ssl.errors import UserError
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
        finetune.choose_labels(settings, splits, 0)
    finetune.choose_labels(finetune.Settings(), splits, 0)
    with pytest.raises(UserError, match="undefined; they need every class"):
        early_stopping.best_of([{"epoch": 1, "val_loss": 0.1, "val_auc": "undefined"}], settings)

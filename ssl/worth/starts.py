"""The starts that are compared: from nothing, from published weights, and with self-supervised training after either.

Starts with the same encoder form a network: nothing and own have the one that train.py chooses for these images on this
machine, and published weights have their own.
"""

import threading
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ssl.checkpoints import learnt_from, pretrained, published, restore
from ssl.data.images import Images
from ssl.encoders import build_encoder
from ssl.errors import UserError

NOTHING, OWN = "nothing", "own"
TAKEN = {
    NOTHING,
    OWN,
    "images",
    "labels",
    "lock",
    "measured",
}  # names in the folder of a comparison, besides those of starts
PATIENCE = 6.0  # seconds until the network counts as not there
SMALLER = {"imagenet": "resnet18"}  # published weights on a CPU: the encoder where none is named


@dataclass(frozen=True)
class Public:
    """Published weights. `weights` is a name that --init takes, or a path."""

    name: str
    weights: str
    encoder: str
    encoder_kwargs: dict
    stem: str
    seen: bool = False  # whether they have seen the validation images
    saw_test: bool = False  # and the test images, without labels

    def build(self, size: int, channels: int) -> nn.Module:
        """The encoder with these weights. Raises `UserError` where they do not fit."""
        encoder, _ = build_encoder(self.encoder, size, self.stem, self.encoder_kwargs, channels)
        pretrained.load_encoder(encoder, self.weights, None, self.encoder)
        return encoder

    def settings(self) -> dict:
        """Settings of the encoder, for any script."""
        return {"encoder": self.encoder, "encoder_kwargs": self.encoder_kwargs or None, "stem": self.stem}


def find_public(
    asked: list[str], named: bool, on_cpu: bool, splits: dict[str, Images | None], root: str | None
) -> tuple[list[Public], list[str]]:
    """(the published weights that are at hand, a line on each that is not).

    `asked` are names or files, each perhaps with its encoder: NAME=ENCODER. `named`: the user has named them. `root` is
    data_dir. Raises `UserError` for a file that cannot be read, and for weights that have learnt from labels of the
    user's images.
    """
    found: list[Public] = []
    left_out: list[str] = []
    for word in asked if asked != ["none"] else []:
        weights, encoder = _parts(word)
        channels = splits["train"].channels
        if channels != 3 and not named:
            left_out.append(f"{weights}: it is for images of 3 channels, and yours have {channels}")
            continue
        if published.is_name(weights):
            known = published.find(weights, encoder or (SMALLER.get(weights) if on_cpu else None))
            if trouble := _fetch(known):
                left_out.append(f"{weights}: {trouble}")
                continue
            one = Public(_free_name(weights, found), weights, known.encoder, {}, "imagenet")
        else:
            one = _of_file(weights, encoder, found)
        learnt_from.check(one.weights, splits["test"], root)
        used = {name: learnt_from.uses(one.weights, data, root) for name, data in splits.items()}
        if "labels" in used["train"] | used["val"]:
            raise UserError(
                f"public: {weights} has learnt from labels of your images, so it cannot say what fewer labels would "
                "bring; leave it out"
            )
        validates = "train" if splits["val"] is None else "val"  # a part of train, or a split of its own
        found.append(replace(one, seen=bool(used[validates]), saw_test=bool(used["test"])))
    return found, left_out


def _parts(word: str) -> tuple[str, str]:
    """(name or file, its encoder or ''), of FILE=ENCODER. A file may have = in its path."""
    if "=" not in word or Path(word).expanduser().exists():
        return word, ""
    weights, _, encoder = word.rpartition("=")
    return weights, encoder


def _of_file(path: str, encoder: str, others: list[Public]) -> Public:
    place = Path(path).expanduser().resolve()
    if not place.exists():
        raise UserError(
            f"public: {path} is no file, and none of the published weights ({', '.join(published.NAMES)}); expected "
            "names or files, perhaps with their encoder: FILE=ENCODER, or none"
        )
    run = pretrained.run_settings(place, None, encoder or None)
    called, kwargs, stem = restore.architecture(run, encoder or None, None, None)
    if not called:
        raise UserError(f"public: {path} does not say which encoder it is of; write {path}=ENCODER, such as timm/NAME")
    name = _free_name(place.stem if place.is_file() else place.name, others)
    return Public(name, str(place), called, kwargs or {}, stem or "auto")


def _free_name(name: str, others: list[Public]) -> str:
    taken = TAKEN | {other.name for other in others}
    return next(free for free in (name, *(f"{name}_{i}" for i in range(2, 99))) if free not in taken)


def _fetch(known: published.Published) -> str | None:
    """Download the file unless it is there, and do not wait for a network that does not answer.

    Returns why the file is not there, or None.
    """
    if not known.path().is_file() and not _reachable(known.url):
        return f"{known.path()} is not there, and {known.url} cannot be reached"
    try:
        published.fetch(known)
    except UserError as error:
        return str(error)
    return None


def _reachable(url: str) -> bool:
    """Whether the server answers within some seconds. A thread asks: the look-up of a name cannot be stopped."""
    answers = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE):
                answers.append(True)
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return bool(answers)

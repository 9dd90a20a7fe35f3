"""Load pre-trained weights into an encoder, from a file of ours or of another project (`layouts`).

Loading is strict: every weight of the encoder comes from the file and has the right shape, or an error lists what is
missing and what is unknown. `kind` says which format the file is of, where the names of its weights cannot tell.
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl.checkpoints import published, safetensors, source_run, torch_file
from ssl.checkpoints.layouts import WRAPPERS, Kind, recognise, unnumbered
from ssl.console import say, some_of
from ssl.encoders import resnet_of
from ssl.errors import UserError, one_line

# The ResNet-50s of Kang et al. 2023 have the weight names of Barlow Twins' resnet50.pth, so the file name tells them.
# Mean and std of their images: https://github.com/lunit-io/benchmark-ssl-pathology/releases/tag/pretrained-weights
LUNIT = re.compile(r"(bt|mocov2|swav)_rn50_ep200\.torch")
PATHOLOGY = [0.70322989, 0.53606487, 0.66096631], [0.21716536, 0.26081574, 0.20723464]
VIT_SIDE = 224  # pixels of the images of torchvision's published ViTs


@dataclass(frozen=True)
class Source:
    """Where an encoder's weights came from. `mean` and `std` normalised its images; None: the file does not say."""

    path: Path | str
    format: str
    mean: list[float] | None = None
    std: list[float] | None = None
    left_out: tuple[str, ...] = ()
    stand_ins: tuple[str, ...] = ()  # names in the file that were not imported
    read: bool = True  # False: a checkpoint replaces these weights

    def __str__(self) -> str:
        left_out = f"; left out: {some_of(self.left_out, 10)}" if self.left_out else ""
        stand_ins = f"; not run, with stand-ins: {some_of(self.stand_ins, 5)}" if self.stand_ins else ""
        return one_line(f"{self.path} ({self.format}{left_out}{stand_ins})")


def load_encoder(encoder: nn.Module, path: str | Path, kind: Kind | None = None, called: str | None = None) -> Source:
    """Load the weights at `path` into `encoder`: a run folder, a file, or the name of published weights (all ranks).

    `called` is the encoder's name, which chooses among torchvision's weights. Raises `UserError` where the file cannot
    be read, is not of `kind`, or does not hold exactly this encoder's weights. The encoder is then unchanged.
    """
    if known := published.find(path, called):
        _require_fitting(encoder, known, kind, called)
        return _load_published(encoder, known)
    path = torch_file.find_encoder(path)
    content, stand_ins = contents(path)
    return replace(take(encoder, content, path, kind), stand_ins=tuple(stand_ins))


def _require_fitting(encoder: nn.Module, known: published.Published, kind: Kind | None, called: str | None) -> None:
    """Raise `UserError`, before a download, where published weights cannot fit."""
    if called not in (None, known.encoder):
        raise UserError(f"encoder: {known.name} is a {known.encoder}, not a {called}; leave --encoder out")
    if kind not in (None, known.kind):
        raise UserError(f"{known.name}: these published weights are not of {kind}; leave --init_format or --method out")
    channels, side = input_channels(encoder, encoder.state_dict()), _side_of_vit(encoder.state_dict())
    if channels != 3:
        raise UserError(
            f"{known.name}: these weights are for images of 3 channels, and yours have {channels}; begin "
            "without weights, or make images of 3 channels"
        )
    if side not in (None, VIT_SIDE):
        raise UserError(
            f"{known.name}: these weights are for images of {VIT_SIDE} pixels, not {side}; pass --image_size {VIT_SIDE}"
        )


def _load_published(encoder: nn.Module, known: published.Published) -> Source:
    path = published.fetch(known)
    try:
        content, _ = contents(path)
        source = take(encoder, content, path, known.kind)
    except UserError as error:
        raise UserError(f"{error}. It should be {known.url}; remove it to download it again") from None
    return replace(source_of(known), left_out=source.left_out)


def source_of(known: published.Published) -> Source:
    """Where published weights come from, without reading them."""
    return Source(known.url, str(known), list(known.mean), list(known.std))


def contents(path: Path) -> tuple[object, list[str]]:
    """(content of a file, the names in it that were replaced by stand-ins). No code of the file is run."""
    return (safetensors.read(path), []) if path.suffix == ".safetensors" else torch_file.load_foreign(path)


def run_settings(path: str | Path, kind: Kind | None = None, called: str | None = None) -> dict:
    """The settings of the run that wrote `path`, a run folder or a file.

    They are in config.yaml beside the file, or in a checkpoint of ours. For any other file: {encoder, stem} if its
    weights, read as `kind`, have the shapes of a torchvision ResNet, else nothing. For the name of published weights:
    {encoder, stem}, where imagenet takes the encoder that is `called` so.
    """
    if known := published.find(path, called):
        return {"encoder": known.encoder, "stem": "imagenet"}
    path = torch_file.find_encoder(path)
    if own := source_run.settings_of(path):
        return own
    content, _ = contents(path)
    if own := source_run.settings_of(path, content):
        return own
    try:
        _, weights, _ = recognise(content, path, kind)
    except UserError:  # `take` knows the encoder and raises a better error
        return {}
    name, stem = resnet_of(unnumbered(weights))
    if not (name and stem):
        return {}
    say(f"by shapes   {one_line(path)}: {name}, stem {stem}")
    return {"encoder": name, "stem": stem}


def take(encoder: nn.Module, content, path: Path | str, kind: Kind | None = None) -> Source:
    """Load `content`, which was read from `path`, into `encoder`. Raises as `load_encoder`."""
    form, weights, left_out = recognise(content, path, kind, own=set(encoder.state_dict()))
    if left_out and "ours" not in form.kinds and source_run.wrote(path):
        raise UserError(
            f"{path}: the encoder of this run kept its classifier ({some_of(left_out)}), as in earlier versions; pass "
            "its --encoder, and its --encoder_kwargs with num_classes: 1000 added"
        )
    if "0.weight" not in encoder.state_dict():
        weights = unnumbered(weights)
    fill(encoder, weights, f"{path} ({form.name})")
    name, mean, std = form.name, None, None
    if form.unit or kind == "simclr":
        channels = input_channels(encoder, encoder.state_dict())
        mean, std = [0.0] * channels, [1.0] * channels
    elif LUNIT.fullmatch(Path(path).name):
        name, mean, std = f"{name}: Lunit's, of pathology, by the file's name", *PATHOLOGY
    elif "ours" in form.kinds and isinstance(path, Path):
        mean, std = source_run.normalisation(path, content)
    if form.doubt:
        hint = f": {form.doubt}; --init_format, or finetune.py's --method, says which"
        name += hint if kind is None else f", taken as {kind}"
    return Source(path, name, mean, std, tuple(left_out))


def input_channels(encoder: nn.Module, weights: dict[str, Tensor]) -> int:
    """Input channels of the encoder's first convolution as the `weights` of a file have it; 3 if they lack it."""
    first = next((name for name, weight in encoder.state_dict().items() if weight.ndim == 4), None)
    return weights[first].shape[1] if first in weights and weights[first].ndim == 4 else 3


def fill(encoder: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load `weights`, which were read from `where`, into `encoder`.

    Old and converted files have no num_batches_tracked: it becomes 0, and nothing reads it. Raises `UserError` that
    lists what is missing, unknown, of another shape or not finite. The encoder is then unchanged.
    """
    wanted = encoder.state_dict()
    found = {own: weights[name] for own in wanted if (name := WRAPPERS.sub(r"\1", own)) in weights}
    if not any(name.endswith("num_batches_tracked") for name in weights):
        found |= {own: torch.zeros_like(w) for own, w in wanted.items() if own.endswith("num_batches_tracked")}
    known = {WRAPPERS.sub(r"\1", own) for own in wanted}
    shapes = {own: (tuple(weight.shape), tuple(wanted[own].shape)) for own, weight in found.items()}
    wrong = {
        "lacks": [own for own in wanted if own not in found],
        "has unknown": [name for name in weights if name not in known],
        "does not fit:": [f"{own} is {has}, not {needs}" for own, (has, needs) in shapes.items() if has != needs],
    }
    if any(wrong.values()):
        listed = "; ".join(f"{what} {some_of(names)}" for what, names in wrong.items() if names)
        raise UserError(
            f"{where}: not weights of this encoder ({type(encoder).__name__}): it {listed}. {_advice(weights, wanted)}"
        )
    ruined = [own for own in wanted if not found[own].to(wanted[own].dtype).isfinite().all()]
    if ruined:
        raise UserError(f"{where}: holds NaN or Inf, in {some_of(ruined)}; that training had diverged")
    encoder.load_state_dict(found)


def _advice(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """The settings that fit the file's weights, if these are of a ResNet of torchvision or of a ViT."""
    theirs, ours = _side_of_vit(weights), _side_of_vit(wanted)
    if theirs and ours and theirs != ours:
        return f"It is for images of {theirs} pixels; pass --image_size {theirs}"
    pairs = zip(("--encoder", "--stem"), resnet_of(weights), resnet_of(wanted))
    fitting = [(f"{flag} {theirs}", theirs != ours) for flag, theirs, ours in pairs if theirs]
    other = [words for words, differs in fitting if differs]
    if not other:
        return "Check --encoder, --stem and --encoder_kwargs"
    return f"By its shapes it fits {' '.join(words for words, _ in fitting)}; pass {' '.join(other)}"


def _side_of_vit(weights: dict[str, Tensor]) -> int | None:
    """The image size of a ViT with these `weights` under torchvision's or timm's names; None of another network."""
    for names in (("encoder.pos_embedding", "conv_proj.weight"), ("pos_embed", "patch_embed.proj.weight")):
        positions, patches = map(weights.get, names)
        if positions is not None and patches is not None and (positions.ndim, patches.ndim) == (3, 4):
            return math.isqrt(positions.shape[1]) * patches.shape[-1]  # a class token adds less than a row of patches
    return None

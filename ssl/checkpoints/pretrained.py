"""Anybody's checkpoint -> the weights of an encoder, under the encoder's own names.

`load_encoder` reads files of ours and those of the table below, finds out from their names which it is, and says so.
It is strict: every weight of the encoder comes from the file, with the right shape, or there is an error that lists
what is missing and what is unknown. `kind` insists on a format where names alone cannot tell.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from ssl.checkpoints import safetensors, source_run, torch_file
from ssl.console import say
from ssl.distributed import barrier, is_main
from ssl.encoders import resnet_of
from ssl.errors import UserError, one_line
from ssl.sources.datasets import IMAGENET

Kind = Literal[
    "ours",
    "barlow_twins",
    "simclr",
    "swav",
    "byol",
    "moco",
    "infomin",
    "vicreg",
    "supcontrast",
    "lightning",
    "baseline",
]


class Format(NamedTuple):
    """How somebody's files are laid out, by names without the `module.` and `_orig_mod.` of PyTorch's wrappers."""

    name: str
    kinds: tuple[str, ...]  # the words that may insist on it
    under: tuple[str | None, ...]  # where the weights stand: under one of these keys, or at the top (None)
    encoder: tuple[str, ...]  # what stands before the encoder's names: one of these
    marks: str  # pattern: it is this format if a name, of a weight or of what stands beside them, begins so
    leftover: str  # pattern: names that begin so are no part of the encoder and stay out
    absent: str = "^$"  # pattern: it is not this format if a weight's name holds this
    unit: bool = False  # its images were in 0..1, without mean and std
    doubt: str = ""  # what else it may be, since the names cannot tell


# The first that fits is taken, so what has clearer marks stands first.
FORMATS = (
    Format(
        "a checkpoint of ours", ("ours",), ("model",), ("encoder.",), marks=r"settings$", leftover=r"projector\.|head\."
    ),
    # {epoch, model: module.backbone.*, module.projector.*, module.bn.*, optimizer}
    Format(
        "Barlow Twins' checkpoint.pth",
        ("barlow_twins",),
        ("model",),
        ("backbone.",),
        marks=r"bn\.running_mean$",
        leftover=r"projector\.|bn\.",
    ),
    # {epoch, model: module.backbone.*, module.projector.*, optimizer}
    Format(
        "VICReg's model.pth", ("vicreg",), ("model",), ("backbone.",), marks=r"projector\.", leftover=r"projector\."
    ),
    # {epoch, arch, state_dict: module.encoder_q.*, module.encoder_k.*, module.queue, optimizer}; the query encoder is
    # the one that is trained, the key encoder its running mean
    Format(
        "MoCo v2",
        ("moco",),
        ("state_dict",),
        ("encoder_q.",),
        marks=r"encoder_k\.|queue$",
        leftover=r"encoder_k\.|queue(_ptr)?$|encoder_q\.fc\.",
    ),
    # module.*, module.projection_head.*, module.prototypes.*, flat or {epoch, state_dict, optimizer, amp}
    Format(
        "SwAV",
        ("swav",),
        (None, "state_dict"),
        ("",),
        marks=r"prototypes\d*\.|projection_head\.",
        leftover=r"prototypes\d*\.|projection_head\.",
        absent=r"^(backbone|encoder)\.",
    ),
    # PyContrast: {opt, model: module.encoder.*, .head.*, .head_jig.*, contrast, model_ema, optimizer, epoch}
    Format(
        "InfoMin",
        ("infomin",),
        ("model",),
        ("encoder.",),
        marks=r"head_jig\.|contrast$|model_ema$",
        leftover=r"head\.|head_jig\.",
    ),
    # {opt, model: encoder.* or encoder.module.*, head.*, optimizer, epoch}; PyContrast's without its marks
    Format("SupContrast", ("supcontrast", "infomin"), ("model",), ("encoder.",), marks=r"head\.", leftover=r"head\."),
    # encoder.*, projector.*
    Format(
        "Spijkervet's SimCLR",
        ("simclr",),
        (None,),
        ("encoder.",),
        marks=r"projector\.",
        leftover=r"projector\.",
        unit=True,
    ),
    # {epoch, arch, state_dict: backbone.*, backbone.fc.*, optimizer}
    Format(
        "sthalles' SimCLR",
        ("simclr",),
        ("state_dict",),
        ("backbone.",),
        marks=r"backbone\.fc\.0\.",
        leftover=r"backbone\.fc\.",
        unit=True,
    ),
    # Modules have whatever heads their authors chose, and a momentum_backbone may stand beside the backbone.
    Format(
        "Lightning (solo-learn, lightly and others)",
        ("lightning",),
        ("state_dict",),
        ("backbone.", "encoder."),
        marks="",
        leftover=r"(?!backbone\.|encoder\.)|(backbone|encoder)\.fc\.",
    ),
    Format(
        "torchvision names with a classifier and no num_batches_tracked",
        ("byol", "baseline"),
        (None, "state_dict"),
        ("",),
        marks=r"fc\.",
        leftover=r"fc\.",
        absent="num_batches_tracked$",
        doubt="a converted BYOL, or supervised by an old PyTorch",
    ),
    Format(
        "torchvision names with a classifier",
        ("simclr", "baseline"),
        (None, "state_dict", "model"),
        ("",),
        marks=r"fc\.",
        leftover=r"fc\.",
        doubt="supervised, or a converted SimCLR",
    ),
    # encoder.pt of ours, resnet50.pth of Barlow Twins and of VICReg
    Format(
        "the encoder alone",
        ("ours", "barlow_twins", "vicreg"),
        (None, "state_dict", "model"),
        ("",),
        marks="",
        leftover="(?!)",
    ),
)
ALONE = FORMATS[-1]

# Published files, for when there is none at hand.
BARLOW_TWINS = "https://dl.fbaipublicfiles.com/barlowtwins/ep1000_bs2048_lrw0.2_lrb0.0048_lambd0.0051/resnet50.pth"

# bt_, mocov2_ and swav_ are ResNet-50s of Kang et al. 2023, whose names are those of Barlow Twins' resnet50.pth.
# Their images' statistics: https://github.com/lunit-io/benchmark-ssl-pathology/releases/tag/pretrained-weights
LUNIT = re.compile(r"(bt|mocov2|swav)_rn50_ep200\.torch")
PATHOLOGY = [0.70322989, 0.53606487, 0.66096631], [0.21716536, 0.26081574, 0.20723464]

WRAPPERS = re.compile(r"(^|\.)(?:(?:module|_orig_mod)\.)+")  # of DataParallel and of torch.compile
# lightly's examples number the children of a torchvision ResNet: Sequential(*list(resnet.children())[:-1]).
NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


@dataclass(frozen=True)
class Source:
    """Where an encoder's weights came from, and the normalisation they are used to; None: the file does not say."""

    path: Path | str
    format: str
    mean: list[float] | None = None
    std: list[float] | None = None
    left_out: tuple[str, ...] = ()
    stand_ins: tuple[str, ...] = ()  # for what the file names and nobody needed

    def __str__(self) -> str:
        left_out = f"; left out: {_first(self.left_out, 10)}" if self.left_out else ""
        stand_ins = f"; not run, with stand-ins: {_first(self.stand_ins, 5)}" if self.stand_ins else ""
        return one_line(f"{self.path} ({self.format}{left_out}{stand_ins})")


def load_encoder(encoder: nn.Module, path: str | Path, kind: Kind | None = None) -> Source:
    """Put the weights of a run folder, or of a file of ours or of FORMATS, into `encoder`.

    Raises `UserError` for what cannot be read, is not of `kind`, or is not exactly this encoder's; the encoder is
    then as it was.
    """
    path = torch_file.find_encoder(path)
    content, stand_ins = contents(path)
    return replace(take(encoder, content, path, kind), stand_ins=tuple(stand_ins))


def load_published(encoder: nn.Module, kind: Literal["barlow_twins", "baseline"], name: str = "resnet50") -> Source:
    """Download published weights into `encoder`, a torchvision ResNet called `name`.

    `barlow_twins`: its authors' resnet50, of 1000 epochs. `baseline`: torchvision's, trained on ImageNet's labels by
    its first recipe (IMAGENET1K_V1). All ranks call it. Raises `UserError` where there are none, or nothing can be
    downloaded.
    """
    try:
        url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url if kind == "baseline" else BARLOW_TWINS
    except (ValueError, AttributeError):
        raise UserError(f"encoder: torchvision has no weights of {name!r}; pass a file of them") from None
    first_here = int(os.environ.get("LOCAL_RANK", 0)) == 0  # it downloads; the others of a machine read its file
    try:
        if not first_here:
            barrier()
        content = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=kind == "baseline", weights_only=True, progress=is_main()
        )
        if first_here:
            barrier()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the published weights cannot be downloaded ({error}). Fetch {url} elsewhere and pass the file, "
            "or a run folder: --model_path (evaluate.py), --init (the others)"
        ) from None
    mean, std = map(list, IMAGENET)
    return replace(take(encoder, content, url, kind), mean=mean, std=std)


def contents(path: Path) -> tuple[object, list[str]]:
    """(what stands in a file, which names in it have stand-ins). None of its code is run."""
    return (safetensors.read(path), []) if path.suffix == ".safetensors" else torch_file.load_foreign(path)


def run_settings(path: str | Path, kind: Kind | None = None) -> dict:
    """The settings of the run that a run folder or file belongs to.

    They stand in config.yaml beside it, or in a checkpoint of ours. Of any other file there are {encoder, stem} where
    the shapes of its weights, if it is of `kind`, are those of a torchvision ResNet.
    """
    path = torch_file.find_encoder(path)
    if path.with_name("config.yaml").is_file():
        return source_run.settings_of(path)
    content, _ = contents(path)
    if own := source_run.settings_of(path, content):
        return own
    try:
        _, weights, _ = recognise(content, path, kind)
    except UserError:  # which `take`, who knows the encoder, can say better
        return {}
    name, stem = resnet_of(_unnumbered(weights))
    if not (name and stem):
        return {}
    say(f"by shapes   {one_line(path)}: {name}, stem {stem}")
    return {"encoder": name, "stem": stem}


def take(encoder: nn.Module, content, path: Path | str, kind: Kind | None = None) -> Source:
    """`load_encoder` of what was read from `path`."""
    form, weights, left_out = recognise(content, path, kind, own=set(encoder.state_dict()))
    if "0.weight" not in encoder.state_dict():
        weights = _unnumbered(weights)
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


def _unnumbered(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a torchvision ResNet whose children are numbered, under their names."""
    if not {"0.weight", "4.0.conv1.weight"} <= set(weights):
        return weights
    numbered = (name.partition(".") for name in weights)
    named = {f"{NUMBERED.get(head, head)}.{rest}": w for (head, _, rest), w in zip(numbered, weights.values())}
    return named if len(named) == len(weights) else weights  # else some stand there under both


def input_channels(encoder: nn.Module, weights: dict[str, Tensor]) -> int:
    """How many channels the encoder's first convolution reads by the `weights` of a file; 3 if they do not say."""
    first = next((name for name, weight in encoder.state_dict().items() if weight.ndim == 4), None)
    return weights[first].shape[1] if first in weights and weights[first].ndim == 4 else 3


# Recognising ------------------------------------------------------------------------


def recognise(content, path, kind: Kind | None = None, own=()) -> tuple[Format, dict[str, Tensor], list[str]]:
    """(format, weights under the encoder's names, what was left out) of a file's content.

    `own` are the names of the encoder wanted: what has exactly these is the encoder alone. Raises `UserError` for
    what holds no weights, is not of `kind`, or has names that the format does not know.
    """
    forms = [ALONE] if own and isinstance(content, dict) and set(content) == set(own) else FORMATS
    found = next((match for form in forms for match in _match(form, content, path)), None)
    if found is None:
        raise UserError(
            f"{path}: holds no weights by name; expected a file of ours, or of {', '.join(f.name for f in FORMATS)}"
        )
    form, prefix, weights, beside = found
    if kind not in (None, *form.kinds):
        meant = "; ".join(form.name for form in FORMATS if kind in form.kinds)
        raise UserError(
            f"{path}: asked for as {kind} ({meant}), but by its names it is {form.name}"
            + (f" ({form.doubt})" if form.doubt else "")
            + f". If that is right, ask for {' or '.join(form.kinds)}, or for nothing"
        )
    out = [name for name in weights if not name.startswith(prefix) or re.match(form.leftover, name)]
    unknown = [name for name in out if not re.match(form.leftover, name)]
    if unknown:
        raise UserError(f"{path} ({form.name}): has unknown {_first(unknown)}, which its authors' code does not write")
    ours = {name.removeprefix(prefix): weight for name, weight in weights.items() if name not in set(out)}
    depth = prefix.count(".") + 1
    groups = [".".join(name.split(".")[: depth if name.startswith(prefix) else 1]) for name in out]
    return form, ours, list(dict.fromkeys([*groups, *map(str, beside)]))


def _match(form: Format, content: dict, path):
    """(format, the encoder's prefix, all weights, what stands beside them) for each way that `content` is of it."""
    for under in form.under if isinstance(content, dict) else ():
        weights = content if under is None else content.get(under)
        if not isinstance(weights, dict) or not weights:
            continue
        if not all(isinstance(name, str) and isinstance(w, Tensor) for name, w in weights.items()):
            continue
        plain = {WRAPPERS.sub(r"\1", name): weight for name, weight in weights.items()}
        if len(plain) < len(weights):
            raise UserError(f"{path}: holds weights twice, with and without the module. of a wrapper")
        beside = [] if under is None else [name for name in content if name != under]
        marked = any(re.match(form.marks, str(name)) for name in (*plain, *beside))
        if marked and not any(re.search(form.absent, name) for name in plain):
            for prefix in form.encoder:
                if any(name.startswith(prefix) for name in plain):
                    yield form, prefix, plain, beside


# Fitting ----------------------------------------------------------------------------


def fill(encoder: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Put `weights`, read from `where`, into `encoder`, which must want exactly these.

    Old and converted files have no num_batches_tracked at all: it is then 0, and nothing reads it. Raises `UserError`
    that lists what is missing, unknown, of another shape or not finite; the encoder is then as it was.
    """
    wanted = encoder.state_dict()
    found = {own: weights[name] for own in wanted if (name := WRAPPERS.sub(r"\1", own)) in weights}
    if not any(name.endswith("num_batches_tracked") for name in weights):
        found |= {own: torch.zeros_like(w) for own, w in wanted.items() if own.endswith("num_batches_tracked")}
    known = {WRAPPERS.sub(r"\1", own) for own in wanted}
    misfits = [
        f"{own} is {tuple(found[own].shape)}, not {tuple(wanted[own].shape)}"
        for own in found
        if found[own].shape != wanted[own].shape
    ]
    wrong = {
        "lacks": [own for own in wanted if own not in found],
        "has unknown": [name for name in weights if name not in known],
        "does not fit:": misfits,
    }
    if any(wrong.values()):
        listed = "; ".join(f"{what} {_first(names)}" for what, names in wrong.items() if names)
        raise UserError(
            f"{where}: not weights of this encoder ({type(encoder).__name__}): it {listed}. {_advice(weights, wanted)}"
        )
    ruined = [own for own in wanted if not found[own].to(wanted[own].dtype).isfinite().all()]
    if ruined:
        raise UserError(f"{where}: holds NaN or Inf, in {_first(ruined)}; that training had diverged")
    encoder.load_state_dict(found)


def _first(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _advice(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """Which settings would fit the file's weights, where they are those of a torchvision ResNet."""
    theirs, ours = resnet_of(weights), resnet_of(wanted)
    flags = [f"--{flag} {word}" for flag, word in zip(("encoder", "stem"), theirs) if word]
    missing = [
        f"--{flag} {word}" for flag, word, own in zip(("encoder", "stem"), theirs, ours) if word not in ("", own)
    ]
    if not missing:
        return "Check --encoder, --stem and --encoder_kwargs"
    return f"By its shapes it fits {' '.join(flags)}; pass {' '.join(missing)}"

"""The formats of other people's checkpoints: a table, and which of its rows a file is."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from ssl.console import some_of
from ssl.errors import UserError

Kind = Literal[
    "ours",
    "barlow_twins",
    "simclr",
    "swav",
    "byol",
    "moco",
    "moco_v3",
    "infomin",
    "vicreg",
    "supcontrast",
    "lightning",
    "baseline",
]


class Format(NamedTuple):
    """One project's files. Names are without the `module.` and `_orig_mod.` that PyTorch's wrappers add."""

    name: str
    kinds: tuple[str, ...]  # words of `init_format` that mean it
    under: tuple[str | None, ...]  # the weights are under one of these keys, or at the top (None)
    encoder: tuple[str, ...]  # prefixes of the encoder's names: one of these
    marks: str  # pattern: it is this format if a weight's name, or a key beside the weights, begins so
    leftover: str  # pattern: weights whose names begin so are not the encoder's
    absent: str = "^$"  # pattern: it is not this format if a weight's name contains it
    unit: bool = False  # its images were in 0..1, not normalised further
    doubt: str = ""  # what else it may be, if the names cannot tell


ESTIMATOR = "what an estimator of ours saved"
# The first format that fits is taken, so those with clearer marks come first.
FORMATS = (
    Format(
        "a checkpoint of ours", ("ours",), ("model",), ("encoder.",), marks=r"settings$", leftover=r"projector\.|head\."
    ),
    # {estimator, encoder, params, model: encoder.*, projector.*, progress, step, …} of ssl.estimators
    Format(ESTIMATOR, ("ours",), ("model",), ("encoder.",), marks=r"estimator$", leftover=r"projector\."),
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
    # {epoch, arch, state_dict: module.encoder_q.*, module.encoder_k.*, module.queue, optimizer}. The
    # query encoder is trained; the key encoder is its running mean.
    Format(
        "MoCo v2",
        ("moco",),
        ("state_dict",),
        ("encoder_q.",),
        marks=r"encoder_k\.|queue$",
        leftover=r"encoder_k\.|queue(_ptr)?$|encoder_q\.fc\.",
    ),
    # {epoch, arch, state_dict: module.base_encoder.*, module.momentum_encoder.*, module.predictor.*, optimizer, scaler}
    Format(
        "MoCo v3",
        ("moco_v3",),
        ("state_dict",),
        ("base_encoder.",),
        marks=r"base_encoder\.",
        leftover=r"momentum_encoder\.|predictor\.|base_encoder\.(fc|head)\.",
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
    # Modules have any heads, and some have a momentum_backbone beside the backbone.
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
        leftover=r"(fc|aux1|aux2|AuxLogits)\.",
        absent="num_batches_tracked$",
        doubt="a converted BYOL, or supervised by an old PyTorch",
    ),
    Format(
        "torchvision names with a classifier",
        ("simclr", "baseline"),
        (None, "state_dict", "model"),
        ("",),
        marks=r"fc\.",
        leftover=r"(fc|aux1|aux2|AuxLogits)\.",
        doubt="supervised, or a converted SimCLR",
    ),
    # What is no ResNet. An encoder may keep a part of the classifier: ConvNeXt's norm is classifier.0.
    Format(
        "torchvision's classifier",
        ("baseline",),
        (None, "state_dict", "model"),
        ("",),
        marks=r"(classifier|heads?)\.",
        leftover=r"(classifier|heads?)\.",
    ),
    # encoder.pt of ours, resnet50.pth of Barlow Twins and of VICReg
    Format(
        "only an encoder",
        ("ours", "barlow_twins", "vicreg"),
        (None, "state_dict", "model"),
        ("",),
        marks="",
        leftover="(?!)",
    ),
)
ALONE = FORMATS[-1]

DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")  # norm.1 in torchvision's files is norm1 now
WRAPPERS = re.compile(r"(^|\.)(?:(?:module|_orig_mod)\.)+")  # of DataParallel and of torch.compile
# lightly's examples number the children of a torchvision ResNet: Sequential(*list(resnet.children())[:-1]).
NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def recognise(
    content, path: Path | str, kind: Kind | None = None, own: Collection[str] = ()
) -> tuple[Format, dict[str, Tensor], list[str]]:
    """(format, weights under the encoder's names, names that were left out) of the `content` of the file at `path`.

    `own` are the names of the encoder's weights: a file with exactly these holds only an encoder. Raises `UserError`
    where the file holds no weights, is not of `kind`, or has names that its format does not know.
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
    left = {name for name in weights if re.match(form.leftover, name)} - set(own)
    out = [name for name in weights if not name.startswith(prefix) or name in left]
    unknown = [name for name in out if not re.match(form.leftover, name)]
    if unknown:
        raise UserError(f"{path} ({form.name}): has unknown {some_of(unknown)}, which its authors' code does not write")
    ours = {name.removeprefix(prefix): weight for name, weight in weights.items() if name not in set(out)}
    depth = prefix.count(".") + 1
    groups = [".".join(name.split(".")[: depth if name.startswith(prefix) else 1]) for name in out]
    return form, ours, list(dict.fromkeys([*groups, *map(str, beside)]))


def _match(form: Format, content, path: Path | str) -> Iterator[tuple[Format, str, dict[str, Tensor], list]]:
    """(format, prefix of the encoder, all weights, keys beside them) for each way that `content` has this format."""
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


def unnumbered(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of torchvision: a ResNet's whose children are numbered, a DenseNet's old ones."""
    weights = {DENSENET.sub(r"\1", name): weight for name, weight in weights.items()}
    if not {"0.weight", "4.0.conv1.weight"} <= set(weights):
        return weights
    numbered = (name.partition(".") for name in weights)
    named = {f"{NUMBERED.get(head, head)}.{rest}": w for (head, _, rest), w in zip(numbered, weights.values())}
    return named if len(named) == len(weights) else weights  # else the file has both names of a weight

"""Write an encoder for other programs, and check that they compute the same features with it.

`python -m ssl.export RUN_OR_FILE --to safetensors onnx`; RUN_OR_FILE is what `--init` takes. Each file is written under
a temporary name and read by the program it is for. It gets its name only if the features of fixed images are the
encoder's.

torchvision   encoder.torchvision.pt: resnet50().load_state_dict(torch.load(FILE), strict=False) lacks only the
              classifier; a ViT is built for the size of the images: vit_b_16(image_size=S)
safetensors   encoder.safetensors: holds no code; --init reads it too
timm          timm/: create_model("local-dir:timm", pretrained=True), or create_model("resnet50", num_classes=0,
              checkpoint_path="timm/model.safetensors"); config.json says the normalisation
onnx          encoder.onnx: images (batch, C, S, S) -> features (batch, width)

torch.hub needs no file: torch.hub.load(THIS_PROJECT, "encoder", path=RUN_OR_FILE, source="local").
"""

import contextlib
import importlib.util
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn

from ssl import failures, files
from ssl.checkpoints import overwritten, pretrained, safetensors, source_run, torch_file
from ssl.checkpoints.layouts import ESTIMATOR
from ssl.checkpoints.restore import restore
from ssl.console import say
from ssl.distributed import be_alone
from ssl.encoders import build_encoder
from ssl.encoders.library import short_name, size_argument, torchvision_names, without_classifier
from ssl.errors import UserError, one_line_errors
from ssl.settings import config
from ssl.sources.datasets import IMAGENET

Target = Literal["torchvision", "safetensors", "timm", "onnx"]
OF_TIMM = ("model.safetensors", "config.json")  # the files of timm/


@dataclass
class Settings:
    """Write an encoder for other programs: python -m ssl.export RUN_OR_FILE --to TARGET ...

    Unset values come from the run's config.yaml; a file without one is taken for a resnet50 for ImageNet.
    """

    path: str | None = None  # run folder, file, or name of published weights; may stand first, without --path
    to: list[Target] = field(default_factory=lambda: ["safetensors"])  # one or more
    output_dir: str | None = None  # where the files go; unset: beside the file that was read
    encoder: str | None = None  # unset: the run's, or by the shapes of its weights, or resnet50
    encoder_kwargs: dict | None = None  # unset: the run's
    stem: Literal["auto", "imagenet", "small"] | None = None  # unset: the run's, or by the shapes of its weights
    image_size: int | None = None  # side of the images that onnx takes; unset: the run's, or 224
    init_format: pretrained.Kind | None = None  # format of the file; unset: recognised by its names


@dataclass
class Export:
    """What is written: the encoder, the source of its weights, the arguments of `build_encoder` that made it."""

    encoder: nn.Module
    source: pretrained.Source
    about: dict

    def weights(self) -> dict[str, Tensor]:
        return self.encoder.state_dict()

    def rebuilt(self) -> nn.Module:
        """The same encoder without its weights."""
        return build_encoder(**self.about)[0].eval()

    def normalisation(self) -> dict[str, list[float]]:
        """{mean, std} with which images in 0..1 were normalised in training; {} where they are not recorded."""
        found = {"mean": self.source.mean, "std": self.source.std}
        of_ours = source_run.settings_of(Path(self.source.path)) or self.source.format == ESTIMATOR
        if not of_ours:  # other people's files record nothing
            found = {name: found[name] or list(values) for name, values in zip(found, IMAGENET)}
        return found if all(found.values()) else {}

    def called(self, target: Literal["torchvision", "timm"]) -> str:
        """The encoder's name in `target`. Raises `UserError` if it has no such encoder."""
        name, resnet = short_name(self.about["name"]), isinstance(self.encoder, torchvision.models.ResNet)
        plain = not self.about["kwargs"] and self.about["channels"] == 3
        if target == "timm" and name.startswith("timm/"):
            return name.removeprefix("timm/").partition(".")[0]
        if not (plain and name in torchvision_names() and (resnet or target == "torchvision")):
            known = {"torchvision": "torchvision's classifiers", "timm": "timm/NAME and torchvision's ResNets"}[target]
            raise UserError(
                f"to: {target} has no such encoder ({name} {self.about['kwargs'] or ''}, {self.about['channels']} "
                f"channels), only {known} for three, without encoder_kwargs; safetensors and onnx take any"
            )
        if resnet and not isinstance(self.encoder.maxpool, nn.MaxPool2d):
            raise UserError(f"to: {target} has no {name} with the small 3×3 stem; safetensors and onnx take any")
        return name


def fixed_images(count: int, channels: int, size: int) -> Tensor:
    """Images (count, channels, size, size) in -2..2, made from a counter: the same on every machine."""
    numbers = torch.arange(count * channels * size * size)
    return ((numbers * 2654435761 % 2**32).float() / 2**30 - 2).view(count, channels, size, size)


@torch.no_grad()
def features(network: Callable, export: Export, count: int = 2) -> Tensor:
    """Features (count, width) of the fixed images by `network`."""
    return network(fixed_images(count, export.about["channels"], export.about["image_size"])).float()


def checksum(h: Tensor) -> str:
    """Five digits, a weighted sum of the features: other features have others."""
    weights = torch.arange(h.numel(), dtype=torch.float64).add(1).cos().view_as(h)
    return f"{(h.double() * weights).sum().item():.5g}"


def prove(theirs: Tensor, ours: Tensor, target: str, exactly: bool = True) -> str:
    """Say how features agree. Raises `UserError` unless they agree to the bit or, if not `exactly`, to 1e-4."""
    if theirs.shape == ours.shape:
        error = ((theirs - ours).abs().max() / ours.abs().max().clamp(min=1e-12)).item()
        if torch.equal(theirs, ours):
            return "identical features"
        if not exactly and error < 1e-4:
            return f"features equal to {error:.0e}"
    raise UserError(
        f"to: {target} computes other features ({checksum(theirs)}, the encoder {checksum(ours)}); nothing was "
        "written. Does the installed version of that package know this encoder?"
    )


# Targets: each writes the encoder to `path`, and returns a sentence on the proof ----------------


def to_torchvision(export: Export, path: Path) -> str:
    name = export.called("torchvision")
    torch_file.save(export.weights(), path)
    plain = torchvision.models.get_model(name, weights=None, **size_argument(name, export.about["image_size"]))
    outcome = without_classifier(plain, name).load_state_dict(torch.load(path, weights_only=True), strict=False)
    if outcome.missing_keys or outcome.unexpected_keys:
        raise UserError(f"to: torchvision's {name} does not take these weights ({outcome}); nothing was written")
    return prove(features(plain.eval(), export), features(export.encoder, export), "torchvision")


def to_safetensors(export: Export, path: Path) -> str:
    normalisation = {name: json.dumps(values) for name, values in export.normalisation().items()}
    safetensors.write(export.weights(), path, {"format": "pt"} | normalisation)
    back = export.rebuilt()
    pretrained.fill(back, safetensors.read(path), str(path))
    return prove(features(back, export), features(export.encoder, export), "safetensors")


def to_timm(export: Export, path: Path) -> str:
    name, size = export.called("timm"), export.about["image_size"]
    known = getattr(export.encoder, "pretrained_cfg", {"first_conv": "conv1", "classifier": "fc"})  # or a ResNet's
    about = {
        "architecture": name,
        "num_classes": 0,
        "num_features": features(export.encoder, export, 1).shape[1],
        "model_args": export.about["kwargs"] or {},
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [export.about["channels"], size, size],
            "interpolation": "bicubic",
            **{key: known[key] for key in ("first_conv", "classifier", "fixed_input_size") if key in known},
            **export.normalisation(),
        },
    }
    path.mkdir()
    weights, config_json = (path / file for file in OF_TIMM)
    safetensors.write(export.weights(), weights, {"format": "pt"})
    config_json.write_text(json.dumps(about, indent=2) + "\n")
    if importlib.util.find_spec("timm") is None:
        return "unchecked: timm is not installed"
    import timm

    theirs = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    return prove(features(theirs, export), features(export.encoder, export), "timm")


def to_onnx(export: Export, path: Path) -> str:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"to: onnx needs PyTorch's exporter, which needs more packages: pip install {' '.join(missing)}"
        )
    images = fixed_images(2, export.about["channels"], export.about["image_size"])
    with _quiet():
        try:
            torch.onnx.export(
                export.encoder,
                (images,),
                str(path),
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            raise UserError(f"to: onnx: PyTorch cannot export this encoder ({type(error).__name__}: {first})") from None
        run = _onnx_runner(path)
        for count in (2, 3):  # also another number of images than in the export
            ours = features(export.encoder, export, count)
            words = prove(features(run, export, count), ours, "onnx", exactly=False)
    return words


def _onnx_runner(path: Path) -> Callable:
    """images -> features by the ONNX file: onnxruntime computes them, or else the slow reference of onnx."""
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    else:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(str(path))
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@contextlib.contextmanager
def _quiet():
    """Suppress the log and warnings of PyTorch's exporter."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


TARGETS = {
    "torchvision": (to_torchvision, "encoder.torchvision.pt"),
    "safetensors": (to_safetensors, "encoder.safetensors"),
    "timm": (to_timm, "timm"),
    "onnx": (to_onnx, "encoder.onnx"),
}


def write(name: Target, export: Export, folder: Path) -> str:
    """Write the encoder for the target `name`; return the path and the proof in words. After an error nothing stays."""
    convert, file = TARGETS[name]
    path = folder / file
    overwritten.require_replaceable(path, Path(export.source.path), OF_TIMM)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_abandoned(folder.glob(f"{files.PARTIAL}*"))
        with tempfile.TemporaryDirectory(prefix=files.PARTIAL, dir=folder) as unfinished:
            words = convert(export, Path(unfinished) / file)
            for part in OF_TIMM if path.is_dir() and not path.is_symlink() else ():
                (path / part).unlink(missing_ok=True)
            os.replace(Path(unfinished) / file, path)
    except OSError as error:
        raise UserError(f"output_dir: cannot write {path} ({error})") from None
    return f"{path}: {words}"


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--path", *arguments]
    settings, _ = config.parse(Settings, arguments)
    if settings.path is None:
        raise UserError("path: name a run folder or a file: python -m ssl.export RUN_OR_FILE --to safetensors")
    torch.manual_seed(0)
    names = ("path", "encoder", "encoder_kwargs", "stem", "image_size", "init_format")
    export = Export(*restore(**{name: getattr(settings, name) for name in names}))
    if settings.output_dir is None and not isinstance(export.source.path, Path):
        raise UserError("output_dir: published weights have no run folder; say where the files go")
    folder = Path(settings.output_dir or Path(export.source.path).parent)
    h = features(export.encoder, export)
    say(f"encoder     {export.about['name']}, {h.shape[1]} features, weights of {export.source}")
    say(f"checksum    {checksum(h)} of its features of two fixed images")
    pixels = " ".join(f"{name} {values}" for name, values in export.normalisation().items())
    say(f"images      in 0..1, normalised with {pixels or 'the mean and std of its training, which are not recorded'}")
    for name in dict.fromkeys(settings.to):
        say(f"{name:<11} {write(name, export, folder)}")


if __name__ == "__main__":
    with one_line_errors("export", failures.explain):
        be_alone()
        main()

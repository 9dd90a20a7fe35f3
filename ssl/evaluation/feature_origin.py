"""Check that a features file belongs to the encoder and the images that the user names with it."""

from torch import nn

from ssl.checkpoints.restore import restore
from ssl.data.images import Images
from ssl.errors import UserError, one_line
from ssl.evaluation.features import Features, encoder_checksum
from ssl.settings.kinds import coerce
from ssl.sources import datasets, labels


def require(found: Features, settings) -> None:
    """Raise `UserError` unless the features are of the encoder and the images that `settings` of evaluate.py name."""
    if settings.model_path:
        built = settings.encoder, settings.encoder_kwargs, settings.stem, settings.image_size
        encoder, _, _ = restore(settings.model_path, *built, settings.init_format)
        require_encoder(found, encoder, settings.features, settings.model_path)
    if settings.dataset or settings.data_dir:
        settings.dataset = datasets.resolve_name(settings.dataset, settings.data_dir)
        images = {name: datasets.load_labelled(settings, name) for name in ("train", "test")}
        percent = coerce(found.settings.get("train_percent", 100), float, "features: train_percent")
        images["train"] = labels.choose(images["train"], percent, None, settings.seed)
        require_images(found, images, settings.features, settings.data_dir)


def require_encoder(found: Features, encoder: nn.Module, path: str, model_path: str) -> None:
    """Raise `UserError` unless the features are of this encoder."""
    own = encoder_checksum(encoder)
    if found.encoder != own:
        told = "which does not say" if found.encoder is None else f"with weights {found.encoder[:12]}"
        raise UserError(
            f"features: {path} is of another encoder, {told}, than model_path {model_path}, with weights {own[:12]}; "
            "leave --model_path out, or write its features with --protocol features"
        )


def require_images(found: Features, splits: dict[str, Images], path: str, root: str | None) -> None:
    """Raise `UserError` unless all features are of these images: same names below `root`, same classes."""
    for name, data in splits.items():
        own = found.splits[name]
        theirs = {_below(data.sample_name(i), root): data.classes[y] for i, y in enumerate(data.labels.tolist())}
        for sample, label in zip(own.paths, own.labels.tolist()):
            short = _below(sample, found.settings.get("data_dir"))
            if theirs.get(short) != own.classes[label]:
                why = f"{own.classes[label]!r} there, {theirs[short]!r} here" if short in theirs else "is not here"
                raise UserError(
                    f"features: {path} is of another data set: {one_line(short)}, in {name}, {why}. Leave --dataset "
                    "and --data_dir out, or name the images that the features are of"
                )


def _below(name: str, root) -> str:
    return name.removeprefix(str(root)).lstrip("/") if root else name

"""results.json of evaluate.py: the accuracies and what was judged how; and the table that is printed."""

import itertools
import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl import files
from ssl.checkpoints import about, pretrained, torch_file
from ssl.console import counted, say, table
from ssl.data.images import Images
from ssl.errors import UserError
from ssl.evaluation import card_table, features, metrics
from ssl.settings.shared import DATA

SETTINGS = {  # of each protocol
    "probe": ("probe_epochs",),
    "knn": ("k", "knn_temperature", "standardize"),
    "card": ("corrupted_images",),
    "linear": ("linear_epochs", "linear_lr", "linear_weight_decay", "linear_batch"),
}
COLUMNS = {"linear": "linear", "probe": "linear probe", "knn": "k-NN", "fixed": "fixed head"}


# What was judged, and how -----------------------------------------------------------------


def about_weights(source: pretrained.Source, encoder: nn.Module) -> dict:
    """Where the weights come from, their checksum, and after how many steps of training they were saved, if known."""
    return {
        "path": str(source.path),
        "format": source.format,
        "sha256": features.encoder_checksum(encoder),
        "steps": steps_of(source.path, encoder) if isinstance(source.path, Path) else None,
    }


def steps_of(path: Path, encoder: nn.Module) -> int | None:
    """After how many steps a run had the weights of `encoder`, which are in the file `path`; None where it is unknown.

    The checkpoint with these very weights says it; for encoder_best.pt it is best.json.
    """
    if path.name == "encoder_best.pt":
        step = files.json_object(path.with_name("best.json")).get("step")
        return step if isinstance(step, int) else None
    for kept in [path, *torch_file.kept(path.parent)]:
        try:
            state = torch_file.load(kept, mmap=True)
        except UserError:  # damaged, or a file of another program
            continue
        if isinstance(state, dict) and isinstance(state.get("step"), int) and _holds(state.get("model"), encoder):
            return state["step"]
    return None


def _holds(model, encoder: nn.Module) -> bool:
    """Whether the weights of a checkpoint are those of `encoder`."""
    if not isinstance(model, dict):
        return False
    pairs = [(model.get(f"encoder.{name}"), weight.cpu()) for name, weight in encoder.state_dict().items()]
    return all(isinstance(a, Tensor) and a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


HOW_READ = (*DATA, "value_range", "short_side", "image_size", "mean", "std")  # settings: which images, labels, pixels


def about_images(settings, test: Images, train: Images | None = None, split: str = "test") -> dict:
    """Which images were judged, how they were read, and how many a head was trained on, if one was."""
    return {
        **{name: getattr(settings, name) for name in HOW_READ},
        "split": split,
        "test_images": len(test),
        "test_checksum": test.fingerprint(settings.data_dir),
        "test_labels": test.label_checksum(),
        **({} if train is None else {"train_images": len(train)}),
        "classes": len(test.classes),
    }


def of_images(settings, protocols: list[str], weights: dict, images: dict[str, Images]) -> dict:
    """What results are of: weights, images, protocols."""
    data = about_images(settings, images["test"], images["train"])
    return {"weights": weights, "data": data} | about_protocols(settings, protocols)


def of_features(settings, protocols: list[str], found: features.Features, train: features.Split) -> dict:
    """What results of a features file are of, by its own settings."""
    said, steps = found.settings, found.settings.get("steps")
    data = {
        "features": settings.features,
        "split": "test",
        "test_images": len(found.splits["test"]),
        "train_images": len(train),
        "classes": len(found.classes),
    }
    data |= {name: said.get(name) for name in HOW_READ}
    steps = steps if isinstance(steps, int) else None
    weights = {"path": said.get("model_path"), "sha256": found.encoder, "steps": steps}
    return {"weights": weights, "data": data} | about_protocols(settings, protocols)


def about_protocols(settings, protocols: list[str]) -> dict:
    """The settings of the protocols, and the versions of the packages."""
    own = {
        protocol: {name: getattr(settings, name) for name in names}
        for protocol, names in SETTINGS.items()
        if protocol in protocols
    }
    shared = {name: getattr(settings, name) for name in ("seed", "train_percent", "train_files")}
    return {"protocols": own, **shared, "versions": about.versions()}


# Writing --------------------------------------------------------------------------------


def report(results: dict, subjects: list[str], folder: Path) -> None:
    """Print the table of the `subjects`, of raw_pixels, random_init and trained, and write results.json.

    Raises `UserError` where that cannot be written; the numbers are on the console then, and an earlier file stays.
    """
    say("\n" + accuracy_table(results, subjects) + "\n")
    if "card" in results:
        cards = {title(name, results["of"]["weights"]): (results | results.get(name, {}))["card"] for name in subjects}
        say(card_table.console(cards) + "\n")
    path, text = folder / "results.json", json.dumps(results, indent=2, default=str) + "\n"
    try:
        with files.replacing(path) as partial:
            partial.write_text(text, "utf-8")
            earlier = keep_earlier(path, text)
    except OSError as error:
        raise UserError(
            f"output_dir: cannot write {path} ({error}); the numbers are printed above. Make room, or set --output_dir"
        ) from None
    say(f"results     {path}" + (f" (earlier ones are in {earlier.name})" if earlier else ""))


def keep_earlier(path: Path, text: str) -> Path | None:
    """Rename an earlier file at `path` to the first free number, and return its name; None if it is just `text`."""
    if not path.is_file() or files.holds(path, text):
        return None
    numbered = (path.with_suffix(f".{number}{path.suffix}") for number in itertools.count(1))
    free = next(other for other in numbered if not os.path.lexists(other))
    path.rename(free)
    return free


def accuracy_table(results: dict, subjects: list[str]) -> str:
    """A row a subject, a column a protocol; with balanced accuracy where the test classes differ in size."""
    rows = {name: results if name == "trained" else results[name] for name in subjects}
    columns = [name for name in COLUMNS if name in results]
    found = [judged[column] for judged in rows.values() for column in columns if column in judged]
    shown = ["acc1"] + ["balanced_accuracy"] * any(abs(one["balanced_accuracy"] - one["acc1"]) > 1e-9 for one in found)
    cells = [(column, measure) for column in columns for measure in shown]
    lines = [["", *(COLUMNS[column] if measure == "acc1" else "balanced" for column, measure in cells)]]
    for name, judged in rows.items():
        accuracies = [metrics.percent(judged[column], m) if column in judged else "-" for column, m in cells]
        lines.append([title(name, results["of"]["weights"]), *accuracies])
    groups = found[0].get("groups")
    of, how = (f" of {counted(groups, 'group')}", "over groups") if groups else ("", "(Wilson)")
    return f"{table(lines)}\nn = {found[0]['n']} test images{of}; in brackets 95 % intervals {how}"


def title(subject: str, weights: dict) -> str:
    """The name of a row. Weights after 0 steps are not called trained."""
    if subject == "trained" and weights["steps"] == 0:
        return "not trained (0 steps)"
    return {"raw_pixels": "raw pixels", "random_init": "untrained encoder", "trained": "trained encoder"}[subject]

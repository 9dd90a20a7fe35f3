"""How well a network classifies labelled images: scores, validation, and a test with its files.

`predict` maps normalised pixels (n, C, size, size) to logits (n, classes). All ranks call each function, and all get
the same result.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl.console import say
from ssl.data.images import Images
from ssl.distributed import barrier, is_main
from ssl.errors import UserError
from ssl.evaluation import inference, metrics, plots
from ssl.evaluation.inference import Copies
from ssl.evaluation.predictions import write_predictions

Predict = Callable[[Tensor], Tensor]


def of_image(predict: Predict) -> Predict:
    """The log-probabilities of images as they are, float64."""
    return lambda x: predict(x).double().log_softmax(1)


def mean_of_copies(
    predict: Predict, data: Images, copies: Copies, how: inference.Reading, title: str | None, rows: range | None = None
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """The log-probabilities of the means over copies, as of `inference.mean_over_views`."""
    found, read, bad = inference.mean_over_views(
        lambda x: predict(x).double().softmax(1), data, copies, how, title, rows
    )
    return found.clamp(min=1e-300).log(), read, bad


def score(
    predict: Predict,
    data: Images,
    settings,
    device: torch.device,
    copies: Copies | None = None,
    title: str | None = None,
) -> tuple[Tensor, Images]:
    """Log-probabilities (N, classes), float64, on the CPU, of all images that can be read; and these images.

    `title` names the progress bar; None: there is none. Raises `UserError` where too many images cannot be read, or
    none can.
    """
    how = inference.Reading.of(settings, device)
    if copies is None:
        found, read, bad = inference.outputs(of_image(predict), data, how, title)
    else:
        found, read, bad = mean_of_copies(predict, data, copies, how, title)
    return found[read].cpu(), inference.readable(data, read, bad, settings.max_bad_fraction)


def validate(predict: Predict, data: Images, settings, device: torch.device) -> dict:
    """Loss and accuracies of the validation images: what metrics.jsonl says of them in each epoch."""
    scores, data = score(predict, data, settings, device)
    found = metrics.of_epoch(scores.exp(), data.labels, data.classes, data.groups)
    auc = found["auc_macro"] if found["auc"] is None else found["auc"]
    names = ("acc1", "acc1_interval", "balanced_accuracy", "balanced_accuracy_interval", "mcc")
    loss = F.nll_loss(scores, data.labels).item()
    return {"val_n": len(data), "val_loss": loss, "val_auc": auc} | {f"val_{name}": found[name] for name in names}


def test(predict: Predict, data: Images, settings, device: torch.device, copies: Copies | None, folder: Path) -> dict:
    """Score the test images, write predictions.csv, roc.png and confusion.png into `folder`, and return the metrics.

    The classes that `settings.major` names are also reported apart from the others.
    """
    scores, data = score(predict, data, settings, device, copies, "test")
    probabilities, classes = scores.exp(), data.classes
    found = {"loss": F.nll_loss(scores, data.labels).item(), "images": len(data)}
    found |= metrics.classification(probabilities, data.labels, classes, data.groups)
    if settings.major:
        major = torch.isin(data.labels, torch.tensor([classes.index(name) for name in settings.major]))
        for name, rows in (("major", major), ("minor", ~major)):
            part, of = data.subset(rows.nonzero()[:, 0]), probabilities[rows]
            found[name] = metrics.classification(of, part.labels, classes, part.groups) if len(part) else {}
    if is_main():
        _write_files(folder, probabilities, data, settings.data_dir, found["confusion"])
    barrier()
    return found


def _write_files(
    folder: Path, probabilities: Tensor, data: Images, data_dir: str | None, confusion: list[list]
) -> None:
    """The files of a test. Names of images are as seen from `data_dir`."""
    names = [data.sample_name(i).removeprefix(f"{data_dir}/") for i in range(len(data))]
    path = folder / "predictions.csv"
    try:
        write_predictions(path, names, data.labels, probabilities, data.classes)
        drawn = plots.roc(folder / "roc.png", probabilities, data.labels, data.classes)
        drawn = plots.confusion(folder / "confusion.png", confusion, data.classes) and drawn
    except OSError as error:
        raise UserError(f"output_dir: cannot write to {folder} ({error}); the same command tries again") from None
    say(f"tested      {path}" + (", roc.png, confusion.png" if drawn else " (no matplotlib)"))

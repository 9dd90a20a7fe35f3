"""Figures of a report: curves, the run folders' pictures, the projection of features, spectra."""

import base64

from ssl.checkpoints.run_reader import Run, numbers, wide
from ssl.report import svg
from ssl.report.markup import figure, legend, text, words
from ssl.report.page_style import COLOURS

CAPTIONS = {
    "views.png": "Views that training sees, drawn when the run began: "
    "each row an image, then its views in the first epochs",
    "neighbours.png": "Test images and their nearest neighbours among the training images; "
    "framed blue: of the same class, orange: of another",
    "correlation.png": "Cross-correlation of the embeddings of views 1 and 2, at most 256 dimensions: "
    "blue is 1, white 0, red -1",
    "roc.png": "ROC curves of the fine-tuned network on the test split",
    "confusion.png": "Confusion matrix of the fine-tuned network on the test split",
}
# Of a run without a test split.
NEIGHBOURS = "Every second image of the set, which has no labels, and its nearest neighbours among the others"
MOST_CLASSES = 20  # in the key of a map
SHARE = "share, 0 to 1"
CURVES = {  # name in metrics.jsonl: (title, name and unit of its axis)
    "loss": ("Loss", "loss"),
    "train_loss": ("Loss", "cross-entropy"),
    "val_loss": ("Loss on validation images", "loss"),
    "knn_acc1": ("Accuracy of k-NN on validation images", SHARE),
    "linear_acc1": ("Accuracy of the linear head on validation images", SHARE),
    "linear_train_acc1": ("Accuracy of the linear head on its training images", SHARE),
    "val_balanced_accuracy": ("Balanced accuracy on validation images", SHARE),
    "val_auc": ("AUC on validation images", "AUC, 0 to 1"),
    "val_mcc": ("Matthews' correlation on validation images", "MCC, -1 to 1"),
    "on_diagonal": ("Term of the loss: diagonal", "sum of squares"),
    "off_diagonal": ("Term of the loss: off the diagonal", "sum of squares"),
    "contrastive_acc1": ("How often another view of the image is the nearest", SHARE),
    "lr_weights": ("Learning rate of weights", "learning rate"),
    "lr_biases": ("Learning rate of biases and norms", "learning rate"),
    "lr_head": ("Learning rate of the head", "learning rate"),
    "lr_backbone": ("Learning rate of the encoder", "learning rate"),
    "samples_per_second": ("Speed", "images a second"),
    "data_wait": ("Waiting for data", "share of the time, 0 to 1"),
}
OF_FINE_TUNING = {"val_acc1": ("Accuracy on validation images", SHARE)}  # train.py calls another thing so


def curve(runs: list[Run], name: str) -> str:
    """The values `name` of all runs over their steps. With the loss of a fine-tuning's training stands its val_loss."""
    known = CURVES | OF_FINE_TUNING if all(run.fine_tuned for run in runs if name in run.curves) else CURVES
    title, unit = known.get(name, (name, name))
    lines = [run.curves.get(name, []) for run in runs]
    last = ", ".join(svg.number(line[-1][1]) if line else "-" for line, run in zip(lines, runs) if run.curves)
    named = f" ({name})" if title != name else ""
    caption = f"<b>{text(title)}</b>{text(named)} last {last}"
    if name == "train_loss":
        lines += [run.curves.get("val_loss", []) for run in runs]
        caption = f"<b>{title}</b>: of training solid (train_loss), on validation images dashed (val_loss)"
    log = wide(name, [value for line in lines for _, value in line])
    drawn = svg.curves(lines, f"{words(title)} by step, last {last}", "step", words(unit), log, len(runs))
    return figure(caption, drawn)


def names_to_draw(names: list[str]) -> list[str]:
    """Those of `names` that have a figure of their own."""
    return [name for name in names if name != "val_loss" or "train_loss" not in names]


def pictures(runs: list[Run]) -> list[list[str]]:
    """Figures of each kind: of every run one, where it has one."""
    kinds = [[_image(run, name, _of(run, runs)) for run in runs if name in run.pictures] for name in CAPTIONS]
    kinds += [[shown for run in runs for shown in _maps(run, _of(run, runs))], [_spectra(runs)]]
    return [[shown for shown in kind if shown] for kind in kinds]


def _of(run: Run, runs: list[Run]) -> str:
    """How the caption of a picture of `run` begins."""
    return f"{run.short_name}. " if len(runs) > 1 else ""


def _image(run: Run, name: str, of: str) -> str:
    caption = NEIGHBOURS if name == "neighbours.png" and run.projection.get("has_test") is False else CAPTIONS[name]
    caption = text(of + caption)
    source = base64.b64encode(run.pictures[name]).decode()
    return figure(caption, f'<img alt="{caption}" src="data:image/png;base64,{source}">')


def _maps(run: Run, of: str) -> list[str]:
    """The features of images in two dimensions: by PCA, and by another method where `--pictures` had one."""
    found = run.projection
    images = "images" if found.get("has_test") is False else "test images"
    shares = numbers(found.get("explained"))
    both = f"two components hold {100 * sum(shares):.0f} % of the variance"
    labels = [f"{which} component" for which in ("first", "second")]
    labels = [f"{label}, {100 * share:.0f} % of the variance" for label, share in zip(labels, shares)] or labels
    maps = [_map(run, found, f"{of}PCA", f"{images}; {both}", labels)]
    more = found.get("map")
    if isinstance(more, dict):
        method = words(more.get("method"))
        about = f"{images}: points that are near are alike; distances between groups, and their sizes, say little"
        labels = [f"{method}, {which} axis (no unit)" for which in ("first", "second")]
        maps.append(_map(run, more, of + method, about, labels))
    return maps


def _map(run: Run, places: dict, method: str, about: str, labels: list[str]) -> str:
    """Points at the `places` x and y, in the colours of their classes. `labels`: of the axes."""
    xs, ys = numbers(places.get("x")), numbers(places.get("y"))
    if not xs or len(xs) != len(ys) or len(labels) != 2:
        return ""
    of_images, classes = (v if isinstance(v := run.projection.get(k), list) else [] for k in ("labels", "classes"))
    groups = [v if isinstance(v, int) and 0 <= v < 10**6 else -1 for v in (of_images + [-1] * len(xs))[: len(xs)]]
    caption = f"{method} of the features of {len(xs)} {about}"
    drawn = svg.scatter(list(zip(xs, ys)), groups, caption, (labels[0], labels[1]))
    return figure(text(caption), f'{drawn}<p class="soft keys">{_key_of(classes)}</p>')


def _key_of(classes: list) -> str:
    """The colours of the classes."""
    keys = "".join(
        f'<span><span class="key c{i % COLOURS}"></span>{text(name)}</span> '
        for i, name in enumerate(classes[:MOST_CLASSES])
    )
    more = f"… and {len(classes) - MOST_CLASSES} more; " if len(classes) > MOST_CLASSES else ""
    return keys + more + (f"colours repeat after {COLOURS}" if len(classes) > COLOURS else "")


def _spectra(runs: list[Run]) -> str:
    spectra = [numbers(run.projection.get("spectrum")) for run in runs]
    if not any(spectra):
        return ""
    lines = [[(place + 1, value) for place, value in enumerate(values) if value > 1e-6] for values in spectra]
    caption = (
        "<b>Spectrum of the embeddings</b>: eigenvalues of their correlation matrix; flat where all dimensions are used"
    )
    drawn = svg.curves(lines, "Spectrum of the embeddings", "dimension, by eigenvalue", "eigenvalue", log=True)
    return figure(caption, legend(runs) + drawn)

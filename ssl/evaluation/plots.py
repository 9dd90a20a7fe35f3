"""ROC curves, confusion matrices and evaluations as PNG, where matplotlib is installed.

Class names may hold anything: long ones are cut, and `$` in them starts no formula. The user's settings of matplotlib
are ignored: with text.usetex, LaTeX would run a name.
"""

import contextlib
import io
import itertools
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ssl.errors import one_line
from ssl.evaluation.metrics import UNDEFINED, auc, roc_curve
from ssl.files import write_bytes

LONGEST_NAME = 24  # characters
MOST_CURVES = 20  # with colours of their own
MOST_POINTS = 2000  # of a curve; a picture has fewer pixels


def roc(path: Path, scores: Tensor, labels: Tensor, classes: list[str]) -> bool:
    """Draw the ROC curve of class 1 of two, or of every class against the rest, from scores (N, C) and labels (N,).

    More than two classes have a curve of all N·C decisions pooled, too; more than 20 have only that. A class without
    images, or with all of them, has no curve, and the legend says "undefined". Returns whether it was drawn: False
    without matplotlib. Raises OSError where it cannot be written; an earlier file is then unchanged.
    """
    one_hot = labels[:, None] == torch.arange(len(classes))
    curves = [(shown_name(name), scores[:, i], one_hot[:, i]) for i, name in enumerate(classes)]
    if len(classes) == 2:
        del curves[0]
    else:
        curves = curves if len(classes) <= MOST_CURVES else []
        curves.append(("all pooled (micro)", scores.flatten(), one_hot.flatten()))
    with canvas(path, (9, 6)) as axes:
        if axes is None:
            return False
        axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
        for number, (name, column, positive) in enumerate(curves):
            area = auc(column, positive)
            if area == UNDEFINED:
                axes.plot([], [], " ", label=f"AUC undefined  {name}")
                continue
            pooled = number == len(classes) or len(classes) > MOST_CURVES
            rates = [rate[evenly(len(rate))].numpy() for rate in roc_curve(column, positive)]
            line = ("black", ":") if pooled else (f"C{number % 10}", ("-", "--")[number // 10])
            axes.plot(*rates, color=line[0], linestyle=line[1], linewidth=1.5, label=f"AUC {area:.3f}  {name}")
        axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.005))
        axes.set_aspect("equal")
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=8)
    return True


def confusion(path: Path, matrix: list[list[int]], classes: list[str]) -> bool:
    """Draw a confusion matrix of counts, row = label, column = prediction; colours are shares of the row.

    With up to 20 classes each field says its share, with up to 10 also its count; up to 60 classes have their names at
    the sides. The row of a class without images shows dashes. Returns and raises as `roc`.
    """
    counts = torch.tensor(matrix)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = min(3 + 0.5 * len(classes), 20)
    with canvas(path, (side + 1, side)) as axes:
        if axes is None:
            return False
        image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
        axes.figure.colorbar(image, ax=axes, fraction=0.046, label="share of the label's images")
        axes.set(xlabel="predicted", ylabel="label")
        names = [shown_name(name) for name in classes] if len(classes) <= 60 else []
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        for row, column in itertools.product(range(len(classes)), repeat=2) if len(classes) <= 20 else ():
            share = shares[row, column].item()
            text = f"{share:.2f}" if counts[row].any() else "–"
            text += f"\n{matrix[row][column]}" if len(classes) <= 10 else ""
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    return True


def evaluation(path: Path, lines: list[dict]) -> bool:
    """Draw accuracies over epochs, from the lines of metrics.jsonl that have them. Returns and raises as `roc`."""
    names = {"linear_acc1": ("linear", "-"), "knn_acc1": ("k-NN", "-"), "linear_train_acc1": ("linear, train", ":")}
    with canvas(path, (8, 5)) as axes:
        if axes is None:
            return False
        for name, (label, style) in names.items():
            points = [(line["epoch"], 100 * line[name]) for line in lines]
            axes.plot(*zip(*points), linestyle=style, marker="." if len(points) < 50 else "", label=label)
        axes.set(xlabel="epoch", ylabel="% of validation images right")
        axes.grid(color="0.9")
        axes.legend(frameon=False)
    return True


@contextlib.contextmanager
def canvas(path: Path, inches: tuple[float, float]):
    """Axes to draw on, saved to `path` at the end. None without matplotlib."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        yield None
        return
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        warnings.filterwarnings("ignore", "Glyph")  # the font may lack a letter of a name: a box is drawn
        figure = Figure(figsize=inches)
        FigureCanvasAgg(figure)
        yield figure.add_subplot()
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=120, bbox_inches="tight")
    write_bytes(content.getvalue(), path)


def shown_name(name: str) -> str:
    name = one_line(name)
    cut = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    return cut.replace("$", r"\$")


def evenly(count: int) -> Tensor:
    """Indices of at most MOST_POINTS of `count` points, evenly spaced, with the first and the last."""
    return torch.linspace(0, count - 1, min(count, MOST_POINTS), dtype=torch.float64).round().long()

"""ROC curves, confusion matrices and evaluations as PNG, where matplotlib is installed.

Class names are anybody's words: they are cut, and `$` in them starts no formula. The user's
matplotlib settings do not count: with text.usetex a name would be run by LaTeX.
"""

import contextlib
import io
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ssl.errors import one_line
from ssl.evaluation.metrics import UNDEFINED, auc, roc_curve
from ssl.files import write_bytes

LONGEST_NAME = 24  # characters
MOST_CURVES = 20  # that have colours of their own
MOST_POINTS = 2000  # of a curve: more than a picture has pixels


def roc(path: Path, scores: Tensor, labels: Tensor, classes: list[str]) -> bool:
    """Draw the ROC curve of class 1 of two, or of every class against the rest, from scores (N, C) and labels (N,).

    With more than two classes there is also the curve of all N·C decisions pooled, alone where
    there are more than 20. A class without images, or with all of them, has no curve and is
    said to be undefined. Returns whether it was drawn: not without matplotlib. Whole or not at all: raises OSError.
    """
    one_hot = labels[:, None] == torch.arange(len(classes))
    curves = [(shown_name(name), scores[:, i], one_hot[:, i]) for i, name in enumerate(classes)]
    if len(classes) == 2:
        curves = curves[1:]
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

    Up to 20 classes the share stands in each field, up to 10 the count too; up to 60 have their
    names at the sides. A class without images has no shares: its row is of dashes. Returns whether it was drawn, as
    `roc` does.
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
        places, names = (
            (range(len(classes)), [shown_name(name) for name in classes]) if len(classes) <= 60 else ([], [])
        )
        axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(places, names, fontsize=8)
        if len(classes) <= 20:
            for row in range(len(classes)):
                for column in range(len(classes)):
                    share, count = shares[row, column].item(), counts[row, column].item()
                    text = (f"{share:.2f}" if counts[row].any() else "–") + (f"\n{count}" if len(classes) <= 10 else "")
                    axes.text(
                        column,
                        row,
                        text,
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="white" if share > 0.5 else "black",
                    )
    return True


def evaluation(path: Path, lines: list[dict]) -> bool:
    """Draw accuracies over epochs, from lines of metrics.jsonl that have them. Returns whether, as `roc` does."""
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
    """Axes to draw on, saved to `path` at the end; None without matplotlib."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        yield None
        return
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks is drawn as a box
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
    """Indices of at most MOST_POINTS of a curve's points, evenly, with the first and the last."""
    return torch.linspace(0, count - 1, min(count, MOST_POINTS), dtype=torch.float64).round().long()

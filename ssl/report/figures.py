"""ROC curves, confusion matrices, evaluations, curves, PCA and spectrum as PNG, where matplotlib is installed.

Nothing else needs it.

Class names are anybody's words: they are cut, and `$` in them starts no formula. The user's
matplotlib settings do not count: with text.usetex a name would be run by LaTeX.
"""

from pathlib import Path

from torch import Tensor

from ssl.checkpoints.run_reader import Run, names_of_curves, wide
from ssl.evaluation.plots import canvas, shown_name
from ssl.report.svg import thin

LONGEST_NAME = 24  # characters
MOST_CURVES = 20  # that have colours of their own
MOST_POINTS = 2000  # of a curve: more than a picture has pixels
MOST_PANELS, COLUMNS = 24, 4  # curves of a run in one picture
COLOURED = 10  # classes of a projection that have a colour; the others are grey


def curves(path: Path, run: Run) -> bool:
    """Draw what metrics.jsonl holds as the report does, a panel each, the first 24. Returns whether, as `roc` does;
    not where there is nothing that changes."""
    names = names_of_curves([run])[0][:MOST_PANELS]
    if not names:
        return False
    rows = -(-len(names) // COLUMNS)
    with canvas(path, (3.4 * COLUMNS, 2.6 * rows), (rows, COLUMNS)) as panels:
        if panels is None:
            return False
        for axes, name in zip(panels.flat, names):
            points = run.curves[name]
            axes.plot(*zip(*thin(points)), linewidth=1, marker="." if len(points) < 50 else "")
            axes.set_yscale("log" if wide(name, [value for _, value in points]) else "linear")
            axes.set_title(shown_name(name), fontsize=9)
            axes.tick_params(labelsize=7)
            axes.grid(color="0.9")
        for axes in panels.flat[len(names) :]:
            axes.remove()
        panels[0, 0].figure.supxlabel("step", fontsize=8)
        panels[0, 0].figure.tight_layout()
    return True


def projection(path: Path, points: Tensor, explained: Tensor, labels: Tensor, classes: list[str]) -> bool:
    """Draw two components (N, 2) of features, coloured by label (N,); -1, and every class after the tenth, is grey.
    `explained` is the components' share of the variance. Returns whether it was drawn, as `roc` does."""
    with canvas(path, (8, 6)) as axes:
        if axes is None:
            return False
        grey = (labels < 0) | (labels >= COLOURED)
        groups = [(grey, "0.7", "other" if len(classes) > COLOURED else "no label")]
        groups += [(labels == i, f"C{i}", shown_name(name)) for i, name in enumerate(classes[:COLOURED])]
        for chosen, colour, name in groups:
            if chosen.any():
                axes.scatter(*points[chosen].T.numpy(), s=9, color=colour, linewidths=0, label=name)
        first, second = (f"component {i + 1}, {100 * share:.0f} %" for i, share in enumerate(explained.tolist()))
        axes.set(xlabel=f"{first} of the variance", ylabel=f"{second} of the variance")
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=8)
    return True


def spectrum(path: Path, values: Tensor) -> bool:
    """Draw falling eigenvalues (D,) of embeddings' correlation matrix. Returns whether, as `roc` does."""
    with canvas(path, (8, 5)) as axes:
        if axes is None:
            return False
        shown = values[values > 1e-6]  # below are those of dimensions, or images, that are not there
        axes.semilogy(range(1, len(shown) + 1), shown.numpy(), marker="." if len(shown) < 50 else "")
        axes.set(xlabel="dimension", ylabel="eigenvalue of the embeddings' correlation matrix")
        axes.grid(color="0.9")
    return True

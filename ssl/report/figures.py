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
    "correlation.png": "Cross-correlation of two views' embeddings, at most 256 dimensions: blue is 1, white 0, red -1",
    "roc.png": "ROC curves of the fine-tuned network on the test split",
    "confusion.png": "Confusion matrix of the fine-tuned network on the test split",
}
# Of a run without a test split.
NEIGHBOURS = "Every second image of the set, which has no labels, and its nearest neighbours among the others"
MOST_CLASSES = 20  # in the key of a projection


def curve(runs: list[Run], name: str) -> str:
    """The values `name` of all runs over their steps."""
    lines = [run.curves.get(name, []) for run in runs]
    log = wide(name, [value for line in lines for _, value in line])
    last = ", ".join(svg.number(line[-1][1]) if line else "-" for line in lines)
    caption = f"<b>{text(name)}</b> {'(logarithmic) ' if log else ''}last {last}"
    return figure(caption, svg.curves(lines, f"{words(name)} by step, last {last}", log=log))


def pictures(runs: list[Run]) -> list[list[str]]:
    """Figures of each kind: of every run one, where it has one."""
    kinds = [[_image(run, name, _of(run, runs)) for run in runs if name in run.pictures] for name in CAPTIONS]
    kinds += [[_projection(run, _of(run, runs)) for run in runs], [_spectra(runs)]]
    return [[shown for shown in kind if shown] for kind in kinds]


def _of(run: Run, runs: list[Run]) -> str:
    """How the caption of a picture of `run` begins."""
    return f"{run.short_name}. " if len(runs) > 1 else ""


def _image(run: Run, name: str, of: str) -> str:
    caption = NEIGHBOURS if name == "neighbours.png" and run.projection.get("has_test") is False else CAPTIONS[name]
    caption = text(of + caption)
    source = base64.b64encode(run.pictures[name]).decode()
    return figure(caption, f'<img alt="{caption}" src="data:image/png;base64,{source}">')


def _projection(run: Run, of: str) -> str:
    xs, ys = numbers(run.projection.get("x")), numbers(run.projection.get("y"))
    if not xs or len(xs) != len(ys):
        return ""
    labels, classes = (value if isinstance(value := run.projection.get(k), list) else [] for k in ("labels", "classes"))
    groups = [v if isinstance(v, int) and 0 <= v < 10**6 else -1 for v in (labels + [-1] * len(xs))[: len(xs)]]
    keys = "".join(
        f'<span><span class="key c{i % COLOURS}"></span>{text(name)}</span> '
        for i, name in enumerate(classes[:MOST_CLASSES])
    )
    more = f"… and {len(classes) - MOST_CLASSES} more; " if len(classes) > MOST_CLASSES else ""
    more += f"colours repeat after {COLOURS}" if len(classes) > COLOURS else ""
    share = sum(numbers(run.projection.get("explained")))
    images = "images" if run.projection.get("has_test") is False else "test images"
    caption = f"{of}PCA of the features of {len(xs)} {images}; two components hold {100 * share:.0f} % of the variance"
    drawn = svg.scatter(list(zip(xs, ys)), groups, caption)
    return figure(text(caption), f'{drawn}<p class="soft keys">{keys}{more}</p>')


def _spectra(runs: list[Run]) -> str:
    spectra = [numbers(run.projection.get("spectrum")) for run in runs]
    if not any(spectra):
        return ""
    lines = [[(place + 1, value) for place, value in enumerate(values) if value > 1e-6] for values in spectra]
    caption = (
        "<b>Spectrum of the embeddings</b>: eigenvalues of their correlation matrix; flat where all dimensions are used"
    )
    return figure(caption, legend(runs) + svg.curves(lines, "Spectrum of the embeddings", "dimension", log=True))

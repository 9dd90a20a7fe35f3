"""worth.html: the verdict, the learning curves and the numbers on one page that opens offline."""

import math
import time
from statistics import fmean

from ssl.evaluation import logistic
from ssl.report import svg
from ssl.report.markup import document, figure, folded_table, grid, key, table, text
from ssl.worth import answer, words
from ssl.worth.choice import FROZEN, TUNED
from ssl.worth.intervals import level
from ssl.worth.kept import Agreed
from ssl.worth.look import Look
from ssl.worth.scores import Judges, Score
from ssl.worth.verdict import Verdict


def page(verdict: Verdict, agreed: Agreed, found: Look, following: str, unlabelled: str | None) -> str:
    """The HTML. `following`: the command that follows from the verdict. `unlabelled`: the folder of more images."""
    headline = text(words.headline(verdict))
    told = words.paragraphs(verdict).items()
    paragraphs = "".join(f"<h3>{text(title)}</h3><p>{_whole(sentences)}</p>" for title, sentences in told)
    head, *rows = answer.rows(verdict, answer.accuracy)
    knn = answer.rows(verdict, _knn, [FROZEN])[1:]
    gaps = _cells(answer.against_nothing(verdict))
    body = (
        f"<main><h1>{headline}</h1>"
        f'<p class="soft">Written {time.strftime("%Y-%m-%d %H:%M %Z")} by python -m ssl.worth</p>'
        f"{paragraphs}<h3>Next</h3><p><code>{_whole(following)}</code></p>"
        f"<h2>Learning curves</h2>{_legend(verdict)}{grid([_curves(verdict, use) for use in (FROZEN, TUNED)])}"
        f"<h2>Numbers</h2>{table(words.caption(verdict.test), head, _cells(rows))}"
        + folded_table("Every start against nothing, in the same use", ["Start", "Labels", "Difference", "Seeds"], gaps)
        + folded_table("k-NN on frozen features", head, _cells(knn))
        + f"<h2>How it was compared</h2>{_how(agreed, found, unlabelled)}</main>"
    )
    return document(headline, body)


def _whole(sentences: str) -> str:
    """Escaped text of any length: `text` would cut it."""
    return " ".join(text(word) for word in sentences.split())


def _legend(verdict: Verdict) -> str:
    keys = "".join(f"<span>{key(i)}{text(start)}</span> &ensp; " for i, start in enumerate(verdict.facts.starts))
    return f'<p class="keys">{keys}</p>'


def _curves(verdict: Verdict, use: str) -> str:
    """Accuracy over the number of labels, with intervals, of all starts in one use."""
    labels = verdict.facts.labels
    lines, bars = [], []
    for start in verdict.facts.starts:
        of_use = verdict.table[start, use]
        found = [(math.log10(labels[count]), level(of_use[count], verdict.test)) for count in labels if count in of_use]
        lines.append([(x, 100 * one.value) for x, one in found])
        bars.append([(x, 100 * one.low, 100 * one.high) for x, one in found])
    title = {FROZEN: "Frozen encoder, linear head", TUNED: "Fine-tuned"}[use]
    marks = [(math.log10(n), str(n)) for n in labels.values()]
    unit = f"{words.measure(verdict.test)}, %"
    drawn = svg.curves(lines, f"{title}: {unit} by labels", "labels, logarithmic", unit, bars=bars, x_marks=marks)
    return figure(f"<b>{text(title)}</b>, with 95 % intervals", drawn)


def _cells(rows: list[list[str]]) -> list[list[str]]:
    return [[text(cell) for cell in row] for row in rows]


def _knn(score: Score, test: Judges) -> str:
    return words.percent(fmean(score.knn.values()))


def _how(agreed: Agreed, found: Look, unlabelled: str | None) -> str:
    made = agreed.plan
    more = (
        f", and those of {unlabelled} that are not among test and validation images, byte for byte"
        if unlabelled
        else ""
    )
    rows = [
        [
            text(" and ".join(network.starts)),
            text(network.settings["encoder"]),
            f"{network.train_size} / {network.judge_size}",
            text(f"{made.epochs.get(network.name, '-')} ({network.recipe_epochs})"),
        ]
        for network in agreed.networks
    ]
    head = ["Starts", "Encoder", "Pixels: trained / judged frozen", "Epochs of pre-training (train.py alone)"]
    notes = [
        f"{len(found.train)} training images and {len(found.splits['test']) - len(found.copies)} test images.",
        "All starts learn from the same draws of labels and are compared on the same test images.",
        f"The head of frozen encoders is {logistic.WORDS}.",
        f"Pre-training on your images sees the training images without their labels{more}, and no test image.",
        *(
            f"By the record of its run {one.name} has seen test images, without labels."
            for one in agreed.networks
            if one.saw_test
        ),
        f"Planned for {made.minutes:.3g} minutes; plan.json has the times.",
        *(f"Left out: {reason}." for reason in agreed.left_out),
        *([f"Classes that were left out: {', '.join(found.train.left_out)}."] if found.train.left_out else []),
    ]
    return "".join(f"<p>{_whole(note)}</p>" for note in notes) + table("Networks", head, rows)

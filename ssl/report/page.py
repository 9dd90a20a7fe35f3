"""Write report.html: runs side by side in one file, without network and without scripts.

All text from a run folder is escaped, here and in `svg`: settings, names and log lines may come from anybody.
"""

import base64
import json
import time
from html import escape

from ssl.checkpoints.run_reader import SPEED, Run, finite, names_of_curves, wide
from ssl.errors import one_line
from ssl.report import svg
from ssl.report.page_style import COLOURS, STYLE
from ssl.training import health_rules

LONGEST = 300  # characters of a value
LONG = 40  # characters from which on a cell gets room for a sentence
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
# Measures that are shown without a click.
MAIN = {"n", "images", "acc1", "balanced_accuracy", "auc", "mcc", "knn_acc1", "linear_acc1", "val_acc1", "val_auc"}
ONLINE = ("knn_acc1", "linear_acc1", "val_acc1", "val_auc")


def page(runs: list[Run]) -> str:
    """The HTML of a report of one run or several."""
    title = f"Run {_short(runs[0])}" if len(runs) == 1 else f"{len(runs)} runs side by side"
    sections = {
        "Overview": _overview(runs),
        "Health": _health(runs),
        "Judged": _judged(runs),
        "Curves": _curves(runs),
        "Pictures": _pictures(runs),
        "Throughput": _throughput(runs),
        "Settings": _settings(runs),
    }
    links = "".join(f'<li><a href="#{name.lower()}">{name}</a></li>' for name in sections)
    body = "".join(
        f'<section id="{name.lower()}" aria-labelledby="h-{name.lower()}"><h2 id="h-{name.lower()}">{name}'
        f"</h2>{content}</section>"
        for name, content in sections.items()
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><link rel="icon" href="data:,"><title>{_text(title)}</title>'
        f"<style>{STYLE}</style></head>"
        f'<body><a class="skip" href="#overview">Skip to the overview</a><header><h1>{_text(title)}</h1>'
        f'<p class="soft">Written {time.strftime("%Y-%m-%d %H:%M %Z")}</p>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>{body}</main></body></html>\n'
    )


# Sections -----------------------------------------------------------------------------


def _overview(runs: list[Run]) -> str:
    rows = []
    for i, run in enumerate(runs):
        last = {name: points[-1][1] for name, points in run.curves.items()}
        loss = last.get("loss", last.get("train_loss"))
        rows.append(
            [
                (_key(i) if len(runs) > 1 else "") + _text(_short(run)),
                _text(run.state),
                _text(f"{run.status['step']} of {run.status.get('of', '?')}" if "step" in run.status else "-"),
                _text(run.settings.get("method", "-")),
                _text(run.settings.get("dataset", "-")),
                _text(run.settings.get("encoder", "-")),
                _number(run.about.get("global_batch")),
                _number(loss),
                _text(f"step {run.best.get('step')}, by {run.best.get('chosen_by')}" if run.best else "-"),
            ]
        )
    head = ["Run", "State", "Step", "Method", "Data", "Encoder", "Global batch", "Last loss", "Best encoder"]
    notes = "".join(
        f'<div class="note"><b>{_text(_short(run))}</b>, {_text(run.state)}: {_text(run.status["reason"])}</div>'
        for run in runs
        if run.status.get("reason")
    )
    notes += "".join(
        f'<div class="note"><b>{_text(_short(run))}</b>: not in this report<ul>'
        + "".join(f"<li>{_text(words)}</li>" for words in run.missing)
        + "</ul></div>"
        for run in runs
        if run.missing
    )
    return _table("What ran, and how far it is", head, rows) + notes


def _health(runs: list[Run]) -> str:
    parts = []
    for run in runs:
        spoken = [[_number(v.get("step")), _text(v.get("rule", "")), _text(v.get("words", ""))] for v in run.verdicts]
        spoken += [["", _text(rule), _text(f"{words} (from the images of --pictures)")] for rule, words in _seen(run)]
        if run.bad_steps:
            spoken.append(["", "not finite", _text(f"{run.bad_steps} steps were left out: bad_steps.jsonl")])
        name = f"<h3>{_text(_short(run))}</h3>" if len(runs) > 1 else ""
        words = (
            _table("Verdicts", ["Step", "Rule", "Words"], spoken)
            if spoken
            else (f"<p>No verdict was given{_unjudged(run)}.</p>")
        )
        parts.append(name + words)
    return "".join(parts)


def _seen(run: Run) -> list[tuple[str, str]]:
    """Health rules that the embeddings of --pictures break."""
    reading = run.projection.get("reading")
    return health_rules.shown({k: v for k, v in reading.items() if finite(v)}) if isinstance(reading, dict) else []


def _unjudged(run: Run) -> str:
    """Why no rule could be judged, if that is so."""
    readings = max((len(points) for name, points in run.curves.items() if name.startswith("health_")), default=0)
    few = f": {readings} reading{'s are' if readings > 1 else ' is'} too few to judge"
    return "" if readings >= health_rules.MEMORY else few if readings else ": no health values are in metrics.jsonl"


def _judged(runs: list[Run]) -> str:
    measured: dict[tuple[str, str], list] = {}
    for i, run in enumerate(runs):
        found = [(file, path, value) for file, results in run.results.items() for path, value in _flat(results)]
        found += [("metrics.jsonl, last", name, run.curves[name][-1][1]) for name in ONLINE if name in run.curves]
        for file, path, value in found:
            measured.setdefault((path, file), [None] * len(runs))[i] = value
    if not measured:
        return "<p>Not judged yet: <code>python evaluate.py --model_path RUN</code></p>"
    rows = [[_text(path), _text(file), *map(_number, values)] for (path, file), values in measured.items()]
    names = [_short(run) for run in runs] if len(runs) > 1 else ["Value"]
    main = [row for row in rows if MAIN & set(row[0].split(" · "))]
    return _table(
        "Accuracies are fractions in 0..1, in brackets their 95 % intervals", ["Measure", "From", *names], main
    ) + _folded(f"All {len(rows)} numbers", ["Measure", "From", *names], rows)


def _curves(runs: list[Run]) -> str:
    changing, constant = names_of_curves(runs)
    drawn = [_curve(runs, name) for name in changing]
    said = "".join(
        f"<li>{_text(name)}: {_number(next(run.curves[name][0][1] for run in runs if name in run.curves))}</li>"
        for name in constant
    )
    if not drawn and not said:
        return "<p>metrics.jsonl holds nothing to draw.</p>"
    more = "".join(drawn[6:])
    return (
        f'{_legend(runs)}<div class="grid-of">{"".join(drawn[:6])}</div>'
        + (
            f'<details><summary>More curves: {len(drawn) - 6}</summary><div class="grid-of">{more}</div></details>'
            if more
            else ""
        )
        + (
            f"<details><summary>Values that never changed: {len(constant)}</summary><ul>{said}</ul></details>"
            if said
            else ""
        )
    )


def _throughput(runs: list[Run]) -> str:
    rows = []
    for i, run in enumerate(runs):
        rate = sorted(value for _, value in run.curves.get("samples_per_second", []))
        wait = sorted(value for _, value in run.curves.get("data_wait", []))
        rows.append(
            [
                _key(i) + _text(_short(run)),
                _number(rate[len(rate) // 2] if rate else None),
                f"{100 * wait[len(wait) // 2]:.1f} %" if wait else "-",
                _number(run.about.get("processes")),
            ]
        )
    head = ["Run", "Samples a second (median)", "Waiting for data (median)", "Processes"]
    drawn = [_curve(runs, name) for name in SPEED if any(name in run.curves for run in runs)]
    return _table("Speed", head, rows) + f'<p></p><div class="grid-of">{"".join(drawn)}</div>'


def _pictures(runs: list[Run]) -> str:
    named = len(runs) > 1
    figures = [[_image(run, name, named) for run in runs if name in run.pictures] for name in CAPTIONS]
    figures += [[_projection(run, named) for run in runs], [_spectra(runs)]]
    kinds = [[figure for figure in kind if figure] for kind in figures]
    rows = kinds if named else [sum(kinds, [])]  # several runs: the same picture of each in a row
    parts = [f'<div class="pairs">{"".join(row)}</div>' for row in rows if row]
    if not any(run.projection for run in runs):
        parts.append(
            '<p class="soft">Neighbours, projection and correlation are made by '
            "<code>python -m ssl.report RUN --pictures</code>.</p>"
        )
    return "".join(parts)


def _spectra(runs: list[Run]) -> str:
    spectra = [_numbers(run.projection.get("spectrum")) for run in runs]
    if not any(spectra):
        return ""
    lines = [[(place + 1, value) for place, value in enumerate(values) if value > 1e-6] for values in spectra]
    words = "eigenvalues of their correlation matrix; flat where all dimensions are used"
    return (
        f"<figure><figcaption><b>Spectrum of the embeddings</b>: {words}</figcaption>{_legend(runs)}"
        + svg.curves(lines, "Spectrum of the embeddings", "dimension", log=True)
        + "</figure>"
    )


def _settings(runs: list[Run]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    if not names:
        return "<p>config.yaml is not there.</p>"
    head = ["Setting"] + [words for run in runs for words in ([_short(run)] if len(runs) > 1 else ["Value", "From"])]
    rows, marks = [], []
    for name in names:
        values = [_plain(run.settings[name]) if name in run.settings else "-" for run in runs]
        row = [_text(name), *map(_text, values)]
        if len(runs) == 1:
            row.append(_text(_origin(runs[0], name)))
        rows.append(row)
        marks.append(len(set(values)) > 1)
    if len(runs) == 1:
        chosen = [row for row in rows if row[2] != "default"]
        rest = [row for row in rows if row[2] == "default"]
        return _table("Set by you or a recipe", head, chosen) + _folded(f"{len(rest)} defaults", head, rest)
    differing = [row for row, differs in zip(rows, marks) if differs]
    same = [row for row, differs in zip(rows, marks) if not differs]
    origins = [[_text(name), *(_text(_origin(run, name)) for run in runs)] for name in names]
    return (
        _table("Settings that differ", head, differing)
        + _folded(f"{len(same)} settings that are the same", head, same)
        + _folded("Where they came from", head, origins)
    )


# Parts --------------------------------------------------------------------------------


def _table(caption: str, head: list[str], rows: list[list[str]]) -> str:
    """An HTML table. Cells are HTML, made by `_text`, `_number` and `_key`; captions and heads are plain text."""
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in head)
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(map(_cell, head[1:], row[1:]))}</tr>' for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(caption)}"><table><caption class="soft">'
        f"{_text(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(head: str, content: str) -> str:
    """A cell. On a narrow screen, where a row is a block, its head is shown before it."""
    return f'<td{" class=long" if len(content) > LONG else ""} data-head="{_text(head)}">{content}</td>'


def _folded(title: str, head: list[str], rows: list[list[str]]) -> str:
    return f"<details><summary>{_text(title)}</summary>{_table(title, head, rows)}</details>" if rows else ""


def _curve(runs: list[Run], name: str) -> str:
    lines = [run.curves.get(name, []) for run in runs]
    log = wide(name, [value for line in lines for _, value in line])
    last = ", ".join(svg.number(line[-1][1]) if line else "-" for line in lines)
    words = f"<b>{_text(name)}</b> {'(logarithmic) ' if log else ''}last {last}"
    drawn = svg.curves(lines, f"{_words(name)} by step, last {last}", log=log)
    return f"<figure><figcaption>{words}</figcaption>{drawn}</figure>"


def _image(run: Run, name: str, named: bool) -> str:
    caption = NEIGHBOURS if name == "neighbours.png" and run.projection.get("has_test") is False else CAPTIONS[name]
    words = f"{_short(run)}. {caption}" if named else caption
    source = base64.b64encode(run.pictures[name]).decode()
    return (
        f'<figure><figcaption>{_text(words)}</figcaption><img alt="{_text(words)}" '
        f'src="data:image/png;base64,{source}"></figure>'
    )


def _projection(run: Run, named: bool) -> str:
    xs, ys = (_numbers(run.projection.get(axis)) for axis in ("x", "y"))
    labels = run.projection.get("labels")
    labels = labels if isinstance(labels, list) else []
    if not xs or len(xs) != len(ys):
        return ""
    groups = [v if isinstance(v, int) and 0 <= v < 10**6 else -1 for v in (labels + [-1] * len(xs))[: len(xs)]]
    classes = run.projection.get("classes")
    classes = classes if isinstance(classes, list) else []
    keys = "".join(
        f'<span><span class="key c{i % COLOURS}"></span>{_text(name)}</span> ' for i, name in enumerate(classes[:20])
    )
    more = f"… and {len(classes) - 20} more; " if len(classes) > 20 else ""
    more += f"colours repeat after {COLOURS}" if len(classes) > COLOURS else ""
    share = sum(_numbers(run.projection.get("explained")))
    images = "images" if run.projection.get("has_test") is False else "test images"
    words = f"PCA of the features of {len(xs)} {images}; two components hold {100 * share:.0f} % of the variance"
    words = f"{_short(run)}. {words}" if named else words
    return (
        f"<figure><figcaption>{_text(words)}</figcaption>{svg.scatter(list(zip(xs, ys)), groups, words)}"
        f'<p class="soft keys">{keys}{more}</p></figure>'
    )


def _legend(runs: list[Run]) -> str:
    keys = "".join(f"<span>{_key(i)}{_text(_short(run))}</span> &ensp; " for i, run in enumerate(runs))
    return f"<p>{keys}</p>" if len(runs) > 1 else ""


def _key(i: int) -> str:
    return f'<span class="key c{i % COLOURS}"></span>'


def _flat(results: dict, above: str = "", depth: int = 0) -> list[tuple[str, float | str]]:
    """The numbers of a nested dict with their paths, and their intervals if there are any; at most 60 of each part."""
    found: list[tuple[str, float | str]] = []
    for name, value in results.items():
        path = f"{above}{name}"
        if finite(value):
            interval = _numbers(results.get(f"{name}_interval"))
            low_high = f" ({svg.number(interval[0])}–{svg.number(interval[1])})" if len(interval) == 2 else ""
            found.append((path, svg.number(value) + low_high if low_high else value))
        elif name == "runs" and isinstance(value, list):  # of finetune.py, a seed each
            for number, one in enumerate(value):
                if isinstance(one, dict):
                    found += _flat(one, f"{above}seed {one.get('seed', number)} · ", depth + 1)
        elif isinstance(value, dict) and depth < 4:
            found += _flat(value, f"{path} · ", depth + 1)
    return found[: 60 if depth else 1000]


def _origin(run: Run, name: str) -> str:
    origin = run.about.get("origin")
    return str(origin.get(name, "unknown")) if isinstance(origin, dict) else "unknown"


def _numbers(values) -> list[float]:
    return [float(v) for v in values[:20_000]] if isinstance(values, list) and all(map(finite, values)) else []


def _number(value) -> str:
    return svg.number(value) if finite(value) else "-" if value is None else _text(value)


def _plain(value) -> str:
    return value if isinstance(value, str) else "unset" if value is None else json.dumps(value, default=str)


def _words(text) -> str:
    """One printable line of bounded length."""
    text = one_line(str(text)[: LONGEST + 1])
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def _text(text) -> str:
    return escape(_words(text))


def _short(run: Run) -> str:
    return run.name.rstrip("/").rpartition("/")[2] or run.name

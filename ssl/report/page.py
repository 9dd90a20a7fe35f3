"""Write report.html: runs side by side in one file, without network and without scripts."""

import json
import time

from ssl.checkpoints.run_reader import SPEED, Run, finite, names_of_curves, numbers
from ssl.report import figures, svg
from ssl.report.markup import document, folded, folded_table, grid, key, legend, note, number, table, text
from ssl.training import health_rules

# Measures that are shown without a click.
MAIN = {"n", "images", "acc1", "balanced_accuracy", "auc", "mcc", "knn_acc1", "linear_acc1", "val_acc1", "val_auc"}
ONLINE = ("knn_acc1", "linear_acc1", "val_acc1", "val_auc")
MOST_FIGURES = 6  # curves that are shown without a click


def page(runs: list[Run]) -> str:
    """The HTML of a report of one run or several."""
    title = text(f"Run {runs[0].short_name}" if len(runs) == 1 else f"{len(runs)} runs side by side")
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
    return document(
        title,
        f'<a class="skip" href="#overview">Skip to the overview</a><header><h1>{title}</h1>'
        f'<p class="soft">Written {time.strftime("%Y-%m-%d %H:%M %Z")}</p>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>{body}</main>',
    )


def _overview(runs: list[Run]) -> str:
    rows = []
    for i, run in enumerate(runs):
        last = {name: points[-1][1] for name, points in run.curves.items()}
        rows.append(
            [
                (key(i) if len(runs) > 1 else "") + text(run.short_name),
                text(run.state),
                text(f"{run.status['step']} of {run.status.get('of', '?')}" if "step" in run.status else "-"),
                *(text(run.settings.get(name, "-")) for name in ("method", "dataset", "encoder")),
                number(run.about.get("global_batch")),
                number(last.get("loss", last.get("train_loss"))),
                text(f"step {run.best.get('step')}, by {run.best.get('chosen_by')}" if run.best else "-"),
            ]
        )
    head = ["Run", "State", "Step", "Method", "Data", "Encoder", "Global batch", "Last loss", "Best encoder"]
    notes = [
        note(run, f", {text(run.state)}: {text(run.status['reason'])}") for run in runs if run.status.get("reason")
    ]
    for run in runs:
        if run.missing:
            listed = "".join(f"<li>{text(words)}</li>" for words in run.missing)
            notes.append(note(run, f": not in this report<ul>{listed}</ul>"))
    return table("What ran, and how far it is", head, rows) + "".join(notes)


def _health(runs: list[Run]) -> str:
    parts = []
    for run in runs:
        rows = [[number(v.get("step")), text(v.get("rule", "")), text(v.get("words", ""))] for v in run.verdicts]
        reading = run.projection.get("reading")  # of the embeddings of --pictures
        if isinstance(reading, dict):
            broken = health_rules.shown({name: value for name, value in reading.items() if finite(value)})
            rows += [["", text(rule), text(f"{words} (from the images of --pictures)")] for rule, words in broken]
        if run.bad_steps:
            rows.append(["", "not finite", text(f"{run.bad_steps} steps were left out: bad_steps.jsonl")])
        parts.append(f"<h3>{text(run.short_name)}</h3>" if len(runs) > 1 else "")
        parts.append(
            table("Verdicts", ["Step", "Rule", "Words"], rows) or f"<p>No verdict was given{_unjudged(run)}.</p>"
        )
    return "".join(parts)


def _unjudged(run: Run) -> str:
    """Why no rule could be judged, if that is so."""
    readings = max((len(points) for name, points in run.curves.items() if name.startswith("health_")), default=0)
    if readings == 0:
        return ": no health values are in metrics.jsonl"
    few = f": {readings} reading{'s are' if readings > 1 else ' is'} too few to judge"
    return few if readings < health_rules.MEMORY else ""


def _judged(runs: list[Run]) -> str:
    measured: dict[tuple[str, str], list] = {}  # (measure, file) -> a value of each run
    for i, run in enumerate(runs):
        found = [(path, file, value) for file, results in run.results.items() for path, value in _flat(results)]
        found += [(name, "metrics.jsonl, last", run.curves[name][-1][1]) for name in ONLINE if name in run.curves]
        for path, file, value in found:
            measured.setdefault((path, file), [None] * len(runs))[i] = value
    if not measured:
        return "<p>Not judged yet: <code>python evaluate.py --model_path RUN</code></p>"
    rows = [[text(path), text(file), *map(number, values)] for (path, file), values in measured.items()]
    head = ["Measure", "From", *([run.short_name for run in runs] if len(runs) > 1 else ["Value"])]
    main = [row for row in rows if MAIN & set(row[0].split(" · "))]
    return table("Accuracies are fractions in 0..1, in brackets their 95 % intervals", head, main) + folded_table(
        f"All {len(rows)} numbers", head, rows
    )


def _flat(results: dict, above: str = "", depth: int = 0) -> list[tuple[str, float | str]]:
    """The numbers of a nested dict with their paths, and their intervals if there are any; at most 60 of each part."""
    found: list[tuple[str, float | str]] = []
    for name, value in results.items():
        path = f"{above}{name}"
        if finite(value):
            interval = numbers(results.get(f"{name}_interval"))
            low_high = f" ({svg.number(interval[0])}–{svg.number(interval[1])})" if len(interval) == 2 else ""
            found.append((path, svg.number(value) + low_high if low_high else value))
        elif name == "runs" and isinstance(value, list):  # of finetune.py, one for each seed
            for place, one in enumerate(value):
                if isinstance(one, dict):
                    found += _flat(one, f"{above}seed {one.get('seed', place)} · ", depth + 1)
        elif isinstance(value, dict) and depth < 4:
            found += _flat(value, f"{path} · ", depth + 1)
    return found[: 60 if depth else 1000]


def _curves(runs: list[Run]) -> str:
    changing, constant = names_of_curves(runs)
    if not changing and not constant:
        return "<p>metrics.jsonl holds nothing to draw.</p>"
    drawn = [figures.curve(runs, name) for name in changing]
    first = {name: next(run.curves[name][0][1] for run in runs if name in run.curves) for name in constant}
    listed = "".join(f"<li>{text(name)}: {number(value)}</li>" for name, value in first.items())
    return (
        legend(runs)
        + grid(drawn[:MOST_FIGURES])
        + folded(f"More curves: {len(drawn) - MOST_FIGURES}", grid(drawn[MOST_FIGURES:]))
        + folded(f"Values that never changed: {len(constant)}", listed and f"<ul>{listed}</ul>")
    )


def _pictures(runs: list[Run]) -> str:
    kinds = figures.pictures(runs)
    rows = kinds if len(runs) > 1 else [sum(kinds, [])]  # of several runs, the same picture of each in a row
    parts = [f'<div class="pairs">{"".join(row)}</div>' for row in rows if row]
    if not any(run.projection for run in runs):
        parts.append(
            '<p class="soft">Neighbours, projection and correlation are made by '
            "<code>python -m ssl.report RUN --pictures</code>.</p>"
        )
    return "".join(parts)


def _throughput(runs: list[Run]) -> str:
    rows = []
    for i, run in enumerate(runs):
        rate, wait = (_median([value for _, value in run.curves.get(name, [])]) for name in SPEED)
        share = "-" if wait is None else f"{100 * wait:.1f} %"
        rows.append([key(i) + text(run.short_name), number(rate), share, number(run.about.get("processes"))])
    head = ["Run", "Samples a second (median)", "Waiting for data (median)", "Processes"]
    drawn = [figures.curve(runs, name) for name in SPEED if any(name in run.curves for run in runs)]
    return table("Speed", head, rows) + "<p></p>" + grid(drawn)


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def _settings(runs: list[Run]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    if not names:
        return "<p>config.yaml is not there.</p>"
    values = {name: [_plain(run.settings[name]) if name in run.settings else "-" for run in runs] for name in names}
    origins = {name: [_origin(run, name) for run in runs] for name in names}
    if len(runs) == 1:
        head = ["Setting", "Value", "From"]
        rows = [[text(name), text(values[name][0]), text(origins[name][0])] for name in names]
        chosen, rest = ([row for row in rows if (row[2] == "default") is default] for default in (False, True))
        return table("Set by you or a recipe", head, chosen) + folded_table(f"{len(rest)} defaults", head, rest)
    head = ["Setting", *(run.short_name for run in runs)]
    rows = {name: [text(name), *map(text, values[name])] for name in names}
    differing = [name for name in names if len(set(values[name])) > 1]
    same = [rows[name] for name in names if name not in differing]
    came_from = [[text(name), *map(text, origins[name])] for name in names]
    return (
        table("Settings that differ", head, [rows[name] for name in differing])
        + folded_table(f"{len(same)} settings that are the same", head, same)
        + folded_table("Where they came from", head, came_from)
    )


def _origin(run: Run, name: str) -> str:
    origin = run.about.get("origin")
    return str(origin.get(name, "unknown")) if isinstance(origin, dict) else "unknown"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else "unset" if value is None else json.dumps(value, default=str)

"""Write report.html: runs side by side in one file, without network and without scripts."""

import json
import time
from statistics import median_high

from ssl.checkpoints import run_reader
from ssl.checkpoints.run_reader import SPEED, Run, finite, names_of_curves
from ssl.console import counted
from ssl.report import card_page, figures
from ssl.report.accuracies import judged
from ssl.report.markup import document, folded, folded_table, grid, key, legend, number, table, text
from ssl.report.overview import MOST_COLUMNS, overview
from ssl.training import health_rules

MOST_FIGURES = 6  # curves that are shown without a click


def page(runs: list[Run]) -> str:
    """The HTML of a report of one run or several. More than MOST_COLUMNS have an overview and accuracies alone."""
    every = [one for run in runs for one in (run, *run.seeds)]
    run_reader.tell_apart(every)
    several = f"{len(runs)} runs side by side" if len(runs) <= MOST_COLUMNS else f"{len(runs)} runs"
    title = text(f"Run {runs[0].short_name}" if len(runs) == 1 else several)
    sections = {"Overview": overview(runs), "Judged": judged(every)}
    if len(runs) <= MOST_COLUMNS:
        pretrained = [run for run in runs if not run.fine_tuned]
        cards = card_page.section(every)
        sections |= {
            **({"Card": cards} if cards else {}),
            **({"Health": _health(pretrained)} if pretrained else {}),
            "Curves": _curves(every),
            "Pictures": _pictures(every),
            "Throughput": _throughput(every),
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
        parts.append(table("What was wrong", ["Step", "Rule", "Words"], rows) or f"<p>{_nothing_wrong(run)}.</p>")
    return "".join(parts)


def _nothing_wrong(run: Run) -> str:
    """What it means that there is no verdict."""
    readings = max((len(points) for name, points in run.curves.items() if name.startswith("health_")), default=0)
    if readings == 0:
        return "Health was not measured: metrics.jsonl has no values of it"
    if readings < health_rules.MEMORY:
        return f"Health was measured {counted(readings, 'time')}, which is too few to judge"
    return f"Health was measured {counted(readings, 'time')}, and nothing was wrong"


def _curves(runs: list[Run]) -> str:
    changing, constant = names_of_curves(runs)
    if not changing and not constant:
        return "<p>metrics.jsonl holds nothing to draw.</p>"
    drawn = [figures.curve(runs, name) for name in figures.names_to_draw(changing)]
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
            '<p class="soft">Neighbours, maps of the features and the correlation are made by '
            "<code>python -m ssl.report RUN --pictures</code>.</p>"
        )
    return "".join(parts)


def _throughput(runs: list[Run]) -> str:
    rows = []
    for i, run in enumerate(runs):
        if not run.curves:
            continue
        curves = [run.curves.get(name) for name in SPEED]
        rate, wait = (median_high(value for _, value in points) if points else None for points in curves)
        share = "-" if wait is None else f"{100 * wait:.1f} %"
        rows.append([key(i) + text(run.short_name), number(rate), share, number(run.about.get("processes"))])
    head = ["Run", "Samples a second (median)", "Waiting for data (median)", "Processes"]
    drawn = [figures.curve(runs, name) for name in SPEED if any(name in run.curves for run in runs)]
    return table("Speed", head, rows) + "<p></p>" + grid(drawn)


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

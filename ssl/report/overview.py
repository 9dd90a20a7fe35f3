"""The overview of a report: what each run is, when and where it ran, how it ended, and what continues it."""

import datetime
import os
from html import escape

from ssl.checkpoints.run_reader import Run, finite
from ssl.errors import one_line
from ssl.report.markup import note, number, table, text
from ssl.settings.command import command

MOST_COLUMNS = 6  # runs that stand side by side; more have a line each
IN_A_LINE = ("Folder", "Script", "State", "Step", "Data", "Encoder", "Started", "Time computed", "Last loss")


def overview(runs: list[Run]) -> str:
    """A table of facts, a column for each run; with many runs a line for each. Then what else is to be said of them."""
    facts = [_facts(run) for run in runs]
    names = list(dict.fromkeys(name for of_run in facts for name in of_run))
    if len(runs) <= MOST_COLUMNS:
        rows = [[text(name), *(of_run.get(name, "-") for of_run in facts)] for name in names]
        found = table("What ran, where, and how far it is", ["", *(run.short_name for run in runs)], rows)
    else:
        names = [name for name in names if name in IN_A_LINE]
        rows = [[text(run.short_name), *(f.get(name, "-") for name in names)] for run, f in zip(runs, facts)]
        found = table("What ran, and how far it is", ["Run", *names], rows)
    return found + "".join(map(_notes, runs))


def _facts(run: Run) -> dict[str, str]:
    """{what: HTML} of all that the folder tells."""
    settings, status, about = run.settings, run.status, run.about
    last = {name: points[-1][1] for name, points in run.curves.items()}
    script = "finetune.py" if run.fine_tuned else f"train.py, {settings.get('method')}" if settings else None
    at = f"{status['step']} of {status.get('of', '?')}" if "step" in status else None
    chosen_by = str(run.best.get("chosen_by")).replace("linear_acc1", "the linear head on validation images")
    best = f"step {run.best.get('step')}, by {chosen_by}" if run.best else None
    ended = "Ended" if status.get("state") in ("finished", "failed", "preempted") else "Last sign"
    loss = last.get("loss", last.get("train_loss"))
    found = {
        "Folder": os.path.abspath(run.name),
        "Script": script,
        "State": run.state,
        "Step": at,
        "Started": _date(status.get("begun")),
        ended: _date(status.get("time")),
        "Time computed": _duration(status.get("seconds")),
        "Device": about.get("device"),
        "Processes": about.get("processes") if "device" not in about else None,
        "Data": _data(settings),
        "Images trained on": f"{about['images']:,}" if finite(about.get("images")) else None,
        "Encoder": settings.get("encoder"),
        "Global batch": about.get("global_batch"),
        "Last loss": None if loss is None else number(loss),
        "Best encoder": best,
    }
    words = {name: text(value) for name, value in found.items() if value is not None}
    if again := _continuing(run):
        words["Continue with"] = f"<code>{escape(one_line(again))}</code>"  # whole, to be copied
    return words


def _data(settings: dict) -> str | None:
    """Name and path of the data."""
    named = [str(settings[name]) for name in ("dataset", "data_dir", "csv") if settings.get(name) is not None]
    return ", ".join(named) or None


def _date(value: object) -> str | None:
    """'2026-11-29 14:03', the local time that a status says; None where it is no time."""
    try:
        return datetime.datetime.strptime(str(value), "%Y-%m-%dT%H:%M:%S%z").strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return None


def _duration(seconds: object) -> str | None:
    """'2 h 05 min', '3 min 20 s', '7 s'."""
    if not finite(seconds) or seconds < 0:
        return None
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _continuing(run: Run) -> str | None:
    """The command that continues a run which did not finish; None where it runs, or is not known."""
    said = run.status.get("state")
    if said not in ("running", "failed", "preempted") or run.state.startswith("running") or not run.settings:
        return None
    processes = run.about.get("processes")
    if finite(processes) and processes > 1 and run.settings.get("gpus") is None:
        return f"the same command as before, on {processes} processes"
    folder = os.path.abspath(run.name)
    script = "finetune.py" if run.fine_tuned else "train.py"
    again = {"resume": "auto"} if run.settings.get("resume") == "none" else {}
    return command(script, config=os.path.join(folder, "config.yaml"), output_dir=folder, **again)


def _notes(run: Run) -> str:
    """Why a run ended, and which of its files are not in the report."""
    reason = run.status.get("reason")
    ended = note(run, f", {text(run.state)}: {text(reason)}") if reason else ""
    listed = "".join(f"<li>{text(words)}</li>" for words in run.missing)
    return ended + (note(run, f": not in this report<ul>{listed}</ul>") if listed else "")

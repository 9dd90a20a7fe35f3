"""Train by a recipe until a target is reached; say how long it took, in seconds, epochs, images and FLOP.

python benchmarks/speedrun.py configs/simclr_cifar10.yaml --target knn=0.85 --data_dir CIFAR10
python benchmarks/speedrun.py CONFIG --target probe=0.75 --minutes 15 --seeds 0 1 2 --test [any setting of train.py]

train.py trains and judges after every `--eval_every` epochs: k-NN and the linear probe of evaluate.py, on the
validation split, or on a tenth of the training labels, never on the test split. When the accuracy, a share in 0..1, is
reached, or after `--minutes` of training, the run is asked to stop, and saves. Each seed has a run folder of its own
in `--output_dir`, which must not be there yet. `--test` then scores the last encoder once on the test split.

Two clocks. `training` is that of train.py's log: steps and reading their images, with the compiling of the first step,
without start, judging and saving at the end. `wall` is the whole process, with all of that. The time at which an epoch
was judged lies between two lines of the log, and is interpolated: a smaller `--log_every` makes it more exact.

FLOP are counted (torch.utils.flop_counter) in one forward and backward pass of encoder and projector on two images in
all their views, and multiplied: convolutions and matrix products, an addition and a multiplication each as one. Not
counted: the views' operations, batch norm and other sums by element, the loss, the optimizer, judging.
"""

import sys
from pathlib import Path

import ssl

ROOT = Path(__file__).resolve().parents[1]
ssl.__path__ = [str(ROOT / "ssl")]  # see ssl/__init__.py
sys.path.append(str(ROOT))  # for train.py

import argparse
import contextlib
import itertools
import math
import shlex
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator

import torch
from measure import machine, write_json
from torch.utils.flop_counter import FlopCounterMode

import train
from ssl.checkpoints import torch_file
from ssl.console import say, table
from ssl.errors import UserError, one_line_errors
from ssl.files import json_lines, json_object
from ssl.settings import config

KINDS = {"knn": "knn_acc1", "probe": "linear_acc1"}  # name of a target: that of metrics.jsonl
LOOK = 0.5  # seconds between two looks at metrics.jsonl
POLITE = 120  # seconds that train.py may take to save when it is asked to stop


def parse_target(text: str) -> tuple[str, float]:
    """('knn', 0.85) of 'knn=0.85'. Raises `UserError` for anything else."""
    kind, _, share = text.partition("=")
    with contextlib.suppress(ValueError):
        if kind in KINDS and 0 < float(share) <= 1:
            return kind, float(share)
    raise UserError(f"target: {text!r} is not knn=SHARE or probe=SHARE, a share above 0 and up to 1, as in knn=0.85")


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """(options, the settings of train.py that are changed). Raises `UserError` for what no run can use."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about, allow_abbrev=False)
    parser.add_argument("config", help="a recipe; any setting of train.py may follow")
    parser.add_argument("--target", required=True, help="knn=SHARE or probe=SHARE")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of training, after which it stops")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--eval_every", type=int, default=1, help="epochs between two judgings")
    parser.add_argument("--test", action="store_true", help="score the test split, once, when a run has ended")
    parser.add_argument("--output_dir", type=Path, help="of the run folders; unset: runs/speedrun_CONFIG")
    parser.add_argument("--json", type=Path, help="write the numbers to this file; unset: speedrun.json in output_dir")
    options, changed = parser.parse_known_args(arguments)
    options.target = parse_target(options.target)
    if not options.minutes > 0:
        raise UserError(f"minutes: {options.minutes:g} must be positive")
    if options.eval_every < 1:
        raise UserError(f"eval_every: {options.eval_every} must be at least 1; the run is judged by it")
    if len(set(options.seeds)) < len(options.seeds):
        raise UserError("seeds: one is given twice")
    options.output_dir = options.output_dir or ROOT / "runs" / f"speedrun_{Path(options.config).stem}"
    options.json = options.json or options.output_dir / "speedrun.json"
    for seed in options.seeds:
        if (folder := options.output_dir / f"seed{seed}").exists():
            raise UserError(f"output_dir: {folder} is there already; a run is measured from its start, pass another")
        settings, _ = config.parse(train.Settings, training_words(options, changed, seed), recipe=train.find_recipe)
        train.check(settings)
    return options, changed


def training_words(options: argparse.Namespace, changed: list[str], seed: int) -> list[str]:
    """The arguments of train.py."""
    return [
        *("--config", options.config, *changed),
        *("--seed", str(seed), "--output_dir", str(options.output_dir / f"seed{seed}")),
        *("--eval_every", str(options.eval_every), "--eval_head", "probe", "--evaluate_after", "false"),
    ]


# A run ------------------------------------------------------------------------------


def measure(options: argparse.Namespace, changed: list[str], seed: int, note: Callable[[dict], None]) -> dict:
    """Train with one seed until the target, the limit or the end. `note` is given what is known after each judging."""
    folder, (kind, goal) = options.output_dir / f"seed{seed}", options.target
    run = dict(seed=seed, folder=str(folder), reached=False, ended="at its end", training_seconds=None, curve=[])
    stop, began, judged = folder / "stop", time.monotonic(), 0
    command = [sys.executable, str(ROOT / "train.py"), *training_words(options, changed, seed)]
    with contextlib.closing(watched(command)) as states:
        for state in states:
            now = time.monotonic() - began
            lines = json_lines(folder / "metrics.jsonl")
            if not lines:
                continue
            run |= read(folder, lines)
            if not run["reached"] and any(row[kind] >= goal for row in run["curve"]):
                run |= dict(reached=True, ended="at the target", wall_seconds_to_target=now)
                ask_to_stop(stop, state)
            elif run["ended"] == "at its end" and (run["training_seconds"] or 0) >= 60 * options.minutes:
                run["ended"] = "after --minutes"
                ask_to_stop(stop, state)
            if len(run["curve"]) > judged or state is not None:
                judged = len(run["curve"])
                note(run)
    stop.unlink(missing_ok=True)  # where the run had ended by itself
    run["wall_seconds"] = time.monotonic() - began
    how = json_object(folder / "status.json").get("state")
    if how not in ("finished", "preempted"):
        raise UserError(f"train.py ended with exit status {state}; what it said is above")
    if how == "preempted" and run["ended"] == "at its end":
        step = json_object(folder / "status.json")["step"]
        raise UserError(f"{folder}: the run was stopped from outside at step {step}; it is no measurement. Start again")
    if torch_file.load(torch_file.kept(folder)[0])["retries"]:
        raise UserError(f"{folder}: the run went back to a checkpoint, so its log has not all of its time; see above")
    run["at"] = next((row for row in run["curve"] if row[kind] >= goal), run["curve"][-1] if run["curve"] else None)
    if options.test:
        run["test"] = score_test(folder)
    return run


def watched(command: list[str]) -> Iterator[int | None]:
    """Start a command; yield None again and again while it runs, and at last its exit status.

    Whatever ends the caller before asks the command to end, too.
    """
    process, state = subprocess.Popen(command), None
    try:
        while state is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK)
            state = process.poll()
            yield state
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLITE)
            process.kill()


def ask_to_stop(file: Path, state: int | None) -> None:
    """The run ends after its next step, and saves."""
    if state is None:
        file.touch()


def read(folder: Path, lines: list[dict]) -> dict:
    """What metrics.jsonl says of the run so far: the curve and the length."""
    about = json_object(folder / "about.json")
    batch, views = about["global_batch"], len(about["views"])
    clock = Clock(lines, batch)
    curve = [
        dict(
            epoch=line["epoch"],
            step=line["step"],
            images=line["step"] * batch,
            views=line["step"] * batch * views,
            seconds=clock(line["step"]),
            **{kind: line[name] for kind, name in KINDS.items()},
        )
        for line in lines
        if "linear_acc1" in line
    ]
    judged_n = next((line["judged_n"] for line in lines if "judged_n" in line), None)
    return dict(training_seconds=clock(lines[-1]["step"]), steps=lines[-1]["step"], judged_n=judged_n, curve=curve)


class Clock:
    """Seconds of training at a step, from the rates that train.py logs: they leave out the time of judging."""

    def __init__(self, lines: list[dict], batch: int):
        logged = [line for line in lines if "samples_per_second" in line]
        self.steps = [0, *(line["step"] for line in logged)]
        self.pace = [batch / line["samples_per_second"] for line in logged]  # seconds a step before this line

    def __call__(self, step: int) -> float | None:
        """Steps after the last line are taken to be as fast as those before it. None: there is no line yet."""
        if not self.pace:
            return 0.0 if step == 0 else None
        spans = zip(itertools.pairwise(self.steps), self.pace)
        seconds = sum((min(step, end) - start) * pace for (start, end), pace in spans if start < step)
        return seconds + max(0, step - self.steps[-1]) * self.pace[-1]


def score_test(folder: Path) -> dict:
    """k-NN and probe on the test split by evaluate.py, in 0..1."""
    words = [sys.executable, ROOT / "evaluate.py", "--model_path", folder, "--protocol", "knn", "probe"]
    if status := subprocess.run(list(map(str, words))).returncode:
        raise UserError(f"evaluate.py ended with exit status {status}; what it said is above")
    found = json_object(folder / "results.json")
    return {kind: found[kind]["acc1"] for kind in KINDS}


# What is counted ----------------------------------------------------------------------


def flop_per_image(settings: train.Settings, about: dict) -> float:
    """FLOP of a training step for each image, all its views together: see the head of this file."""
    count, channels = 2, len(about["mean"])
    model = train.Model(settings, channels).train()
    views = [torch.rand(count, channels, view["size"], view["size"]) for view in about["views"]]
    with FlopCounterMode(display=False) as forward:
        outputs = model(*views)
    with FlopCounterMode(display=False) as backward:
        sum(z.sum() for z in outputs).backward()
    twice = settings.accumulate > 1 and settings.accumulate_mode == "exact"  # embeddings are then computed again
    return (forward.get_total_flops() * (2 if twice else 1) + backward.get_total_flops()) / count


def describe(options: argparse.Namespace, changed: list[str], folder: Path) -> dict:
    """What all runs share, from the folder of one."""
    about, settings = json_object(folder / "about.json"), train.Settings(**config.read_yaml(folder / "config.yaml"))
    torch.set_num_threads(int(about["versions"]["threads"]))
    kind, goal = options.target
    return dict(
        config=options.config,
        changed=shlex.join(changed),
        target={kind: goal},
        minutes=options.minutes if math.isfinite(options.minutes) else None,
        seeds=options.seeds,
        machine=machine("cuda" if torch.cuda.is_available() and settings.device != "cpu" else "cpu"),
        device=about["device"],
        processes=about["processes"],
        threads=torch.get_num_threads(),
        versions=about["versions"],
        precision=settings.amp,
        compile=settings.compile,
        images=about["images"],
        global_batch=about["global_batch"],
        steps_per_epoch=about["steps_per_epoch"],
        views=len(about["views"]),
        flop_per_image=flop_per_image(settings, about),
        not_counted="the views' operations, batch norm and sums by element, the loss, the optimizer, judging",
    )


# What is printed ----------------------------------------------------------------------


def show(results: dict) -> str:
    ((kind, goal),) = results["target"].items()
    head = ["seed", f"{kind} {goal:g}", "epoch", "images", "views", "training", "wall", "PFLOP", "k-NN", "probe"]
    rows = [[*head, *(["test k-NN", "test probe"] if any("test" in run for run in results["runs"]) else [])]]
    for run in results["runs"]:
        at = run["at"]
        words = "reached" if run["reached"] else f"not reached {run['ended']}"
        if at is None:
            rows.append([str(run["seed"]), f"{words}, never judged", *[""] * (len(rows[0]) - 2)])
            continue
        wall = run["wall_seconds_to_target" if run["reached"] else "wall_seconds"]
        flop = at["images"] * results["flop_per_image"] / 1e15
        amounts = [f"{at['epoch']:g}", f"{at['images']:,}", f"{at['views']:,}", minutes(at["seconds"]), minutes(wall)]
        shares = [at["knn"], at["probe"], *run.get("test", {}).values()]
        rows.append([str(run["seed"]), words, *amounts, f"{flop:.4g}", *(f"{share:.2%}" for share in shares)])
    if len(results["runs"]) > 1:
        rows.append(summary(results["runs"], len(rows[0])))
    return table(rows)


def summary(runs: list[dict], width: int) -> list[str]:
    """Mean ± standard deviation over the seeds, where every run was judged."""
    judged = [run["at"] for run in runs if run["at"]]
    columns = {5: "seconds", 8: "knn", 9: "probe"}
    row = ["mean", f"{sum(run['reached'] for run in runs)} of {len(runs)}", *[""] * (width - 2)]
    for place, name in columns.items():
        values = [at[name] for at in judged]
        if len(judged) == len(runs) and None not in values:
            row[place] = spread(values, 60, " min") if name == "seconds" else spread(values, 0.01, " %")
    for place, kind in enumerate(KINDS, 10):
        if place < width:
            row[place] = spread([run["test"][kind] for run in runs], 0.01, " %")
    return row


def spread(values: list[float], unit: float, name: str) -> str:
    return f"{statistics.mean(values) / unit:.2f} ± {statistics.stdev(values) / unit:.2f}{name}"


def minutes(seconds: float | None) -> str:
    return "not logged" if seconds is None else f"{seconds / 60:.2f} min"


def main() -> None:
    options, changed = parse()
    runs: list[dict] = []
    for seed in options.seeds:
        runs.append(measure(options, changed, seed, lambda run: write_json(options.json, dict(runs=[*runs, run]))))
        results = describe(options, changed, Path(runs[0]["folder"])) | dict(runs=runs)
        write_json(options.json, results)
    say(f"\n{results['machine']}\n{results['device']}, {results['threads']} threads, amp {results['precision']}")
    say(f"{options.config} {results['changed']}\n{show(results)}\nnumbers and curves: {options.json}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the run is asked to stop, too
    with one_line_errors("speedrun.py"):
        main()

"""Part `cifar` of gpu.sh: CIFAR-10, ResNet-18 with the small stem, images on the device, 200 epochs at batch 512.

python benchmarks/gpu_cifar.py --json FILE                        the rate alone, on noise of CIFAR-10's size
python benchmarks/gpu_cifar.py --json FILE --data_dir CIFAR10 --runs FOLDER [--minutes 60]

With --data_dir (class folders in train/ and test/) train.py trains Barlow Twins and SimCLR by their recipes in
pieces, evaluate.py judges after each, and the wall-clock is told at which k-NN reached 80 % and 85 % and the
probe 90 %: that of train.py's processes with their starts and saves, without judging. After --minutes it ends
politely; the same command goes on where it stood. What was not reached is projected from the rate and called so.
Without a GPU the rate is measured on something tiny.
"""

import sys
from pathlib import Path

import ssl

ROOT = Path(__file__).resolve().parents[1]
ssl.__path__ = [str(ROOT / "ssl")]  # see ssl/__init__.py
sys.path.append(str(ROOT))  # for train.py

import json
import statistics
import subprocess
import time

import torch
from measure import is_tiny, machine, part_parser, write_json
from throughput import measure

import train
from ssl import distributed
from ssl.console import table
from ssl.errors import UserError, one_line_errors
from ssl.files import json_lines
from ssl.settings import config
from ssl.sources import datasets

METHODS = ("barlow_twins", "simclr")
EPOCHS, BATCH = 200, 512
STOPS = (10, 20, 30, 40, 60, 80, 100, 125, 150, 175, 200)  # epochs after which the encoder is judged
GOALS = [("knn", 0.80), ("knn", 0.85), ("probe", 0.90)]
# A public library's minutes on an A6000, and its k-NN accuracy then
PUBLIC = {"barlow_twins": (153, 0.819), "simclr": (87, 0.848)}
POLITE = 120  # seconds that a run may take to save when asked to stop
TINY = ["--encoder", "ssl.encoders.SmallResNet", "--encoder_kwargs", "{width: 8, stages: 2}", "--projector", "64-64"]


def rate_of(method: str, device: torch.device, tiny: bool) -> dict:
    """Samples per second of the method's recipe, on noise held on the device."""
    own = ["--method", method, "--dataset", "fake", "--image_size", "32", "--batch_size", "16" if tiny else str(BATCH)]
    settings, _ = config.parse(train.Settings, own + (TINY if tiny else []), recipe=train.find_recipe)
    data = datasets.load("fake", None, "unlabelled", image_size=32)
    numbers = measure(settings, data, device, 2 if tiny else 60, 1)
    found = numbers["parts"]["real"]
    return dict(
        samples_per_second=found["samples_per_second"],
        shares=found["shares"],
        of_synthetic=numbers["of_synthetic"],
        peak_memory_mb=numbers["peak_memory_mb"],
    )


def launch(script: str, seconds: float, *arguments) -> bool:
    """Run a script of the project; whether it came to its end. After `seconds` it is asked to stop."""
    process = subprocess.Popen([sys.executable, str(ROOT / script), *map(str, arguments)])
    try:
        status = process.wait(max(seconds, 1))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.terminate()
        process.wait(POLITE)
        return False
    if status:
        raise UserError(f"{script} ended with exit status {status}; what it said is above")
    return True


def train_and_judge(method: str, state: dict, data_dir: str, folder: Path, images: int, end: float, note) -> None:
    """Go on with this method from where `state` stands, until it is through or the clock says `end`."""
    steps_per_epoch = images // BATCH
    for stop in STOPS:
        if any(row["epoch"] == stop for row in state["judged"]):
            continue
        began = time.monotonic()
        try:
            whole = launch(
                "train.py",
                end - began,
                "--config",
                ROOT / "configs" / f"{method}_cifar10.yaml",
                "--data_dir",
                data_dir,
                "--image_size",
                32,
                "--batch_size",
                BATCH,
                "--epochs",
                EPOCHS,
                "--max_steps",
                stop * steps_per_epoch,
                "--output_dir",
                folder,
            )
        finally:
            state["train_seconds"] += time.monotonic() - began
            rates = [line["samples_per_second"] for line in json_lines(folder / "metrics.jsonl") if "loss" in line]
            state["samples_per_second"] = statistics.median(rates) if rates else None
            note()
        if not whole or not launch(
            "evaluate.py", end - time.monotonic() + POLITE, "--model_path", folder, "--protocol", "knn", "probe"
        ):
            return
        accuracies = json.loads((folder / "results.json").read_text())
        state["judged"].append(
            dict(
                epoch=stop,
                train_seconds=state["train_seconds"],
                **{name: accuracies[name]["acc1"] for name in ("knn", "probe")},
            )
        )
        note()
        if time.monotonic() >= end:
            return


def reached(state: dict, what: str, goal: float) -> dict | None:
    """The first time that the accuracy was there."""
    return next((row for row in state["judged"] if row[what] >= goal), None)


def projected_minutes(rate: float | None, images: int) -> float | None:
    return None if not rate else EPOCHS * (images // BATCH) * BATCH / rate / 60


def show(results: dict) -> str:
    rows = [["", "samples/s", f"{EPOCHS} epochs", *(f"{what} {goal:.0%}" for what, goal in GOALS), "last", "public"]]
    for method, state in results["methods"].items():
        judged = state.get("judged", [])
        times = []
        for what, goal in GOALS:
            found = reached(state, what, goal) if judged else None
            times.append(f"{found['train_seconds'] / 60:.1f} min (epoch {found['epoch']})" if found else "not reached")
        if judged and judged[-1]["epoch"] == EPOCHS:
            length = f"{judged[-1]['train_seconds'] / 60:.1f} min"
        else:
            minutes = projected_minutes(state["samples_per_second"], results["images"])
            length = "" if minutes is None else f"{minutes:.1f} min, projected"
        last = (
            f"epoch {judged[-1]['epoch']}: k-NN {judged[-1]['knn']:.1%}, probe {judged[-1]['probe']:.1%}"
            if judged
            else ""
        )
        minutes, accuracy = PUBLIC[method]
        rate = f"{state['samples_per_second']:.0f}" if state["samples_per_second"] else ""
        rows.append(
            [
                method,
                rate,
                length,
                *(times if judged else ["not trained"] * len(GOALS)),
                last,
                f"{minutes} min, k-NN {accuracy:.1%}, A6000",
            ]
        )
    return table(rows)


def main() -> None:
    parser = part_parser(__doc__)
    parser.add_argument("--data_dir", help="CIFAR-10 as class folders in train/ and test/; unset: the rate alone")
    parser.add_argument("--runs", default="runs/gpu_cifar", help="where the run folders go")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which it stops")
    options = parser.parse_args()
    tiny = is_tiny(options)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    results = dict(machine=machine(kind), tiny=tiny, images=50_000, batch_size=BATCH, epochs=EPOCHS, methods={})
    if options.data_dir is None:
        device = distributed.join("auto")
        torch.backends.cudnn.benchmark = True
        for method in METHODS:
            results["methods"][method] = rate_of(method, device, tiny)
            write_json(options.json, results)
    else:
        end = time.monotonic() + 60 * options.minutes
        before = json.loads(Path(options.json).read_text()) if Path(options.json).exists() else {}
        results["images"] = len(datasets.load("folder", options.data_dir, "unlabelled"))
        for method in METHODS:
            fresh = dict(samples_per_second=None, train_seconds=0.0, judged=[])
            state = before.get("methods", {}).get(method, fresh)
            results["methods"][method] = state if "judged" in state else fresh
        for method, state in results["methods"].items():
            if time.monotonic() < end:
                folder = Path(options.runs, method)
                train_and_judge(
                    method,
                    state,
                    options.data_dir,
                    folder,
                    results["images"],
                    end,
                    lambda: write_json(options.json, results),
                )
    print(f"{results['machine']}\n{show(results)}")


if __name__ == "__main__":
    with one_line_errors("gpu_cifar.py"):
        main()

"""Small trainings and an evaluation, and for each one line: a checksum of the numbers that it ends in.

python benchmarks/digest.py > before                        this checkout
python benchmarks/digest.py --repo OTHER | diff before -    the code of another, say of `git worktree add OTHER main`
python benchmarks/digest.py --only finetune                 trainings with this word in their names

Code that is moved, and should change no number, changes no line. A training that is interrupted and continued has the
checksum of one that is not. Compare on one machine with one version of torch: others round otherwise.
"""

import argparse
import hashlib
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from digest_run import Probe
from PIL import Image

TIMES = ("samples_per_second", "data_wait", "health_data_wait")  # of metrics.jsonl: differ from run to run
SHARED = {"encoder": "digest_run.Probe", "image_size": 32, "batch_size": 4, "workers": 1}
FIT = {"epochs": 3, "amp": "off"}
TRAIN = {"projector": "16-16", "warmup_epochs": 1, "max_steps": 8, "log_every": 1, "health_every": 2}
SCRIPTS = {"train": FIT | TRAIN, "finetune": FIT, "evaluate": {"protocol": "all", "linear_epochs": 2}}
SIMCLR, SUPCON = {"method": "simclr"}, {"method": "supcon", "balanced": "true"}
SPLIT = {"accumulate": 2, "accumulate_mode": "split", "optimizer": "adamw", "lr_scaling": "none"}
CASES = {  # name: script or estimator, settings, numbers of processes
    "barlow_twins": ("train", {}, (1, 2, 4)),
    "barlow_twins, own batch norm": ("train", {"sync_bn": "false"}, (2,)),
    "barlow_twins, NaN": ("train", {}, (1, 2)),
    "barlow_twins, judged": ("train", {"eval_every": 1, "ssl_val_interval": 1, "epochs": 2, "max_steps": 24}, (1, 2)),
    "simclr, exact, clipped": ("train", SIMCLR | {"accumulate": 2, "clip_grad": 1.0}, (1, 2, 4)),
    "simclr, split, adamw": ("train", SIMCLR | SPLIT, (2,)),
    "barlow_twins, 4 views": ("train", {"views": 4, "eval_every": 1, "ssl_val_interval": 1}, (1, 2)),
    "simclr, 3 views, exact": ("train", SIMCLR | {"views": 3, "accumulate": 2}, (2,)),
    "supcon, balanced": ("train", SUPCON, (1, 2)),
    "supcon, balanced, fp16": ("train", SUPCON | {"amp": "fp16"}, (1,)),
    "finetune": ("finetune", {}, (1, 2, 4)),
    "BarlowTwins": ("BarlowTwins", {}, (1, 2, 4)),
    "SimCLR": ("SimCLR", {}, (2,)),
    "barlow_twins, sgd, clipped": ("train", {"optimizer": "sgd", "clip_grad": 1.0}, (3,)),
    "finetune, balanced, adamw, copies": ("finetune", {"balanced": "true", "optimizer": "adamw", "copies": 2}, (2,)),
    "evaluate": ("evaluate", {}, (1, 2)),
}


def draw_images(folder: Path) -> None:
    """Noise in three classes, in class folders."""
    pixels = np.random.default_rng(0)
    for i in range(96):
        path = folder / ("train", "train", "val", "test")[i // 3 % 4] / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.integers(60 * (i % 3), 256, (40, 40, 3), dtype=np.uint8)).save(path)


def digest(folder: Path) -> str:
    """Of the weights, optimizer and numbers that a training left, or of the features and numbers of an evaluation."""
    state, features = (
        torch.load(folder / name, weights_only=True) if (folder / name).exists() else {}
        for name in ("checkpoint.pt", "features.pt")
    )
    found = [state.get(part) for part in ("model", "optimizer", "scaler", "step", "progress", "history")]
    for path in sorted(folder.glob("*.jsonl")):
        words = path.read_text().replace(str(folder.parent), "")  # the names of images
        lines = [json.loads(line) for line in words.splitlines()]
        lines = [line for line in lines if line.get("rule") != "starving"]  # a busy machine waits for its images
        found += [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
    if (folder / "results.json").exists():
        results = json.loads((folder / "results.json").read_text())
        found += [results[part] for part in ("test", "linear", "probe", "knn") if part in results]
    found += [features[split]["features"] for split in ("train", "val", "test") if features]
    plain = lambda x: [str(x.dtype), x.shape, x.contiguous().numpy().tobytes().hex()]  # noqa: E731
    return hashlib.sha256(json.dumps(found, sort_keys=True, default=plain).encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", type=Path, default=Path(__file__).parents[1], help="checkout whose code trains")
    parser.add_argument("--only", default="", help="run the trainings with this word in their names")
    options = parser.parse_args()
    repo = options.repo.resolve()
    sys.path.insert(0, str(repo / "tests"))
    import forked  # a start costs a tenth of a second, not three

    with tempfile.TemporaryDirectory() as temporary:
        draw_images(Path(temporary, "images"))
        torch.manual_seed(0)
        torch.save(Probe().state_dict(), Path(temporary, "encoder.pt"))
        for (name, (script, settings, numbers)), stop in itertools.product(CASES.items(), (False, True)):
            if stop and script == "evaluate":  # it has no checkpoint
                continue
            for processes in numbers[-1:] if stop else numbers:
                title = f"{name}, {processes} process{'es' * (processes > 1)}{', interrupted' * stop}"
                if options.only not in title:
                    continue
                command = [script, "--output_dir", Path(temporary, title)]
                if script in SCRIPTS:
                    settings = SHARED | SCRIPTS[script] | settings | {"data_dir": Path(temporary, "images")}
                    if script == "train":
                        recipe = f"{settings.get('method', 'barlow_twins')}_cifar10.yaml"
                        settings |= {"config": repo / "configs" / recipe}
                    settings |= {"model_path": Path(temporary, "encoder.pt")} if script == "evaluate" else {}
                    command[0] = repo / f"{script}.py"
                    command += [word for key, value in settings.items() for word in (f"--{key}", value)]
                first, found = {"NAN": "6"} if "NaN" in name else {}, []
                for environment in [first | {"STOP": "7"}, {}] if stop else [first]:
                    done = forked.run(
                        Path(__file__).with_name("digest_run.py"),
                        *command,
                        processes=processes,
                        env=os.environ | forked.PLAIN | environment,
                    )
                    if done.returncode not in (0, 75):
                        sys.exit(f"{title}: {done.stdout}{done.stderr}")
                    found.append(digest(Path(temporary, title)))
                print(f"{title:<60}{found[-1]}" + "  NOT INTERRUPTED" * (found.count(found[-1]) > 1), flush=True)


if __name__ == "__main__":
    main()

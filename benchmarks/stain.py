"""What an encoder of tissue knows of the class, and what of the scanner; scanners are made.

python benchmarks/stain.py LC25000 --output_dir DIR [--split test] [--seeds 0 1 2] [any setting of train.py]

LC25000 is a folder train/, val/, test/ of class folders, whose hospitals and scanners nobody knows. So every image is
given to one of three made scanners, at random within each class and split. They have other amounts of stain, other
colours of stains (Macenko et al. 2009) and another white. The copies, with a short side of 64 pixels, are in
DIR/images. train.py learns from those of train, by configs/tissue_lc25000_cpu.yaml, without labels and scanners. Then,
for each seed, of frozen features: the class of the images of `--split`, by k-NN and by logistic regression on train;
the scanner, by the same regression; and the robustness index (`ssl.evaluation.groups`).

The seed of the scanners is always 0. A strength is chosen with `--split val`, never with test.
"""

from pathlib import Path

import ssl

ROOT = Path(__file__).resolve().parents[1]
ssl.__path__ = [str(ROOT / "ssl")]  # see ssl/__init__.py

import argparse
import statistics
import subprocess
import sys

import numpy as np
import torch
from measure import machine, write_json
from PIL import Image

from ssl.console import say, table
from ssl.errors import UserError, one_line_errors
from ssl.evaluation import features, groups, logistic, probes
from ssl.pixels import STAINS

RECIPE = ROOT / "configs" / "tissue_lc25000_cpu.yaml"
SHORT_SIDE = 64
OTHER_STAINS = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581), STAINS[2])
SCANNERS = {  # name: gains of the three stains, their colours, the colour of white
    "a": ([1.0, 1.0, 1.0], STAINS, [1.0, 1.0, 1.0]),
    "b": ([0.7, 1.3, 1.0], STAINS, [1.0, 0.95, 0.88]),
    "c": ([1.3, 0.8, 1.0], OTHER_STAINS, [0.9, 0.96, 1.0]),
}
MEASURES = {"knn": "class, k-NN", "linear": "class, linear", "scanner": "scanner, linear", "index": "index"}


def scanned(image: Image.Image, scanner: str) -> Image.Image:
    """The RGB image as this scanner would have seen it."""
    gains, stains, white = SCANNERS[scanner]
    density = -np.log(np.maximum(np.asarray(image, float) / 255, 1 / 255))
    density = density @ np.linalg.inv(STAINS) * gains @ stains
    pixels = np.exp(-np.maximum(density, 0)) * white
    return Image.fromarray((255 * pixels).round().astype(np.uint8))


def make_images(source: Path, target: Path) -> None:
    """Copies of the images in `source`, a third of every class and split from each scanner, which begins the name.

    They are made in a folder beside `target`, so `target` is whole once it is there.
    """
    paths = sorted(path for path in source.glob("*/*/*") if path.suffix.lower() in (".jpeg", ".jpg", ".png"))
    if {path.parts[-3] for path in paths} != {"train", "val", "test"}:
        raise UserError(f"images: {source} must hold train/CLASS, val/CLASS and test/CLASS with JPEG or PNG images")
    generator, names, partial = np.random.default_rng(0), list(SCANNERS), target.with_name(f"{target.name}.partial")
    for folder in sorted({path.parent for path in paths}):
        own = [path for path in paths if path.parent == folder]
        place = partial / folder.relative_to(source)
        place.mkdir(parents=True, exist_ok=True)
        for path, number in zip(own, generator.permutation(len(own)) % len(names)):
            image = Image.open(path).convert("RGB")
            side = [round(length * SHORT_SIDE / min(image.size)) for length in image.size]
            small = image.resize(side, Image.Resampling.BICUBIC)
            scanned(small, names[number]).save(place / f"{names[number]}_{path.stem}.png")
    partial.replace(target)


def run(script: str, *words) -> None:
    if status := subprocess.run([sys.executable, ROOT / script, *map(str, words)]).returncode:
        raise UserError(f"{script} ended with exit status {status}; what it said is above")


def judge(folder: Path, split: str) -> dict[str, float]:
    """MEASURES, in 0..1, of the features in `folder`."""
    found = features.load(folder / "features.pt")
    (train, y, train_scanner), (h, labels, scanner) = (of_split(found.splits[name]) for name in ("train", split))
    classes, centre = len(found.classes), train.mean(0)
    robustness = groups.robustness_index(h, labels, scanner)
    if robustness["index"] is None:
        raise UserError(f"images: these of {split} have no robustness index: {robustness['index_why']}")
    of_class = logistic.learn((train, y), classes, centre)
    of_scanner = logistic.learn((train, train_scanner), len(SCANNERS), centre)
    return {
        "knn": probes.knn((train, y), (h, labels), classes)["acc1"],
        "linear": of_class.hits((h, labels)).double().mean().item(),
        "scanner": of_scanner.hits((h, scanner)).double().mean().item(),
        "index": robustness["index"],
    }


def of_split(part: features.Split) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (N, F), labels (N,) and numbers of the scanners (N,)."""
    names = [Path(path).name.partition("_")[0] for path in part.paths]
    return part.rows[torch.arange(len(part))], part.labels, groups.by_name(names)


def main() -> None:
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about, allow_abbrev=False)
    parser.add_argument("images", type=Path, help="folder of train/, val/ and test/")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--split", choices=("val", "test"), default="test", help="what is judged")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--name", default="recipe", help="of the runs in output_dir, for the settings that follow")
    options, changed = parser.parse_known_args()
    images = options.output_dir / "images"
    if not images.exists():
        make_images(options.images, images)
    runs = []
    for seed in options.seeds:
        folder = options.output_dir / f"{options.name}_seed{seed}"
        run("train.py", *("--config", RECIPE, "--data_dir", images, "--seed", seed, "--output_dir", folder), *changed)
        run("evaluate.py", "--model_path", folder, "--protocol", "features", "--output_dir", folder / "features")
        runs.append({"seed": seed} | judge(folder / "features", options.split))
    lines = [["seed", *MEASURES.values()]]
    lines += [[str(row["seed"]), *(f"{row[key]:.3f}" for key in MEASURES)] for row in runs]
    if len(runs) > 1:
        columns = [[row[key] for row in runs] for key in MEASURES]
        lines.append(["mean ± sd", *(f"{statistics.mean(x):.3f} ± {statistics.stdev(x):.3f}" for x in columns)])
    say(table(lines))
    result = {"split": options.split, "settings": changed, "machine": machine("cpu"), "runs": runs}
    write_json(options.output_dir / f"{options.name}_{options.split}.json", result)


if __name__ == "__main__":
    with one_line_errors("stain.py"):
        main()

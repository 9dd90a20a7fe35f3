"""The commands of the documents, run one after the other as a reader would, with small settings; or marked.

A command that cannot be run here says in its comment what it needs: GPUs, Slurm, a data set to fetch.
"""

import importlib.util
import os
import re
import shlex
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from drawn import class_folders
from layouts import layouts
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import throughput

import evaluate
import finetune
import train
from ssl import export
from ssl.data import patches, prepare
from ssl.report import __main__ as report
from ssl.settings import config
from ssl.sources.shapes import render

SCRIPTS = {"train.py": train, "evaluate.py": evaluate, "finetune.py": finetune}
OTHERS = {
    "ssl.report": report,
    "ssl.export": export,
    "ssl.data.prepare": prepare,
    "ssl.data.patches": patches,
    "benchmarks/throughput.py": throughput,
}
# Not run here: test_common.py, test_faultcheck.py, test_worth.py and test_benchmarks.py run them, or whoever sets up.
ELSEWHERE = (
    "scripts/demo",
    "scripts/test",
    "python -m ssl.faultcheck",
    "python -m ssl.worth",
    "benchmarks/gpu.sh",
    "python benchmarks/speedrun.py",
    "pip install",
    "tensorboard",
)
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACES = {
    "/path/to/images": "images",
    "LESIONS": "images",
    "OTHER": "other",
    "IMAGES": "other",
    "photo.jpg": "other/test/disc/test000.png",
    "DIR": "images",
    "RUN": "runs/mine",
    "RUN/features.pt": "runs/mine/features.pt",
    "runs/one": "runs/first",
    "runs/two": "runs/mine",
    "/path/to/small": "smaller",
    "/path/to/scans": "scans",
}
PUBLISHED = {  # file: (network, how its names are)
    "moco_v2_800ep_pretrain.tar": ("resnet50", "moco"),
    "moco_v2_800ep_pretrain.pth.tar": ("resnet50", "moco"),
    "simclr_r50_800.pth": ("resnet50", "simclr, converted"),
    "r18.ckpt": ("resnet18", "solo-learn"),
}
SMALL = {
    "train.py": dict(
        encoder="ssl.encoders.SmallResNet",
        encoder_kwargs={"width": 8, "stages": 2},
        projector="16-16",
        batch_size=8,
        epochs=2,
        warmup_epochs=1.0,
        max_steps=2,
        evaluate_after=False,
        workers=0,
        amp="off",
    ),
    "evaluate.py": dict(workers=0, probe_epochs=1, linear_epochs=1, linear_batch=16, batch_size=16),
    "finetune.py": dict(workers=0, epochs=1, batch_size=8, amp="off"),
}
SMALL["benchmarks/throughput.py"] = SMALL["train.py"]


def command_lines(document: Path) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", document.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = re.sub(r"\\\n\s*", "", "".join(blocks)).splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def named(document: Path) -> set[str]:
    """The words of its commands that run here; files and folders under their names here."""
    lines = filter(runs_here, command_lines(document))
    return {PLACES.get(word, word) for line in lines for word in shlex.split(line, comments=True)}


@pytest.fixture
def desk(document, tmp_path, monkeypatch) -> Path:
    """A folder with what the commands of the document name."""
    monkeypatch.chdir(tmp_path)
    words = named(document)
    for name in ("configs", "ssl"):
        Path(name).symlink_to(ROOT / name)
    for seed, folder in ((0, "images"), (10, "other")):
        class_folders(Path(folder), {"train": (60, seed), "val": (6, seed + 1), "test": (6, seed + 2)}, size=80)
    table = [f"{path.relative_to('images')},{path.parent.name}" for path in sorted(Path("images").rglob("*.png"))]
    Path("labels.csv").write_text("\n".join(["image,diagnosis", *table, ""]))
    if "SLIDES" in words:
        make_slides()
    if "scans" in words:
        Path("scans").mkdir()
        for i in range(20):
            scan = np.random.default_rng(i).integers(0, 4096, (80, 80), dtype=np.uint16)
            Image.fromarray(scan).save(Path("scans", f"{i}.png"))
    images, labels = render(torch.arange(80) % 3, 32, 3).permute(0, 2, 3, 1).numpy(), np.arange(80) % 3
    np.save("microscope.npy", images)
    splits = {
        f"{split}_{what}": value
        for split in ("train", "val", "test")
        for what, value in (("images", images), ("labels", labels))
    }
    np.savez("pathmnist.npz", **splits)
    for name, (network, layout) in PUBLISHED.items():
        if name in words:
            weights = torchvision.models.get_model(network).state_dict()
            trunk = {key: value for key, value in weights.items() if not key.startswith("fc.")}
            torch.save(layouts(trunk)[layout][0], name)
    for folder in ("runs/first", "runs/mine"):
        if words & {folder, "runs"}:
            perform(f"python train.py --data_dir images --output_dir {folder}")
    if "torchvision" in words:
        whole = "--encoder resnet18 --encoder_kwargs {} --stem imagenet"  # what torchvision and timm have, too
        perform(f"python train.py --data_dir images --output_dir runs/resnet {whole}")
    return tmp_path


def make_slides() -> None:
    """Of 16 patches, of two classes."""
    for i, hospital in enumerate(("A1", "A2", "GI", "HN", "BH", "BH")):
        noise = np.random.default_rng(i).integers(0, 200, (560, 560, 3), dtype=np.uint8)
        for folder, image in (("SLIDES", noise), ("MASKS", np.repeat(np.arange(2, dtype=np.uint8), 280)[:, None])):
            Path(folder).mkdir(exist_ok=True)
            image = np.broadcast_to(image, (560, 560)) if folder == "MASKS" else image
            Image.fromarray(np.ascontiguousarray(image)).save(Path(folder, f"TCGA-{hospital}-A0{i}-DX1.png"))
    Path("region_GTcodes.csv").write_text("main_classes,GT_code\ntumor,0\nstroma,1\n")


def perform(line: str) -> None:
    """Run a command in a child process; raises AssertionError with what it printed where it fails."""
    words = shlex.split(line, comments=True)
    script, *arguments = [PLACES.get(word, word) for word in words[1:] if word != "-m"]
    if script == "ssl.export":
        resnet = {"runs/mine": "runs/resnet"} if "torchvision" in arguments else {}  # which alone it takes
        arguments = [resnet.get(word, word) for word in arguments]
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.dup2(writer, 1), os.dup2(writer, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            if script in SMALL:
                small((SCRIPTS | OTHERS)[script], SMALL[script])
            sys.argv = [script, *arguments]
            (SCRIPTS | OTHERS)[script].main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as printed:
        said = printed.read()
    assert os.waitpid(child, 0)[1] == 0, f"{line}\n{said}"


def small(script, values: dict) -> None:
    """Have `script` run with small settings where the command line says nothing, and write below this folder."""
    parse = config.parse

    def parse_small(cls, *arguments, **options):
        settings, origin = parse(cls, *arguments, **options)
        files = [getattr(settings, name, None) for name in ("init", "model_path")]
        published = any(file and not file.startswith("runs/") for file in files)
        settings.image_size = 80 if published else settings.image_size and 32
        own_encoder = published or origin.get("encoder") == "command line"
        for name, value in values.items():
            if origin[name] != "command line" and not (own_encoder and name.startswith("encoder")):
                setattr(settings, name, value)
        return settings, origin

    config.parse, script.ROOT = parse_small, Path.cwd()


def runs_here(line: str) -> bool:
    no_onnx = importlib.util.find_spec("onnxruntime") is None or torch.__version__.startswith("2.6.")
    if no_onnx and "--to" in line and " onnx " in line:
        return False  # docs/checkpoints.md says what it needs
    return line.startswith("python ") and not line.startswith(ELSEWHERE) and " needs " not in line.partition(" #")[2]


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if any(map(runs_here, command_lines(d)))], ids=lambda path: path.name
)
def test_the_commands_of_a_document_run_in_their_order(document, desk):
    for line in filter(runs_here, command_lines(document)):
        perform(line)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_command_that_is_not_run_says_what_it_needs(document):
    for line in command_lines(document):
        assert (
            runs_here(line)
            or line.startswith(ELSEWHERE)
            or "pip install" in line
            or " needs " in line.partition(" #")[2]
        ), line

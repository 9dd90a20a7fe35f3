"""What the documents name is there."""

import dataclasses
import datetime
import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import speedrun

import evaluate
import finetune
import train
from ssl.errors import UserError
from ssl.settings import config, hints
from ssl.sources import datasets

DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tests_and_files_that_a_document_names_are_there(document):
    text = document.read_text("utf-8")
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        assert (ROOT / file).is_file(), file
        assert not test or re.search(rf"^def {test}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE), test
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (document.parent / link).exists(), link
    for room in re.findall(r"^  (?:  )?(\w+\.py)  ", text, re.MULTILINE):
        assert (ROOT / "ssl" / room).is_file() or (ROOT / "ssl" / "data" / room).is_file(), room


def test_the_architecture_names_every_file_and_wing_of_the_package():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    for path in (ROOT / "ssl").iterdir():
        if path.name != "__pycache__":
            name = path.name + "/" * path.is_dir()
            assert re.search(rf"^  {name} ", text, re.MULTILINE), f"{name} is not in docs/architecture.md"


def commands(document: Path) -> list[tuple[str, list[str]]]:
    """(script, arguments) of every command line of a document that starts one of the scripts."""
    blocks = re.findall(r"^```bash\n(.*?)^```", document.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = re.sub(r"\\\n", " ", "\n".join(blocks)).splitlines()
    found = []
    for words in (shlex.split(line, comments=True) for line in lines):
        for place, word in enumerate(words):
            script = {
                "slurm/train.sbatch": "train.py",
                "slurm/evaluate.sbatch": "evaluate.py",
                "slurm/finetune.sbatch": "finetune.py",
            }.get(word, word)
            if script in SCRIPTS:
                found.append((script, words[place + 1 :]))
    return found


SCRIPTS = {"train.py": train, "evaluate.py": evaluate, "finetune.py": finetune}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_of_a_document_has_settings_that_exist(document, monkeypatch):
    monkeypatch.chdir(ROOT)
    for script, arguments in commands(document):
        if "--help" not in arguments and not (arguments and "rows" in _text(arguments) and "--row" not in arguments):
            config.parse(SCRIPTS[script].Settings, arguments)


def _text(arguments: list[str]) -> str:
    """The settings file that a command names."""
    return Path(arguments[arguments.index("--config") + 1]).read_text("utf-8") if "--config" in arguments else ""


def test_the_documents_hold_commands():
    assert sum(len(commands(document)) for document in DOCUMENTS) > 20


# docs/ledger.md --------------------------------------------------------------------


def ledger_lines(text: str) -> list[tuple[list[str], list[str], list[str]]]:
    """(words of the section's command after the script, the cells of the line, the words that it adds)."""
    found = []
    for section in text.split("\n## ")[1:]:
        command = re.search(r"^python benchmarks/speedrun\.py (.*?)  # needs ", section, re.MULTILINE)
        for line in re.findall(r"^\| (\d{4}-.*) \|$", section, re.MULTILINE):
            cells = [cell.strip() for cell in line.split(" | ")]
            assert command and len(cells) == 6 and all(cells), line
            words = re.fullmatch(r"—|`(--.*)`", cells[-1])
            assert words, f"{cells[-1]} of {line}"
            found.append((shlex.split(command[1]), cells, shlex.split(words[1] or "")))
    return found


def test_a_line_of_the_ledger_has_a_date_and_a_command_that_can_run(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "ledger.md").read_text("utf-8")
    for command, cells, added in ledger_lines(text):
        datetime.date.fromisoformat(cells[0])
        speedrun.parse([*command, *added, "--output_dir", str(tmp_path)])
    commands = re.findall(r"^python benchmarks/speedrun\.py (.*?)  # needs ", text, re.MULTILINE)
    assert commands
    for command in commands:
        speedrun.parse([*shlex.split(command), "--output_dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("| 2026-11-29 | λ | more | less | 5 min | `--lambda 1` |", "unknown setting --lambda"),
        ("| 2026-11-29 | λ | more | less | `--lambd 1` |", "AssertionError"),
        ("| 2026-11-29 | λ | more | less | 5 min | as above |", "AssertionError"),
    ],
)
def test_control_a_wrong_line_of_the_ledger_is_found(line, error, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = "python benchmarks/speedrun.py configs/barlow_twins_shapes.yaml --target knn=0.5  # needs nothing"
    with pytest.raises((UserError, AssertionError)) as raised:
        for words, _, added in ledger_lines(f"\n## Section\n{command}\n{line}\n"):
            speedrun.parse([*words, *added, "--output_dir", str(tmp_path)])
    assert error in f"{raised.type.__name__} {raised.value}"


# docs/from-other-projects.md -------------------------------------------------------


SETTINGS = {field.name for script in SCRIPTS.values() for field in dataclasses.fields(script.Settings)}


def table_rows(setting: bool) -> list[tuple[list[str], list[str]]]:
    """(names there, names here) of every line of the tables of settings, or of the other tables."""
    found, of_settings = [], None
    for line in (ROOT / "docs" / "from-other-projects.md").read_text("utf-8").splitlines():
        if line.startswith(("| setting there", "| there")):
            of_settings = line.startswith("| setting")
        elif line.startswith("| ") and of_settings == setting:
            there, here, *_ = line.strip("| ").split(" | ")
            found.append((re.findall("`(.+?)`", there), re.findall("`(.+?)`", here)))
    return found


def test_the_table_and_the_hints_hold_the_same_names():
    rows = table_rows(setting=True)
    assert len(rows) > 100 and all(there and here for there, here in rows)
    plain = [([name.removeprefix("--").replace("-", "_") for name in there], here) for there, here in rows]
    table = {(ours, theirs) for there, here in plain for theirs in there for ours in here if theirs not in SETTINGS}
    assert {ours for ours, _ in table} <= SETTINGS
    hinted = {(ours, theirs) for ours, names in hints.NAMES.items() for theirs in names.split()}
    assert not {theirs for _, theirs in hinted} & SETTINGS  # which no error would ever name
    assert hinted == table
    without = {name for there, here in table_rows(setting=False) if not here for name in there}
    assert without == set(hints.WITHOUT)


def is_there(name: str) -> bool:
    """A setting, a data set, a file of the project or of a run's folder, a thing in ssl; of a command all settings."""
    first, *words = name.split()
    if not {word[2:] for word in words if word.startswith("--")} <= SETTINGS:
        return False
    if first.startswith("ssl."):
        path, arguments = re.fullmatch(r"([\w.]+)(?:\((.*)\))?", name).groups()
        thing = importlib.import_module(".".join(path.split(".")[: 3 if path.startswith("ssl.data.") else 2]))
        for part in path.removeprefix(thing.__name__).split(".")[1:]:
            thing = getattr(thing, part)
        return (
            set((arguments or "").split(", ")) - {""} <= set(inspect.signature(thing).parameters) if arguments else True
        )
    run_folder = (ROOT / "docs" / "run-folder.md").read_text("utf-8")
    return first in SETTINGS or first in datasets.KNOWN or (ROOT / first).is_file() or f"`{first}`" in run_folder


@pytest.mark.parametrize(
    "command, expected",
    [
        ("train.py --train_percent 1", "--train_percent; it is a setting of evaluate.py and finetune.py"),
        ("train.py --model_path F", "--model_path; it is a setting of evaluate.py and finetune.py"),
        ("evaluate.py --init F", "--init; it is a setting of train.py and finetune.py; here that is 'model_path'"),
        ("train.py --patience 3", "--patience; it is a setting of finetune.py"),
        ("evaluate.py --optimizer sgd", "--optimizer; it is a setting of train.py and finetune.py"),
        ("evaluate.py --compile", "--compile; it is a setting of train.py and finetune.py"),
        ("train.py --config configs/lesions_ssl.yaml", "'patience'; it is a setting of finetune.py"),
        ("train.py patience=3", "(see --help); it is a setting of finetune.py"),
        ("train.py --filter_size 23", "--filter_size; here that is 'blur_kernel', see"),
        ("finetune.py --filter_size 23", "--filter_size; here that is 'blur_kernel' of train.py, see"),
        ("evaluate.py --filter_size 23", "--filter_size; here that is 'blur_kernel' of train.py, see"),
        ("finetune.py --print_freq 9", "--print_freq; here that is 'log_every' of train.py, see"),
        ("evaluate.py --lr_base 1", "--lr_base; here that is 'lr' of train.py and finetune.py, see"),
        ("evaluate.py --lr_classifier 1", "--lr_classifier; here that is 'linear_lr', see"),
        ("train.py --drop_path 1", "--drop_path; --help lists the settings"),  # model_path, crop_ratio are like it
        ("train.py --warmup 5", "--warmup; did you mean 'warmup_epochs'?"),
        ("train.py ssl_model.n_epochs=5", "here that is 'epochs', see"),
        ("train.py --ssl_model.temperature 1", "here that is 'temperature', see"),
        ("train.py ssl_model.projector_dim=64", "here that is 'projector', see"),
        ("train.py ssl_model.optimizer.base_lr=1", "here that is 'lr', see"),
        ("train.py ssl_model.val_batch_size=512", "here is no such setting, it changes no number"),
        (
            "train.py dataset=SVHN",
            "'dataset=SVHN' is not a setting; settings are written --key value (see --help); write --dataset SVHN",
        ),
        ("train.py --random_state 1", "here that is 'seed', see"),
        ("train.py --proj_input_dim 512", "here that is 'projector', see"),
        ("train.py --num_sanity_val_steps 0", "here is no such setting, nothing is tried out before training"),
        ("train.py --lerning_rate 1", "unknown setting --lerning_rate; did you mean 'lr'?"),
        ("train.py --schedule cos", "did you mean 'cosine'?"),
        ("train.py --method vicreg", "'vicreg' is none of barlow_twins, simclr, supcon"),
        ("train.py --method SimCLR", "did you mean 'simclr'?"),
        ("train.py --method SCL", "did you mean 'supcon'?"),
        ("train.py --method BYOL", "'BYOL' is none of barlow_twins, simclr, supcon"),
        ("finetune.py --method InfoMIN", "did you mean 'infomin'?"),
        ("finetune.py --method BYOL", "did you mean 'byol'?"),
        ("finetune.py --method SwAV", "did you mean 'swav'?"),
        ("train.py --amp 16", "did you mean 'fp16'?"),
        ("train.py --amp 32", "did you mean 'off'?"),
        ("train.py --amp bf16-mixed", "did you mean 'bf16'?"),
        ("train.py --device gpu", "did you mean 'cuda'?"),  # cpu is more like it
    ],
)
def test_a_name_of_another_script_or_project_is_told_ours(command, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    script, *arguments = command.split()
    with pytest.raises(UserError) as raised:
        config.parse(SCRIPTS[script].Settings, arguments)
    said = str(raised.value).removesuffix(" docs/from-other-projects.md")
    assert said.endswith(expected)


def test_the_scripts_settings_are_known_without_importing_them():
    for name in SETTINGS:
        having = [script for script in SCRIPTS if hasattr(SCRIPTS[script].Settings(), name)]
        told = hints.hint(name, [])
        assert all((script in told) == (script in having) for script in SCRIPTS), told


def test_what_is_called_otherwise_here_is_there():
    rows = table_rows(setting=False)
    assert len(rows) > 40
    for there, here in rows:
        for name in here:
            assert is_there(name), f"{name}, for {there}"
    for absent in ("settng 3", "ssl.estimators.BarlowTwins(lambda_param)", "configs/no.yaml", "train.py --n_cpus 3"):
        assert not is_there(absent)

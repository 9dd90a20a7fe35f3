"""What a fine-tuning leaves behind: best.pt, the model of its best epoch, and results.json; of several runs, each."""

import contextlib
import dataclasses
import json
from pathlib import Path

import torch
from torch import nn

from ssl import files
from ssl.checkpoints import about, restore, torch_file
from ssl.checkpoints.run_folder import RunFolder
from ssl.console import counted, say, table
from ssl.data.images import Images
from ssl.distributed import is_main
from ssl.errors import UserError
from ssl.evaluation import features, metrics, results
from ssl.files import json_text
from ssl.settings import config
from ssl.settings.kinds import coerce
from ssl.settings.shared import DATA
from ssl.sources import labels

CONTENTS = {"model", "classes", "seed", "settings", "best"}  # of best.pt
SHOWN = ("loss", "acc1", "acc2", "balanced_accuracy", "auc", "auc_macro", "mcc")  # metrics that are printed


def write_best(place: Path, best: dict) -> None:
    """Write best.pt, if there is a best epoch yet. Raises `UserError` where it cannot be written."""
    try:
        if best and is_main():
            torch_file.save(best, place / "best.pt")
    except (OSError, RuntimeError, TypeError) as error:
        raise UserError(
            f"output_dir: cannot write {place / 'best.pt'} ({error}); make room, the same command continues"
        ) from None


def read_results(place: Path) -> dict:
    """The results.json of a run that ended in an earlier process."""
    try:
        return json.loads((place / "results.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{place}: the results of an earlier run of this folder cannot be read ({error})") from None


def is_of_finetuning(folder: Path) -> bool:
    """Whether finetune.py keeps a model, or a test of one, in this folder; its results.json is then that script's."""
    with contextlib.suppress(UserError):  # no config.yaml, or none that can be read
        if "freeze" in config.read_yaml(folder / "config.yaml"):
            return True
    return (folder / "best.pt").is_file()


def models(path: str | Path | None) -> dict[Path, dict]:
    """{best.pt: its content} for `path`, a file or a run folder; of several runs, every one that has ended.

    Raises `UserError` where there is none, or no such file.
    """
    if path is None:
        raise UserError("model_path: test_only needs --model_path, the run folder of a fine-tuning or its best.pt")
    path = Path(path)
    found = [path if path.is_file() else path / "best.pt"]
    if not found[0].is_file():
        ended = (results.parent for results in path.glob("seed_*/results.json"))
        found = sorted((folder / "best.pt" for folder in ended), key=lambda best: (len(str(best)), best))
    if not found:
        raise UserError(f"model_path: {path} holds no best.pt; is it the output_dir of finetune.py, and has it ended?")
    contents = {path: torch_file.load(path) for path in found}
    for path, content in contents.items():
        if not isinstance(content, dict) or not set(content) >= CONTENTS:
            raise UserError(f"{path}: not a best.pt of finetune.py")
    return contents


def only_one(found: dict[Path, dict]) -> tuple[Path, dict]:
    """The one best.pt of `models`, and its content. Raises `UserError` where there are several."""
    first = next(iter(found))
    if len(found) > 1:
        raise UserError(f"model_path: holds {len(found)} models; name one of them, such as {first.parent}")
    return first, found[first]


def take_settings(settings, origin: dict[str, str], saved: dict, path: Path, free: set[str]) -> None:
    """Set what the user has not set as the model at `path` was fine-tuned with: `saved` of its best.pt.

    Settings in `free` stay as they are, but for the data set and the precision. If the user names a data set, nothing
    about the data is taken from `saved`. Raises `UserError` where the encoder is a class of unknown origin.
    """
    own_data = settings.dataset is not None or settings.data_dir is not None
    keep = (free | set(DATA) if own_data else free - set(DATA)) - {"amp"}
    for field in dataclasses.fields(settings):
        if origin[field.name] == "default" and field.name not in keep and field.name in saved:
            value = coerce(saved[field.name], field.type, f"{path}: {field.name}")
            setattr(settings, field.name, value)
    if origin["encoder"] == "default":
        restore.require_known(settings.encoder, settings.encoder_kwargs)


def require_as_trained(settings, data: Images, saved: dict, path: Path) -> None:
    """Raise `UserError` unless `data` is shown to the encoder as in its fine-tuning, with the settings `saved`."""
    for name in ("encoder", "encoder_kwargs", "stem", "image_size", "short_side", "mean", "std"):
        if name in saved and getattr(settings, name) != saved[name]:
            raise UserError(
                f"{name}: {path} was trained with {saved[name]}, not {getattr(settings, name)}; leave it out"
            )
    channels = data.channels if settings.mean is None else len(settings.mean)
    if data.channels != channels:
        raise UserError(
            f"predict: the images have {data.channels} channels, those that {path} was trained on {channels}; name "
            "images of the same kind"
        )


def with_classes_of(content: dict, path: Path, data: Images, leave_out: list[str] | None = None) -> Images:
    """`data` with its labels numbered as the best.pt at `path`, whose `content` this is, numbers its classes.

    `data` may lack some of these classes. Raises `UserError` where it has others, and for a name in `leave_out` that is
    no class of the model or of the images.
    """
    classes = [str(name) for name in content["classes"]]
    known = {*classes, *data.left_out, *(content["settings"].get("leave_out") or [])}
    labels.require_named("leave_out", leave_out, known)
    if not set(data.classes) <= set(classes):
        raise UserError(
            f"dataset: its classes are {', '.join(data.classes)}, those of {path} {', '.join(classes)}; "
            "--leave_out names classes that are not to be tested, and for a table --positive the labels of 'positive'"
        )
    number = torch.tensor([classes.index(name) for name in data.classes])
    return dataclasses.replace(data, labels=number[data.labels], classes=classes)


def load_weights(model: nn.Module, content: dict, path: Path) -> None:
    """Put the weights of a best.pt into `model`. Raises `UserError` where they do not fit."""
    try:
        model.load_state_dict(content["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its weights do not fit the encoder it names ({error})") from None


def identity(settings, model: nn.Module, test: Images, split: str = "test") -> dict:
    """What the numbers of a test are of: `model` on the images `test`."""
    weights = {"sha256": features.encoder_checksum(model), "init": settings.init, "encoder": settings.encoder}
    data = results.about_images(settings, test, split=split)
    how = {"copies": settings.copies, "amp": settings.amp}
    return {"weights": weights, "data": data} | how | {"versions": about.versions()}


# Where a test is written ----------------------------------------------------------------


def begin_test(folder: Path, settings, tests: list[dict]) -> RunFolder:
    """The folder of a test, with its config.yaml. `tests` has the `identity` of each model. All ranks call it.

    Raises `UserError` where other results are there, which these would replace. With other versions of the packages a
    test is the same.
    """
    if is_main():
        path, cut_short = folder / "results.json", (folder / "config.yaml").is_file()  # cut_short: without results
        if path.is_file():
            earlier = files.json_object(path)
            found = earlier["runs"] if isinstance(earlier.get("runs"), list) else [earlier]
            pairs = zip(found, json.loads(json.dumps(tests)))
            same = len(found) == len(tests) and all(_is_of(one, test) for one, test in pairs)
        else:
            path, same = folder / "predictions.csv", cut_short
        if path.is_file() and not same:
            raise UserError(
                f"output_dir: {path} is there already, of other images, weights or settings; name another folder with "
                "--output_dir, or remove this one"
            )
    run = RunFolder(folder, settings.keep_checkpoints)
    if is_main():
        run.write("config.yaml", lambda path: config.write_yaml(path, dataclasses.asdict(settings)))
    return run


def _is_of(result: object, test: dict) -> bool:
    """Whether a result in results.json is of the `test`, but for versions. Older versions say less: that must agree."""
    of = result.get("of") if isinstance(result, dict) else None
    if not isinstance(of, dict) or not isinstance(of.get("data"), dict):
        return False
    parts = (of, test), (of["data"], test["data"])
    apart = ("versions", "data")
    return all(there[name] == here.get(name) for there, here in parts for name in there if name not in apart)


# Results --------------------------------------------------------------------------------


def report(found: list[dict], folder: Path) -> None:
    """Print the results, and write results.json. With several runs: their mean ± their standard deviation."""
    if not is_main():
        return
    if len(found) == 1:
        summary, seeds = found[0], ""
        rows = _rows_of_one(summary["test"])
    else:
        summary = {"mean": metrics.over_runs([one["test"] for one in found]), "runs": found}
        seeds = f", {len(found)} seeds"
        rows = _rows_of_mean(summary["mean"])
    say("\n" + table(rows))
    groups = found[0]["test"].get("groups")
    of = f" of {counted(groups, 'group')}" if groups else ""
    how = "; intervals over groups" if groups and len(found) == 1 else ""
    say(f"n = {found[0]['test']['images']} test images{of}{seeds}{how}\n")
    files.write_text(json_text(summary), folder / "results.json")
    say(f"results     {folder / 'results.json'}")


def _rows_of_one(test: dict) -> list[list[str]]:
    """A table of the metrics of one run that are defined for its classes."""
    shown = [name for name in SHOWN if test[name] is not None]
    intervals = [test.get(f"{name}_interval") for name in shown]
    words = ["{:.4f}–{:.4f}".format(*interval) if interval else "" for interval in intervals]
    return [["test", "value", "95 % interval"], *([name, _number(test[name]), w] for name, w in zip(shown, words))]


def _rows_of_mean(mean: dict[str, dict]) -> list[list[str]]:
    """A table of metrics as `metrics.over_runs` gives them."""
    shown = [name for name in SHOWN if name in mean]
    return [["test", "mean", "± sd"], *([n, _number(mean[n]["mean"]), _number(mean[n]["std"])] for n in shown)]


def _number(value: float | str | None) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value or "-")

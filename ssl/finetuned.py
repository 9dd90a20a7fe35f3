"""What a fine-tuning leaves: best.pt, the model of its best epoch, and results.json. With several runs, one each."""

import json
from pathlib import Path

from ssl import checkpoint, metrics
from ssl.distributed import is_main
from ssl.errors import UserError
from ssl.report import json_text, say, table

CONTENTS = {"model", "classes", "seed", "settings", "best"}  # of best.pt


def write_best(place: Path, best: dict) -> None:
    """Raises `UserError` where it cannot be written. Nothing is where there is no best epoch yet."""
    try:
        if best and is_main():
            checkpoint.save(best, place / "best.pt")
    except (OSError, RuntimeError) as error:
        raise UserError(f"output_dir: cannot write {place / 'best.pt'} ({error}); make room, the same command "
                        "continues") from None  # fmt: skip


def read_results(place: Path) -> dict:
    """What a run that had ended before this process left."""
    try:
        return json.loads((place / "results.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{place}: the results of an earlier run of this folder cannot be read ({error})") from None


def models(path: Path) -> dict[Path, dict]:
    """{best.pt: its content} for `path`, a file or a run folder; of several runs, every one that has ended.

    Raises `UserError` where there is none, or no such file.
    """
    found = [path if path.is_file() else path / "best.pt"]
    if not found[0].is_file():
        ended = (results.parent for results in path.glob("seed_*/results.json"))
        found = sorted((folder / "best.pt" for folder in ended), key=lambda best: (len(str(best)), best))
    if not found:
        raise UserError(f"model_path: {path} holds no best.pt; is it the output_dir of finetune.py, and has it ended?")
    contents = {path: checkpoint.load(path) for path in found}
    for path, content in contents.items():
        if not isinstance(content, dict) or not set(content) >= CONTENTS:
            raise UserError(f"{path}: not a best.pt of finetune.py")
    return contents


def report(results: list[dict], folder: Path) -> None:
    """results.json and the last lines. With several runs: the mean over the runs ± their standard deviation."""
    if not is_main():
        return
    summary = results[0]
    if len(results) > 1:
        summary = {"mean": metrics.over_runs([result["test"] for result in results]), "runs": results}
    checkpoint.write_text(json_text(summary), folder / "results.json")
    names = ("loss", "acc1", "acc2", "balanced_accuracy", "auc", "auc_macro", "mcc")
    rows = [["test", *(["mean", "± sd"] if len(results) > 1 else ["value"])]]
    for name in names:
        if len(results) == 1 and results[0]["test"][name] is not None:
            value = results[0]["test"][name]
            rows.append([name, value if isinstance(value, str) else f"{value:.4f}"])
        elif len(results) > 1 and name in summary["mean"]:
            mean, deviation = (summary["mean"][name][part] for part in ("mean", "std"))
            rows.append([name, *(f"{v:.4f}" if isinstance(v, float) else str(v or "-") for v in (mean, deviation))])
    say("\n" + table(rows) + "\n")
    say(f"results     {folder / 'results.json'}")

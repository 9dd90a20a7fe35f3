"""The accuracies of runs as tables: those on test images, and apart from them those on validation images."""

from collections.abc import Iterable

from ssl.checkpoints.run_reader import Run, finite, numbers
from ssl.evaluation import results
from ssl.evaluation.card_table import inner
from ssl.report import svg
from ssl.report.markup import folded_table, number, table, text

SUBJECTS = ("raw_pixels", "random_init", "trained")  # rows of evaluate.py's table
MEASURES = {  # of a fine-tuned network
    "acc1": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "mcc": "MCC",
    "loss": "loss",
}
SHARES = ("acc1", "balanced_accuracy")  # they are shown as percentages

Line = tuple[str, dict[str, str]]  # name of a row, {column: words}


def judged(runs: list[Run]) -> str:
    """Tables of the test images, then of the validation images, then every number under its name in the files."""
    tests: dict[str, list[Line]] = {}
    validation: dict[str, list[Line]] = {}
    for run in runs:
        of = f", {run.short_name}" if len(runs) > 1 else ""
        for file, content in run.results.items():
            tuned = bool({"test", "runs"} & set(content))
            what = "fine-tuned networks" if tuned else "frozen encoders"
            caption = f"Test: {what} on {_images(content, file)}; in brackets 95 % intervals"
            for line in _fine_tuned(content, of, bool(run.seeds)) if tuned else _frozen(content, of):
                tests.setdefault(caption, []).append(line)
        for line in _validated(run, of):
            validation.setdefault(_chosen_on(run), []).append(line)
    found = "".join(_table(caption, lines) for caption, lines in (tests | validation).items())
    if not tests and any(not run.fine_tuned for run in runs):
        found += "<p>Not judged yet on test images: <code>python evaluate.py --model_path RUN</code></p>"
    return (found or "<p>Nothing is judged yet.</p>") + _all_numbers(runs)


def _table(caption: str, lines: list[Line]) -> str:
    columns = list(dict.fromkeys(name for _, cells in lines for name in cells))
    order = [*results.COLUMNS.values(), *MEASURES.values()]
    columns.sort(key=lambda name: order.index(name.split(",")[0]) if name.split(",")[0] in order else len(order))
    rows = [[text(name), *(text(cells.get(column, "-")) for column in columns)] for name, cells in lines]
    return table(caption, ["", *columns], rows)


# On test images ---------------------------------------------------------------------------


def _images(content: dict, file: str) -> str:
    """Which images a results.json is of."""
    if isinstance(content.get("runs"), list):  # of several seeds: each says the same
        content = next((one for one in content["runs"] if isinstance(one, dict)), {})
    data = inner(content, "of", "data")
    if not data:
        return f"the images of {file}"
    place = data.get("dataset") if data.get("data_dir") is None else data["data_dir"]
    split = "all images" if data.get("split") == "all" else f"the {data.get('split', 'test')} split"
    return f"{split} of {place} ({data.get('test_checksum') or data.get('test_images')})"


def _frozen(content: dict, of: str) -> Iterable[Line]:
    """The rows of evaluate.py: raw pixels, untrained encoder, trained encoder."""
    weights = inner(content, "of", "weights")
    steps = weights.get("steps")
    for subject in SUBJECTS:
        found = content if subject == "trained" else inner(content, subject)
        protocols = {name: inner(found, name) for name in results.COLUMNS if inner(found, name)}
        if not protocols:
            continue
        name = results.title(subject, {"steps": steps})
        if subject == "trained" and weights.get("path"):
            name += f" ({str(weights['path']).rpartition('/')[2]}{f', step {steps}' if finite(steps) else ''})"
        cells = {}
        for protocol, values in protocols.items():
            cells |= {results.COLUMNS[protocol]: _share(values, "acc1")}
            balanced = _share(values, "balanced_accuracy")
            if balanced not in ("-", cells[results.COLUMNS[protocol]]) and _differ(values):
                cells[f"{results.COLUMNS[protocol]}, balanced"] = balanced
        counts = {values["n"] for values in protocols.values() if finite(values.get("n"))}
        yield name + of, cells | {"n": " or ".join(map(_word, sorted(counts))) or "-"}


def _differ(values: dict) -> bool:
    """Whether balanced accuracy is another number than accuracy."""
    pair = values.get("acc1"), values.get("balanced_accuracy")
    return not all(map(finite, pair)) or abs(pair[0] - pair[1]) > 1e-9


def _fine_tuned(content: dict, of: str, seeds_apart: bool) -> Iterable[Line]:
    """The rows of finetune.py: the network; of several seeds their mean and, unless they have folders, each."""
    runs = [one for one in content["runs"] if isinstance(one, dict)] if isinstance(content.get("runs"), list) else []
    if mean := inner(content, "mean"):
        yield f"mean ± deviation of {len(runs)} seeds{of}", _mean(mean) | {"n": _count(runs[0] if runs else {})}
    for one in [] if runs and seeds_apart else runs or [content]:
        name = f"seed {one.get('seed')}" if runs else "fine-tuned network"
        test = inner(one, "test")
        if test:
            yield name + of, _measured(test) | {"n": _count(one)}
        for part in ("major", "minor"):
            if group := inner(test, part):
                yield f"{name}, {part} classes only{of}", _measured(group)


def _measured(found: dict, before: str = "") -> dict[str, str]:
    """{column: words} of the measures of a network; the names in `found` begin with `before`."""
    cells = {}
    for name, column in MEASURES.items():
        value = found.get(before + name)
        if name == "auc" and value is None:
            column, value = "AUC, mean of classes", found.get("auc_macro")
        if value is not None:
            cells[column] = _share(found, before + name) if name in SHARES else _word(value)
    return cells


def _mean(mean: dict) -> dict[str, str]:
    cells = {}
    for name, column in MEASURES.items():
        found = inner(mean, name)
        if name == "auc" and not found:
            column, found = "AUC, mean of classes", inner(mean, "auc_macro")
        pair = [value for value in (found.get("mean"), found.get("std")) if finite(value)]
        if pair and name in SHARES:
            cells[column] = " ± ".join(f"{100 * value:.1f}" for value in pair) + " %"
        elif pair:
            cells[column] = " ± ".join(f"{value:.4f}" for value in pair)
    return cells


def _count(one: dict) -> str:
    return _word(inner(one, "test").get("images"))


# On validation images ---------------------------------------------------------------------


def _chosen_on(run: Run) -> str:
    """Which images validated a run, and what was chosen on them."""
    kept = f"{run.settings.get('val_fraction')} of every class of train" if run.fine_tuned else "a tenth of train"
    chosen = "The best epoch" if run.fine_tuned else "encoder_best.pt"
    return (
        f"Validation: the val split or, if there is none, {kept}. {chosen} was chosen on these images, so its numbers "
        "are a little too good"
    )


def _validated(run: Run, of: str) -> Iterable[Line]:
    """The last epoch and the best."""
    last = run.judged
    if run.fine_tuned:
        best = inner(run.results.get("results.json", {}), "best")
        both = best.get("epoch") == last.get("epoch")
        for line, which in [(last, "the last and the best")] if both else [(best, "the best"), (last, "the last")]:
            if line:
                cells = _measured(line, "val_") | {"n": _word(line.get("val_n"))}
                yield f"epoch {_word(line.get('epoch'))} ({which}){of}", cells
        return
    head = run.settings.get("eval_head")
    if last:
        cells = {"k-NN": _share(last, "knn_acc1"), _column(head): _share(last, "linear_acc1")}
        yield f"epoch {_word(last.get('epoch'))} (the last){of}", cells | {"n": _word(last.get("judged_n"))}
    if run.best.get("chosen_by") == "linear_acc1":
        found = {"linear_acc1": run.best.get("value"), "linear_acc1_interval": run.best.get("interval")}
        cells = {_column(run.best.get("head", head)): _share(found, "linear_acc1"), "n": _word(run.best.get("n"))}
        yield f"epoch {_word(run.best.get('epoch'))} (encoder_best.pt){of}", cells


def _column(head: object) -> str:
    """The name of what `eval_head` asks for. An earlier version had no such setting, and the probe."""
    return results.COLUMNS["fixed" if head == "fixed" else "probe"]


# Numbers ----------------------------------------------------------------------------------


def _word(value: object) -> str:
    return svg.number(value) if finite(value) else "-" if value is None else str(value)


def _share(found: dict, name: str) -> str:
    """'79.1 % (77.2–80.8)': the share `name`, and its interval if there is one."""
    value, interval = found.get(name), numbers(found.get(f"{name}_interval"))
    if not finite(value):
        return _word(value)
    ends = f" ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})" if len(interval) == 2 else ""
    return f"{100 * value:.1f} %{ends}"


def _all_numbers(runs: list[Run]) -> str:
    """Every number of the results, folded, as the files name it."""
    measured: dict[tuple[str, str], list] = {}  # (name, file) -> a value of each run
    for i, run in enumerate(runs):
        found = [(path, file, value) for file, content in run.results.items() for path, value in _flat(content)]
        found += [(name, "metrics.jsonl, last", v) for name, v in run.judged.items() if finite(v)]
        for path, file, value in found:
            measured.setdefault((path, file), [None] * len(runs))[i] = value
    rows = [[text(path), text(file), *map(number, values)] for (path, file), values in measured.items()]
    names = [run.short_name for run in runs] if len(runs) > 1 else ["Value"]
    return folded_table(f"All {len(rows)} numbers, as the files name them", ["Name", "File", *names], rows)


def _flat(content: dict, above: str = "", depth: int = 0) -> list[tuple[str, float]]:
    """The numbers of a nested dict with their paths; at most 60 of each part."""
    found: list[tuple[str, float]] = []
    for name, value in content.items():
        path = f"{above}{name}"
        if finite(value):
            found.append((path, value))
        elif name == "runs" and isinstance(value, list):  # of finetune.py, one for each seed
            for place, one in enumerate(value):
                if isinstance(one, dict):
                    found += _flat(one, f"{above}seed {one.get('seed', place)} · ", depth + 1)
        elif isinstance(value, dict) and depth < 4:
            found += _flat(value, f"{path} · ", depth + 1)
    return found[: 60 if depth else 1000]

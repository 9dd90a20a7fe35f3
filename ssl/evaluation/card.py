"""The report card of an encoder, from one extraction of features: few labels, retrieval, calibration, changed images,
groups. The probe and k-NN on all labels are judged beside it.

All of it is measured on the test split and learnt from train; nothing is chosen on the test split. What these images
cannot say is None, with the reason under the same name and `_why`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ssl.console import some_of
from ssl.data.hold_out import few_of_classes
from ssl.data.images import Images
from ssl.evaluation import calibration, corruptions, few_shot, groups, logistic, metrics, probes, retrieval
from ssl.evaluation.corruptions import Changed
from ssl.evaluation.feature_rows import Rows, Samples, statistics
from ssl.evaluation.features import Split
from ssl.evaluation.inference import Net, Reading
from ssl.evaluation.intervals import Groups
from ssl.evaluation.neighbours import Near
from ssl.evaluation.probes import Heads
from ssl.sources.labels import stratified

SHOTS = (1, 5, 16)
PERCENTS = (1, 10)
NO_IMAGES = "they need the images, which a features file does not hold; pass --model_path instead"

Part = tuple[Rows, Tensor]  # (features (N, F), labels (N,))
GroupsOf = Mapping[str, Groups | None]  # of train and of test


def groups_of(splits: Mapping[str, Images | Split]) -> GroupsOf:
    return {name: splits[name].groups for name in ("train", "test")}


def changed_images(net: Net, test: Images, settings, device: torch.device, title: str) -> Changed | str:
    """Features of changed test images as `settings` of evaluate.py want them, or why there are none. For all ranks."""
    if not settings.corrupted_images:
        return "left out by --corrupted_images 0"
    how, most = Reading.of(settings, device), settings.corrupted_images
    return corruptions.features(net, test, how, most, settings.seed, title)


def why_no_probe(labels: Tensor, classes: list[str]) -> str | None:
    """Why no probe can be swept on training images with these labels (N,); None where one can."""
    if small := few_shot.smaller_classes(labels, 2, classes):
        return (
            f"the probe needs 2 training images of every class, one of them held out; {len(small)} of {len(classes)} "
            f"classes have fewer: {some_of(small)}"
        )
    return None


def card(
    train: Part,
    test: Part,
    near: Near,
    tuned: tuple[Heads, Samples] | None,
    classes: list[str],
    names: GroupsOf,
    changed: Changed | str,
    settings,
) -> dict:
    """The card of an encoder.

    `near`: the nearest of `train` to each image of `test`. `tuned`: the swept probe, and the part of `train` that chose
    it; None without one. `names`: those of the groups. `changed`: as of `changed_images`.
    """
    result: dict = {
        "few_labels": _few_labels(train, test, classes, settings.seed),
        "retrieval": retrieval.retrieve(train, test, near.places[:, 0], settings.seed, names["test"]),
    }
    if tuned:
        result["calibration"] = calibration.calibration(*tuned, test, settings.seed)
    else:
        result |= {"probe": None, "probe_why": why_no_probe(train[1], classes)}
        result |= {"calibration": None, "calibration_why": "it is that of the probe"}
    result |= _corruptions(train, test, tuned and tuned[0], len(classes), names["test"], changed, settings)
    return result | _groups({"test": test, "train": train}, names, settings)


def _few_labels(train: Part, test: Part, classes: list[str], seed: int) -> dict:
    """Accuracies with SHOTS images of every class and with PERCENTS of the labels, each the mean over draws."""
    mean, labels = statistics(train[0])[0], train[1].cpu()
    found: dict = {"head": logistic.WORDS, "draws": few_shot.DRAWS, "shots": {}, "percent": {}}
    for shots in SHOTS:
        smaller = few_shot.smaller_classes(labels, shots, classes)
        if len(smaller) == len(classes):
            found["shots"] |= {str(shots): None, f"{shots}_why": f"no class has {shots} training images"}
            continue
        draws = [few_of_classes(labels, shots, seed + draw) for draw in range(few_shot.DRAWS)]
        of_shots = few_shot.accuracies(train, test, len(classes), draws, mean)
        found["shots"][str(shots)] = of_shots | {"smaller_classes": smaller}
    for percent in PERCENTS:
        draws = [stratified(labels, percent, seed + draw) for draw in range(few_shot.DRAWS)]
        found["percent"][str(percent)] = few_shot.accuracies(train, test, len(classes), draws, mean)
    return found


def _corruptions(
    train: Part, test: Part, head: Heads | None, classes: int, names: Groups | None, changed: Changed | str, settings
) -> dict:
    """{corruptions: accuracies of the probe and of k-NN on some test images, unchanged and changed}."""
    if isinstance(changed, str):
        return {"corruptions": None, "corruptions_why": changed}
    index = changed.index.to(test[1].device)
    labels = test[1][index]
    names = names and [names[i] for i in index.tolist()]

    def judge(x: Rows) -> dict:
        near = probes.knn(train, (x, labels), classes, settings.k, settings.knn_temperature, names)
        by_probe = {"probe": metrics.accuracy(labels, probes.hits(head, [0], x, labels)[0], names)} if head else {}
        return by_probe | {"knn": near}

    found: dict = {"n": len(index), "of": len(test[1]), "unchanged": judge(test[0].subset(index))}
    for (kind, strength), h in zip(changed.ways, changed.features):
        of_kind = found.setdefault(kind, {})
        if h.isfinite().all():
            of_kind[f"{strength:g}"] = judge(Rows((h,), labels.device, mean=test[0].mean, std=test[0].std))
        else:
            of_kind |= {f"{strength:g}": None, f"{strength:g}_why": "the encoder gives NaN or Inf"}
    if "jpeg" not in found:
        found |= {"jpeg": None, "jpeg_why": "JPEG has one or three channels"}
    return {"corruptions": found}


def _groups(parts: dict[str, Part], names: GroupsOf, settings) -> dict:
    """{groups: of each split how well features tell the group, and the robustness index}."""
    if all(names.get(split) is None for split in parts):
        why = "no groups are known; a table names them (--group_column), of slides and lesions they are known"
        return {"groups": None, "groups_why": why}
    found: dict = {}
    for split, (x, y) in parts.items():
        if names.get(split) is None:
            found |= {split: None, f"{split}_why": "no groups of this split are known"}
            continue
        numbers = groups.by_name(names[split])
        found[split] = {
            "without_group": int((numbers < 0).sum()),
            "told": groups.group_accuracy(x, y, numbers, settings.seed),
            "robustness": groups.robustness_index(x, y, numbers, settings.k, settings.seed),
        }
    return {"groups": found}

"""Patches of whole-slide images, named after their slide. The test is of whole slides or hospitals, not of patches.

`data_dir` is ROOT/CLASS/SLIDE_*.png, as `ssl.data.patches` writes them, or for pre-training ROOT/SLIDE_*.png.
Slides have the names of The Cancer Genome Atlas, TCGA-A1-A0SK-DX1: project, hospital, patient, slide.

A table with the columns slide_name and split, or a list, says which slides are the test. Pre-training uses all patches
that are not test. `Images.groups` are the patients, so that whole patients are held out for validation: patches
overlap, and a patch in train would show a part of its neighbour.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import torch

from ssl.console import say, some_of
from ssl.data.images import Images, Paths
from ssl.data.listing import list_images, no_images
from ssl.data.tables import read_table
from ssl.errors import UserError, nearest, one_line
from ssl.sources.splits import SPLITS, split_of

_TISSUE_6 = {
    "Tumor": "tumor",
    "Fat": "fat",
    "NecroticDebris": "necrotic_debris",
    "TILsDense": "tils",
    "StromaNOS": "stroma",
    "PlasmaCellInfiltrate": "plasma_cell_infiltrate",
}
# Data set: {folder: class}; other folders are left out. tissue_5 has super classes of the region codes, tissue_6 and
# tissue_8 have main classes, cell_7 has nuclei of 64 pixels. Of 'slides' every folder is a class.
FOLDERS: dict[str, dict[str, str]] = {
    "slides": {},
    "tissue_5": {"TUMOR": "tumor", "STROMA": "stroma", "TILS": "tils", "JUNK": "junk", "WHITE": "white"},
    "tissue_6": _TISSUE_6,
    "tissue_8": {**_TISSUE_6, "Blood": "blood", "BloodVessel": "blood_vessel"},
    "cell_7": {
        "tumor": "tumor",
        "fibroblast": "stromal",
        "macrophage": "stromal",
        "vascular_endothelium": "vascular_endothelium",
        "lymphocyte": "stils",
        "plasma_cell": "stils",
        "apoptotic_body": "apoptotic_body",
    },
}
# The major classes. Results are also given for these alone, and for the others ('minor') alone.
MAJOR = {
    "tissue_5": ["tumor", "stroma"],
    "tissue_6": ["tumor", "stroma"],
    "tissue_8": ["tumor", "stroma"],
    "cell_7": ["tumor", "stils"],
}


class Slide(NamedTuple):
    """The slide of a patch. `patient` is TCGA-A1-A0SK, as A0SK in another hospital may be another person."""

    name: str
    hospital: str
    patient: str


def slide_of(file: str) -> Slide | None:
    """The slide of TCGA-A1-A0SK-DX1_12_0.5.png or TCGA-A1-A0SK-DX1_0_224.png; None for other names."""
    name = Path(file).name.partition("_")[0].partition(".")[0]
    fields = name.split("-")
    if len(fields) < 4 or not all(re.fullmatch("[A-Za-z0-9]+", field) for field in fields):
        return None
    return Slide(name, fields[1], "-".join(fields[:3]))


def slides(
    dataset: str, root: Path, split: str, csv: str | None = None, test: list[str] | None = None
) -> Images | None:
    """Split 'train', 'val', 'test' or 'unlabelled' of one of FOLDERS below `root`.

    `csv` is a table with the columns slide_name and split (train, val, test). If it has no train rows, the slides that
    it does not name are train. Or `test` lists hospitals (A1), patients (TCGA-A1-A0SK) or slides. 'val' is None unless
    the table has it. Raises `UserError` for other names of files, for a patient in two splits, for a split without
    patches and for missing folders.
    """
    if (csv is None) == (test is None):
        raise UserError(
            f"test_slides: which of the slides are the test of {dataset}? Pass hospitals or slides as --test_slides, "
            "or a table with the columns slide_name and split as --csv; not both"
        )
    files = list_images(root)
    if not files:
        raise UserError(f"data_dir: {no_images(root)}")
    of_file = [slide_of(file.name) for file in files]
    strange = [str(file) for file, slide in zip(files, of_file) if slide is None]
    if strange:
        raise UserError(
            f"data_dir: {len(strange)} of {len(files)} images are not named after a slide: {some_of(strange)}; "
            "expected PROJECT-HOSPITAL-PATIENT-SLIDE_….png, such as TCGA-A1-A0SK-DX1_12_0.5.png"
        )
    there = set(of_file)
    part = _by_list(there, test) if csv is None else _by_table(there, csv, split)
    _no_leak(there, part)
    if split == "val" and "val" not in part.values():
        return None
    wanted = ("train", "val") if split == "unlabelled" else (split,)
    chosen = [i for i, slide in enumerate(of_file) if part[slide.name] in wanted]
    paths = Paths(str(root / files[i]) for i in chosen)
    if split == "unlabelled":
        labels, classes = torch.full((len(files),), -1), []
    else:
        labels, classes = _labels(dataset, root, files)
    data = Images(dataset, labels[chosen], classes, paths=paths, groups=[of_file[i].patient for i in chosen])
    if split != "unlabelled":
        data = data.subset((data.labels >= 0).nonzero()[:, 0])
    if not len(data):
        raise UserError(f"test_slides: no patch in {root} is left for {split}; all are in other splits")
    return data


def _labels(dataset: str, root: Path, files: list[Path]) -> tuple[torch.Tensor, list[str]]:
    """(class numbers (N,), -1 for files in folders that the data set does not name; the classes)."""
    if any(len(file.parts) == 1 for file in files):
        raise UserError(
            f"data_dir: {root} holds patches without class folders; without labels there is nothing to learn"
        )
    found = sorted({file.parts[0] for file in files})
    class_of = FOLDERS[dataset] or dict(zip(found, found))
    missing = [folder for folder in class_of if folder not in found]
    if missing:
        raise UserError(
            f"data_dir: {root} has no patches in {missing[0]}/, one of the {len(class_of)} folders of {dataset}; it "
            f"has {', '.join(found[:30])}. --dataset slides takes the folders as they are"
        )
    classes = list(dict.fromkeys(class_of.values()))
    numbers = [classes.index(class_of[file.parts[0]]) if file.parts[0] in class_of else -1 for file in files]
    return torch.tensor(numbers), classes


def _by_list(there: set[Slide], test: list[str]) -> dict[str, str]:
    """{slide: its split}, if `test` lists hospitals, patients or slides."""
    known = sorted({word for slide in there for word in slide})
    test = [word if word in known else word.zfill(2) for word in test]  # YAML reads hospital 05 as the number 5
    for word in test:
        if word not in known:
            hospitals = ", ".join(sorted({slide.hospital for slide in there})[:30])
            raise UserError(
                f"test_slides: {word!r} is no hospital, patient or slide of these patches{nearest(word, known)}; "
                f"the hospitals are {hospitals}"
            )
    return {slide.name: "test" if set(test) & set(slide) else "train" for slide in there}


def _by_table(there: set[Slide], csv: str, split: str) -> dict[str, str]:
    """{slide: its split} by the rows of a table. Slides that it does not name are train."""
    parts: dict[str, str] = {}
    for row, (name, cell) in enumerate(read_table(csv, ["slide_name", "split"]), 1):
        name, part = name.strip(), split_of(cell.strip())
        if part is None:
            raise UserError(f"csv: {csv} row {row}: {cell!r} is none of {', '.join(SPLITS)}{nearest(cell, SPLITS)}")
        if parts.setdefault(name, part) != part:
            raise UserError(f"csv: {csv} row {row}: {name!r} is in two splits, {parts[name]} and {part}")
    names = {slide.name for slide in there}
    unnamed = sorted(names - parts.keys())
    if unnamed and "train" in parts.values():
        raise UserError(
            f"csv: {len(unnamed)} slides have patches and no row in {csv}: {some_of(unnamed)}; name all slides, or "
            "only those that are not train"
        )
    absent = sorted(parts.keys() - names)
    if absent and split in ("train", "unlabelled"):  # for one split, so that it is said once
        some = one_line(some_of(absent))
        say(f"slides      *** {len(absent)} of the {len(parts)} slides in {csv} have no patches: {some} ***")
    return {name: parts.get(name, "train") for name in names}


def _no_leak(there: set[Slide], part: dict[str, str]) -> None:
    """Raise `UserError` if a patient has slides in two splits."""
    of_patient = defaultdict(dict)
    for slide in sorted(there):
        of_patient[slide.patient][part[slide.name]] = slide.name
    shared = {patient: splits for patient, splits in of_patient.items() if len(splits) > 1}
    if shared:
        patient, splits = next(iter(shared.items()))
        where = " and ".join(f"{name} is {split}" for split, name in splits.items())
        raise UserError(
            f"leak: {len(shared)} patients have slides in two splits, such as {patient}: {where}; give all slides of a "
            "patient to one split"
        )

"""Data sets in folders of image files: your own, and ImageNet."""

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path

import torch

from ssl.console import counted, say, say_once, some_of
from ssl.data.images import Images, Paths
from ssl.data.listing import folders_in, holds_images, is_image, list_files, list_images, no_images, not_read
from ssl.data.tables import read_lines
from ssl.errors import UserError
from ssl.sources.classes import distinct, tell_alike
from ssl.sources.splits import as_judged, part, seeming_splits, split_folders, split_of
from ssl.sources.unsplit import cut_if_labelled, unsplit

# The class lists of Van Gansbeke et al. (2020), SCAN, which published numbers use: data/imagenet_subsets/ of
# github.com/wvangansbeke/Unsupervised-Classification. SHA-256 of the sorted wnids, one in a line.
SUBSETS = {
    "ImageNet50": "ac8134b3c52e7579be212659e3c9d22131e0a655d237b7aa7016ea6a88c12b12",
    "ImageNet100": "fe8959b5f87ec66368fda940dcf709500cbf530debef6b263ed7befa161e91b2",
    "ImageNet200": "fca8e3dd52db9f95c98c130957301a4061f562004d760a4c41b050909b5dfceb",
}
INSTEAD = "train/ and test/ folders would be splits of your own"
LISTS = "imagenet_50.txt, imagenet_100.txt or imagenet_200.txt of github.com/wvangansbeke/Unsupervised-Classification"


def folder(root: Path, split: str, leave_out: list[str] | None = None) -> Images | None:
    """A split of ROOT/{train,val,test}/CLASS/*, or of ROOT/CLASS/*, or of images without classes.

    Split folders may have any name of `splits.NAMES`. If there is no test/, val/ is the test, and there is no split
    'val'. 'all' is the test, or all images if there are no split folders. Raises `UserError` if it is not clear whether
    a folder is a split or a class, and for a class that is not in both splits, unless `leave_out` names it.
    """
    parts = split_folders(root)
    if not parts:
        return _without_splits(root, split)
    _report_unread(root, parts)
    name = part(parts, split, str(root))
    if name is None:
        return None
    if name == "test" and name not in parts:
        raise UserError(f"data_dir: {root} has {parts['train'].name}/ but neither test/ nor val/ to judge on")
    if "train" not in parts and split != "all":
        raise UserError(f"data_dir: {root} has {next(iter(parts.values())).name}/ but no train/ to learn from")
    own = _tree(parts[name])
    if name != "train" and split != "all":
        _same_classes(_tree(parts["train"]), own, parts["train"], parts[name], leave_out or [])
    return own


def by_split(root: Path) -> dict[str, Images]:
    """{split: all its images} of a folder as `folder` reads it, with labels or without.

    An image that is in no class folder has the label -1. A split may lack classes that another one has.
    """
    parts = split_folders(root)
    if not parts:
        all_images = _all_images(root)
        _no_splits_below(root, "unlabelled")
        return cut_if_labelled(all_images, str(root), str(root), INSTEAD)
    _report_unread(root, parts)
    return as_judged({name: _tree(path) for name, path in parts.items()}, str(root))


def _all_images(root: Path) -> Images:
    """All images of a folder without split folders."""
    if seeming := seeming_splits(root):
        raise UserError(
            f"data_dir: {root} has {', '.join(f'{name}/' for name in seeming[:5])}: are they splits or classes? Rename "
            "splits to train/ and test/ (or val/), and classes to other words, or pass one folder as --data_dir"
        )
    return _tree(root)


def _without_splits(root: Path, split: str) -> Images | None:
    all_images = _all_images(root)
    _no_splits_below(root, split)
    words = f"data_dir: {root} holds images without class folders"
    if not all_images.classes and split != "unlabelled":  # the search may look at every path
        words += f", such as {_loose(all_images, root)}"
    return unsplit(all_images, split, str(root), str(root), INSTEAD, words)


def _report_unread(root: Path, parts: dict[str, Path]) -> None:
    """Name the images beside the split folders, which are not read. Raise `UserError` if a split may be a class."""
    beside = [path for path in folders_in(root) if path not in parts.values()]
    folders = [f"{path.name}/" for path in beside if holds_images(path)]
    if folders and len(parts) == 1:
        only = next(iter(parts.values())).name
        raise UserError(
            f"data_dir: {root} has {only}/ beside {some_of(folders)}: is {only} a split or a class? Make two folders "
            "train/ and test/ (or val/) with class folders in each, or pass the folder to read as --data_dir"
        )
    unread = folders + sorted(name for name in os.listdir(root) if is_image(name))
    if unread:
        names = ", ".join(f"{path.name}/" for path in parts.values())
        say_once(f"data        only {names} of {root} are read, not {some_of(unread)}")


def _no_splits_below(root: Path, split: str) -> None:
    """Find a folder in `root` that holds splits: `UserError` where labels are used, a warning for pre-training."""
    for path in folders_in(root):
        below = {split_of(entry.name) for entry in folders_in(path)}
        if ("train" in below and below & {"val", "test"}) or seeming_splits(path):
            words = f"{path} has splits of its own, so their test images are among the images of {root}"
            if split != "unlabelled":
                raise UserError(f"data_dir: {words}; pass that folder, or put the images into train/CLASS, test/CLASS")
            say_once(f"data        *** {words} ***")
            return


def images_below(folder: Path, setting: str) -> list[Path]:
    """The images below `folder`, which `setting` names, relative to it. Prints how many other files there are.

    Raises `UserError` where there is no image.
    """
    files, others = list_files(folder)
    if not files:
        found = f"; {not_read(others)}" if others else ""
        raise UserError(f"{setting}: {no_images(folder)}{found}")
    if others:
        say_once(f"data        in {folder} {not_read(others)}")
    return files


def _tree(folder: Path) -> Images:
    """All images below a folder. The first folder of each path is the class, if every image is in one."""
    files = images_below(folder, "data_dir")
    paths = [str(folder / path) for path in files]
    loose = [path.name for path in files if len(path.parts) == 1]
    if 0 < len(loose) < len(files):
        say_once(
            f"data        *** {counted(len(loose), 'image')} of {folder} outside class folders, such as {loose[0]}: no "
            "image has a class ***"
        )
    if loose:
        return Images.of_files(paths)
    classes = sorted({path.parts[0] for path in files})
    number = {name: label for label, name in enumerate(classes)}
    for entry in folders_in(folder):
        if entry.name not in number and entry.is_symlink():
            say_once(f"data        *** {entry} is a link to images of another folder in {folder}: they count there ***")
        elif entry.name not in number:
            raise UserError(f"data_dir: class folder {entry} has no images; fill or remove it")
    tell_alike(classes, f"class folders of {folder}")
    return Images("folder", torch.tensor([number[path.parts[0]] for path in files]), classes, paths=Paths(paths))


def _loose(data: Images, folder: Path) -> str:
    """The name of an image that lies in `folder` itself."""
    return next(Path(path).name for path in data.paths if Path(path).parent == folder)


def _same_classes(train: Images, test: Images, train_dir: Path, test_dir: Path, leave_out: list[str]) -> None:
    for here, there, where in ((train, test, test_dir), (test, train, train_dir)):
        if here.classes and not there.classes:
            raise UserError(
                f"data_dir: {where} has images outside class folders, such as {_loose(there, where)}, so none of its "
                "images has a class; move or remove them"
            )
        missing = sorted(set(here.classes) - set(there.classes) - set(leave_out))
        if missing:
            raise UserError(
                f"data_dir: class {missing[0]!r} is not in {where}"
                + (f" (nor are {len(missing) - 1} more)" if len(missing) > 1 else "")
                + "; both splits need the same class folders"
                + ("" if where == train_dir else ", or --leave_out names those that are not to be used")
            )


def imagenet(root: Path, name: str, split: str, class_list: str | None) -> Images:
    """A split of ROOT/{train,val}/WNID/*.JPEG; of a subset only the classes of `class_list`, in its order."""
    part = "val" if split == "test" else "train"
    folder = split_folders(root).get(part)
    if folder is None:
        raise UserError(f"data_dir: {root} is not ImageNet: there is no {part}/ of class folders in it")
    if name == "ImageNet":
        data = replace(_tree(folder), name=name)
        if len(data.classes) != 1000:
            raise UserError(
                f"data_dir: {root} is not ImageNet: {folder.name}/ has {len(data.classes)} class folders, not 1000. "
                "For images of your own leave --dataset out"
            )
        return data
    if class_list is None:
        raise UserError(f"class_list: {name} needs a file with a line 'wnid name' for each class, such as {LISTS}")
    wnids, names = read_class_list(class_list)
    expected = int(name.removeprefix("ImageNet"))
    if len(wnids) != expected:
        raise UserError(f"class_list: {class_list} lists {len(wnids)} classes, {name} has {expected}")
    if split != "test" and hashlib.sha256("\n".join(sorted(wnids)).encode()).hexdigest() != SUBSETS[name]:
        say(f"class list  *** not the {name} of Van Gansbeke et al. (2020): do not compare results with theirs ***")
    paths, labels, there = [], [], set(folders_in(folder))
    for label, wnid in enumerate(wnids):
        files = list_images(folder / wnid) if folder / wnid in there else []
        if not files:
            raise UserError(f"data_dir: {folder / wnid} has no images, but {class_list} lists {wnid}")
        paths += [str(folder / wnid / file) for file in files]
        labels += [label] * len(files)
    return Images(name, torch.tensor(labels), names, paths=Paths(paths))


def read_class_list(path: str) -> tuple[list[str], list[str]]:
    """(wnids, names) of the lines 'wnid name' of a file. The label of a class is its line number, from 0.

    A name of two classes, as ImageNet's crane, gets the wnid: 'crane (n02012849)'.
    """
    lines = [line.split(maxsplit=1) for line in read_lines(path, "class_list")]
    wnids = [line[0] for line in lines]
    first = {wnid: number for number, wnid in reversed(list(enumerate(wnids)))}
    for number, wnid in enumerate(wnids):
        if not re.fullmatch("n[0-9]{8}", wnid):
            raise UserError(f"class_list: {wnid!r} in {path} is no class of ImageNet; they are named n and 8 digits")
        if number != first[wnid]:
            raise UserError(f"class_list: {wnid!r} stands in {path} twice")
    return wnids, distinct([line[-1].strip() for line in lines], wnids)

"""Splits of images that come without splits, some of them perhaps without labels."""

import torch

from ssl.console import say_once
from ssl.data.images import Images
from ssl.errors import UserError
from ssl.sources.cut import NO_LABELS, cut


def unsplit(
    all_images: Images, split: str, root: str | None, where: str, instead: str, unlabelled: str
) -> Images | None:
    """`split` of images that `cut` divides. A line says how many are held out, and `instead`, how to have other splits.

    Images without a label are only in 'unlabelled', unless their group is in the test.
    """
    labelled = with_labels(all_images, where)
    part = cut(labelled, split, root, unlabelled)
    if split not in ("train", "unlabelled") or not all_images.classes:
        return part
    held_out = len(labelled) - len(part)
    if held_out:
        say_once(f"held out    {held_out} of {len(labelled)} images of {where} for the test; {instead}")
    else:
        say_once(
            f"held out    *** none of {len(labelled)} images of {where}: every class has one image, or is in one "
            "group, so there is nothing to judge on ***"
        )
    if split == "train" or len(labelled) == len(all_images):
        return part
    test = set(_identities(labelled)) - set(_identities(part))
    groups = {group for one, group in zip(_identities(labelled), labelled.groups or ()) if group and one in test}
    group_of = all_images.groups or [None] * len(all_images)
    stays = [one not in test and group not in groups for one, group in zip(_identities(all_images), group_of)]
    return all_images.subset(torch.tensor(stays).nonzero()[:, 0])


def cut_if_labelled(all_images: Images, root: str | None, where: str, instead: str) -> dict[str, Images]:
    """{'train', 'test'} of all images that `unsplit` divides, or {'all'} where there are no labels to cut by.

    Images without a label are in train, or in the test if their group is.
    """
    if not all_images.classes:
        return {"all": all_images}
    train = unsplit(all_images, "unlabelled", root, where, instead, "")
    known = set(_identities(train))
    test = torch.tensor([one not in known for one in _identities(all_images)])
    return {"train": train, "test": all_images.subset(test.nonzero()[:, 0])} if test.any() else {"all": all_images}


def with_labels(data: Images, where: str) -> Images:
    """The images that have a label, or all if there are no classes. Raises `UserError` if none has a label."""
    known = data.labels >= 0
    if not data.classes or known.all():
        return data
    if not known.any():
        raise UserError(f"no image of {where} has a label; {NO_LABELS}")
    return data.subset(known.nonzero()[:, 0])


def _identities(data: Images) -> list:
    return list(data.paths) if data.paths is not None else data.stored.rows.tolist()

"""What each split gets of images that come without splits, and of images without labels."""

import torch

from ssl.console import say_once
from ssl.data.images import Images
from ssl.errors import UserError
from ssl.sources.cut import cut


def unsplit(
    everything: Images, split: str, root: str | None, where: str, instead: str, unlabelled: str
) -> Images | None:
    """`split` of images that `cut` parts. How many are held out is said, and `instead` how to have other splits;
    it is said, too, if none can be.

    Images without a label are in 'unlabelled' alone, and not there if their group is in the test.
    """
    labelled = with_labels(everything, where)
    part = cut(labelled, split, root, unlabelled)
    if split not in ("train", "unlabelled") or not everything.classes:
        return part
    held_out = len(labelled) - len(part)
    if held_out:
        say_once(f"held out    {held_out} of {len(labelled)} images of {where} for the test; {instead}")
    else:
        say_once(
            f"held out    *** none of {len(labelled)} images of {where}: every class has one image, or is in one "
            "group, so there is nothing to judge on ***"
        )
    if split == "train" or len(labelled) == len(everything):
        return part
    test = set(_identities(labelled)) - set(_identities(part))
    groups = {group for one, group in zip(_identities(labelled), labelled.groups or ()) if group and one in test}
    group_of = everything.groups or [None] * len(everything)
    stays = [one not in test and group not in groups for one, group in zip(_identities(everything), group_of)]
    return everything.subset(torch.tensor(stays).nonzero()[:, 0])


def with_labels(data: Images, where: str) -> Images:
    """The images that have a label, or all where there are no classes. Raises `UserError` where none is left."""
    known = data.labels >= 0
    if not data.classes or known.all():
        return data
    if not known.any():
        raise UserError(f"no image of {where} has a label; without labels there is nothing to learn from or to judge")
    return data.subset(known.nonzero()[:, 0])


def _identities(data: Images) -> list:
    return list(data.paths) if data.paths is not None else data.stored.rows.tolist()

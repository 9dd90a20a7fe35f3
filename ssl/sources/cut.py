"""The cut of images that come without splits: a tenth of them is the test split, and no seed chooses it.

An image is a test image if the key of its name is among the lowest tenth of all possible keys. So every script, run
and machine cuts alike, and no image moves when others are added or removed. Of a table with groups (patients, lesions,
slides) the key is the group's, and whole groups go. An image of an array has no name; its key is that of its pixels.
"""

import numpy as np
import torch

from ssl.data import keys
from ssl.data.images import Images
from ssl.errors import UserError

TENTH = 2**64 // 10


def cut(everything: Images, split: str, root: str | None, unlabelled: str) -> Images | None:
    """`split` of images below `root` that come without splits: a tenth is 'test', the others are all else.

    Without classes all images are trained on, and none is the test: `UserError`, which begins with `unlabelled`.
    'all' are all, with classes: what there is to test on where nothing was learnt from them. Raises `UserError` where
    no class has two images (or groups).
    """
    if split == "val":
        return None
    if not everything.classes and split in ("test", "all"):
        raise UserError(f"{unlabelled}; without labels there is nothing to judge")
    if not everything.classes or split == "all":
        return everything
    test = test_images(everything.labels.numpy(), _keys(everything, root))
    if split == "test" and not test.any():
        raise UserError(
            f"none of the {len(test)} images can be kept for the test: every class has one image, or is in one group "
            "(patient, lesion, slide). Give more of them, or splits of your own"
        )
    return everything.subset(torch.from_numpy((test if split == "test" else ~test).nonzero()[0]))


def _keys(data: Images, root: str | None) -> np.ndarray:
    if data.paths is None:
        return keys.of_pixels(data)
    names = keys.names(data.paths, root)
    if data.groups is not None:
        names = [name if group is None else f"group {group}" for name, group in zip(names, data.groups)]
    return keys.of_words(names)


def test_images(labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Mask (N,) of the test images, of labels (N,) and keys (N,) uint64; images of one key stay together.

    Those of the lowest tenth of keys. A class that would lose more than half of its images gets its highest keys back.
    One that would have no test image gets the lowest key that takes no more than half of it, or, where there is none,
    that leaves it some; and that leaves every other class some.
    """
    test = keys < TENTH
    order = np.argsort(labels, kind="stable")
    values, starts = np.unique(labels[order], return_index=True)
    members = dict(zip(values, np.split(order, starts[1:])))
    for images in members.values():
        while 2 * test[images].sum() > len(images):
            test[keys == keys[images[test[images]]].max()] = False
    for images in members.values():
        if not test[images].any():
            found, counts = np.unique(keys[images], return_counts=True)
            for key in found[np.argsort(2 * counts > len(images), kind="stable")]:
                more = test | (keys == key)
                if not any(more[members[label]].all() for label in np.unique(labels[keys == key])):
                    test = more
                    break
    return test

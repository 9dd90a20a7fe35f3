"""The test split of images that come without splits: a tenth of them, chosen by their names and not by a seed.

An image is a test image if the key of its name is among the lowest tenth of all possible keys. So every script, run
and machine chooses the same, and no image changes its split when others are added or removed. If a table gives groups
(patients, lesions, slides), the key is that of the group, so whole groups are chosen. An image of an array has no name;
its key is that of its pixels.
"""

import numpy as np
import torch

from ssl.data import keys
from ssl.data.images import Images
from ssl.errors import UserError

NO_LABELS = (
    "without labels there is nothing to judge. Features need none: evaluate.py --protocol features writes them, and "
    "--near_duplicates lists pairs of images that are alike"
)
TENTH = 2**64 // 10


def cut(all_images: Images, split: str, root: str | None, unlabelled: str) -> Images | None:
    """`split` of images below `root` that come without splits: a tenth is 'test', the others are 'train'.

    'all' are all images, to test a model that has learnt from none of them. Images without classes are all for
    training. Raises `UserError`, which begins with `unlabelled`, for a test without classes, and another `UserError` if
    no class has two images (or groups).
    """
    if split == "val":
        return None
    if not all_images.classes and split in ("test", "all"):
        raise UserError(f"{unlabelled}; {NO_LABELS}")
    if not all_images.classes or split == "all":
        return all_images
    test = test_images(all_images.labels.numpy(), _keys(all_images, root))
    if split == "test" and not test.any():
        raise UserError(
            f"none of the {len(test)} images can be kept for the test: every class has one image, or is in one group "
            "(patient, lesion, slide). Give more of them, or splits of your own"
        )
    return all_images.subset(torch.from_numpy((test if split == "test" else ~test).nonzero()[0]))


def _keys(data: Images, root: str | None) -> np.ndarray:
    if data.paths is None:
        return keys.of_pixels(data)
    names = keys.names(data.paths, root)
    if data.groups is not None:
        names = [name if group is None else f"group {group}" for name, group in zip(names, data.groups)]
    return keys.of_words(names)


def test_images(labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Mask (N,) of the test images, by labels (N,) and keys (N,) uint64. Images with the same key stay together.

    The lowest tenth of keys is the test. A class that would lose more than half of its images gets the highest of these
    keys back. A class without a test image gives its lowest key that has at most half of its images, or else its lowest
    key of all; never a key that would leave a class without training images.
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

"""Which images these are: compared when a run continues, and between the processes of a run."""

import zlib

from ssl.data.images import Images
from ssl.distributed import gather_objects
from ssl.errors import UserError


def identity_of(data: Images, data_dir: str | None) -> str:
    """The number and a checksum of the images, and a checksum of their labels."""
    return f"{data.fingerprint(data_dir)}, labels {data.label_checksum()}"


def require_same_images(splits: dict[str, Images | None], data_dir: str | None) -> None:
    """Raise `UserError`, on all ranks, where one finds other images, labels or groups than rank 0. All ranks call it.

    Batches of other images would be no batches of one training, and ranks with fewer of them would be waited for.
    """
    own = {name: None if data is None else _described(data, data_dir) for name, data in splits.items()}
    first, *others = gather_objects(own)
    for rank, found in enumerate(others, 1):
        for name in first.keys() | found.keys():
            here, there = first.get(name) or "none", found.get(name) or "none"
            if here != there:
                raise UserError(
                    f"data_dir: every process needs the same images, and those of {name} are on rank 0: {here}; on "
                    f"rank {rank}: {there}. Is the data set whole on every machine?"
                )


def _described(data: Images, data_dir: str | None) -> str:
    groups = "" if data.groups is None else f", groups {zlib.crc32(repr(list(data.groups)).encode()):08x}"
    return identity_of(data, data_dir) + groups

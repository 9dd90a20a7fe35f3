"""Which images these are: compared when a run continues, and between the processes of a run."""

import zlib

from ssl.data.images import Images
from ssl.distributed import gather_objects, world_size
from ssl.errors import UserError


def identity_of(data: Images, data_dir: str | None) -> str:
    """The number and a checksum of the images, and a checksum of their labels."""
    return f"{data.fingerprint(data_dir)}, labels {data.label_checksum()}"


def groups_checksum(data: Images) -> str | None:
    """None where no groups are known."""
    return None if data.groups is None else f"{zlib.crc32(repr(list(data.groups)).encode()):08x}"


class OtherImages(UserError):
    """A rank finds other images than rank 0."""


def require_same_images(splits: dict[str, Images | UserError | None], data_dir: str | None) -> None:
    """Raise `OtherImages`, on all ranks, where one finds other images, labels or groups than rank 0. All ranks call it.

    Batches of other images would be no batches of one training, and ranks with fewer of them would be waited for. What
    could not be read is given as its error, which is raised if all ranks have the same.
    """
    own = {name: _described(data, data_dir) for name, data in splits.items()} if world_size() > 1 else {}
    first, *others = gather_objects(own)
    for rank, found in enumerate(others, 1):
        for name in {**first, **found}:
            here, there = first.get(name, "none"), found.get(name, "none")
            if here != there:
                raise OtherImages(
                    f"data_dir: every process needs the same images, and those of {name} are on rank 0: {here}; on "
                    f"rank {rank}: {there}. Is the data set whole on every machine?"
                )
    for data in splits.values():
        if isinstance(data, UserError):
            raise data


def _described(data: Images | UserError | None, data_dir: str | None) -> str:
    if data is None or isinstance(data, UserError):
        return "none" if data is None else f"an error ({data})"
    return f"{identity_of(data, data_dir)}, groups {groups_checksum(data)}"

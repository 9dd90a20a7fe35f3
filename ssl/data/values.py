"""What a start says about the numbers and pages of a data set's files, found in some of them."""

import contextlib

from ssl.data.decode import BadImage, has_pages, stored
from ssl.data.images import Images, spread
from ssl.distributed import is_main
from ssl.report import say

LOOKED_AT = 24  # images, evenly spread
DEPTHS = (8, 10, 12, 14)  # bits that cameras have, kept in 16


def tell_values(data: Images) -> None:
    """Say on rank 0 which numbers are black and white, or that all are nearly black; and that there are more pages."""
    if not is_main():
        return
    if data.value_range is not None:
        say("values      {:g} is black, {:g} is white (value_range)".format(*data.value_range))
    indices = spread(len(data), LOOKED_AT)
    pages = 0
    largest, most = [], set()
    for index in indices:
        with contextlib.suppress(BadImage, OSError):  # told when it is wanted
            if data.paths is not None:
                pages += has_pages(data.paths[index])
                found = stored(data.paths[index])
                numbers, limit = found.numbers, found.most
            else:
                numbers = data.pixels(index).numpy()
                limit = 255 if numbers.dtype == "uint8" else 65535
            largest.append(numbers.max())
            most.add(limit)
    if pages:
        say(f"pages       {pages} of {len(indices)} files looked at hold several pages or frames: the first is read")
    if data.value_range is None and len(most) == 1 and None not in most:
        _tell_range(max(largest), most.pop(), len(largest))


def _tell_range(largest: int, most: int, count: int) -> None:
    if not 0 < largest <= most // 4:
        return
    bits = next((bits for bits in DEPTHS if largest < 2**bits), 16) if most > 255 else int(largest).bit_length()
    say(
        f"*** values   the numbers of {count} images looked at reach {largest} of {most}: all is nearly black. If "
        f"{2**bits - 1} is white, pass --value_range 0 {2**bits - 1} ***"
    )

"""What a run says at its start about the numbers and pages in its image files. It looks at a few of them."""

import contextlib

from ssl.console import say
from ssl.data.decode import BadImage, has_pages, stored
from ssl.data.images import Images, evenly_spaced
from ssl.distributed import is_main

LOOKED_AT = 24  # images, evenly spread
DEPTHS = (8, 10, 12, 14)  # bits that cameras have, kept in 16


def tell_values(data: Images) -> None:
    """Say on rank 0 which values are black and white. Warn if all images are nearly black, or files have more pages."""
    if not is_main():
        return
    if data.value_range is not None:
        say("values      {:g} is black, {:g} is white (value_range)".format(*data.value_range))
    indices = evenly_spaced(len(data), LOOKED_AT)
    pages, largest, most, exact = 0, [], set(), True
    for index in indices:
        with contextlib.suppress(BadImage, OSError):  # reported when training reads it
            if data.paths is not None:
                pages += has_pages(data.paths[index])
                found = stored(data.paths[index], lambda height, width: 8 if min(height, width) > 512 else 1)
                numbers, limit, exact = found.numbers, found.most, exact and found.exact
            else:
                numbers = data.pixels(index).numpy()
                limit = 255 if numbers.dtype == "uint8" else 65535
            largest.append(numbers.max())
            most.add(limit)
    if pages:
        say(f"pages       {pages} of {len(indices)} files looked at hold several pages or frames: the first is read")
    if data.value_range is None and len(most) == 1 and None not in most:
        _tell_range(max(largest), most.pop(), len(largest), exact)


def _tell_range(largest: int, most: int, count: int, exact: bool) -> None:
    """Warn if `largest` is at most a quarter of `most`. Only `exact` values, read as stored, can have a value range."""
    if not 0 < largest <= most // 4:
        return
    bits = next((bits for bits in DEPTHS if largest < 2**bits), 16) if most > 255 else int(largest).bit_length()
    white = 2**bits - 1
    advice = f"if {white} is white, pass --value_range 0 {white}"
    if not exact:
        advice = (
            "if that is not meant, save them with the whole range in use, or as an array (.npy), with --value_range"
        )
    say(f"*** values   {count} images looked at have numbers up to {largest} of {most}, nearly black; {advice} ***")

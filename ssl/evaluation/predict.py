"""Predict the classes of images without labels. The rows of predictions.csv are written as they come, in order."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from ssl.console import say
from ssl.data.images import Images
from ssl.data.resident import make_resident, read_one_by_one
from ssl.data.values import tell_values
from ssl.distributed import barrier, is_main
from ssl.errors import UserError, one_line
from ssl.evaluation import inference
from ssl.evaluation.classify import Predict, mean_of_copies, of_image
from ssl.evaluation.inference import Copies
from ssl.evaluation.predictions import Row, write_rows

AT_ONCE = 1000  # images whose copies are in memory
NAMED = 10  # unreadable images that are printed; the table has all


def write(
    predict: Predict,
    listed: Images,
    best: dict,
    settings,
    device: torch.device,
    copies: Copies | None,
    path: Path,
) -> None:
    """Write a row for every image of `listed` to `path`, with the probabilities of the model of a best.pt, `best`.

    All ranks call it. An image that cannot be read has a row without a prediction. Memory grows with the number of
    images only by their names, and for small images (`make_resident`). Raises `UserError` for outputs that are NaN or
    Inf, and where the file cannot be written; there is then no file.
    """
    data, classes = _as_chosen(listed, best, settings), best["classes"]
    part = "the whole of each" if data.resident is not None else "the central square of each"
    say(f"data        {len(listed)} images, {part} at {settings.image_size} px")
    tell_if_unlike(data, best)
    tell_values(data)
    root = settings.data_dir if os.path.isdir(settings.data_dir) else os.path.dirname(settings.data_dir)
    rows = _rows(listed, dict(data.bad), _found(predict, data, settings, device, copies))
    if is_main():
        try:
            counts = write_rows(path, rows, os.path.join(root, ""), classes)
        except OSError as error:
            raise UserError(f"output_dir: {path} was not written ({error}); the same command tries again") from None
        predicted = ", ".join(f"{name} {count}" for name, count in counts.most_common(NAMED))
        say(f"predicted   {one_line(predicted)}" + (", ..." if len(counts) > NAMED else ""))
        if unread := len(listed) - counts.total():
            say(f"not read    {unread} of {len(listed)} images: their rows have no prediction; `unread` says why")
        say(f"predictions {path}")
    for _ in rows:  # the other ranks compute their share; rank 0 has none left
        pass
    barrier()


def _as_chosen(listed: Images, best: dict, settings) -> Images:
    """`as_chosen` of images to predict. Without a record (older versions) small images of one size are shown whole."""
    if best.get("whole") is False:  # then they need no memory
        data = replace(listed, value_range=settings.value_range)
    else:
        data = make_resident(listed, settings.value_range)
    return replace(data, short_side=settings.short_side)


def as_chosen(data: Images, best: dict, settings) -> Images:
    """Images of a test, shown as the validation images on which the model of a best.pt, `best`, was chosen.

    These were shown whole, or their central square, and were reduced first where there is a `short_side`.
    """
    tell_if_unlike(data, best)
    if best.get("whole") is False and data.resident is not None:
        return replace(read_one_by_one(data), short_side=settings.short_side)
    return data


def tell_if_unlike(data: Images, best: dict) -> None:
    """Warn where the model was chosen on images that were shown whole, and these cannot be."""
    if best.get("whole") and data.resident is None:
        say("*** data     the model was chosen on small images, shown whole; these are larger or of several sizes ***")


def _found(
    predict: Predict, data: Images, settings, device: torch.device, copies: Copies | None
) -> Iterator[tuple[list[float] | None, str]]:
    """(probabilities, '') of every image of `data`, or (None, why it cannot be read); the same on every rank."""
    how, done = inference.Reading.of(settings, device), 0
    if copies is None:
        parts = inference.stream(of_image(predict), data, how, "predict")
    else:
        blocks = [range(start, min(start + AT_ONCE, len(data))) for start in range(0, len(data), AT_ONCE)]
        parts = (mean_of_copies(predict, data, copies, how, "predict", block) for block in blocks)
    for scores, read, bad in parts:
        bad = {} if read.all() else inference.from_all_ranks(bad)
        for number, (row, good) in enumerate(zip(scores.cpu().exp().tolist(), read.tolist()), done):
            yield (row, "") if good else (None, bad[data.sample_name(number)])
        done += len(read)


def _rows(listed: Images, left_out: dict[str, str], found: Iterator[tuple[list[float] | None, str]]) -> Iterator[Row]:
    """The rows of `listed`: of its bad images, `left_out` {path: reason}, and of all others in order, as `found`."""
    unread = 0
    for index in range(len(listed)):
        name = listed.sample_name(index)
        row = Row(name, None, left_out[name]) if name in left_out else Row(name, *next(found))
        unread += row.scores is None
        if row.scores is None and unread <= NAMED:
            say(f"not read    {one_line(f'{name}: {row.unread}')}")
        yield row
    yield from found  # none is left; this makes it check its last outputs

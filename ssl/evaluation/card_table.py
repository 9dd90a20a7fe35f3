"""The report card in words: rows and notes, for the console, for the page of a report and for its picture.

A card may come from a file that anybody has written, so nothing of it is taken for granted.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ssl.checkpoints.run_reader import finite, numbers
from ssl.console import table

CHANGES = {  # what the strengths of `ssl.evaluation.corruptions` are
    "noise": "standard deviation, of pixels in 0 to 1",
    "blur": "sigma in pixels, of an image of 224",
    "jpeg": "quality",
    "brightness": "added to pixels in 0 to 1",
}


class Row(NamedTuple):
    """A line of the card. `points`: shares with the ends of their intervals, (value, low, high), in 0..1."""

    section: str
    what: str
    words: str
    points: tuple[tuple[float, float, float], ...]


def console(cards: dict[str, dict]) -> str:
    """A table with a column a subject, {title: card}; below it the notes, and what could not be measured."""
    lines, last = [["report card", *cards]], ""
    for (section, what), words in side_by_side(cards).items():
        if section != last:
            lines.append([section, *("" for _ in cards)])
        lines.append([f"  {what}", *words])
        last = section
    return "\n".join([table(lines), *below(cards)])


def side_by_side(cards: dict[str, dict]) -> dict[tuple[str, str], list[str]]:
    """{(section, what): words of each card} of all rows, in order."""
    own = [{row[:2]: row.words for row in rows(card)} for card in cards.values()]
    return {place: [one.get(place, "-") for one in own] for cells in own for place in cells}


def below(cards: dict[str, dict]) -> list[str]:
    """What stands below the table: the notes of all cards, and what could not be measured, each once."""
    return list(dict.fromkeys(words for card in cards.values() for words in (*notes(card), *missing(card))))


def rows(card: dict) -> list[Row]:
    """All that the card says, in order."""
    parts = {
        "few_labels": _few_labels,
        "retrieval": _retrieval,
        "calibration": _calibration,
        "corruptions": _corruptions,
        "groups": _groups,
    }
    return [row for name, part in parts.items() if (found := inner(card, name)) for row in part(found)]


def notes(card: dict) -> Iterator[str]:
    """A sentence about each part of the card: of what it is, and how it was measured."""
    if found := inner(card, "few_labels"):
        some = next((one for one in inner(found, "percent").values() if isinstance(one, dict)), {})
        yield (
            f"few labels: {found.get('head')}; mean of {count(found.get('draws'))} draws of the labels, in brackets "
            f"its 95 % interval over the draws; {count(some.get('n'))} test images"
        )
    if found := inner(card, "retrieval"):
        over = f"; intervals over {count(found['groups'])} groups" if finite(found.get("groups")) else ""
        gallery = count(found.get("gallery"))
        yield f"retrieval: n test images look for images of their class among {gallery} of train{over}"
    if found := inner(card, "calibration"):
        held_out = f"{count(found.get('held_out_n'))} images of train that the probe did not learn from"
        yield (
            f"calibration: how far the probe's confidence is from its accuracy, in {count(found.get('bins'))} bins. "
            f"The temperature is fitted on {held_out}; they also chose its learning rate and weight decay"
        )
    if found := inner(card, "corruptions"):
        kinds = "; ".join(f"{kind}: {words}" for kind, words in CHANGES.items() if kind in found)
        yield f"changed images: {count(found.get('n'))} of {count(found.get('of'))} test images. {kinds}"
    splits = [one for one in inner(card, "groups").values() if isinstance(one, dict)]
    if any(finite(inner(one, "told").get("acc1")) for one in splits):
        yield "groups, told: half of the images of every group teach a logistic regression, the others are judged"
    measured = [inner(one, "robustness") for one in splits if finite(inner(one, "robustness").get("index"))]
    if measured:
        yield (
            f"groups, robustness index: who are the {count(measured[0].get('k'))} nearest images? 1: the class alone "
            "decides, 0: the group alone does (Kömen, de Jong et al. 2025)"
        )
    for one in measured:
        if finite(smallest := one.get("smallest_class")) and finite(k := one.get("k")) and smallest <= k:
            yield (
                f"groups, robustness index: the smallest class has {count(smallest)} images, so not all of the "
                f"{count(k)} nearest can be of it, and features of the class alone stay below 1; lower --k to see more"
            )


def missing(card: dict, above: str = "") -> Iterator[str]:
    """Sentences about what is None, with the reasons."""
    for name, value in card.items():
        if value is None and isinstance(why := card.get(f"{name}_why"), str):
            yield f"not measured: {above}{name}: {why}"
        elif isinstance(value, dict):
            yield from missing(value, f"{above}{name}, ")


def inner(content: object, *names: str) -> dict:
    """The dict under these names, one in the other; {} where there is none."""
    for name in names:
        content = content.get(name) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else {}


def count(value: object) -> str:
    return f"{value:,.0f}" if finite(value) else "-"


# Rows -----------------------------------------------------------------------------------


def _few_labels(found: dict) -> Iterable[Row]:
    for kind, unit in (("shots", "a class"), ("percent", "%")):
        for number, one in inner(found, kind).items():
            if isinstance(one, dict):
                short = one.get("smaller_classes")
                fewer = f"; {len(short)} classes have fewer" if isinstance(short, list) and short else ""
                yield _row("few labels", f"{number} {unit}, {count(one.get('labels'))} in all{fewer}", one, "acc1")


def _retrieval(found: dict) -> Iterable[Row]:
    precise, first = (count(found.get(f"{name}_queries")) for name in ("map", "recall_at_1"))
    yield _row("retrieval", f"mean average precision (n = {precise})", found, "map")
    yield _row("retrieval", f"the first image is of the class, R@1 (n = {first})", found, "recall_at_1")


def _calibration(found: dict) -> Iterable[Row]:
    section = "calibration error of the probe (lower is better)"
    yield _row(section, "as it is", found, "ece")
    yield _row(section, "of a calibrated probe, by chance", found, "ece_of_perfect")
    if finite(found.get("temperature")):
        after = _row(section, "after a temperature", found, "ece_after")
        words = f"{after.words} (T = {found['temperature']:.2f}, from {count(found.get('held_out_n'))} images)"
        yield after._replace(words=words)
        yield _row(section, "of such a probe, by chance", found, "ece_of_perfect_after")


def _corruptions(found: dict) -> Iterable[Row]:
    for judge, name in (("probe", "probe"), ("knn", "k-NN")):
        section = f"changed test images, {name} (n = {count(found.get('n'))})"  # by width, so encoders may differ
        if unchanged := inner(found, "unchanged", judge):
            yield _row(section, "unchanged", unchanged, "acc1")
        for kind in CHANGES:
            strengths = [strength for strength in inner(found, kind) if not strength.endswith("_why")]
            each = [_row("", "", inner(found, kind, strength, judge), "acc1") for strength in strengths]
            words = " / ".join(one.words.partition(" ")[0] for one in each) + " %"
            if any(one.points for one in each):
                yield Row(section, f"{kind} {' / '.join(strengths)}", words, sum((one.points for one in each), ()))


def _groups(found: dict) -> Iterable[Row]:
    for split, one in found.items():
        told, index = inner(one, "told"), inner(one, "robustness")
        section = f"groups of {split} images"
        if finite(told.get("acc1")):
            counts = f"{count(told.get('groups'))} groups, n = {count(told.get('n'))}"
            yield _row(section, f"told from the features ({counts})", told, "acc1")
            yield _row(section, "told from the class alone", told, "from_class")
            yield _row(section, "always the largest group", told, "chance")
        if finite(index.get("index")):
            yield _row(section, f"robustness index (n = {count(index.get('n'))})", index, "index", percent=False)
            yield _row(section, "that of features that know nothing", index, "of_all", percent=False)


def _row(section: str, what: str, found: dict, name: str, percent: bool = True) -> Row:
    """The share `name` of `found`, as '79.1 % (77.2–80.8)' or '0.79 (0.77–0.81)'; '-' where it is no number."""
    value, interval = found.get(name), numbers(found.get(f"{name}_interval"))
    if not finite(value):
        return Row(section, what, "-", ())
    ends = interval if len(interval) == 2 else []
    shown = [f"{100 * v:.1f}" if percent else f"{v:.2f}" for v in (value, *ends)]
    words = shown[0] + " %" * percent + (f" ({shown[1]}–{shown[2]})" if ends else "")
    return Row(section, what, words, ((value, *(ends or (value, value))),))

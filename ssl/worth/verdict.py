"""From numbers to words: which start to take, what it gains, how sure that is, and what would change the answer.

The test images say how sure the choice is; they never choose between starts.
"""

from dataclasses import dataclass

from ssl.console import counted
from ssl.worth.choice import (
    TUNED,
    USES,
    Facts,
    Table,
    best_use,
    choose,
    is_short,
    kind,
    measured,
    not_tuned,
    validated,
)
from ssl.worth.intervals import BETWEEN_SEEDS, Estimate, difference, level
from ssl.worth.scores import Judges, Score
from ssl.worth.splits import ALL
from ssl.worth.starts import NOTHING, OWN

WORTH = 0.02  # a gain that is surely smaller is not worth a pre-training
UNKNOWN = "cannot be told"


@dataclass(frozen=True)
class Verdict:
    """`outcome`: nothing, public, own, public+own or UNKNOWN. `start` and `use`: the best start by validation that is
    pre-trained, which is compared with training from nothing. `words`: (title, sentences)."""

    outcome: str
    start: str
    use: str
    headline: str
    gain: Estimate
    words: list[tuple[str, str]]


def decide(table: Table, test: Judges, facts: Facts) -> Verdict:
    best = {start: best_use(table, start) for start in facts.starts}
    scores = {start: table[start, best[start]][ALL] for start in facts.starts}
    start, preferred = choose(scores, facts.starts)
    gain = difference(scores[start], scores[NOTHING], test)
    if gain.high < WORTH:
        outcome = UNKNOWN if is_short(facts, OWN) or not_tuned(table, facts) else NOTHING
    elif preferred and gain.low > 0:
        outcome = kind(start)
    else:
        outcome = UNKNOWN
    few = with_few(table, test, facts, start)
    words = [
        ("What it gains", _gain(table, test, facts, best, start, gain)),
        ("Labels", _labels(table, test, facts, best, start, gain)),
        ("With fewer labels", _fewer(few, start)),
        ("Why this start", _why(scores, best, facts, start, preferred, gain)),
        ("Against the other starts", _others(scores, test, best, facts, start)),
        ("What would change the answer", _change(test, facts, start, gain)),
    ]
    headline = _headline(outcome, table, test, facts, best, start, gain, few)
    return Verdict(outcome, start, best[start], headline, gain, [(title, text) for title, text in words if text])


# Labels that a start saves ----------------------------------------------------------------------


def labels_needed(points: list[tuple[int, float]], target: float) -> tuple[str, float]:
    """How many labels bring a learning curve of `points` (labels, accuracy) to `target`, linear in log labels.

    ('about', labels), ('at most', the fewest that were measured) or ('more than', the most).
    """
    points = sorted(points)
    if points[0][1] >= target:
        return "at most", points[0][0]
    for (few, low), (many, high) in zip(points, points[1:]):
        if low < target <= high:
            return "about", few * (many / few) ** ((target - low) / (high - low))
    return "more than", points[-1][0]


def curve(table: Table, facts: Facts, test: Judges, start: str) -> list[tuple[int, float]]:
    """(labels, accuracy on test) of a start, used with each number of labels as validation says.

    With all labels it is of the seeds that training from nothing has, too.
    """
    counts = [count for count in facts.labels if measured(table, start, count)]
    uses = {count: best_use(table, start, count) for count in counts}
    beside = {ALL: table[NOTHING, best_use(table, NOTHING)][ALL]}
    scores = {count: table[start, uses[count]][count] for count in counts}
    return [(facts.labels[count], level(scores[count], test, beside.get(count)).value) for count in counts]


@dataclass(frozen=True)
class Few:
    """A start against nothing with fewer labels, each in its better use."""

    count: int  # labels a class
    uses: list[str]  # of the start, and of nothing
    tuned: bool  # whether nothing was fine-tuned with so many
    ours: Estimate
    nothing: Estimate
    gap: Estimate


def with_few(table: Table, test: Judges, facts: Facts, start: str) -> list[Few]:
    found = []
    for count in facts.labels:
        if count != ALL and all(measured(table, one, count) for one in (start, NOTHING)):
            uses = [best_use(table, one, count) for one in (start, NOTHING)]
            pair = [table[one, use][count] for one, use in zip((start, NOTHING), uses)]
            tuned = TUNED in measured(table, NOTHING, count)
            levels = level(pair[0], test, pair[1]), level(pair[1], test, pair[0])
            found.append(Few(count, uses, tuned, *levels, difference(*pair, test)))
    return found


# Words ------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(found: Estimate) -> str:
    """'+13.2 points (95 %: +8.1 to +18.3)'."""
    return f"{100 * found.value:+.1f} points (95 %: {100 * found.low:+.1f} to {100 * found.high:+.1f})"


def measure(test: Judges) -> str:
    return "balanced accuracy" if test.balanced else "accuracy"


def _headline(
    outcome: str,
    table: Table,
    test: Judges,
    facts: Facts,
    best: dict[str, str],
    start: str,
    gain: Estimate,
    few: list[Few],
) -> str:
    sure = [f"{one.count}" for one in few if one.tuned and one.gap.low > 0]
    but = f"; with {' or '.join(sure)} labels a class {start} is better" if sure else ""
    if outcome == UNKNOWN and gain.high < WORTH and is_short(facts, OWN):
        return (
            f"With all labels a pre-training as short as this does not pay; whether the {facts.recipe_epochs[OWN]} "
            f"epochs of the recipe would pay cannot be told{but}"
        )
    if outcome == UNKNOWN and gain.high < WORTH:
        untuned = ", ".join(not_tuned(table, facts))
        return (
            f"It cannot be told whether pre-training pays with all labels: {untuned} could not be fine-tuned with them "
            f"in these minutes{but}"
        )
    if outcome == UNKNOWN:
        return f"It cannot be told from {gain.images} test images whether pre-training pays with all labels{but}"
    if outcome == NOTHING:
        some = any(kind(one) == "public" for one in facts.starts)
        which = "not all published weights were compared" if some else "published weights were not compared"
        missing = f"; {which}" if facts.left_out else ""
        return f"Train from nothing: pre-training does not pay with all labels{but}{missing}"
    public, use = start.removesuffix("+own"), USES[best[start]]
    return {
        OWN: f"Pre-train on your images, and use the encoder {use}",
        "public": f"Start from {public}, {use}{_further(table, test, facts, best, public)}",
        "public+own": f"Continue {public} on your images without labels, and use it {use}",
    }[outcome]


def _further(table: Table, test: Judges, facts: Facts, best: dict[str, str], public: str) -> str:
    """What pre-training that goes on from public weights adds, if it was compared and is not surely better."""
    own = f"{public}+own"
    if own not in facts.starts:
        return ""
    added = difference(table[own, best[own]][ALL], table[public, best[public]][ALL], test)
    return ": pre-training on your images adds nothing that is sure" if added.low <= 0 else ""


def _gain(table: Table, test: Judges, facts: Facts, best: dict[str, str], start: str, gain: Estimate) -> str:
    scores = [table[one, best[one]][ALL] for one in (start, NOTHING)]
    ours, nothing = level(scores[0], test, scores[1]), level(scores[1], test, scores[0])
    return (
        f"With all {facts.labels[ALL]} labels {start} ({USES[best[start]]}) has {percent(ours.value)} {measure(test)}, "
        f"training from nothing ({USES[best[NOTHING]]}) {percent(nothing.value)}: {points(gain)}, on "
        f"{counted(gain.images, 'test image')} and {counted(gain.seeds, 'seed')}."
    )


def _labels(table: Table, test: Judges, facts: Facts, best: dict[str, str], start: str, gain: Estimate) -> str:
    target = level(table[NOTHING, best[NOTHING]][ALL], test, table[start, best[start]][ALL]).value
    how, needed = labels_needed(curve(table, facts, test, start), target)
    everything = facts.labels[ALL]
    if how == "more than" or needed >= everything:
        return f"{start} saves no labels: with all of them it does not pass training from nothing."
    saved = 100 * (1 - needed / everything)
    least = "at least " if how == "at most" else "about "
    return (
        f"{start} needs {how} {needed:.0f} labels for what training from nothing reaches with all {everything}: it "
        f"saves {least}{saved:.0f} % of them{'' if gain.low > 0 else '; this is as unsure as the difference above'}."
    )


def _fewer(few: list[Few], start: str) -> str:
    listed = [
        f"{counted(one.count, 'label')} a class: {percent(one.ours.value)} ({one.uses[0]}) against "
        f"{percent(one.nothing.value)} ({one.uses[1]}), {points(one.gap)}"
        for one in few
    ]
    return f"{start} against nothing. {'; '.join(listed)}." if few else ""


def _why(
    scores: dict[str, Score], best: dict[str, str], facts: Facts, start: str, preferred: bool, gain: Estimate
) -> str:
    found = validated(scores)
    listed = ", ".join(f"{one} {percent(found[one])} ({best[one]})" for one in facts.starts)
    simplest = " It is the simplest of those within one standard error of the best." if len(facts.starts) > 2 else ""
    prefers = "" if preferred else " Training from nothing is no worse than any of them there."
    disagree = " The test images disagree with that: more images are needed." if not preferred and gain.low > 0 else ""
    return (
        f"Chosen on {counted(scores[start].held, 'validation image')}, never on the test images: "
        f"{listed}.{simplest}{prefers}{disagree}"
    )


def _others(scores: dict[str, Score], test: Judges, best: dict[str, str], facts: Facts, start: str) -> str:
    others = [one for one in facts.starts if one not in (start, NOTHING)]
    found = [
        f"{one} ({best[one]}): {points(difference(scores[start], scores[one], test))} for {start}" for one in others
    ]
    return "; ".join(found) + "." if found else ""


def _change(test: Judges, facts: Facts, start: str, gain: Estimate) -> str:
    seen = (
        f"With these {gain.images} test images{' in groups' if facts.grouped else ''} and {counted(gain.seeds, 'seed')}"
    )
    found = [f"{seen}, a difference under {100 * gain.seen:.0f} points may be missed: more test images help."]
    if gain.seeds == 1:
        found.append(
            f"One seed was fine-tuned: between seeds a deviation of {100 * BETWEEN_SEEDS:g} points is assumed."
        )
    short = {one: n for one, n in facts.epochs.items() if n < facts.recipe_epochs.get(one, 0)}
    if short:
        listed = ", ".join(
            f"{one} {counted(n, 'epoch')} (the recipe: {facts.recipe_epochs[one]})" for one, n in short.items()
        )
        found.append(f"Pre-training was shorter than the recipe's: {listed}. More --minutes may change the answer.")
    alone = [one for one in facts.starts if kind(one) == "public" and f"{one}+own" not in facts.starts]
    if alone:
        found.append(
            f"Pre-training that goes on from {', '.join(alone)} did not fit into the minutes: it may be better."
        )
    if facts.left_out:
        found.append(f"Published weights that were not at hand may win: {'; '.join(facts.left_out)}.")
    if facts.too_long:
        found.append(
            f"{counted(facts.too_long, 'fine-tuning')} did not fit into the minutes; more seeds make it surer."
        )
    if kind(start).startswith("public"):
        found.append(
            f"{start} and nothing differ in weights, network and image size: the gain is of all three together."
        )
    found.append("Each pre-training was made once: how much another seed of it differs is not in the intervals.")
    return " ".join(found)

"""The verdict: which start to take, what it gains, and how sure that is.

Validation images choose the start. The test images say how sure the choice is; they never choose between
pre-trained starts.
"""

from dataclasses import dataclass

from ssl.worth.choice import TUNED, Facts, Table, best_use, choose, is_flattered, kind, measured, not_tuned, too_short
from ssl.worth.intervals import Estimate, beyond, difference, level
from ssl.worth.scores import Judges, Score
from ssl.worth.splits import ALL
from ssl.worth.starts import NOTHING

WORTH = 0.02  # a gain that is surely smaller is not worth a pre-training
UNKNOWN = "cannot be told"


@dataclass(frozen=True)
class Few:
    """A start against nothing with fewer labels, each in its better use."""

    count: int  # labels a class
    uses: list[str]  # of the start, and of nothing
    tuned: bool  # whether nothing was fine-tuned with so many
    ours: Estimate
    nothing: Estimate
    gap: Estimate


@dataclass(frozen=True)
class Verdict:
    """`outcome`: nothing, public, own, public+own or UNKNOWN. `start`: the best pre-trained start by validation, which
    is compared with training from nothing; `gain`: by how much it is better with all labels."""

    table: Table
    test: Judges
    facts: Facts
    best: dict[str, str]  # the use of each start, with all labels
    start: str
    preferred: bool  # by validation, to nothing
    gain: Estimate
    may_pay: list[str]  # other pre-trained starts that may gain WORTH, as far as the test images say
    few: list[Few]
    outcome: str

    @property
    def use(self) -> str:
        return self.best[self.start]

    @property
    def meanwhile(self) -> str:
        """The start to take while it cannot be told: the pre-trained one if validation and test images both prefer it
        and it may be worth a pre-training; else nothing, which is simpler."""
        return self.start if self.preferred and self.gain.value > 0 and self.gain.high >= WORTH else NOTHING

    def score(self, start: str) -> Score:
        """With all labels, in the better use."""
        return self.table[start, self.best[start]][ALL]


def decide(table: Table, test: Judges, facts: Facts) -> Verdict:
    best = {start: best_use(table, facts, start) for start in facts.starts}
    scores = {start: table[start, best[start]][ALL] for start in facts.starts}
    start, preferred = choose(scores, [start for start in facts.starts if not is_flattered(facts, start, best[start])])
    gains = {one: difference(scores[one], scores[NOTHING], test) for one in facts.starts if one != NOTHING}
    gain = gains.pop(start)
    may_pay = [one for one, other in gains.items() if other.high >= WORTH]
    outcome = UNKNOWN
    if gain.high >= WORTH and gain.low > 0 and preferred:
        outcome = kind(start)
    elif gain.high < WORTH and not (may_pay or too_short(facts) or not_tuned(table, facts)):
        outcome = NOTHING
    few = with_few(table, test, facts, start)
    return Verdict(table, test, facts, best, start, preferred, gain, may_pay, few, outcome)


def with_few(table: Table, test: Judges, facts: Facts, start: str) -> list[Few]:
    found = []
    for count in facts.labels:
        if count != ALL and all(measured(table, one, count) for one in (start, NOTHING)):
            uses = [best_use(table, facts, one, count) for one in (start, NOTHING)]
            pair = [table[one, use][count] for one, use in zip((start, NOTHING), uses)]
            tuned = TUNED in measured(table, NOTHING, count)
            levels = level(pair[0], test, pair[1]), level(pair[1], test, pair[0])
            found.append(Few(count, uses, tuned, *levels, difference(*pair, test)))
    return found


# Labels that a start saves ----------------------------------------------------------------------


def labels_needed(points: list[tuple[int, float]], target: float = 0.0) -> tuple[str, float]:
    """How many labels bring a learning curve of `points` (labels, value) to `target` for good, linear in log labels.

    ('about', labels), ('at most', the fewest that were measured) or ('more than', the most). A point that reaches the
    target while one with more labels does not is a matter of chance.
    """
    points = sorted(points)
    below = [place for place, (_, value) in enumerate(points) if value < target]
    if not below:
        return "at most", points[0][0]
    if below[-1] == len(points) - 1:
        return "more than", points[-1][0]
    (few, low), (many, high) = points[below[-1] :][:2]
    return "about", few * (many / few) ** ((target - low) / (high - low))


def gaps(found: Verdict) -> list[tuple[int, Estimate]]:
    """(labels, by how much the start with so many is better than nothing with all of them)."""
    table, start, nothing = found.table, found.start, found.score(NOTHING)
    few = [count for count in found.facts.labels if count != ALL and measured(table, start, count)]
    scores = {count: table[start, best_use(table, found.facts, start, count)][count] for count in few}
    of_few = [(found.facts.labels[count], beyond(scores[count], nothing, found.test)) for count in few]
    return [*of_few, (found.facts.labels[ALL], found.gain)]

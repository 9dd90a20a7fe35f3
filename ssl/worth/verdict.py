"""The verdict: which start to take, what it gains, and how sure that is.

Validation images choose the start. The test images say how sure the choice is; they never choose between
pre-trained starts.
"""

from dataclasses import dataclass

from ssl.worth import choice
from ssl.worth.choice import TUNED, Facts, Table, best_use, is_flattered, kind, measured, not_tuned, too_short
from ssl.worth.intervals import Estimate, beyond, difference, level
from ssl.worth.scores import Judges, Score
from ssl.worth.splits import ALL
from ssl.worth.starts import NOTHING

WORTH = 0.02  # a gain that is surely smaller is not worth a pre-training
UNKNOWN = "cannot be told"
# Why it cannot be told: the chosen start surely gains, and validation is against it; its gain may be none, and may be
# WORTH; it surely gains less, and another start may pay, or more epochs may, or a start was not fine-tuned.
VALIDATION, CHANCE, OTHERS, SHORT, UNTUNED = "validation", "chance", "other starts", "short", "not fine-tuned"


@dataclass(frozen=True)
class Few:
    """The start against nothing with fewer labels, each in its better use. `best`: the pre-trained start and use that
    the test images surely find better than that, if there is one; else the same."""

    count: int  # labels a class
    uses: list[str]  # of the start, and of nothing
    tuned: bool  # whether nothing was fine-tuned with so many
    ours: Estimate
    nothing: Estimate
    gap: Estimate
    best: tuple[str, str]
    best_level: Estimate
    best_gap: Estimate  # to nothing


@dataclass(frozen=True)
class Verdict:
    """`outcome`: nothing, public, own, public+own or UNKNOWN; `why`: what makes it UNKNOWN, else ''. `start`: the best
    pre-trained start by validation, which is compared with training from nothing; `lead`: as of `choice.lead`; `gain`:
    by how much it is better with all labels."""

    table: Table
    test: Judges
    facts: Facts
    best: dict[str, str]  # the use of each start, with all labels
    start: str
    lead: float
    gain: Estimate
    may_pay: list[str]  # other pre-trained starts that may gain WORTH, as far as the test images say
    few: list[Few]
    outcome: str
    why: str

    @property
    def use(self) -> str:
        return self.best[self.start]

    @property
    def meanwhile(self) -> str:
        """The start to take while it cannot be told: the pre-trained one if validation and test images both prefer it
        and it may be worth a pre-training; else nothing, which is simpler."""
        return self.start if self.lead > 0 and self.gain.value > 0 and self.gain.high >= WORTH else NOTHING

    def score(self, start: str) -> Score:
        """With all labels, in the better use."""
        return self.table[start, self.best[start]][ALL]


def decide(table: Table, test: Judges, facts: Facts) -> Verdict:
    best = {start: best_use(table, facts, start) for start in facts.starts}
    scores = {start: table[start, best[start]][ALL] for start in facts.starts}
    start = choice.choose(scores, [start for start in facts.starts if not is_flattered(facts, start, best[start])])
    lead = choice.lead(scores, start)
    gains = {one: difference(scores[one], scores[NOTHING], test) for one in facts.starts if one != NOTHING}
    gain = gains.pop(start)
    may_pay = [one for one, other in gains.items() if other.high >= WORTH]
    if gain.high >= WORTH:
        why = CHANCE if gain.low <= 0 else VALIDATION if lead < -1 else ""
        answer = kind(start)
    else:
        doubts = {OTHERS: may_pay, SHORT: too_short(facts), UNTUNED: not_tuned(table, facts)}
        why = next((reason for reason, found in doubts.items() if found), "")
        answer = NOTHING
    few = with_few(table, test, facts, start)
    return Verdict(table, test, facts, best, start, lead, gain, may_pay, few, UNKNOWN if why else answer, why)


def with_few(table: Table, test: Judges, facts: Facts, start: str) -> list[Few]:
    found = []
    for count in facts.labels:
        if count != ALL and all(measured(table, one, count) for one in (start, NOTHING)):
            uses = [best_use(table, facts, one, count) for one in (start, NOTHING)]
            ours, nothing = (table[one, use][count] for one, use in zip((start, NOTHING), uses))
            others = [(one, use) for one in facts.starts if one != NOTHING for use in measured(table, one, count)]
            gains = {one: difference(table[one][count], ours, test) for one in others if one != (start, uses[0])}
            sure = [one for one in gains if gains[one].low > 0]
            best = max(sure, key=lambda one: gains[one].value, default=(start, uses[0]))
            score = table[best][count]
            found.append(
                Few(
                    count,
                    uses,
                    tuned=TUNED in measured(table, NOTHING, count),
                    ours=level(ours, test, nothing),
                    nothing=level(nothing, test, ours),
                    gap=difference(ours, nothing, test),
                    best=best,
                    best_level=level(score, test, ours),
                    best_gap=difference(score, nothing, test),
                )
            )
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

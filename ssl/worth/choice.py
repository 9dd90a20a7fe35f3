"""Which start to take, and in which use: chosen on validation images alone."""

from dataclasses import dataclass
from statistics import fmean

from ssl.evaluation.intervals import NORMAL_95
from ssl.worth.scores import Score
from ssl.worth.splits import ALL
from ssl.worth.starts import NOTHING, OWN

FROZEN, TUNED = "frozen", "fine-tuned"
USES = {FROZEN: "frozen, with a linear head", TUNED: "fine-tuned"}
SHORT = 0.5  # of the recipe's epochs


@dataclass(frozen=True)
class Facts:
    """What the words need besides scores. `starts`: simplest first. `labels`: {labels a class: labels together}."""

    starts: list[str]
    labels: dict[int, int]
    epochs: dict[str, int]  # of pre-training, by start
    recipe_epochs: dict[str, int]  # that train.py would take
    left_out: list[str]  # public weights that are not at hand, and why
    too_long: int  # fine-tunings that did not fit into the minutes
    grouped: bool  # test images are in groups: patients, lesions, slides
    flattered: list[str]  # starts whose pre-training has seen the validation images, without their labels
    saw_test: tuple[str, ...] = ()  # public weights that have seen test images, without labels
    copies: int = 0  # test images that do not count, as they are training images, too
    classes_out: int = 0  # classes that were left out
    left: int = 0  # labels that the minutes were too few for: `all` stands for the others


Table = dict[tuple[str, str], dict[int, Score]]  # (start, use) -> {labels a class: Score}


def kind(start: str) -> str:
    """nothing, own, public or public+own."""
    return start if start in (NOTHING, OWN) else "public+own" if start.endswith("+own") else "public"


def best_use(table: Table, facts: Facts, start: str, count: int = ALL) -> str:
    """The use of a start with so many labels. Where both were measured, it is frozen if validation with all labels
    prefers that by more than a standard error, else fine-tuned.

    Random weights are fine-tuned, and so is a start whose frozen features are flattered by validation. With few labels
    there are too few validation images to choose: the use is that with all.
    """
    there = measured(table, start, count)
    if len(there) < 2:
        return there[0]
    if start == NOTHING or is_flattered(facts, start, FROZEN):
        return TUNED
    if count != ALL:
        return best_use(table, facts, start)
    scores = {use: table[start, use][ALL] for use in USES}
    shares = validated(scores)
    return FROZEN if shares[FROZEN] > shares[TUNED] + standard_error(scores[TUNED], scores) else TUNED


def is_flattered(facts: Facts, start: str, use: str) -> bool:
    """Whether pre-training saw the validation images, without labels: frozen features are better on these than on
    other images, so that they cannot be chosen by them."""
    return use == FROZEN and start in facts.flattered


def measured(table: Table, start: str, count: int) -> list[str]:
    return [use for use in USES if count in table.get((start, use), {})]


def validated(scores: dict[str, Score]) -> dict[str, float]:
    """Mean validation accuracy of the seeds that all scores have."""
    both = _seeds(scores)
    return {name: sum(score.validation[seed] for seed in both) / len(both) for name, score in scores.items()}


def _seeds(scores: dict[str, Score]) -> set[int]:
    return set.intersection(*(set(score.validation) for score in scores.values()))


def standard_error(score: Score, beside: dict[str, Score]) -> float:
    """Of the validation accuracy of one draw, the mean of the seeds that all scores `beside` have."""
    return fmean(_error(score, seed) for seed in _seeds(beside))


def _error(score: Score, seed: int) -> float:
    """Of a draw: from the longer side of its interval, which is of its measure, over images or groups. It is at most
    half of all, as for one group."""
    share, (low, high) = score.validation[seed], score.interval[seed]
    return max(high - share, share - low) / NORMAL_95


def too_short(facts: Facts, part: float = SHORT) -> list[str]:
    """The starts whose pre-training was shorter than this part of the recipe's: what they do not bring says little."""
    return [start for start, epochs in facts.epochs.items() if epochs < part * facts.recipe_epochs[start]]


def not_tuned(table: Table, facts: Facts) -> list[str]:
    """The starts that were not fine-tuned with all labels: their frozen features say little about that."""
    return [start for start in facts.starts if TUNED not in measured(table, start, ALL)]


def choose(scores: dict[str, Score], starts: list[str]) -> str:
    """The pre-trained start to take.

    It is the simplest one within one standard error of the best (Breiman et al. 1984), and better than nothing where
    the best is better than nothing.
    """
    found = validated(scores)
    trained = [start for start in starts if start != NOTHING]
    top = max(trained, key=found.__getitem__)
    near = [start for start in trained if found[start] >= found[top] - standard_error(scores[top], scores)]
    better = [start for start in near if found[start] > found[NOTHING]]
    return (better or near)[0]


def lead(scores: dict[str, Score], start: str) -> float:
    """How many standard errors, of the better one, a start is before nothing on validation images; below 0: behind."""
    found = validated(scores)
    better = max(NOTHING, start, key=found.__getitem__)
    return (found[start] - found[NOTHING]) / standard_error(scores[better], scores)

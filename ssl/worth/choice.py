"""Which start to take, and in which use: chosen on validation images alone."""

import math
from dataclasses import dataclass

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
    copies: int = 0  # test images that do not count, as they are training images, too


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
    error = standard_error(shares[TUNED], scores[TUNED].held)
    return FROZEN if shares[FROZEN] > shares[TUNED] + error else TUNED


def is_flattered(facts: Facts, start: str, use: str) -> bool:
    """Whether pre-training saw the validation images, without labels: frozen features are better on these than on
    other images, so that they cannot be chosen by them."""
    return use == FROZEN and start in facts.flattered


def measured(table: Table, start: str, count: int) -> list[str]:
    return [use for use in USES if count in table.get((start, use), {})]


def validated(scores: dict[str, Score]) -> dict[str, float]:
    """Mean validation accuracy of the seeds that all scores have."""
    both = set.intersection(*(set(score.validation) for score in scores.values()))
    return {name: sum(score.validation[seed] for seed in both) / len(both) for name, score in scores.items()}


def standard_error(share: float, held: int) -> float:
    """Of a share of the `held` validation images."""
    held = max(held, 1)
    return math.sqrt(max(share * (1 - share), 1 / held) / held)


def too_short(facts: Facts) -> list[str]:
    """The starts whose pre-training was much shorter than the recipe's: what they do not bring says little."""
    return [start for start, epochs in facts.epochs.items() if epochs < SHORT * facts.recipe_epochs[start]]


def not_tuned(table: Table, facts: Facts) -> list[str]:
    """The starts that were not fine-tuned with all labels: their frozen features say little about that."""
    return [start for start in facts.starts if TUNED not in measured(table, start, ALL)]


def choose(scores: dict[str, Score], starts: list[str]) -> tuple[str, bool]:
    """(the pre-trained start to take, whether validation prefers it to nothing).

    It is the simplest one within one standard error of the best (Breiman et al. 1984), and no worse than nothing where
    the best is better than nothing.
    """
    found = validated(scores)
    trained = [start for start in starts if start != NOTHING]
    top = max(trained, key=found.__getitem__)
    share, error = found[top], standard_error(found[top], scores[top].held)
    preferred = found[top] > found[NOTHING]
    least = max(share - error, found[NOTHING]) if preferred else share - error
    return next(start for start in trained if found[start] >= least), preferred

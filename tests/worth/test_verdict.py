"""The verdict: from made numbers to an outcome and its words."""

import math

import numpy as np
import pytest
import torch

from ssl.evaluation import metrics
from ssl.evaluation.intervals import student_95, wilson
from ssl.worth import choice, intervals, verdict
from ssl.worth.choice import FROZEN, TUNED, Facts
from ssl.worth.scores import Judges, Score, gather
from ssl.worth.splits import ALL
from ssl.worth.verdict import UNKNOWN, VALIDATION, decide, labels_needed
from ssl.worth.words import headline, paragraphs

STARTS = ["nothing", "pub", "own", "pub+own"]


def images(
    count: int, groups: list[int] | None = None, labels: list[int] | None = None, balanced: bool = False
) -> Judges:
    return Judges(np.array(labels or [0] * count), np.array(groups or range(count)), balanced)


def score(share: float, count: int, validation: float | None = None, seeds: int = 3, draw: int = 0) -> Score:
    """`share` of the test images are right in every seed, always the same ones; validation as the share, or given."""
    order = np.random.default_rng(draw).permutation(count) if draw else np.arange(count)
    right = np.zeros(count, bool)
    right[order[: round(share * count)]] = True
    value = share if validation is None else validation
    drawn = range(seeds)
    around = wilson(round(300 * value), 300)
    return Score(dict.fromkeys(drawn, right), dict.fromkeys(drawn, value), dict.fromkeys(drawn, around), held=300)


def facts(**changes) -> Facts:
    given = dict(starts=STARTS, labels={5: 50, ALL: 500}, epochs={"own": 50}, recipe_epochs={"own": 50})
    given |= dict(left_out=[], too_long=0, grouped=False, flattered=[])
    return Facts(**given | changes)


def table(shares: dict[str, float], count: int, validation: dict[str, float] | None = None, few: float = 0.3):
    """Frozen encoders are bad at everything, so that starts are used fine-tuned; with few labels all are equal."""
    found = {}
    for start, share in shares.items():
        known = (validation or {}).get(start)
        found[start, FROZEN] = {ALL: score(0.1, count, 0.1), 5: score(few, count)}
        found[start, TUNED] = {ALL: score(share, count, known)}
    return found


@pytest.mark.parametrize(
    "best, outcome",
    [("nothing", "nothing"), ("pub", "public"), ("own", "own"), ("pub+own", "public+own")],
)
def test_each_start_can_win(best, outcome):
    shares = {start: 0.9 if start == best else 0.5 for start in STARTS}
    found = decide(table(shares, 400), images(400), facts())
    assert found.outcome == outcome
    assert (found.start == best) is (best != "nothing") and found.use == TUNED
    assert "Until it can be told" not in paragraphs(found)


def test_a_difference_within_the_noise_cannot_be_told():
    shares = {"nothing": 0.70, "pub": 0.60, "own": 0.74, "pub+own": 0.6}
    made = {start: score(share, 50, share, draw=i + 1) for i, (start, share) in enumerate(shares.items())}
    numbers = {(start, TUNED): {ALL: one} for start, one in made.items()} | {(s, FROZEN): {} for s in STARTS}
    found = decide(numbers, images(50), facts(labels={ALL: 500}))
    assert found.outcome == UNKNOWN and found.start == "own"
    assert found.gain.low < 0 < found.gain.high
    assert "cannot be told from 50 test images" in headline(found) and "labels a class" not in headline(found)
    assert f"the chance that it is better is {100 * found.gain.chance:.0f} %" in headline(found)


@pytest.mark.parametrize(
    ("own", "validated", "meanwhile", "why"),
    [
        (0.78, 0.78, "own", "With all labels take own: validation and test images both prefer it"),
        (0.72, 0.72, "own", "both prefer it"),
        (0.70, 0.72, "nothing", "the test images do not prefer it"),
        (0.78, 0.68, "nothing", "validation does not prefer it"),
    ],
)
def test_what_cannot_be_told_comes_with_what_to_do_until_then(own, validated, meanwhile, why):
    made = {"nothing": score(0.70, 50, 0.70, draw=1), "own": score(own, 50, validated, draw=3)}
    numbers = {(start, TUNED): {ALL: one} for start, one in made.items()} | {(start, FROZEN): {} for start in made}
    found = decide(numbers, images(50), facts(starts=list(made), labels={ALL: 500}))
    assert (found.outcome, found.meanwhile) == (UNKNOWN, meanwhile)
    assert why in paragraphs(found)["Until it can be told"]


def test_a_start_that_pays_with_few_labels_alone_is_said_in_the_headline():
    shares = dict.fromkeys(STARTS, 0.8)
    numbers = table(shares, 20_000)
    numbers["own", FROZEN][5] = score(0.6, 20_000)
    numbers["nothing", TUNED][5] = score(0.2, 20_000)
    validation = {"own": 0.9}
    for start in STARTS:
        numbers[start, TUNED][ALL] = score(0.8, 20_000, validation.get(start))
    found = decide(numbers, images(20_000), facts())
    assert found.outcome == "nothing"
    assert headline(found).endswith("does not pay with all labels; with 5 labels a class own (frozen) is better")
    assert "60.0 % (frozen) against 20.0 % (fine-tuned), +40.0" in paragraphs(found)["With fewer labels"]
    del numbers["nothing", TUNED][5]  # frozen random weights are no fair opponent
    assert headline(decide(numbers, images(20_000), facts())).endswith("does not pay with all labels")


def test_training_from_nothing_is_the_answer_only_if_every_start_was_fine_tuned_with_all_labels():
    numbers = table(dict.fromkeys(STARTS, 0.5) | {"nothing": 0.8}, 2000)
    assert decide(numbers, images(2000), facts()).outcome == "nothing"
    named = facts(left_out=["imagenet: no network"])
    assert headline(decide(numbers, images(2000), named)).endswith("; not all published weights were compared")
    alone = facts(starts=["nothing", "own"], left_out=["imagenet: no network"])
    assert headline(decide(numbers, images(2000), alone)).endswith("; published weights were not compared")
    numbers["pub", TUNED] = {}
    found = decide(numbers, images(2000), facts())
    assert found.outcome == UNKNOWN
    assert headline(found).endswith("with all labels: pub could not be fine-tuned with them in these minutes")


def test_that_no_pre_training_pays_is_said_only_if_that_is_sure_of_every_start():
    """Pub is the simplest within a standard error on validation images; on test images own gains five points."""
    shares = {"nothing": 0.70, "pub": 0.68, "own": 0.75, "pub+own": 0.5}
    numbers = table(shares, 4000, {"nothing": 0.70, "pub": 0.735, "own": 0.75, "pub+own": 0.5})
    found = decide(numbers, images(4000), facts())
    assert (found.start, found.outcome, found.meanwhile) == ("pub", UNKNOWN, "nothing")
    assert headline(found) == "With all labels pub does not pay; whether own does cannot be told"
    shares["own"] = 0.69
    found = decide(table(shares, 4000), images(4000), facts())
    assert found.outcome == "nothing"
    short = facts(epochs={"own": 50, "pub+own": 3}, recipe_epochs={"own": 50, "pub+own": 90})
    found = decide(table(shares, 4000), images(4000), short)
    assert found.outcome == UNKNOWN and "(90 for pub+own) would pay cannot be told" in headline(found)


def test_a_start_that_was_too_short_or_not_fine_tuned_is_not_said_not_to_pay():
    """By validation own is best, on test images it gains nothing; pub may."""
    made = {start: score(0.7, 4000, value) for start, value in zip(STARTS, (0.7, 0.5, 0.9))}
    made["pub"] = score(0.7, 4000, 0.5, draw=1)  # other images are right
    numbers = {(start, TUNED): {ALL: one} for start, one in made.items()} | {(start, FROZEN): {} for start in made}
    known = facts(starts=list(made), epochs={"own": 2}, recipe_epochs={"own": 300}, labels={ALL: 500})
    found = decide(numbers, images(4000), known)
    assert (found.start, found.outcome, found.may_pay) == ("own", UNKNOWN, ["pub"])
    words = "With all labels own with 2 of 300 epochs does not pay; whether pub does cannot be told"
    assert headline(found) == words
    assert "own with 2 of 300 epochs gains under 2" in paragraphs(found)["Until it can be told"]
    numbers["own", FROZEN], numbers["own", TUNED] = numbers["own", TUNED], {}
    known = facts(starts=list(made), epochs={"own": 300}, recipe_epochs={"own": 300}, labels={ALL: 500})
    assert headline(decide(numbers, images(4000), known)).startswith("With all labels own frozen does not pay; whether")


def test_the_test_images_choose_nothing():
    """Validation prefers own; the test images prefer pub by far. Own is the one that is judged."""
    shares = {"nothing": 0.5, "pub": 0.95, "own": 0.8, "pub+own": 0.5}
    validation = {"nothing": 0.5, "pub": 0.6, "own": 0.9, "pub+own": 0.5}
    found = decide(table(shares, 400, validation), images(400), facts())
    assert (found.outcome, found.start) == ("own", "own")
    assert "pub (fine-tuned): -15.0 points" in paragraphs(found)["Against the other starts"]


def test_validation_that_prefers_nothing_is_not_overruled_by_the_test_images():
    shares = {"nothing": 0.5, "pub": 0.9, "own": 0.9, "pub+own": 0.9}
    validation = {"nothing": 0.9, "pub": 0.5, "own": 0.5, "pub+own": 0.5}
    found = decide(table(shares, 400, validation), images(400), facts())
    assert (found.outcome, found.why, found.meanwhile) == (UNKNOWN, VALIDATION, "nothing")
    low, high = 100 * found.gain.low, 100 * found.gain.high
    assert low > 30 and headline(found) == (
        "It cannot be told whether pre-training pays with all labels: on the test images pub gains "
        f"{low:+.1f} to {high:+.1f} points over training from nothing, but on the validation images training from "
        "nothing is better"
    )
    words = paragraphs(found)["Until it can be told"]
    assert "validation does not prefer it. It may be told with more validation images." in words


@pytest.mark.parametrize(
    "validated, outcome",
    [(0.70, "own"), (0.68, "own"), (0.67, UNKNOWN)],  # sqrt(0.7 * 0.3 / 300) is 0.026
)
def test_a_sure_gain_needs_no_more_than_that_validation_is_not_against_it(validated, outcome):
    shares = {"nothing": 0.70, "own": 0.82}
    numbers = table(shares, 400, {"nothing": 0.70, "own": validated})
    found = decide(numbers, images(400), facts(starts=list(shares)))
    assert (found.outcome, found.meanwhile if found.why else "own") == (outcome, "nothing" if found.why else "own")
    assert found.gain.low > 0 and ("the chance" in headline(found)) is False
    decides = "Training from nothing is no worse than any that was compared there, but by less than a standard error"
    assert (f"{decides}: the test images decide." in paragraphs(found)["Why this start"]) is (outcome == "own")


def test_a_gain_that_is_surely_small_is_no_reason_to_pre_train():
    """Of 20,000 images that agree but for 20, the difference is 0.1 points, and it is sure."""
    shares = {"nothing": 0.8, "pub": 0.8, "own": 0.801, "pub+own": 0.8}
    found = decide(table(shares, 20_000), images(20_000), facts())
    assert found.outcome == "nothing" and 0 < found.gain.high < verdict.WORTH


def test_a_pre_training_that_was_too_short_is_not_said_not_to_pay():
    shares = {"nothing": 0.8, "pub": 0.5, "own": 0.7, "pub+own": 0.5}
    found = decide(table(shares, 2000), images(2000), facts(recipe_epochs={"own": 101}))
    assert found.outcome == UNKNOWN and "whether the epochs of the recipe (101 for own) would pay" in headline(found)
    assert "train from nothing: own with 50 of 101 epochs gains under 2" in paragraphs(found)["Until it can be told"]
    assert decide(table(shares, 2000), images(2000), facts(recipe_epochs={"own": 100})).outcome == "nothing"
    shares |= {"own": 0.801}  # preferred, and yet not by two points
    found = decide(table(shares, 20_000), images(20_000), facts(recipe_epochs={"own": 101}))
    assert (found.outcome, found.meanwhile) == (UNKNOWN, "nothing") and found.lead > 0 and found.gain.value > 0


def test_among_pre_trained_starts_the_simplest_within_one_standard_error_is_taken():
    scores = {start: score(share, 100) for start, share in zip(STARTS, (0.5, 0.79, 0.80, 0.805))}
    assert choice.choose(scores, STARTS) == "pub"  # sqrt(0.8 * 0.2 / 300) is 0.023
    scores["pub"] = score(0.75, 100)
    assert choice.choose(scores, STARTS) == "own"


def test_the_simplest_start_may_not_be_worse_than_nothing():
    scores = {start: score(share, 100) for start, share in zip(STARTS, (0.795, 0.79, 0.80, 0.5))}
    assert choice.choose(scores, STARTS) == "own"


def test_the_start_that_is_taken_is_itself_better_than_nothing_on_validation_images():
    scores = {start: score(share, 100) for start, share in zip(STARTS, (0.80, 0.80, 0.81, 0.5))}
    assert choice.choose(scores, STARTS) == "own"  # pub is as good as nothing
    scores["own"] = score(0.80, 100)
    assert choice.choose(scores, STARTS) == "pub"
    shares = {"nothing": 0.70, "pub": 0.98, "own": 0.74, "pub+own": 0.5}
    found = decide(table(shares, 50, dict(zip(STARTS, (0.8, 0.8, 0.9, 0.5)))), images(50), facts())
    assert found.start == "own"


def test_words_and_difference_are_of_the_same_seeds():
    """Nothing is worse with seed 1, which own has not: it does not count."""
    numbers = {(start, use): {} for start in STARTS for use in (FROZEN, TUNED)}
    for start in STARTS:
        numbers[start, FROZEN][ALL] = score(0.5, 100, seeds=1)
    numbers["own", FROZEN][ALL] = score(0.75, 100, seeds=1)
    numbers["nothing", FROZEN][ALL].right[1] = np.zeros(100, bool)
    found = decide(numbers, images(100), facts(labels={ALL: 500}))
    words = paragraphs(found)["What it gains"]
    assert "has 75.0 % accuracy" in words and "50.0 %: +25.0 points" in words


def test_frozen_is_used_if_it_is_better_by_more_than_a_standard_error_on_the_seeds_that_both_have():
    frozen, tuned = score(0.5, 10, 0.5, seeds=2), score(0.4, 10, 0.4, seeds=1)
    frozen.validation[1] = 0.0  # only seed 0 is in both
    numbers = {("pub", FROZEN): {ALL: frozen}, ("pub", TUNED): {ALL: tuned}}
    assert choice.best_use(numbers, facts(), "pub") == FROZEN  # 10 points; sqrt(0.4 * 0.6 / 300) is 2.8
    for better, use in ((0.47, FROZEN), (0.48, TUNED), (0.6, TUNED)):
        numbers["pub", TUNED] = {ALL: score(better, 10, better, seeds=1)}
        assert choice.best_use(numbers, facts(), "pub") == use


def judged(labels: list[int], right: list[bool], groups: list[str] | None, name: str) -> Score:
    """One draw, as the records of `judge_frozen` and of finetune.py have it."""
    found = metrics.accuracy(torch.tensor(labels), torch.tensor(right), groups)
    one = {"count": ALL, "seed": 0, "right": "1", "validation": found[name], "held": len(labels)}
    return gather([one | {"interval": found[f"{name}_interval"]}])[ALL]


def test_the_standard_error_is_of_the_measure_and_of_groups():
    """200 images with a recall of 0.9, and 4 with 0.75; and 12 patients, half of whom are right in all 10 images."""
    rare = judged([0] * 200 + [1] * 4, [True] * 180 + [False] * 20 + [True] * 3 + [False], None, "balanced_accuracy")
    true = math.sqrt(0.9 * 0.1 / 200 + 0.75 * 0.25 / 4) / 2
    assert choice.standard_error(rare, {"own": rare}) == pytest.approx(true, rel=0.2) and true > 0.1
    whole = [place % 2 == 0 for place in range(12) for _ in range(10)]
    patients = judged([0] * 120, whole, [f"p{place}" for place in range(12) for _ in range(10)], "acc1")
    true = math.sqrt(0.5 * 0.5 / 11) * student_95(11) / 1.96
    assert choice.standard_error(patients, {"own": patients}) == pytest.approx(true, rel=0.2)
    one = judged([0] * 120, whole, ["p"] * 120, "acc1")
    assert choice.standard_error(one, {"own": one}) == pytest.approx(0.5 / 1.96, rel=1e-3)  # nothing is known


def test_what_lies_within_the_error_of_few_groups_is_chosen_simply():
    numbers = {}
    for use, right in ((FROZEN, 10), (TUNED, 7)):
        marks = [place < right for place in range(12) for _ in range(10)]
        groups = [f"p{place}" for place in range(12) for _ in range(10)]
        numbers["pub", use] = {ALL: judged([0] * 120, marks, groups, "acc1")}
    assert choice.best_use(numbers, facts(), "pub") == FROZEN  # 25 points; the error is 16
    numbers["pub", FROZEN] = {ALL: judged([0] * 120, [place < 80 for place in range(120)], groups, "acc1")}
    assert choice.best_use(numbers, facts(), "pub") == TUNED  # 8 points, two errors of independent images


def test_images_that_pre_training_saw_do_not_choose_its_frozen_features():
    numbers = {(start, FROZEN): {ALL: score(0.9, 10)} for start in STARTS}
    numbers |= {(start, TUNED): {ALL: score(0.4, 10)} for start in STARTS}
    known = facts(
        flattered=["own", "pub+own"], epochs={"own": 50, "pub+own": 50}, recipe_epochs={"own": 50, "pub+own": 50}
    )
    uses = [choice.best_use(numbers, known, start) for start in STARTS]
    assert uses == [TUNED, FROZEN, TUNED, TUNED]  # pub has not seen them; random weights are fine-tuned anyway
    numbers["own", TUNED] = {}
    assert choice.best_use(numbers, known, "own") == FROZEN


def test_a_start_that_validation_flatters_is_not_taken():
    """Pre-training that went on from pub saw the validation images, and was judged frozen alone."""
    numbers = {(start, use): {} for start in STARTS for use in (FROZEN, TUNED)}
    for start, share, validation in zip(STARTS, (0.5, 0.78, 0.6, 0.74), (0.5, 0.78, 0.6, 0.85)):
        numbers[start, FROZEN][ALL] = score(share, 400, validation)
    for start in ("nothing", "own"):
        numbers[start, TUNED][ALL] = numbers[start, FROZEN][ALL]
    known = facts(
        flattered=["own", "pub+own"], epochs={"own": 50, "pub+own": 50}, recipe_epochs={"own": 50, "pub+own": 50}
    )
    found = decide(numbers, images(400), known)
    assert found.start == "pub"
    why = paragraphs(found)["Why this start"]
    assert "pub+own 85.0 % (frozen; not compared, as it saw these images)" in why and "own 60.0 % (fine-tuned)," in why
    assert why.endswith("It is the simplest of those within one standard error of the best and better than nothing.")
    for start, validation in zip(STARTS, (0.7, 0.6, 0.6)):
        numbers[start, FROZEN][ALL] = score(0.5, 400, validation)
    for start in ("nothing", "own"):
        numbers[start, TUNED][ALL] = numbers[start, FROZEN][ALL]
    why = paragraphs(decide(numbers, images(400), known))["Why this start"]
    assert why.endswith("Training from nothing is no worse than any that was compared there.")
    numbers["pub", FROZEN][ALL] = score(0.78, 400)
    assert decide(numbers, images(400), facts(epochs=known.epochs)).start == "pub+own"  # with validation images apart


def test_with_few_labels_the_use_is_that_with_all():
    """The few validation images prefer frozen features, those with all labels do not."""
    numbers = {("pub", FROZEN): {ALL: score(0.5, 10), 5: score(0.9, 10)}}
    numbers |= {("pub", TUNED): {ALL: score(0.6, 10), 5: score(0.4, 10)}}
    assert choice.best_use(numbers, facts(), "pub", 5) == TUNED
    del numbers["pub", TUNED][5]
    assert choice.best_use(numbers, facts(), "pub", 5) == FROZEN


def test_a_start_that_is_better_frozen_with_few_labels_is_said_so():
    numbers = table({"nothing": 0.7, "own": 0.8}, 400)
    of_few = {"nothing": (0.1, 0.12), "own": (0.54, 0.15)}  # frozen, fine-tuned
    for start, shares in of_few.items():
        for use, share in zip((FROZEN, TUNED), shares):
            numbers[start, use][5] = score(share, 400)
    found = decide(numbers, images(400), facts(starts=["nothing", "own"]))
    said = paragraphs(found)["With fewer labels"]
    assert "15.0 % (fine-tuned) against 12.0 % (fine-tuned)" in said
    assert "surely better: own (frozen) with 5 (54.0 %) labels a class. Validation cannot choose that." in said
    numbers["own", FROZEN][5] = score(0.16, 400)  # not surely
    said = paragraphs(decide(numbers, images(400), facts(starts=["nothing", "own"])))["With fewer labels"]
    assert "surely" not in said


def test_with_few_labels_the_best_start_and_use_is_named_where_the_test_images_are_sure():
    """Own is best with all labels by validation; with 5 and 20 labels pub is, frozen, and with 20 of both uses."""
    starts = ["nothing", "pub", "own"]
    numbers = table({"nothing": 0.70, "pub": 0.6, "own": 0.80}, 400)
    of_few = {"nothing": (0.15, 0.15), "pub": (0.50, 0.36), "own": (0.2, 0.24)}  # frozen, fine-tuned
    for start, shares in of_few.items():
        for use, share in zip((FROZEN, TUNED), shares):
            numbers[start, use] |= {5: score(share, 400), 20: score(share + 0.2, 400)}
    known = facts(starts=starts, labels={5: 50, 20: 200, ALL: 500})
    said = paragraphs(decide(numbers, images(400), known))["With fewer labels"]
    assert said.startswith("own against nothing. 5 labels a class: 24.0 % (fine-tuned) against 15.0 %")
    assert said.endswith(
        " On the test images this is surely better: pub (frozen) with 5 (50.0 %) and 20 (70.0 %) labels a class. "
        "Validation cannot choose that."
    )
    numbers["nothing", TUNED][ALL] = numbers["own", TUNED][ALL]
    found = decide(numbers, images(400), known)
    assert headline(found).endswith("; with 5 or 20 labels a class pub (frozen) is better")
    numbers["pub", FROZEN][20] = numbers["nothing", FROZEN][20]
    assert headline(decide(numbers, images(400), known)).endswith(
        "; with 5 labels a class pub (frozen) is better; with 20 labels a class pub (fine-tuned) is better"
    )


def test_what_was_not_compared_is_not_said_to_add_nothing():
    shares = {"nothing": 0.5, "pub": 0.9, "own": 0.5}
    found = decide(table(shares, 400), images(400), facts(starts=list(shares)))
    assert headline(found) == "Start from pub, fine-tuned"
    assert "goes on from pub did not fit into the minutes" in paragraphs(found)["What would change the answer"]
    assert "adds nothing that is sure" in headline(decide(table(shares | {"pub+own": 0.5}, 400), images(400), facts()))
    numbers = table(shares | {"pub+own": 0.99}, 400, {"pub+own": 0.905})  # surely better, but chosen is the simpler one
    found = decide(numbers, images(400), facts())
    assert found.outcome == "public" and headline(found) == "Start from pub, fine-tuned"


# Labels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target, how, needed",
    [
        (0.5, "about", 100),  # between 10 and 1000 labels, half way in log labels
        (0.3, "about", 10 ** (1 + 1 / 2)),  # from 10 (0.2) to 100 (0.4): half
        (0.8, "about", 1000),
        (0.2, "at most", 10),
        (0.1, "at most", 10),
        (0.81, "more than", 1000),
        ("falls", "more than", 1000),  # 10 labels reach it, all do not
        ("dips", "about", 10**2.5),  # 10 labels reach it, and 100 do not
    ],
)
def test_labels_needed(target, how, needed):
    points = [(1000, 0.8), (10, 0.2)] if target == 0.5 else [(10, 0.2), (100, 0.4), (1000, 0.8)]
    if target in ("falls", "dips"):
        points = [(10, 0.2), (100, -0.2), (1000, -0.2 if target == "falls" else 0.2)]
        target = 0.0
    found = labels_needed(points, target)
    assert found == (how, pytest.approx(needed))


def test_labels_that_a_start_saves_in_words():
    numbers = {(start, TUNED): {} for start in STARTS} | {
        (start, FROZEN): {5: score(low, 100), ALL: score(high, 100)}
        for start, low, high in zip(STARTS, (0.2, 0.6, 0.4, 0.2), (0.6, 0.65, 0.8, 0.6))
    }
    known = facts()  # 50 labels and 500
    found = decide(numbers, images(100), known)
    (few, worse), (every, better) = verdict.gaps(found)  # nothing has 0.6 with all labels
    assert (few, every) == (50, 500) and (worse.value, better.value) == pytest.approx((-0.2, 0.2))
    ends = [50 * 10 ** (-one / (two - one)) for one, two in ((worse.high, better.high), (worse.low, better.low))]
    assert ends[0] < 158 < ends[1]  # own reaches 0.6 half way: 158 labels
    assert paragraphs(found)["Labels"] == (
        f"own needs about 158 labels (95 %: {ends[0]:.0f} to {ends[1]:.0f}) for what training from nothing reaches "
        "with all 500: it saves about 68 % of them."
    )
    numbers["own", FROZEN][5] = score(0.6, 100)
    words = paragraphs(decide(numbers, images(100), known))["Labels"]
    assert words.startswith("own needs at most 50 labels (95 %: at most 50 to ") and "at least 90 %" in words
    numbers["own", FROZEN][ALL] = score(0.61, 100)
    words = paragraphs(decide(numbers, images(100), known))["Labels"]
    assert "to more than 500)" in words and words.endswith("all 500: whether it saves any cannot be told.")
    numbers["own", FROZEN][ALL] = score(0.59, 100, 0.7)  # by chance 50 labels reach what all do not
    words = paragraphs(decide(numbers, images(100), known))["Labels"]
    assert words == (
        "own needs at most 50 to more than 500 labels (95 %) for what training from nothing reaches with all 500: "
        "whether it saves any cannot be told."
    )
    numbers["own", FROZEN][ALL] = score(0.5, 100, 0.7)
    words = paragraphs(decide(numbers, images(100), known))["Labels"]
    assert words == "own saves no labels: even with all of them it does not reach training from nothing."


def test_draws_of_few_labels_are_compared_with_all_seeds_of_nothing():
    """Ten draws of few labels, each other images; nothing has one seed."""
    draws = {seed: np.arange(100) < 30 + 2 * seed for seed in range(10)}
    gap = intervals.beyond(Score(draws), Score({0: np.arange(100) < 50}), images(100))
    assert gap.value == pytest.approx(0.39 - 0.5) and gap.seeds == 10
    sure = intervals.beyond(Score(draws), Score(dict.fromkeys(range(9), np.arange(100) < 50)), images(100))
    spread = (gap.high - gap.low) ** 2 - (sure.high - sure.low) ** 2  # of one seed of nothing against nine
    assert spread == pytest.approx((2 * 1.97 * intervals.BETWEEN_SEEDS) ** 2 * (1 - 1 / 9), rel=0.1)


def test_labels_are_saved_on_the_seeds_that_both_have():
    """Nothing is best with seed 1, which own has not: own saves labels, as its gain is positive."""
    numbers = {(start, TUNED): {} for start in STARTS} | {
        (start, FROZEN): {5: score(0.2, 100, seeds=1), ALL: score(0.5 + 0.2 * (start == "own"), 100, seeds=1)}
        for start in STARTS
    }
    numbers["nothing", FROZEN][ALL].right[1] = np.ones(100, bool)
    found = decide(numbers, images(100), facts())
    assert found.gain.value == pytest.approx(0.2) and "own needs about" in paragraphs(found)["Labels"]
    numbers["own", FROZEN][ALL].right[2] = np.zeros(100, bool)
    assert "own needs about" in paragraphs(decide(numbers, images(100), facts()))["Labels"]


def test_a_short_pre_training_after_public_weights_is_named():
    known = facts(epochs={"own": 50, "pub+own": 3}, recipe_epochs={"own": 50, "pub+own": 90})
    words = paragraphs(decide(table(dict.fromkeys(STARTS, 0.5), 98), images(98), known))
    assert "pub+own 3 epochs (the recipe: 90)" in words["What would change the answer"]
    assert "differ in weights, network and image size" in words["What would change the answer"]  # pub is the simplest


def test_what_is_missing_is_named():
    known = facts(recipe_epochs={"own": 90}, left_out=["imagenet: no network"], too_long=4, copies=2)
    shares = {start: 0.5 + 0.1 * (start == "own") for start in STARTS}
    words = paragraphs(decide(table(shares, 98), images(98), known))["What would change the answer"]
    assert "With 98 test images and 3 seeds, a difference under" in words
    assert "own 50 epochs (the recipe: 90)" in words
    assert "Not counted: 2 test images that training or validation has, too" in words
    assert "imagenet: no network" in words and "4 fine-tunings did not fit" in words


def test_more_seeds_help_where_they_are_most_of_what_is_not_known():
    """30 test images are far less sure than a seed; of 4000 that agree, all that is not known is of seeds."""
    made = {"nothing": score(0.70, 30, 0.70, draw=1), "own": score(0.73, 30, 0.75, draw=2)}
    numbers = {(start, TUNED): {ALL: one} for start, one in made.items()} | {(start, FROZEN): {} for start in made}
    known = facts(starts=list(made), labels={ALL: 500}, too_long=4)
    words = paragraphs(decide(numbers, images(30), known))
    assert words["Until it can be told"].endswith("It may be told with more test images.")
    assert "may be missed: more test images help. 4 fine-tunings did not" in words["What would change the answer"]
    nearly, longer = (
        paragraphs(decide(numbers, images(30), facts(**vars(known) | {"recipe_epochs": {"own": epochs}})))
        for epochs in (51, 101)
    )
    assert nearly["Until it can be told"] == words["Until it can be told"]
    minutes = "It may be told with the same command, four times the --minutes"
    assert f"{minutes} and another --output_dir." in longer["Until it can be told"]
    made = {"nothing": score(0.70, 4000, 0.70, seeds=1), "own": score(0.71, 4000, 0.75, seeds=1)}
    numbers = {(start, TUNED): {ALL: one} for start, one in made.items()} | {(start, FROZEN): {} for start in made}
    words = paragraphs(decide(numbers, images(4000), known))
    assert f"{minutes} and another" in words["Until it can be told"]
    assert "may be missed: more seeds help. One seed" in words["What would change the answer"]
    words = paragraphs(decide(numbers, images(4000), facts(**vars(known) | {"too_long": 0})))
    assert f"{minutes}, more --seeds and another" in words["Until it can be told"]


def test_the_words_say_what_each_start_is():
    found = decide(table(dict.fromkeys(STARTS, 0.5), 98), images(98), facts())
    assert paragraphs(found)["What is compared"] == (
        "nothing: random weights; pub: published weights; own: the network of nothing, pre-trained on your images "
        "without their labels; pub+own: published weights, pre-trained further on your images without their labels."
    )
    some = decide(table(dict.fromkeys(STARTS, 0.5), 98), images(98), facts(left=40))
    part = f"{some.facts.labels[ALL]} of {some.facts.labels[ALL] + 40} labels"
    told = f" The minutes are too few for more than {part}: with more of them pre-training often gains less."
    assert paragraphs(some)["What is compared"].endswith(told)
    assert part in headline(some) and "all labels" not in headline(some)
    assert paragraphs(some)["What it gains"].startswith(f"With {part} ")
    shares = {"nothing": 0.5, "pub": 0.9, "own": 0.5, "pub+own": 0.5}
    sure = headline(decide(table(shares, 4000), images(4000), facts(left=40)))
    assert sure.startswith("Start from pub") and part in sure


def test_what_would_show_smaller_differences_is_what_the_interval_counts():
    shares = dict.fromkeys(STARTS, 0.5) | {"own": 0.6}
    few = images(60, groups=[0] * 30 + [*range(1, 31)], labels=[1] * 30 + [0] * 30, balanced=True)
    words = paragraphs(decide(table(shares, 60), few, facts(grouped=True)))["What would change the answer"]
    assert words.startswith("With 60 test images in 31 groups (as many as 3.9 of equal weight) and 3 seeds, a diff")
    assert "may be missed: more groups of test images of the rarest class help." in words
    many = images(600, labels=[1] * 100 + [0] * 500, balanced=True)
    assert many.equal == " (as many as 333 of equal weight)"
    one = images(60, groups=[7] * 60)
    words = paragraphs(decide(table(shares, 60), one, facts(grouped=True)))["What would change the answer"]
    assert words.startswith(
        "With 60 test images in 1 group and 3 seeds, no difference can be seen: more groups of test"
    )


# Intervals --------------------------------------------------------------------------------------


def test_one_seed_is_the_interval_of_agresti_and_min(monkeypatch):
    """b = 12 images for, c = 4 against, n = 100: their interval with 1/2 added to each of the four cells."""
    one, other = np.zeros(100, bool), np.zeros(100, bool)
    one[:12], other[12:16] = True, True
    assumed = intervals.difference(Score({0: one}), Score({0: other}), images(100))
    monkeypatch.setattr(intervals, "BETWEEN_SEEDS", 0.0)
    found = intervals.difference(Score({0: one}), Score({0: other}), images(100))
    error, more = ((one.high - one.low) / 2 / 1.98 for one in (found, assumed))
    assert more == pytest.approx(math.hypot(error, 0.015), rel=5e-3)
    b, c, n = 12.5, 4.5, 102
    middle, half = (b - c) / n, student_95(99) * math.sqrt(b + c - (b - c) ** 2 / n) / n
    assert found.value == pytest.approx(0.08)
    assert [found.low, found.high] == pytest.approx([middle - half, middle + half], abs=1e-3)


def test_the_chance_of_a_gain_belongs_to_the_interval():
    """It is 97.5 % where the interval begins at 0, and a half for a difference of 0."""
    zeros = np.zeros(200)
    assert intervals.mean([zeros], images(200)).chance == pytest.approx(0.5)
    shift = -intervals.mean([zeros], images(200)).low
    for value, chance in ((shift, 0.975), (-shift, 0.025)):
        found = intervals.mean([zeros + value], images(200))
        assert found.chance == pytest.approx(chance, abs=2e-3)


def test_ten_images_that_all_agree_are_not_sure():
    right = np.ones(10, bool)
    found = intervals.difference(Score({0: right}), Score({0: right}), images(10))
    assert found.value == 0 and found.low < -0.1 and found.high > 0.1


def test_groups_are_counted_and_not_images():
    rng = np.random.default_rng(0)
    of_group = rng.integers(-1, 2, 20)
    values = [of_group.repeat(10).astype(float)]
    alone = intervals.mean(values, images(200))
    together = intervals.mean(values, images(200, groups=np.arange(20).repeat(10).tolist()))
    assert together.high - together.low > 2.5 * (alone.high - alone.low)


@pytest.mark.parametrize("groups", [4, 10])
def test_few_groups_have_the_interval_of_student(monkeypatch, groups):
    """Of groups alike in size the mean of each is one number: t with one less degree of freedom than groups."""
    monkeypatch.setattr(intervals, "BETWEEN_SEEDS", 0.0)
    of_group = np.random.default_rng(0).uniform(-0.5, 0.5, groups)
    found = intervals.mean([of_group.repeat(200)], images(200 * groups, np.arange(groups).repeat(200).tolist()))
    half = student_95(groups - 1) * of_group.std(ddof=1) / math.sqrt(groups)
    assert [found.low, found.high] == pytest.approx([of_group.mean() - half, of_group.mean() + half], abs=0.005)


def test_unequal_groups_have_the_jackknife_s_interval(monkeypatch):
    """Beside each mean without one group, by hand. The largest group counts for what leaving it out changes."""
    monkeypatch.setattr(intervals, "BETWEEN_SEEDS", 0.0)
    sizes = np.array([4000, 3000, 1000, 500])
    group = np.arange(4).repeat(sizes)
    values = np.array([0.03, -0.01, 0.02, 0.05])[group]
    found = intervals.mean([values], images(8500, (7 * group).tolist()))
    without = np.array([values[group != one].mean() for one in range(4)])
    error = math.sqrt(3 / 4 * ((without - values.mean()) ** 2).sum())
    alike = 1 / ((sizes / 8500) ** 2).sum()  # 2.7 groups, if all were of one size
    half = student_95(alike - 1) * error
    assert [found.low, found.high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.005)


def test_of_one_group_nothing_is_known():
    found = intervals.mean([np.full(500, 0.06)], images(500, [3] * 500))
    assert (found.value, found.low, found.high) == (pytest.approx(0.06), -1, 1) and found.chance == 0.5


def test_two_images_of_a_rare_class_are_not_sure():
    """Both become right; they are half of balanced accuracy."""
    better = np.array([0.0] * 200 + [1.0] * 2)
    found = intervals.mean([better], images(202, labels=[0] * 200 + [1] * 2, balanced=True))
    assert found.value == pytest.approx(0.5) and found.low < 0


def test_two_seeds_that_differ_as_assumed_are_surer_than_one():
    zeros = np.zeros(4000)
    apart = intervals.BETWEEN_SEEDS / math.sqrt(2)
    one = intervals.mean([zeros], images(4000))
    widths = []
    for more in (0.99, 1.01):  # measured a little less and a little more than what is assumed
        two = intervals.mean([zeros + more * apart, zeros - more * apart], images(4000))
        widths.append(two.high - two.low)
    assert widths[0] == pytest.approx(widths[1], rel=0.02) and max(widths) < one.high - one.low


def test_seeds_that_differ_make_the_interval_wide():
    zeros = np.zeros(1000)
    calm = intervals.mean([zeros + 0.1] * 3, images(1000))
    wild = intervals.mean([zeros + 0.1, zeros + 0.3, zeros - 0.1], images(1000))
    assert wild.value == pytest.approx(calm.value)
    assert wild.high - wild.low > 2 * 4 * 0.2 / math.sqrt(3)  # two degrees of freedom: 4.3 deviations either way


def test_what_can_be_seen_is_as_wide_as_the_interval():
    """With two seeds that differ much, t has one degree of freedom: 12.7 deviations, not 1.96."""
    zeros = np.zeros(1000)
    found = intervals.mean([zeros + 0.2, zeros + 0.4], images(1000))
    error = 0.1
    assert found.seen > 10 * error  # half of the interval, and POWER deviations
    calm = intervals.mean([zeros], images(1000))
    assert calm.seen == pytest.approx((1.96 + 0.8416) * calm.high / 1.96, rel=2e-3)


def test_every_class_counts_alike_in_balanced_accuracy():
    labels = [0] * 90 + [1] * 10
    right = np.array([1] * 90 + [0] * 10, bool)
    found = intervals.level(Score({0: right}), images(100, labels=labels, balanced=True))
    assert found.value == pytest.approx(0.5)
    assert intervals.level(Score({0: right}), images(100, labels=labels)).value == pytest.approx(0.9)


def draws_of(levels: list[float], seeds: list[int]) -> tuple[Score, Score]:
    """Of 1000 images, the first so many are right with each draw frozen; fine-tuned, of `seeds`, always 500."""
    frozen = {seed: np.arange(1000) < 1000 * one for seed, one in enumerate(levels)}
    records = [{"validation": 0.5, "interval": [0.4, 0.6], "held": 300, "count": 5, "seed": s} for s in range(10)]
    of_frozen = gather([one | {"right": "".join("01"[int(hit)] for hit in frozen[one["seed"]])} for one in records])
    tuned = gather([one | {"right": "1" * 500 + "0" * 500} for one in records if one["seed"] in seeds], of_frozen)
    return of_frozen[5], tuned[5]


def test_with_few_labels_seeds_deviate_as_the_frozen_draws_do():
    """One seed of fine-tuning, on images that all agree: what is not known is between seeds."""
    ours, theirs = 0.5 + 0.06 * np.cos(np.arange(10)), 0.3 + 0.04 * np.sin(np.arange(10))
    (frozen, tuned), (nothing, nothing_tuned) = draws_of(ours, [0]), draws_of(theirs, [0])
    found = intervals.difference(tuned, nothing_tuned, images(1000))
    apart = np.std([frozen.right[seed].mean() - nothing.right[seed].mean() for seed in range(10)], ddof=1)
    assert apart > 0.04 and (found.high - found.low) / apart == pytest.approx(2 * student_95(9), rel=1e-3)
    assert found.of_seeds > 0.99
    alone = intervals.difference(Score(tuned.right), Score(nothing_tuned.right), images(1000))
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * 0.015, rel=0.02)  # as with all labels
    calm = draws_of([0.5] * 10, [0])[1], draws_of([0.3] * 10, [0])[1]
    assert intervals.difference(*calm, images(1000)) == alone
    spread = np.std(ours, ddof=1)  # two uses of a start have the same draws, and an accuracy has its own alone
    for one in (intervals.difference(frozen, tuned, images(1000)), intervals.level(tuned, images(1000))):
        assert one.high - one.low > 2 * 1.96 * 0.98 * spread


def test_of_one_seed_with_few_labels_95_of_100_intervals_hold_the_truth():
    """Frozen draws and the one fine-tuning deviate alike, by five points."""
    rng, truth, hits = np.random.default_rng(1), 0.1, 0
    for _ in range(300):
        levels = truth + 0.05 * rng.standard_normal(11)
        pairs = [np.where(rng.random(400) < 0.3 + level, 1.0, 0.0) - (rng.random(400) < 0.3) for level in levels]
        found = intervals.mean(pairs[:1], images(400), pairs[1:])
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / 300 <= 0.995


def test_ten_frozen_draws_are_as_sure_as_they_were():
    """What the draws show is what was measured: nothing is counted twice."""
    frozen, _ = draws_of(0.5 + 0.06 * np.cos(np.arange(10)), [0])
    found = intervals.level(frozen, images(1000))
    plain = intervals.level(Score(frozen.right), images(1000))
    assert found.seeds == 10 and (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=5e-4)


@pytest.mark.parametrize("count, seeds", [(30, 1), (100, 3), (400, 3)])
def test_95_of_100_intervals_hold_the_truth(count, seeds):
    """Images have their own difficulty, seeds their own level; both are drawn anew in each experiment."""
    rng, truth, hits = np.random.default_rng(1), 0.1, 0
    for _ in range(500):
        difficulty = rng.uniform(0.2, 0.8, count)
        levels = truth + 0.05 * rng.standard_normal(seeds) * (seeds > 1)
        pairs = [
            (rng.random(count) < difficulty + level / 2).astype(float) - (rng.random(count) < difficulty - level / 2)
            for level in levels
        ]
        found = intervals.mean(pairs, images(count))
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / 500 <= 0.995

"""Calibration against plain loops, scikit-learn's curve and scipy's search."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve

from ssl.evaluation import calibration
from ssl.evaluation.calibration import error_of_perfect, expected_error, temperature
from ssl.evaluation.feature_rows import Rows
from ssl.evaluation.probes import Heads
from ssl.evaluation.retrieval import keyed


def by_a_loop(confidence, right, bins):
    edges, total = np.linspace(0, 1, bins + 1), 0.0
    for low, high in zip(edges, edges[1:]):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def predictions(count=500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(count, generator=generator, dtype=torch.float64) * 0.7 + 0.3
    return confidence, torch.rand(count, generator=generator, dtype=torch.float64) < confidence**2


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_the_error_is_that_of_a_loop_and_of_scikit_learns_curve(bins):
    confidence, right = predictions()
    found = expected_error(confidence, right, bins)
    assert found == pytest.approx(by_a_loop(confidence.numpy(), right.numpy(), bins), abs=1e-12)
    shares, means = calibration_curve(right.numpy(), confidence.numpy(), n_bins=bins)
    counts = np.histogram(confidence.numpy(), np.linspace(0, 1, bins + 1))[0]
    assert found == pytest.approx((counts[counts > 0] * abs(shares - means)).sum() / 500, abs=1e-12)


def test_the_ends_of_the_bins_and_a_head_that_is_always_sure():
    assert expected_error(torch.tensor([1.0, 1.0]), torch.tensor([True, False])) == 0.5
    assert expected_error(torch.tensor([0.0]), torch.tensor([False])) == 0


def test_perfect_confidences_show_an_error_that_falls_with_the_number_of_images():
    few, many = (
        error_of_perfect(torch.rand(count, generator=torch.Generator().manual_seed(1))) for count in (50, 5000)
    )
    assert 0.05 < few < 0.2 and 0 < many < 0.02
    generator = torch.Generator().manual_seed(2)
    confidence = torch.rand(5000, generator=generator, dtype=torch.float64)
    true = torch.rand(5000, generator=generator, dtype=torch.float64) < confidence
    assert expected_error(confidence, true) == pytest.approx(many, abs=0.01)


def overconfident(count, seed, classes=4):
    """Scores three times as large as those that the labels are drawn from."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(scores.softmax(1), 1, generator=generator)[:, 0]
    return 3 * scores, labels


def test_the_temperature_is_the_most_likely_one():
    scores, labels = overconfident(800, 1)
    theirs = minimize_scalar(
        lambda t: torch.nn.functional.cross_entropy(scores / t, labels).item(), (0.5, 2), method="brent", tol=1e-9
    )
    assert temperature(scores, labels) == pytest.approx(theirs.x, rel=1e-4) and 2.5 < theirs.x < 3.5


def test_there_is_no_temperature_where_all_is_right_or_nothing_is_known():
    scores = overconfident(50, 1)[0]
    assert temperature(scores, scores.argmax(1)) is None
    assert temperature(scores, scores.argmin(1)) is None
    assert temperature(torch.zeros(5, 3), torch.tensor([0, 1, 2, 0, 1])) is None


def head_on(width):
    """A head that gives its features as scores."""
    one = torch.eye(width, dtype=torch.float64)[None]
    return Heads(one, torch.zeros(1, width, dtype=torch.float64), torch.zeros(width), torch.ones(width))


def test_the_temperature_of_the_held_out_slice_makes_the_error_on_test_small():
    found = calibration.calibration(head_on(4), overconfident(600, 1), overconfident(2000, 2))
    assert found["ece"] > 0.2 > 0.05 > found["ece_after"] and found["nll_after"] < found["nll"]
    assert found["ece_after"] < 2 * found["ece_of_perfect_after"] + 0.01 and found["temperature"] > 2.5
    assert (found["n"], found["held_out_n"], found["bins"]) == (2000, 600, 15)
    scores, labels = overconfident(2000, 2)
    other = calibration.calibration(head_on(4), overconfident(600, 1), (scores, (labels + 1) % 4))
    assert other["temperature"] == found["temperature"] and other["ece"] != found["ece"]  # never chosen on test


def test_of_too_many_held_out_images_some_are_taken_by_seed(monkeypatch):
    held, test = overconfident(600, 1), overconfident(100, 2)
    every = calibration.calibration(head_on(4), held, test)
    monkeypatch.setattr(calibration, "MOST_SCORES", 4 * 50)
    found = calibration.calibration(head_on(4), held, test, seed=3)
    chosen = keyed(600, 50, 3)
    assert found["held_out_n"] == 50 and found["temperature"] == temperature(held[0][chosen], held[1][chosen])
    rows = Rows((held[0][:200], held[0][200:]), held[0].device)
    assert calibration.calibration(head_on(4), (rows, held[1]), test, seed=3) == found
    assert every["held_out_n"] == 600 and every["temperature"] == temperature(*held) != found["temperature"]


def test_without_a_temperature_the_error_as_it_is_stays():
    scores, labels = overconfident(40, 1)
    found = calibration.calibration(head_on(4), (scores, scores.argmax(1)), (scores, labels))
    assert found["ece"] > 0 and found["temperature"] is found["ece_after"] is None
    assert found["temperature_why"] == "the 40 held-out images give none: the probe is right on all of them"
    wrong, tiny = (scores, scores.argmin(1)), (1e-4 * scores, overconfident(40, 1)[1])  # the second: right, not sure
    for held_out in (wrong, tiny):
        found = calibration.calibration(head_on(4), held_out, (scores, labels))
        assert found["temperature_why"] == "the 40 held-out images give none: the best lies outside 0.01 to 100"
        assert found["temperature"] is found["ece_of_perfect_after"] is None

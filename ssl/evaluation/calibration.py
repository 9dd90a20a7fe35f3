"""Calibration: is a head right as often as it says? The expected calibration error, and a temperature against it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl.evaluation.feature_rows import Rows, block_size, subset
from ssl.evaluation.probes import Heads
from ssl.evaluation.retrieval import keyed

BINS = 15  # of equal width, as Guo et al. 2017
MOST_SCORES = 1 << 27  # of held-out images, that the temperature is fitted on: 1 GiB in float64
DRAWS = 200  # of right and wrong, for the error of a head that is calibrated perfectly
COLDEST, HOTTEST = 1e-2, 1e2  # temperatures


def expected_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """The expected calibration error, 0 to 1, of predictions with confidence (N,) that are `right` (N,) or not.

    Confidences are put into `bins` of equal width (Guo et al. 2017, eq. 3). In each bin the share that is right is
    compared with the mean confidence. The differences are weighted by the numbers of predictions.
    """
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gap.index_add_(0, bin_of, right.double() - confidence.double())
    return float(gap.abs().sum()) / len(confidence)


def error_of_perfect(confidence: Tensor, seed: int = 0) -> float:
    """The mean error that such confidences (N,) would show if they were exactly true. It is above 0, as N is finite."""
    generator, confidence = torch.Generator().manual_seed(seed), confidence.double().cpu()
    draws = (torch.rand(len(confidence), generator=generator, dtype=torch.float64) < confidence for _ in range(DRAWS))
    return sum(expected_error(confidence, right) for right in draws) / DRAWS


def temperature(scores: Tensor, labels: Tensor) -> float | None:
    """The temperature that makes softmax(scores (N, C) / temperature) most likely for labels (N,).

    The likelihood is concave in 1 / temperature, whose best value is found by bisection. None where it lies outside
    COLDEST to HOTTEST, as where all labels have the best score, or the scores say nothing of the labels.
    """
    scores = scores.double()
    own = scores.gather(1, labels[:, None])[:, 0]

    def too_sure(inverse: float) -> bool:
        """Whether the likelihood falls from 1 / temperature = `inverse` on."""
        return bool(((scores * inverse).softmax(1).mul(scores).sum(1) - own).sum() > 0)

    low, high = 1 / HOTTEST, 1 / COLDEST
    if too_sure(low) or not too_sure(high):
        return None
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if too_sure(middle) else (middle, high)
    return 1 / low


@torch.no_grad()
def calibration(
    head: Heads, held_out: tuple[Tensor | Rows, Tensor], test: tuple[Tensor | Rows, Tensor], seed: int = 0
) -> dict:
    """How well the first head is calibrated on `test`, before and after a temperature that is fitted on `held_out`.

    Both are (features (N, F), labels (N,)). The head has not learnt from `held_out`, which may have chosen its
    settings. Returns, of test: ece, ece_of_perfect (what the same confidences would show
    if they were true), confidence (its mean), nll, n, bins; temperature, held_out_n, ece_after, ece_of_perfect_after
    and nll_after. Of held-out images with more than MOST_SCORES scores some are taken, drawn by `seed`. Where no
    temperature can be found, it is None, and so is what needs it, with `temperature_why`.
    """
    scores, labels = _scores(head, test[0]), test[1]
    found = _measured(scores, labels, "", seed)
    chosen = keyed(len(held_out[1]), max(1, MOST_SCORES // scores.shape[1]), seed).to(labels.device)
    held_scores, held_labels = _scores(head, subset(held_out[0], chosen)), held_out[1][chosen]
    found |= {"n": len(labels), "bins": BINS, "held_out_n": len(chosen)}
    found["temperature"] = temperature(held_scores, held_labels)
    if found["temperature"] is not None:
        return found | _measured(scores / found["temperature"], labels, "_after", seed)
    all_right = bool((held_scores.argmax(1) == held_labels).all())
    why = "the probe is right on all of them" if all_right else f"the best lies outside {COLDEST:g} to {HOTTEST:g}"
    none = {f"{name}_after": None for name in ("ece", "ece_of_perfect", "nll")}
    return found | {"temperature_why": f"the {len(chosen)} held-out images give none: {why}"} | none


def _scores(head: Heads, features: Tensor | Rows) -> Tensor:
    return torch.cat([head.scores(x, 0).double() for x in features.split(block_size(features))])


def _measured(scores: Tensor, labels: Tensor, ending: str, seed: int) -> dict:
    confidence, best = scores.softmax(1).max(1)
    found = {
        "ece": expected_error(confidence, best == labels),
        "ece_of_perfect": error_of_perfect(confidence, seed=seed),
        "confidence": float(confidence.mean()),
        "nll": float(F.cross_entropy(scores, labels)),
    }
    return {name + ending: value for name, value in found.items()}

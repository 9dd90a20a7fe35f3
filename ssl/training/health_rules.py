"""What the readings of a run's health mean, in words. docs/health.md explains every rule."""

import math
from collections.abc import Callable
from dataclasses import dataclass

Reading = dict[str, float]  # what health.Health measured at one step


@dataclass(frozen=True)
class Rule:
    """Begins to hold when the last `readings` readings all show `sign`, and ends when none of so many does.

    A step that was left out moves nothing: its reading does not count, except for a rule `of_left_out`.
    """

    name: str
    readings: int
    sign: Callable[[Reading], bool]
    words: Callable[[Reading], str]
    warm: bool = False  # readings during the warm-up do not count
    of_left_out: bool = False


def attainable(r: Reading) -> float:
    """The largest effective rank that the embeddings can have: it is limited by their rows and their width."""
    return min(r["rows"] - 1, r["dim"])


LARGE_STEP, LARGE_LOSS = 0.05, 3.0  # a share of the weights' norm; a share of unrelated views' loss


def _too_large(r: Reading) -> str:
    step, loss = r.get("update_ratio_weights", 0), r.get("loss_of_unrelated", 0)
    words = [f"a step changes the weights by {100 * step:.2g} % of their norm"] if step > LARGE_STEP else []
    words += [f"the loss is {loss:.2g} times that of unrelated views"] if loss > LARGE_LOSS else []
    return ", and ".join(words)


RULES = (
    Rule(
        "dead_representation",
        2,
        lambda r: r["representation_std"] < 0.003,
        lambda r: (
            f"the encoder says the same of every image (relative std {r['representation_std']:.2g}): dead; "
            "go back to an earlier checkpoint or start again with a lower lr and a longer warm-up; look at mean, std"
        ),
    ),
    Rule(
        "collapse",
        2,
        lambda r: r["embedding_std"] < 0.05,
        lambda r: (
            f"embeddings of all images are nearly one point (relative std {r['embedding_std']:.2g}, healthy "
            "0.3 to 1): collapsed; try a lower lr, a longer warm-up, other augmentation, and a batch that is not tiny"
        ),
    ),
    Rule(
        "dimensional_collapse",
        3,
        lambda r: r["embedding_effective_rank"] < 0.08 * attainable(r),
        lambda r: (
            f"embeddings use {r['embedding_effective_rank']:.0f} of {r['dim']:.0f} dimensions (of at most "
            f"{attainable(r):.0f} that {r['rows']:.0f} images can show): collapsing; try a larger lambd "
            "(Barlow Twins), a lower lr, a wider projector, or stronger augmentation"
        ),
    ),
    Rule(
        "redundant",
        3,
        lambda r: r["redundancy"] > 0.25,
        lambda r: (
            f"two dimensions of the embeddings have {100 * r['redundancy']:.0f} % of their variance in common, "
            f"as if {r['dim']:.0f} were {1 / r['redundancy']:.1f}: collapsing; try a larger lambd "
            "(Barlow Twins), a lower lr, or stronger augmentation"
        ),
    ),
    Rule(
        "same_views",
        3,
        lambda r: r["alignment"] < 0.01 and r["embedding_std"] >= 0.05,
        lambda r: (
            f"the views of an image have nearly the same embedding (alignment {r['alignment']:.1g}): "
            "there is nothing left to learn from them; try stronger augmentation (crop_scale, jitter, grayscale)"
        ),
    ),
    Rule(
        "stuck",
        3,
        lambda r: r["loss_of_unrelated"] > 0.97,
        lambda r: (
            f"the loss is {100 * r['loss_of_unrelated']:.0f} % of what it would be were the views unrelated: "
            "nothing is learnt; try another lr (ten times lower, then higher), weaker augmentation, and "
            "look at the views"
        ),
        warm=True,
    ),
    Rule(
        "exploding",
        2,
        lambda r: r.get("update_ratio_weights", 0) > LARGE_STEP or r.get("loss_of_unrelated", 0) > LARGE_LOSS,
        lambda r: f"{_too_large(r)}: too large; lower lr, lengthen warmup_epochs, or set clip_grad",
    ),
    Rule(
        "standing_still",
        3,
        lambda r: r["update_ratio_weights"] < 1e-6 * r["lr_share"] and r["lr_share"] > 0.1,
        lambda r: (
            f"a step changes the weights by only {r['update_ratio_weights']:.1e} of their norm: too little to "
            "learn; raise lr, and look at lr_scaling and the optimizer's settings"
        ),
        warm=True,
    ),
    Rule(
        "starving",
        3,
        lambda r: r["data_wait"] > 0.3,
        lambda r: (
            f"{100 * r['data_wait']:.0f} % of the time is spent waiting for images; more workers or cores, or "
            "for files a local disk, --preload, or large images made small once (python -m ssl.data.prepare)"
        ),
    ),
    Rule(
        "skipping",
        2,
        lambda r: r["skipped"] > 0.05,
        lambda r: (
            f"{100 * r['skipped']:.0f} % of the steps are left out because their gradient is not finite; use "
            "--amp bf16 or --amp off, or a lower lr"
        ),
        of_left_out=True,
    ),
)
MEMORY = max(rule.readings for rule in RULES)


def judge(readings: list[Reading], holding: set[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """What the last of `readings` changes: (rules that begin to hold, with words; names of rules that end).

    `holding`: names of the rules that held before. A missing value is no sign.
    """
    begun, ended = [], []
    for rule in RULES:
        counted = [reading for reading in readings if rule.of_left_out or "gradient_norm" in reading]  # it is finite
        signs = [_shows(rule, reading) for reading in counted[-rule.readings :]]
        if len(signs) < rule.readings:
            continue
        if rule.name not in holding and all(signs):
            begun.append((rule.name, rule.words(counted[-1])))
        elif rule.name in holding and not any(signs):
            ended.append(rule.name)
    return begun, ended


def shown(reading: Reading) -> list[tuple[str, str]]:
    """The rules, with words, whose sign this one reading shows: for a single look at a run."""
    return [(rule.name, rule.words(reading)) for rule in RULES if _shows(rule, reading)]


def _shows(rule: Rule, reading: Reading) -> bool:
    try:
        if rule.warm and not reading["warm"]:
            return False
        return rule.sign(reading)
    except KeyError:
        return False


def finite(reading: Reading) -> Reading:
    """`reading` without values that are not finite."""
    return {name: value for name, value in reading.items() if math.isfinite(value)}

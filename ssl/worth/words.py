"""The words of a verdict: a headline, what the start gains, why it was chosen, what would change the answer."""

from ssl.console import counted
from ssl.worth.choice import FROZEN, TUNED, USES, is_flattered, kind, not_tuned, too_short, validated
from ssl.worth.intervals import BETWEEN_SEEDS, Estimate, difference, level
from ssl.worth.scores import Judges
from ssl.worth.splits import ALL
from ssl.worth.starts import NOTHING, OWN
from ssl.worth.verdict import UNKNOWN, WORTH, Verdict, gaps, labels_needed


def paragraphs(found: Verdict) -> dict[str, str]:
    """{title: sentences}"""
    words = {
        "Until it can be told": _meanwhile(found),
        "What it gains": _gain(found),
        "Labels": _labels(found),
        "With fewer labels": _fewer(found),
        "Why this start": _why(found),
        "Against the other starts": _others(found),
        "What would change the answer": _change(found),
    }
    return {title: sentences for title, sentences in words.items() if sentences}


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(found: Estimate) -> str:
    """'+13.2 points (95 %: +8.1 to +18.3)'."""
    return f"{100 * found.value:+.1f} points (95 %: {100 * found.low:+.1f} to {100 * found.high:+.1f})"


def measure(test: Judges) -> str:
    return "balanced accuracy" if test.balanced else "accuracy"


def headline(found: Verdict) -> str:
    facts, start = found.facts, found.start
    sure = [f"{one.count}" for one in found.few if one.tuned and one.gap.low > 0]
    but = f"; with {' or '.join(sure)} labels a class {start} is better" if sure else ""
    small = found.gain.high < WORTH
    if found.outcome == UNKNOWN and small and found.may_pay:
        others = " or ".join(found.may_pay)
        return f"With all labels {_as_measured(found)} does not pay; whether {others} does cannot be told{but}"
    if found.outcome == UNKNOWN and small and (short := too_short(facts)):
        whole = ", ".join(f"{facts.recipe_epochs[one]} for {one}" for one in short)
        return (
            f"With all labels {_as_measured(found)} does not pay; whether the epochs of the recipe ({whole}) would pay "
            f"cannot be told{but}"
        )
    if found.outcome == UNKNOWN and small:
        untuned = ", ".join(not_tuned(found.table, facts))
        return (
            f"It cannot be told whether pre-training pays with all labels: {untuned} could not be fine-tuned with them "
            f"in these minutes{but}"
        )
    if found.outcome == UNKNOWN:
        images = counted(found.gain.images, "test image")
        told = f"It cannot be told from {images} whether pre-training pays with all labels"
        between = f"{100 * found.gain.low:+.1f} to {100 * found.gain.high:+.1f} points"
        chance = 100 * min(max(found.gain.chance, 0.01), 0.99)
        return f"{told}: {start} gains {between}; the chance that it is better is {chance:.0f} %{but}"
    if found.outcome == NOTHING:
        some = any(kind(one) == "public" for one in facts.starts)
        which = "not all published weights were compared" if some else "published weights were not compared"
        missing = f"; {which}" if facts.left_out else ""
        return f"Train from nothing: pre-training does not pay with all labels{but}{missing}"
    public, use = start.removesuffix("+own"), USES[found.use]
    return {
        OWN: f"Pre-train on your images, and use the encoder {use}",
        "public": f"Start from {public}, {use}{_further(found, public)}",
        "public+own": f"Continue {public} on your images without labels, and use it {use}",
    }[found.outcome]


def _as_measured(found: Verdict) -> str:
    """The start, with what it lacked: of more epochs, or fine-tuned, nothing is said."""
    facts, start = found.facts, found.start
    short = f" with {facts.epochs[start]} of {facts.recipe_epochs[start]} epochs" if start in too_short(facts) else ""
    return f"{start}{short}{' frozen' if start in not_tuned(found.table, facts) else ''}"


def _further(found: Verdict, public: str) -> str:
    """What pre-training that goes on from public weights adds, if it was compared and is not surely better."""
    own = f"{public}+own"
    if own not in found.facts.starts:
        return ""
    added = difference(found.score(own), found.score(public), found.test)
    return ": pre-training on your images adds nothing that is sure" if added.low <= 0 else ""


def _meanwhile(found: Verdict) -> str:
    if found.outcome != UNKNOWN:
        return ""
    if found.meanwhile == found.start:
        return f"With all labels take {found.start}: validation and test images both prefer it."
    if found.gain.high < WORTH:
        return f"With all labels train from nothing: {_as_measured(found)} gains under {100 * WORTH:.0f} points."
    who = "the test images do" if found.preferred else "validation does"
    return (
        f"With all labels train from nothing, which is simpler: {found.start} may be better, but {who} not prefer it."
    )


def _gain(found: Verdict) -> str:
    start, test, gain, nothing = found.start, found.test, found.gain, found.score(NOTHING)
    ours, theirs = level(found.score(start), test, nothing), level(nothing, test, found.score(start))
    return (
        f"With all {found.facts.labels[ALL]} labels {start} ({USES[found.use]}) has {percent(ours.value)} "
        f"{measure(test)}, training from nothing ({USES[found.best[NOTHING]]}) {percent(theirs.value)}: "
        f"{points(gain)}, on {counted(gain.images, 'test image')} and {counted(gain.seeds, 'seed')}."
    )


def _labels(found: Verdict) -> str:
    start, everything, of_labels = found.start, found.facts.labels[ALL], gaps(found)
    how, needed = labels_needed([(labels, gap.value) for labels, gap in of_labels])
    if how == "more than" or needed >= everything:
        which = "even with" if how == "more than" else "with fewer than"
        return f"{start} saves no labels: {which} all of them it does not reach training from nothing."
    fewest, most = (
        labels_needed([(labels, getattr(gap, end)) for labels, gap in of_labels]) for end in ("high", "low")
    )
    limits = " to ".join(f"{'' if how == 'about' else f'{how} '}{labels:.0f}" for how, labels in (fewest, most))
    saved = f"it saves {'at least' if how == 'at most' else 'about'} {100 * (1 - needed / everything):.0f} % of them"
    sure = most[0] != "more than" and most[1] < everything
    return (
        f"{start} needs {how} {needed:.0f} labels (95 %: {limits}) for what training from nothing reaches "
        f"with all {everything}: {saved if sure else 'whether it saves any cannot be told'}."
    )


def _fewer(found: Verdict) -> str:
    listed = [
        f"{counted(one.count, 'label')} a class: {percent(one.ours.value)} ({one.uses[0]}) against "
        f"{percent(one.nothing.value)} ({one.uses[1]}), {points(one.gap)}"
        for one in found.few
    ]
    return f"{found.start} against nothing. {'; '.join(listed)}.{_better_frozen(found)}" if listed else ""


def _better_frozen(found: Verdict) -> str:
    """With which numbers of labels the fine-tuned start would better be used frozen, as the test images say."""
    table, start, listed = found.table, found.start, []
    for count in [one.count for one in found.few if one.uses[0] == TUNED]:
        scores = [table.get((start, use), {}).get(count) for use in (FROZEN, TUNED)]
        if all(scores) and difference(*scores, found.test).low > 0:
            listed.append(f"{counted(count, 'label')} a class ({percent(level(scores[0], found.test).value)})")
    if not listed:
        return ""
    return f" On the test images it is surely better frozen with {' and '.join(listed)}: validation cannot choose that."


def _why(found: Verdict) -> str:
    facts, best = found.facts, found.best
    shares = validated({start: found.score(start) for start in facts.starts})
    seen = [start for start in facts.starts if is_flattered(facts, start, best[start])]
    apart = {start: "; not compared, as it saw these images" if start in seen else "" for start in facts.starts}
    listed = ", ".join(f"{start} {percent(shares[start])} ({best[start]}{apart[start]})" for start in facts.starts)
    of = "within one standard error of the best" + (" and better than nothing" if found.preferred else "")
    simplest = f" It is the simplest of those {of}." if len(facts.starts) - len(seen) > 2 else ""
    prefers = "" if found.preferred else " Training from nothing is no worse than any that was compared there."
    against = not found.preferred and found.gain.low > 0
    disagree = " The test images disagree with that: more images are needed." if against else ""
    return (
        f"Chosen on {counted(found.score(found.start).held, 'validation image')}, never on the test images: "
        f"{listed}.{simplest}{prefers}{disagree}"
    )


def _others(found: Verdict) -> str:
    ours, others = found.score(found.start), [one for one in found.facts.starts if one not in (found.start, NOTHING)]
    listed = [
        f"{one} ({found.best[one]}): {points(difference(ours, found.score(one), found.test))} for {found.start}"
        for one in others
    ]
    return "; ".join(listed) + "." if listed else ""


def more_images(found: Verdict) -> str:
    """What would show smaller differences."""
    rarest = " of the rarest class" if found.test.balanced else ""
    return f"more {'groups of ' if found.facts.grouped else ''}test images{rarest}"


def _change(found: Verdict) -> str:
    facts, gain = found.facts, found.gain
    in_groups = f" in {counted(found.test.count, 'group')}" if facts.grouped else ""
    these = f"{counted(gain.images, 'test image')}{in_groups}{found.test.equal} and {counted(gain.seeds, 'seed')}"
    missed = f"a difference under {100 * gain.seen:.0f} points may be missed"
    words = [f"With {these}, {missed if gain.seen < 1 else 'no difference can be seen'}: {more_images(found)} help."]
    if gain.seeds == 1:
        words.append(
            f"One seed was fine-tuned: between seeds a deviation of {100 * BETWEEN_SEEDS:g} points is assumed."
        )
    short = {one: n for one, n in facts.epochs.items() if n < facts.recipe_epochs.get(one, 0)}
    if short:
        listed = ", ".join(
            f"{one} {counted(n, 'epoch')} (the recipe: {facts.recipe_epochs[one]})" for one, n in short.items()
        )
        words.append(f"Pre-training was shorter than the recipe's: {listed}. More --minutes may change the answer.")
    alone = [one for one in facts.starts if kind(one) == "public" and f"{one}+own" not in facts.starts]
    if alone:
        words.append(
            f"Pre-training that goes on from {', '.join(alone)} did not fit into the minutes: it may be better."
        )
    if facts.saw_test:
        listed = " and ".join(facts.saw_test)
        words.append(f"By the record of its run {listed} has seen test images: on others it may be worse.")
    if facts.copies:
        words.append(f"Not counted: {counted(facts.copies, 'test image')} that training or validation has, too.")
    if facts.left_out:
        words.append(f"Published weights that were not at hand may win: {'; '.join(facts.left_out)}.")
    if facts.too_long:
        words.append(
            f"{counted(facts.too_long, 'fine-tuning')} did not fit into the minutes; more seeds make it surer."
        )
    if kind(found.start).startswith("public"):
        words.append(
            f"{found.start} and nothing differ in weights, network and image size: the gain is of all three together."
        )
    words.append("Each pre-training was made once: how much another seed of it differs is not in the intervals.")
    return " ".join(words)

"""The words of a verdict: a headline, what the start gains, why it was chosen, what would change the answer."""

from ssl.console import counted
from ssl.worth.choice import USES, Facts, is_flattered, kind, not_tuned, too_short, validated
from ssl.worth.intervals import BETWEEN_SEEDS, Estimate, difference, level
from ssl.worth.scores import Judges
from ssl.worth.splits import ALL
from ssl.worth.starts import NOTHING, OWN
from ssl.worth.verdict import CHANCE, OTHERS, SHORT, UNKNOWN, UNTUNED, VALIDATION, WORTH, Verdict, gaps, labels_needed

SEEDS = "more seeds"


def paragraphs(found: Verdict) -> dict[str, str]:
    """{title: sentences}"""
    words = {
        "What is compared": _compared(found.facts),
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


def caption(test: Judges) -> str:
    return (
        f"{measure(test).capitalize()} on {counted(len(test), 'test image')}; in brackets 95 % intervals. Differences "
        "are of the same images and draws of labels: they can be sure where these intervals overlap"
    )


def measure(test: Judges) -> str:
    return "balanced accuracy" if test.balanced else "accuracy"


def headline(found: Verdict) -> str:
    facts, start, but = found.facts, found.start, _with_few(found)
    if found.outcome == NOTHING:
        some = any(kind(one) == "public" for one in facts.starts)
        which = "not all published weights were compared" if some else "published weights were not compared"
        missing = f"; {which}" if facts.left_out else ""
        return f"Train from nothing: pre-training does not pay with {_all(facts)}{but}{missing}"
    if found.outcome == UNKNOWN:
        return f"{_doubt(found)}{but}"
    public, use = start.removesuffix("+own"), USES[found.use] + (f", with {_all(facts)}" if facts.left else "")
    return {
        OWN: f"Pre-train on your images, and use the encoder {use}",
        "public": f"Start from {public}, {use}{_further(found, public)}",
        "public+own": f"Continue {public} on your images without labels, and use it {use}",
    }[found.outcome]


def _all(facts: Facts) -> str:
    return f"{facts.labels[ALL]} of {facts.labels[ALL] + facts.left} labels" if facts.left else "all labels"


def _doubt(found: Verdict) -> str:
    """That it cannot be told, and why."""
    facts, start, gain = found.facts, found.start, found.gain
    unknown = f"whether pre-training pays with {_all(facts)}"
    gains = f"{_means(start)} gains {100 * gain.low:+.1f} to {100 * gain.high:+.1f} points over training from nothing"
    chance = f"{100 * min(max(gain.chance, 0.01), 0.99):.0f} %"
    small = f"With {_all(facts)} {_as_measured(found)} does not pay"
    others, untuned = " or ".join(found.may_pay), ", ".join(not_tuned(found.table, facts))
    whole = ", ".join(f"{facts.recipe_epochs[one]} for {one}" for one in too_short(facts))
    return {
        CHANCE: f"It cannot be told from {counted(gain.images, 'test image')} {unknown}: {gains}; the chance that "
        f"it is better is {chance}",
        VALIDATION: f"It cannot be told {unknown}: on the test images {gains}, but on the validation images training "
        "from nothing is better",
        OTHERS: f"{small}; whether {others} does cannot be told",
        SHORT: f"{small}; whether the epochs of the recipe ({whole}) would pay cannot be told",
        UNTUNED: f"It cannot be told {unknown}: {untuned} could not be fine-tuned with them in these minutes",
    }[found.why]


def _means(start: str) -> str:
    """The start, with what it is if its name does not say it."""
    more = {OWN: " (pre-trained on your images)", "public+own": " (pre-trained further on your images)"}
    return f"{start}{more.get(kind(start), '')}"


def _with_few(found: Verdict) -> str:
    """What is surely better than nothing with few labels."""
    sure: dict[tuple[str, str], list[str]] = {}
    for one in found.few:
        if one.tuned and one.best_gap.low > 0:
            sure.setdefault(one.best, []).append(str(one.count))
    listed = [f"with {_few(counts, 'or')} {start} ({use})" for (start, use), counts in sure.items()]
    return "".join(f"; {words} is better" for words in listed)


def _few(counts: list[str], word: str) -> str:
    """'5 or 20 labels a class'."""
    return f"{f' {word} '.join(counts)} label{'' if counts[-1].split()[0] == '1' else 's'} a class"


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


def _compared(facts: Facts) -> str:
    """What the names of the starts mean."""
    words = {
        NOTHING: "random weights",
        OWN: "the network of nothing, pre-trained on your images without their labels",
        "public": "published weights",
        "public+own": "published weights, pre-trained further on your images without their labels",
    }
    listed = "; ".join(f"{start}: {words[kind(start)]}" for start in facts.starts)
    some = f" The minutes are too few for more than {_all(facts)}: with more of them pre-training often gains less."
    return f"{listed}.{some if facts.left else ''}"


def _meanwhile(found: Verdict) -> str:
    if found.outcome != UNKNOWN:
        return ""
    if found.meanwhile == found.start:
        words = f"take {found.start}: validation and test images both prefer it"
    elif found.gain.high < WORTH:
        words = f"train from nothing: {_as_measured(found)} gains under {100 * WORTH:.0f} points"
    else:
        who = "the test images do" if found.lead > 0 else "validation does"
        words = f"train from nothing, which is simpler: {found.start} may be better, but {who} not prefer it"
    return f"With {_all(found.facts)} {words}. It may be told with {_more(found)}."


def _more(found: Verdict) -> str:
    """What may tell what cannot be told."""
    facts, narrower = found.facts, _narrower(found)
    if found.why == VALIDATION:
        return "more validation images"
    if narrower == SEEDS or found.why != CHANCE or too_short(facts):
        seeds = ", more --seeds" if narrower == SEEDS and not facts.too_long else ""
        return f"the same command, four times the --minutes{seeds} and another --output_dir"
    return narrower


def _gain(found: Verdict) -> str:
    start, test, gain, nothing = found.start, found.test, found.gain, found.score(NOTHING)
    labels = _all(found.facts) if found.facts.left else f"all {found.facts.labels[ALL]} labels"
    ours, theirs = level(found.score(start), test, nothing), level(nothing, test, found.score(start))
    return (
        f"With {labels} {start} ({USES[found.use]}) has {percent(ours.value)} "
        f"{measure(test)}, training from nothing ({USES[found.best[NOTHING]]}) {percent(theirs.value)}: "
        f"{points(gain)}, on {counted(gain.images, 'test image')} and {counted(gain.seeds, 'seed')}."
    )


def _labels(found: Verdict) -> str:
    start, everything, of_labels = found.start, found.facts.labels[ALL], gaps(found)
    needed, fewest, most = (
        labels_needed([(labels, getattr(gap, end)) for labels, gap in of_labels]) for end in ("value", "high", "low")
    )
    saves, may_save, surely = (how != "more than" and labels < everything for how, labels in (needed, fewest, most))
    if not may_save:
        which = "even with" if fewest[0] == "more than" else "with fewer than"
        return f"{start} saves no labels: {which} all of them it does not reach training from nothing."
    count, low, high = (f"{'' if how == 'about' else f'{how} '}{labels:.0f}" for how, labels in (needed, fewest, most))
    about = f"about {count}" if needed[0] == "about" else count
    needs = f"{about} labels (95 %: {low} to {high})" if saves else f"{low} to {high} labels (95 %)"
    share = f"{'at least' if needed[0] == 'at most' else 'about'} {100 * (1 - needed[1] / everything):.0f} %"
    saved = f"it saves {share} of them" if saves and surely else "whether it saves any cannot be told"
    return f"{start} needs {needs} for what training from nothing reaches with all {everything}: {saved}."


def _fewer(found: Verdict) -> str:
    listed = [
        f"{counted(one.count, 'label')} a class: {percent(one.ours.value)} ({one.uses[0]}) against "
        f"{percent(one.nothing.value)} ({one.uses[1]}), {points(one.gap)}"
        for one in found.few
    ]
    return f"{found.start} against nothing. {'; '.join(listed)}.{_better(found)}" if listed else ""


def _better(found: Verdict) -> str:
    """Which start and use is better with few labels, where the test images are sure."""
    better: dict[tuple[str, str], list[str]] = {}
    for one in found.few:
        if one.best != (found.start, one.uses[0]):
            better.setdefault(one.best, []).append(f"{one.count} ({percent(one.best_level.value)})")
    listed = [f"{start} ({use}) with {_few(counts, 'and')}" for (start, use), counts in better.items()]
    if not listed:
        return ""
    return f" On the test images this is surely better: {'; '.join(listed)}. Validation cannot choose that."


def _why(found: Verdict) -> str:
    facts, best = found.facts, found.best
    shares = validated({start: found.score(start) for start in facts.starts})
    seen = [start for start in facts.starts if is_flattered(facts, start, best[start])]
    apart = {start: "; not compared, as it saw these images" if start in seen else "" for start in facts.starts}
    listed = ", ".join(f"{start} {percent(shares[start])} ({best[start]}{apart[start]})" for start in facts.starts)
    of = "within one standard error of the best" + (" and better than nothing" if found.lead > 0 else "")
    simplest = f" It is the simplest of those {of}." if len(facts.starts) - len(seen) > 2 else ""
    prefers = "" if found.lead > 0 else " Training from nothing is no worse than any that was compared there"
    if prefers:
        near = found.outcome == kind(found.start)
        prefers += ", but by less than a standard error: the test images decide." if near else "."
    return (
        f"Chosen on {counted(found.score(found.start).held, 'validation image')}, never on the test images: "
        f"{listed}.{simplest}{prefers}"
    )


def _others(found: Verdict) -> str:
    ours, others = found.score(found.start), [one for one in found.facts.starts if one not in (found.start, NOTHING)]
    listed = [
        f"{one} ({found.best[one]}): {points(difference(ours, found.score(one), found.test))} for {found.start}"
        for one in others
    ]
    return "; ".join(listed) + "." if listed else ""


def _not_continued(facts: Facts) -> list[str]:
    return [start for start in facts.starts if kind(start) == "public" and f"{start}+own" not in facts.starts]


def _narrower(found: Verdict) -> str:
    """What would show smaller differences: more of what most of the variance is of."""
    if found.gain.of_seeds > 0.5:
        return SEEDS
    rarest = " of the rarest class" if found.test.balanced else ""
    return f"more {'groups of ' if found.facts.grouped else ''}test images{rarest}"


def _change(found: Verdict) -> str:
    facts, gain = found.facts, found.gain
    in_groups = f" in {counted(found.test.count, 'group')}" if facts.grouped else ""
    these = f"{counted(gain.images, 'test image')}{in_groups}{found.test.equal} and {counted(gain.seeds, 'seed')}"
    missed = f"a difference under {100 * gain.seen:.0f} points may be missed"
    words = [f"With {these}, {missed if gain.seen < 1 else 'no difference can be seen'}: {_narrower(found)} help."]
    if gain.seeds == 1:
        words.append(
            f"One seed was fine-tuned: between seeds a deviation of {100 * BETWEEN_SEEDS:g} points is assumed."
        )
    if short := too_short(facts, 1):
        listed = ", ".join(
            f"{one} {counted(facts.epochs[one], 'epoch')} (the recipe: {facts.recipe_epochs[one]})" for one in short
        )
        words.append(f"Pre-training was shorter than the recipe's: {listed}. More --minutes may change the answer.")
    if alone := _not_continued(facts):
        words.append(
            f"Pre-training that goes on from {', '.join(alone)} did not fit into the minutes: it may be better."
        )
    if facts.saw_test:
        listed = " and ".join(facts.saw_test)
        words.append(f"By the record of its run {listed} has seen test images: on others it may be worse.")
    if facts.copies:
        words.append(f"Not counted: {counted(facts.copies, 'test image')} that training or validation has, too.")
    if facts.classes_out:
        words.append(f"The answer is not of {facts.classes_out} of the classes, which were left out.")
    if facts.left_out:
        words.append(f"Published weights that were not at hand may win: {'; '.join(facts.left_out)}.")
    if facts.too_long:
        words.append(f"{counted(facts.too_long, 'fine-tuning')} did not fit into the minutes.")
    if kind(found.start).startswith("public"):
        words.append(
            f"{found.start} and nothing differ in weights, network and image size: the gain is of all three together."
        )
    words.append("Each pre-training was made once: how much another seed of it differs is not in the intervals.")
    return " ".join(words)

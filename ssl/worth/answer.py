"""Do what was planned, and answer: the jobs in their order, the scores of their results, the verdict and the table."""

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import torch

from ssl import files
from ssl.checkpoints import about
from ssl.console import counted, say, table
from ssl.settings.command import command
from ssl.worth import scores, words
from ssl.worth.choice import FROZEN, TUNED, USES, Facts, Table, kind
from ssl.worth.intervals import difference, level
from ssl.worth.jobs import Job
from ssl.worth.kept import Agreed
from ssl.worth.plan import Cell, duration, of_cells, tasks
from ssl.worth.scores import Features, Judges, Score
from ssl.worth.splits import ALL, called
from ssl.worth.starts import NOTHING
from ssl.worth.verdict import UNKNOWN, Verdict, decide
from ssl.worth.work import Work


def jobs(work: Work, agreed: Agreed, seed: int) -> list[Job]:
    """All jobs: features of the weights that are there, pre-training with its features, then the fine-tunings."""
    own, made, starts, found = agreed.networks[0], agreed.plan, agreed.starts(), []
    sizes = replace(work.found.sizes(), preload=bool(work.data.get("preload")))
    if not Path(work.weights(own, NOTHING)).is_file():
        work.write_untrained(own, work.found.train.channels, seed)
    for task in tasks(agreed.networks, sizes, made.epochs, made.cells):
        network = starts[task.start]
        if task.cell:
            work.write_list(task.cell)
            job = work.tuning(network, task.start, task.cell)
            if task.cell != made.cells[0]:  # without the first there is no answer
                rest = of_cells([task.cell], agreed.networks, sizes, made.epochs)
                rest = rest[[one.start for one in rest].index(task.start) :]
                job = replace(job, seconds=duration(rest, made.at_once), pair=task.cell)
            found.append(job)
        else:
            found.append(work.pretraining(network, made) if task.makes else work.features(network, task.start))
    return found


def without_undone(work: Work, agreed: Agreed) -> Agreed:
    """With the fine-tunings that were left out among those that took too long: of both starts, if one has none."""

    def done(cell: Cell) -> bool:
        starts = [start for start, network in agreed.starts().items() if network.name == cell.network]
        return all(work.tuning(agreed.starts()[start], start, cell).done() for start in starts)

    cells = [cell for cell in agreed.plan.cells if done(cell)]
    undone = [cell for cell in agreed.plan.cells if cell not in cells]
    return replace(agreed, plan=replace(agreed.plan, cells=cells, too_long=[*undone, *agreed.plan.too_long]))


def judge(work: Work, agreed: Agreed, device: torch.device) -> Verdict:
    """Score what the jobs have left, and decide. The scores of frozen encoders are kept in files."""
    found, splits = work.found, work.found.splits
    places = {start: work.features(network, start).folder for start, network in agreed.starts().items()}
    origin = places[NOTHING] / "features.pt"
    test, counts = scores.readable_test(origin, splits["test"], found.balanced, found.copies)
    judged: Table = {}
    for start, place in places.items():
        kept = place.with_name("frozen.json")
        rows = files.json_object(kept).get("draws", []) if kept.is_file() else []
        if not rows:
            say(f"judge       {start}, frozen, {counted(len(found.draws), 'draw')} of labels")
            of_start = Features.load(place / "features.pt", splits, found.copies, device)
            rows = [scores.judge_frozen(of_start, draw, found.train, found.balanced) for draw in found.draws]
            files.write_text(files.json_text({"draws": rows}), kept)
        judged[start, FROZEN] = scores.gather(rows, all_drawn=agreed.most is not None)
    for start, network in agreed.starts().items():
        rows = []
        for cell in agreed.plan.cells:
            if cell.network == network.name:
                place = work.tuned_at(start, cell)
                rows.append(scores.judge_tuned(place, cell.count, cell.seed, test, counts, found.train.classes))
        judged[start, TUNED] = scores.gather(rows, judged[start, FROZEN], agreed.most is not None)
    return decide(judged, test.subset(counts), _facts(work, agreed))


def _facts(work: Work, agreed: Agreed) -> Facts:
    made, starts = agreed.plan, agreed.starts()
    trained = {start: network for start, network in starts.items() if start == network.starts[1]}
    flattered = [start for start, network in starts.items() if network.seen or (start in trained and work.found.seen)]
    return Facts(
        starts=list(starts),
        labels=work.found.labels(),
        epochs={start: made.epochs[network.name] for start, network in trained.items()},
        recipe_epochs={start: network.recipe_epochs for start, network in trained.items()},
        left_out=agreed.left_out,
        too_long=sum(network.name == cell.network for cell in made.too_long for network in starts.values()),
        grouped=work.found.splits["test"].groups is not None,
        flattered=flattered,
        saw_test=tuple(network.name for network in agreed.networks if network.saw_test),
        copies=len(work.found.copies),
        classes_out=len(work.found.train.left_out),
        left=len(work.found.train) - work.found.labels()[ALL],
    )


# Told -------------------------------------------------------------------------------------------


def tell(verdict: Verdict) -> None:
    """Print the table and the verdict."""
    say("\n" + table(rows(verdict, accuracy)))
    say(_filled(f"{words.caption(verdict.test)}."))
    say(f"\n{words.headline(verdict)}.")
    for title, sentences in words.paragraphs(verdict).items():
        say("\n" + _filled(f"{title}. {sentences}"))


def _filled(sentences: str) -> str:
    return textwrap.fill(sentences, 100, break_on_hyphens=False)


def next_step(verdict: Verdict, work: Work, agreed: Agreed) -> str:
    """The command that fine-tunes the answer, or what to take until it can be told, as it was measured."""
    outcome = verdict.meanwhile if verdict.outcome == UNKNOWN else verdict.outcome
    start, use = (NOTHING, TUNED) if outcome == NOTHING else (verdict.start, verdict.use)
    network, work = agreed.starts()[start], replace(work, found=work.found.limited(None))  # all labels there are
    settings = work.tuning(network, start, Cell(network.name, ALL, 0)).settings
    own = {"train_files", "save_minutes", *work.machine}  # of the comparison: all labels need no list
    settings = {name: value for name, value in settings.items() if name not in own}
    if use == FROZEN:
        settings |= {"freeze": True, "lr_backbone": None, "image_size": network.judge_size}
        settings["short_side"] = work.data.get("short_side")  # features are of whole images
    return command("finetune.py", **settings)


def rows(verdict: Verdict, cell: Callable[[Score, Judges], str], uses: Iterable[str] = USES) -> list[list[str]]:
    """A head, then a row for each start and use, a column for each number of labels."""
    counts = list(verdict.facts.labels)
    found = [["", *(heading(count, verdict.facts) for count in counts)]]
    for start, use in product(verdict.facts.starts, uses):
        if of_use := verdict.table[start, use]:
            cells = (cell(of_use[count], verdict.test) if count in of_use else "-" for count in counts)
            found.append([f"{start}, {use}", *cells])
    return found


def heading(count: int, facts: Facts) -> str:
    all_labels = f"{'' if facts.left else 'all '}{facts.labels[ALL]} labels"
    return all_labels if count == ALL else f"{count} a class"


def accuracy(score: Score, test: Judges) -> str:
    found = level(score, test)
    return f"{words.percent(found.value)} ({100 * found.low:.1f}–{100 * found.high:.1f})"


def against_nothing(verdict: Verdict) -> list[list[str]]:
    """Of each start and number of labels, the difference from nothing in the same use."""
    found = []
    for start in verdict.facts.starts[1:]:
        for use in (FROZEN, TUNED):
            ours, nothing = verdict.table[start, use], verdict.table[NOTHING, use]
            for count in verdict.facts.labels:
                if count in ours and count in nothing and ours[count].right.keys() & nothing[count].right.keys():
                    gap = difference(ours[count], nothing[count], verdict.test)
                    found.append([f"{start}, {use}", heading(count, verdict.facts), words.points(gap), str(gap.seeds)])
    return found


def _numbers(score: Score, test: Judges) -> dict:
    """What worth.json says of a score. What could be seen is of differences, and so is a chance."""
    found = asdict(level(score, test))
    of_level = {name: found[name] for name in ("value", "low", "high", "seeds", "images")}
    return of_level | {"validation": score.validation, "knn": score.knn}


def as_json(verdict: Verdict, of: dict, agreed: Agreed) -> dict:
    """worth.json: every number, and what it is of."""
    test = verdict.test
    numbers = {
        start: {
            use: {called(count): _numbers(score, test) for count, score in verdict.table[start, use].items()}
            for use in (FROZEN, TUNED)
        }
        for start in verdict.facts.starts
    }
    return {
        "verdict": {
            "outcome": verdict.outcome,
            "start": verdict.start,
            "kind": kind(verdict.start),
            "why": verdict.why or None,
            "meanwhile": verdict.meanwhile if verdict.outcome == UNKNOWN else None,
            "use": verdict.use,
            "headline": words.headline(verdict),
            "gain": asdict(verdict.gain),
            "words": words.paragraphs(verdict),
        },
        "measure": words.measure(test),
        "labels": {called(count): labels for count, labels in verdict.facts.labels.items()},
        "accuracies": numbers,
        "facts": {name: value for name, value in asdict(verdict.facts).items() if name != "labels"},
        "plan": {name: value for name, value in asdict(agreed.plan).items() if name != "too_long"},
        "of": of,
        "versions": about.versions(),
    }

"""A command: does self-supervised pre-training pay on my images?

python -m ssl.worth DATA --minutes 30
python -m ssl.worth DATA --unlabelled MORE --public imagenet
python -m ssl.worth DATA --minutes 30 --plan
python -m ssl.worth --help
"""

import dataclasses
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from ssl import distributed, failures, files
from ssl.checkpoints.lock import lock
from ssl.console import say
from ssl.data.cores import usable_cores
from ssl.errors import UserError, one_line_errors
from ssl.settings import config, ranges
from ssl.settings.command import ROOT
from ssl.settings.shared import ImageSettings
from ssl.sources import datasets
from ssl.training.threads import settle_threads
from ssl.worth import answer, kept, look, measure, networks, page, plan, unlabelled
from ssl.worth.jobs import run_all
from ssl.worth.starts import find_public
from ssl.worth.work import METHOD, Work


@dataclass
class Settings(ImageSettings):
    """Does self-supervised pre-training pay on my images?

    Compared are: from nothing; published weights (ImageNet's labels, Barlow Twins); an encoder pre-trained on your
    images without labels; and published weights on which that pre-training goes on. Each is judged frozen, with 1, 5,
    20 and all labels a class, and fine-tuned, on the same draws of labels, and a verdict in words follows, with its
    uncertainty. It says first what fits into the minutes. The test images never choose between pre-trained starts.
    After a stop the same command goes on.
    """

    FIRST = "data_dir", "minutes", "unlabelled", "public", "plan", "output_dir"  # in --help

    # What to compare, besides nothing and your images
    unlabelled: str | None = None  # folder of more images, without labels, to pre-train on
    public: list[str] = field(default_factory=lambda: ["imagenet", "barlow_twins"])  # names, FILE=ENCODER, or none
    # How long
    minutes: float = 30.0  # for everything, on this machine
    seeds: int = 5  # of fine-tunings; fewer if the minutes are short
    plan: bool = False  # only say what would fit
    # Machine
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    workers: int | None = None  # loader processes of a job; unset: one fewer than its share of the cores
    # Output
    output_dir: str | None = None  # worth.html, worth.json and all runs; unset: runs/worth_DATA


def main() -> None:
    began = time.monotonic()
    distributed.be_alone()
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words = ["--data_dir", *words]
    settings, origin = config.parse(Settings, words)
    check(settings)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the jobs that run save and end
    device = distributed.join(settings.device)
    settle_threads()

    # Look
    found = look.look(settings, settings.seeds)
    folder = Path(settings.output_dir)
    held = lock(folder / "lock")
    data = pretrain_on = look.passed_on(settings)
    images = [one for one in found.splits.values() if one is not None]
    of = {"settings": identity(settings), "images": look.identity(found, settings.data_dir), "method": METHOD}
    if settings.unlabelled:
        judges = [found.splits[name] for name in ("val", "test") if found.splits[name] is not None]
        more = unlabelled.find(settings, settings.unlabelled, judges)
        of["images"]["pre-training"] = more.fingerprint(None)
        pretrain_on = {"data_dir": folder / "images"} | look.passed_on(settings, look.OF_FILES)
        images.append(more)

    # Plan, or go on with the plan that was made
    agreed = kept.read(folder / "plan.json", of)  # refuses another comparison before anything is written
    at_once = kept.still_at_once(agreed, measure.jobs_at_once(device, images, settings.image_size, settings.preload))
    work = Work(folder, found, data, pretrain_on, *of_jobs(settings, at_once))
    if settings.unlabelled:
        unlabelled.link(more, folder / "images")
    if agreed is None:
        with measure.beside(at_once - 1, work.threads, folder / "measured" / "beside.log"):
            workers = work.machine["workers"]
            read = measure.seconds_to_read(found.train, workers)
            machine = networks.Machine(device, at_once, 60 * settings.minutes, workers, read)
            agreed = agree(settings, origin["public"] != "default", found, work, machine, began)
        kept.write(folder / "plan.json", of, agreed)
    found = found.limited(agreed.most)
    work = dataclasses.replace(work, found=found)
    kept.tell(agreed, found)
    if settings.plan:
        return

    # Do
    run_all(answer.jobs(work, agreed, settings.seed or 0), at_once, until=began + 60 * settings.minutes)
    agreed = answer.without_undone(work, agreed)

    # Judge, and say what it means
    result = answer.judge(work, agreed, device)
    answer.tell(result)
    files.write_text(files.json_text(answer.as_json(result, of, agreed)), folder / "worth.json")
    following = answer.next_step(result, work, agreed)
    files.write_text(page.page(result, agreed, found, following, settings.unlabelled), folder / "worth.html")
    say(f"\npage        {folder / 'worth.html'}\nnumbers     {folder / 'worth.json'}")
    say(f"next        {following}")
    held.close()


def of_jobs(settings: Settings, at_once: int) -> tuple[dict, int | None]:
    """(settings of the machine for each of the jobs that run side by side, its threads). None: the job settles them."""
    share = max(1, usable_cores() // at_once)
    workers = share - 1 if settings.workers is None and at_once > 1 else settings.workers
    threads = min(share, torch.get_num_threads()) if at_once > 1 else None
    return {"device": settings.device, "workers": workers}, threads


def agree(
    settings: Settings, named: bool, found: look.Look, work: Work, machine: networks.Machine, began: float
) -> kept.Agreed:
    """Measure the networks, and plan. `named`: the user has named the public weights. `began`: when the clock began."""
    train, images = found.train, found.sizes().all
    public, left_out = find_public(settings.public, named, machine.on_cpu, found.splits, settings.data_dir)
    own = networks.own(work, settings.image_size, train, machine)
    drawn = own.judge_size if settings.dataset in datasets.MADE else None  # at another size they are other images
    size = settings.image_size or drawn
    some = [own, *(networks.public(work, one, size, train, images, machine) for one in public)]
    spent = time.monotonic() - began
    flops = plan.HEAD_FLOPS["cpu"] * usable_cores() if machine.on_cpu else plan.HEAD_FLOPS["cuda"]

    def made(of: look.Look) -> plan.Plan:
        cells = plan.order_of_use(some, list(of.labels()), settings.seeds)
        cells = [cell for cell in cells if (cell.count, cell.seed) in of.tunable]
        labels = sum(len(one.fit) for one in of.draws)
        sizes = dataclasses.replace(of.sizes(), preload=settings.preload)
        return plan.make(machine.seconds, spent, some, sizes, cells, labels, flops, machine.at_once)

    largest = int(torch.bincount(train.labels).max())
    for most in (None, *(count for count in plan.MOST if count < largest)):
        try:
            return kept.Agreed(some, made(found.limited(most)), left_out, most)
        except UserError as error:
            too_few = error
    raise too_few


def check(settings: Settings) -> None:
    """Settle the data set and the folder, and refuse what cannot work."""
    if settings.dataset is None and settings.data_dir is None:
        raise UserError(
            "data_dir: which images? Pass a folder with class folders, python -m ssl.worth DATA, or a known set, "
            "--dataset NAME"
        )
    datasets.resolve(settings)
    if not settings.minutes > 0:
        raise UserError(f"minutes: {settings.minutes:g} must be positive")
    if settings.seeds < 1:
        raise UserError(f"seeds: {settings.seeds} must be at least 1")
    ranges.check(settings)
    settings.output_dir = os.path.abspath(settings.output_dir or ROOT / "runs" / f"worth_{datasets.called(settings)}")
    check_folder(Path(settings.output_dir), {"data_dir": settings.data_dir, "unlabelled": settings.unlabelled})


def check_folder(folder: Path, images: dict[str, str | None]) -> None:
    """Refuse a folder that is among the images, or that holds something else. `images`: {setting: folder}."""
    for name, root in images.items():
        if root is not None and Path(root).is_dir() and folder.resolve().is_relative_to(Path(root).resolve()):
            raise UserError(f"output_dir: {folder} is in {name}, {root}; choose one outside of the images")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"output_dir: {folder} is a file; choose a folder")
    names = set(os.listdir(folder))
    if names and not names & {"plan.json", "measured"} and not {"lock"} <= names <= {"lock", "images"}:
        raise UserError(f"output_dir: {folder} holds other files, of no comparison; choose an empty or a new folder")


def identity(settings: Settings) -> dict:
    """The settings that a plan is made for."""
    free = {"output_dir", "plan", "workers", "csv", "class_list", "splits_folder", "download"}
    found = {name: value for name, value in dataclasses.asdict(settings).items() if name not in free}
    return json.loads(json.dumps(found))  # lists for tuples, as plan.json has them


if __name__ == "__main__":
    with one_line_errors("worth", failures.explain):
        main()

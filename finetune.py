"""Fine-tune an encoder on labels, or train a head on it, and test what comes of it.

python finetune.py --init runs/barlow_twins_shapes                   the run's own data set
python finetune.py --init moco_v2.pth --method moco --data_dir DIR   class folders with train/, val/, test/
python finetune.py --test_only --model_path RUN --data_dir OTHER     a finished one on other images
python finetune.py --help                                            every setting
"""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().with_name("ssl"))]  # see ssl/__init__.py

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl import distributed, failures, files, optim
from ssl.augment import View
from ssl.checkpoints import inherit, learnt_from, pretrained, resume, run_folder
from ssl.console import Progress, say
from ssl.data import preload
from ssl.data.bad_images import BadImages
from ssl.data.cores import auto_workers
from ssl.data.hold_out import hold_out
from ssl.data.images import Images
from ssl.data.loader import finish, training_batches
from ssl.data.order import Order
from ssl.data.values import tell_values
from ssl.data.worker import Batch
from ssl.distributed import is_main, world_size
from ssl.encoders import build_encoder
from ssl.errors import UserError, one_line, one_line_errors
from ssl.evaluation import classify
from ssl.files import json_text
from ssl.schedules import plateau, warmup_cosine
from ssl.settings import auto, config, ranges
from ssl.sources import datasets, labels, leaks
from ssl.sources.slides import MAJOR
from ssl.training import best_model, early_stopping, stopping, trainable
from ssl.training.forward import blank_batch, rehearse
from ssl.training.log import Metrics
from ssl.training.precision import choose_precision, name_of, resolve_precision
from ssl.training.threads import settle_threads
from ssl.training.watchdog import Watchdog

ROOT = Path(__file__).resolve().parent


@dataclass
class Settings:
    """Fine-tune an encoder on labels, or train a head on it, and test what comes of it.

    What is unset is as in the run that --init belongs to, where it says 'the run's'. The best epoch
    is chosen on the validation split; the test split is scored once, by that one.
    """

    # Where settings come from
    config: str | None = None  # YAML file of settings; the command line wins over it
    row: int | None = None  # which row of that file's table, from 1 on
    # From what
    init: str | None = None  # encoder weights: run folder or file, ours or other people's; unset: untrained
    method: Literal["simclr", "swav", "byol", "moco", "infomin", "baseline"] | None = None  # what --init must be of
    encoder: str | None = None  # unset: the run's, or by the shapes of its weights, or resnet50
    encoder_kwargs: dict | None = None  # unset: the run's
    stem: Literal["auto", "imagenet", "small"] | None = None  # unset: the run's, or by the shapes of its weights
    # On what
    dataset: str | None = None  # as of train.py; unset: the run's
    data_dir: str | None = None  # unset: the run's
    class_list: str | None = None  # unset: the run's
    csv: str | None = None  # table that names the images below data_dir; unset: the run's
    image_column: str | None = None  # of the table: paths below data_dir; unset: the run's, or image
    label_column: str | None = None  # of the table: classes; unset: the run's
    positive: list[str] | None = None  # of the table: these labels are class 'positive', all others 'negative'
    group_column: str | None = None  # of the table: patient, lesion or slide; its images stay in one split
    split_column: str | None = None  # of the table: train, val or test
    splits_folder: str | None = None  # of ISIC 2019: folder of {train,val,test}_split_1.csv
    test_slides: list[str] | None = None  # slides: hospitals, patients or slides that are the test; or a csv says so
    download: bool = False  # let torchvision download the data set
    image_size: int | None = None  # unset: the run's, or the data set's
    value_range: tuple[float, float] | None = None  # numbers of the files that are black and white; unset: the run's
    mean: list[float] | None = None  # of normalisation; unset: what --init is used to, or the data set's
    std: list[float] | None = None  # of normalisation; unset: what --init is used to, or the data set's
    train_percent: float = 100.0  # share of the labels, of every class, by seed
    train_files: str | None = None  # or a file that lists the names of the training images to use
    val_fraction: float = 0.1  # of every class, kept for validation where the data set has no split for it
    max_bad_fraction: float = 0.001  # of the images may be unreadable, and 10 in any case
    # How
    freeze: bool = False  # train the head alone, on an encoder in evaluation mode
    batch_size: int = 32  # images per process
    epochs: int = 100  # at most
    lr: float = 1e-3  # of the head
    lr_backbone: float | None = None  # of the encoder; unset: the same
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"  # of head and encoder
    momentum: float = 0.9  # of sgd
    weight_decay: float = 1e-3  # of everything
    schedule: Literal["plateau", "cosine", "cosine_by_epoch"] = "plateau"  # plateau: of the validation
    plateau_factor: float = 0.1  # what lr is multiplied by
    plateau_patience: int = 10  # after more epochs than this without a new best
    warmup_epochs: float | Literal["auto"] = 0.0  # of the cosines: linear up to lr; auto: a tenth of the run, up to 10
    min_lr: float = 1e-5  # where a schedule ends, or lr where that is less
    watch: Literal["loss", "auc", "balanced_accuracy"] = "loss"  # of validation: what best, plateau and patience go by
    patience: int = 22  # epochs without a new best after which training ends
    balanced: bool = False  # draw every class equally often
    sync_bn: bool = True  # batch norm over the global batch
    # Views of training, and of testing with copies
    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area that a crop keeps
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)  # its width / height
    flip: float = 0.5  # probability
    vertical_flip: float = 0.0  # probability
    rotation: float = 0.0  # degrees to either side
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue
    jitter_prob: float = 1.0  # probability
    grayscale: float = 0.0  # probability
    # Test
    test_only: bool = False  # test --model_path, train nothing
    model_path: str | None = None  # with test_only: run folder of finetune.py, or its best.pt
    copies: int = 1  # 1: the plain image; more: mean of the scores of so many random views of it
    major: list[str] | None = None  # classes whose test images are also reported apart from the others; unset: tissue's
    runs: int = 1  # repeat with seed, seed + 1, ..., and report mean and standard deviation
    # Machine
    gpus: int | None = None  # start so many processes here, as torchrun would
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"  # auto: bf16 where the hardware has it, else fp16 on CUDA
    compile: bool = False  # torch.compile the model
    workers: int | None = None  # loader processes per process; unset: the cores it may use
    preload: bool = False  # decode the files of train and val once, into memory that processes and workers share
    deterministic: bool = False  # on a GPU: the same bits every time, slower; a CPU gives them anyway
    timeout_minutes: float = 10.0  # without a step, after which the run is ended and the rank it waits for is named
    # Run
    seed: int | None = None  # of head, order, views, label subset; unset: the run's, or 0
    output_dir: str | None = None  # run folder; unset: runs/finetune_DATASET; of test_only MODEL/test_DATA
    resume: str = "auto"  # auto: continue the run in output_dir; none: refuse to; or a checkpoint file
    resume_force: bool = False  # continue although settings differ that change what is learnt
    save_minutes: float = 10.0  # between checkpoints; the end of every run is always saved
    keep_checkpoints: int = 2  # how many of the newest stay


def main() -> None:
    settings, origin = config.parse(Settings)
    auto.shorten_warmup(settings, origin)
    if settings.test_only:
        return test_only(settings, origin)
    before = pretrained.run_settings(settings.init, settings.method) if settings.init else {}
    unset = {name for name, value in vars(settings).items() if value is None}
    inherit.fill(settings, before)
    if settings.image_size is None:
        settings.image_size = config.coerce(before.get("image_size"), int | None, "the run's image_size")
    inherited = {name: "the run of --init" for name in unset & set(before) if getattr(settings, name) is not None}
    check(settings)
    if settings.gpus is not None and "RANK" not in os.environ:
        distributed.start_processes(settings.gpus)
    device = begin(settings)

    # Run folder
    folder = Path(settings.output_dir or ROOT / "runs" / f"finetune_{settings.dataset}")
    run = run_folder.RunFolder(folder, settings.keep_checkpoints)
    requests = stopping.StopRequests(folder, patience=1.5 * settings.timeout_minutes)
    settle_threads(run_folder.threads_of(folder))

    # Data
    splits = load_splits(settings)
    everything, classes = splits["train"], splits["train"].classes
    train, val = choose_labels(settings, splits, settings.seed)
    if settings.init:
        learnt_from.check(settings.init, splits["test"], settings.data_dir, chooses=val)
    order = order_of(train, settings, settings.seed)
    total = settings.epochs * order.steps_per_epoch  # of one run

    # Model
    torch.manual_seed(settings.seed)
    model = Model(settings, len(classes), everything.channels)
    source = load_init(model.encoder, settings)
    inherit.normalisation(settings, source, everything)
    mean, std = (torch.tensor(values, device=device) for values in (settings.mean, settings.std))
    model.encoder.requires_grad_(not settings.freeze)
    if not settings.freeze:
        trainable.require(model.encoder, settings.image_size, everything.channels)
    if settings.sync_bn:
        model = distributed.synchronise(model, device)
    model = model.to(device, memory_format=torch.channels_last)
    untouched = run_folder.copied(model.state_dict())
    runner = distributed.parallel(model, device)
    if settings.compile:
        runner = torch.compile(runner)
    view = random_view(settings)
    predict = predictor(model, settings, device)

    # Take up what the run folder holds
    identity = {
        "global_batch": order.global_batch,
        "several_runs": settings.runs > 1,  # each in a folder of its own
        "init_weights": run_folder.checksum(untouched) if settings.init else None,
        "data": identity_of(train, settings),
        "val_data": identity_of(val, settings),
        "test_data": identity_of(splits["test"], settings),
    }
    state = resume.find_state(run, settings, identity, CHECKPOINT)
    if is_main():
        statistics = (settings.mean, settings.std)
        run.write("config.yaml", lambda path: config.write_yaml(path, dataclasses.asdict(settings)))
        run.write(
            "about.json", lambda path: run_folder.write_about(path, origin | inherited, [view], statistics, order)
        )
    introduce(settings, origin, device, splits, source, order, folder)
    run.begin(state["step"] if state else 0, settings.runs * total)
    bad_images = BadImages(folder, len(everything) + len(everything.bad), settings.max_bad_fraction,
                           state["bad_images"] if state else {})  # fmt: skip
    bad_images.note(everything.bad)
    watchdog = Watchdog(settings.timeout_minutes * 60, run.failed)

    def loss_of(batch: Batch) -> Tensor:
        """Cross-entropy, the mean of this rank's images; DDP's mean over the ranks makes it the global batch's."""
        torch.manual_seed(batch.seed)  # of dropout, should the encoder have any
        with torch.no_grad():
            (x,) = finish(batch, [view], mean, std)
        return F.cross_entropy(predictor(runner, settings, device)(x), batch.labels)

    def save(fit: Fit, wait: bool = False) -> None:
        state = fit.state_dict(total) | {
            "model": model.state_dict(),
            "bad_images": bad_images.known | bad_images.met,
            "settings": dataclasses.asdict(settings),
            "identity": identity,
            "versions": run_folder.versions(),
        }
        weights = fit.best.get("model", state["model"])  # encoder.pt, too, is of the best epoch
        run.save(state, {name[8:]: value for name, value in weights.items() if name.startswith("encoder.")}, wait)

    rehearse(model, lambda: loss_of(blank_batch(1, order.batch_size, everything.channels, settings.image_size, device)))

    # Runs: the same again from other seeds
    done = min(state["number"], settings.runs) if state else 0
    results = [best_model.read_results(place_of(folder, settings, number)) for number in range(done)]
    while len(results) < settings.runs:
        number, seed = len(results), settings.seed + len(results)
        place = place_of(folder, settings, number)
        train, val = choose_labels(settings, splits, seed)
        before = folder if number else learnt_from.begun_with(folder, state, settings)
        used = [(train, "labels"), (val, "choice")]
        learnt_from.write(folder, before, used, [splits["test"]], settings.data_dir)
        distributed.barrier()
        order = order_of(train, settings, seed)
        begin_model(model, untouched, seed)
        fit = Fit(number, make_optimizer(settings, model), make_scaler(settings, device), no_loss(device))
        if state is not None:
            take_up(state, model, fit)
            best_model.write_best(place, fit.best)  # what is there may be of epochs that were lost
            state = None

        # Loop
        length = settings.epochs * order.steps_per_epoch  # where groups are held out, not the same from seed to seed
        batches = training_batches(train, [view], order, fit.step, length, settings.workers, device)
        log, progress = Metrics(place / "metrics.jsonl", fit.step), Progress(length, fit.step)
        began, first, asked_to_stop = time.monotonic(), fit.step, None
        while not asked_to_stop and not early_stopping.finished(fit.history, settings):
            requests.ask()
            watchdog.beat(number * total + fit.step, "reading data")
            batch = next(batches)
            bad_images.note(batch.bad)

            watchdog.beat(number * total + fit.step, "computing")
            set_lrs(fit, settings, order.steps_per_epoch)
            model.train()
            if settings.freeze:
                model.encoder.eval()
            loss = loss_of(batch)
            fit.scaler.scale(loss).backward()
            fit.scaler.step(fit.optimizer)
            fit.scaler.update()
            fit.optimizer.zero_grad(set_to_none=True)
            fit.loss_sum += loss.detach().double() * order.batch_size
            fit.loss_images += order.global_batch
            fit.step += 1
            run.step = number * total + fit.step
            asked_to_stop = requests.answer()

            epoch, rest = divmod(fit.step, order.steps_per_epoch)
            if rest == 0:
                train_loss = distributed.all_reduce(fit.loss_sum).item() / fit.loss_images
                fit.loss_sum, fit.loss_images = no_loss(device), 0
                rate = (fit.step - first) * order.global_batch / (time.monotonic() - began)
                ruined = bad_images.agree()
                watchdog.pause()
                distributed.share_buffers(model)
                model.eval()
                entry = {"epoch": epoch, "train_loss": train_loss} | classify.validate(predict, val, settings, device)
                early_stopping.require_finite(entry)
                fit.history.append(entry)
                lrs = {f"lr_{group['name']}": group["lr"] for group in fit.optimizer.param_groups}
                log.write(step=fit.step, **entry, **lrs, samples_per_second=rate, bad_images=ruined)
                progress.update(fit.step, words_of(entry, lrs))
                if early_stopping.best_of(fit.history, settings) is entry:
                    fit.best = {"model": run_folder.copied(model.state_dict()), "classes": classes, "seed": seed,
                                "settings": dataclasses.asdict(settings), "best": entry}  # fmt: skip
                    best_model.write_best(place, fit.best)
                if is_main() and run.due(settings.save_minutes):
                    save(fit)
                began, first = time.monotonic(), fit.step
        watchdog.pause()
        batches.close()
        progress.close()
        log.close()
        fit.loss_sum = distributed.all_reduce(fit.loss_sum)  # a checkpoint is of all ranks
        if is_main():
            save(fit, wait=True)
        distributed.barrier()
        if asked_to_stop:
            distributed.leave()
            run.end("preempted", asked_to_stop)
            say(f"\nstopped by {asked_to_stop} at step {fit.step} of run {number + 1}, saved; "
                "the same command continues")  # fmt: skip
            stopping.leave_preempted()

        # Test
        model.load_state_dict(fit.best["model"])
        model.eval()
        found = classify.test(predict, splits["test"], settings, device, make_copies(settings, seed), place)
        results.append({"seed": seed, "epochs": len(fit.history), "best": fit.best["best"], "test": found,
                        "of": best_model.identity(settings, model, splits["test"])})  # fmt: skip
        if is_main():
            files.write_text(json_text(results[-1]), place / "results.json")

    watchdog.rest()
    distributed.leave()
    run.end("finished", "")
    best_model.report(results, folder)
    say(f"test more   python finetune.py --test_only --model_path {folder} --data_dir OTHER")


# Model -----------------------------------------------------------------------------


class Model(nn.Module):
    """Encoder and linear head: images (n, C, H, W) -> logits (n, classes)."""

    def __init__(self, settings: Settings, classes: int, channels: int):
        super().__init__()
        self.encoder, width = build_encoder(
            settings.encoder, settings.image_size, settings.stem, settings.encoder_kwargs, channels
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        with torch.autocast(x.device.type, enabled=False):  # bf16 has too few digits to order images by
            return self.head(h.float())


def load_init(encoder: nn.Module, settings: Settings) -> pretrained.Source | None:
    """Put the weights to start from into `encoder`; return where they came from, None where it is untrained."""
    if settings.init is not None:
        return pretrained.load_encoder(encoder, settings.init, settings.method)
    if settings.method == "baseline":
        return pretrained.load_published(encoder, "baseline", settings.encoder)
    return None


def begin_model(model: Model, untouched: dict, seed: int) -> None:
    """The weights at the beginning of a run: the encoder's as loaded, the head's from N(0, 0.01), biases 0.

    As the published linear evaluation of Barlow Twins does it.
    """
    model.load_state_dict(untouched)
    weight = torch.empty(model.head.weight.shape).normal_(std=0.01, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.head.weight.copy_(weight)
        model.head.bias.zero_()


def make_optimizer(settings: Settings, model: Model) -> torch.optim.Optimizer:
    lr_backbone = settings.lr if settings.lr_backbone is None else settings.lr_backbone
    groups = [{"name": "head", "params": list(model.head.parameters()), "base_lr": settings.lr}]
    if not settings.freeze:
        groups.append({"name": "backbone", "params": list(model.encoder.parameters()), "base_lr": lr_backbone})
    options = dict(lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, **options)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer](groups, **options)


def make_scaler(settings: Settings, device: torch.device) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(device.type, enabled=choose_precision(settings.amp, device) == torch.float16)


@dataclass
class Fit:
    """What run `number` has reached.

    `history` has an entry an epoch: its training loss, and what validation gave. `best` is what best.pt holds.
    `loss_sum` is the sum of the losses of this rank's images in the epoch that has begun, `loss_images` their number on
    all ranks. In float64 a sum of float32 numbers is the same in any order.
    """

    number: int
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss_sum: Tensor
    loss_images: int = 0
    step: int = 0
    history: list[dict] = field(default_factory=list)
    best: dict = field(default_factory=dict)

    def state_dict(self, total: int) -> dict:
        """With the step counted on from run to run, `total` steps each."""
        return {
            "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "number": self.number,
            "step": self.number * total + self.step, "step_of_run": self.step, "history": list(self.history),
            "best": self.best, "loss_sum": self.loss_sum.item(), "loss_images": self.loss_images,
        }  # fmt: skip


def no_loss(device: torch.device) -> Tensor:
    return torch.zeros((), dtype=torch.float64, device=device)


def take_up(state: dict, model: Model, fit: Fit) -> None:
    """Put what a checkpoint holds in place; the optimizer's options stay this run's."""
    if "loss_sum" in state:  # earlier versions averaged what they saw of such an epoch
        fit.loss_sum.fill_(state["loss_sum"] if is_main() else 0.0)
        fit.loss_images = state["loss_images"]
    fit.step, fit.history, fit.best = state["step_of_run"], state["history"], state["best"]
    try:
        model.load_state_dict(state["model"])
        optim.load_state(fit.optimizer, state["optimizer"])
        if state["scaler"]:  # empty where the run was not in float16 so far
            fit.scaler.load_state_dict(state["scaler"])
    except (RuntimeError, ValueError, KeyError) as error:  # with --resume_force
        raise UserError(f"resume: the checkpoint does not fit this model and optimizer ({error})") from None


def set_lrs(fit: Fit, settings: Settings, steps_per_epoch: int) -> None:
    """Every group's learning rate at this step, from its `base_lr` and what validation gave so far."""
    warmup = settings.warmup_epochs
    for group in fit.optimizer.param_groups:
        floor = min(settings.min_lr / group["base_lr"], 1.0) if group["base_lr"] else 1.0
        if settings.schedule == "plateau":
            values = [early_stopping.watched(entry, settings) for entry in fit.history]
            factor = plateau(values, settings.plateau_factor, settings.plateau_patience, floor=floor)
        elif settings.schedule == "cosine":
            total = settings.epochs * steps_per_epoch
            factor = warmup_cosine(fit.step, total, min(round(warmup * steps_per_epoch), total - 1), floor)
        else:
            factor = warmup_cosine(fit.step // steps_per_epoch, settings.epochs, round(warmup), floor)
        group["lr"] = group["base_lr"] * factor


def predictor(net: nn.Module, settings: Settings, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Images -> logits, float32, in mixed precision."""
    dtype = choose_precision(settings.amp, device)

    def logits(x: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype or torch.float32, enabled=dtype is not None):
            return net(x).float()

    return logits


# Data ------------------------------------------------------------------------------


def load_splits(settings: Settings) -> dict[str, Images | None]:
    """Train, val and test; val is None where the data set has none of its own."""
    splits = {split: datasets.load_labelled(settings, split) for split in ("train", "val", "test")}
    first = splits["train"]
    for name, data in splits.items():
        if data is not None and (data.channels, data.classes) != (first.channels, first.classes):
            raise UserError(
                f"data_dir: {name} has images of {data.channels} channels and the classes {', '.join(data.classes)}, "
                f"train of {first.channels} channels and {', '.join(first.classes)}"
            )
    classify.require_named(settings.major, first.classes)
    leaks.check(splits)
    distributed.barrier()
    for name in ("train", "val") if settings.preload else ():
        splits[name] = splits[name] and preload.hold(splits[name], settings.image_size)
    return splits


def choose_labels(settings: Settings, splits: dict, seed: int) -> tuple[Images, Images]:
    """(train, val) of one run: the labels that may be used, and what of them is kept for validation."""
    train = labels.choose(splits["train"], settings.train_percent, settings.train_files, seed)
    labels.require_each(train, 1 if splits["val"] is not None else 2, "one to learn from and one to validate with")
    val = splits["val"]
    if val is None:
        train, val = hold_out(train, settings.val_fraction, seed)
    if settings.watch == "auc" and len(val.labels.unique()) < len(val.classes):
        raise UserError("watch: auc needs validation images of every class; watch the loss, or choose other splits")
    return train, val


def identity_of(data: Images, settings: Settings) -> str:
    """Which images these are, and under which labels."""
    return f"{data.fingerprint(settings.data_dir)}, labels {data.label_checksum()}"


def order_of(train: Images, settings: Settings, seed: int) -> Order:
    """Batches of `batch_size`, or of all images where there are fewer than a global batch."""
    batch_size = min(settings.batch_size, len(train) // world_size())
    if batch_size < 2:
        raise UserError(f"batch_size: {len(train)} training images are too few for {world_size()} processes")
    return Order(len(train), batch_size, 1, world_size(), seed, labels=train.labels if settings.balanced else None)


def random_view(settings: Settings) -> View:
    return View(
        size=settings.image_size, crop_scale=tuple(settings.crop_scale), crop_ratio=tuple(settings.crop_ratio),
        flip=settings.flip, vertical_flip=settings.vertical_flip, rotation=settings.rotation,
        jitter=tuple(settings.jitter), jitter_prob=settings.jitter_prob if any(settings.jitter) else 0.0,
        grayscale=settings.grayscale, blur_prob=0.0, solarize_prob=0.0,
    )  # fmt: skip


def make_copies(settings: Settings, seed: int) -> classify.Copies | None:
    """The random views whose mean score counts in a test; None: the plain image's counts."""
    return classify.Copies(settings.copies, random_view(settings), seed) if settings.copies > 1 else None


# Testing ---------------------------------------------------------------------------


def test_only(settings: Settings, origin: dict) -> None:
    """Test what a fine-tuning left, on its own or on other images; with several runs each, and their mean."""
    if settings.model_path is None:
        raise UserError("model_path: test_only needs --model_path, the run folder of a fine-tuning or its best.pt")
    models = best_model.models(Path(settings.model_path))
    first = next(iter(models))
    own_data = settings.dataset is not None or settings.data_dir is not None
    best_model.take_settings(settings, origin, models[first]["settings"], first, FREE_TO_CHANGE)
    check(settings)
    if settings.gpus is not None and "RANK" not in os.environ:
        distributed.start_processes(settings.gpus)
    device = begin(settings)
    home = first.parent if len(models) == 1 else Path(settings.model_path)
    which = Path(settings.data_dir).name if settings.dataset == "folder" else settings.dataset
    folder = Path(settings.output_dir or home / f"test_{which}")
    run = run_folder.RunFolder(folder, settings.keep_checkpoints)
    settle_threads(
        run_folder.threads_of(home) or run_folder.threads_of(home.parent)
    )  # the parent's, where it is one of several
    if is_main():
        run.write("config.yaml", lambda path: config.write_yaml(path, dataclasses.asdict(settings)))

    # Of data that it was not tuned on, all that is not set apart for training.
    split = "all" if own_data else "test"
    data = datasets.load_labelled(settings, split)
    results = []
    say(f"model       {', '.join(map(str, models))}: {settings.encoder}, views of {settings.image_size} px")
    say(f"data        {settings.dataset}: {counted(data)}")
    say(f"precision   {name_of(settings.amp)}")
    tell_values(data)
    learnt_from.check(first, data, settings.data_dir)
    for path, content in models.items():
        shown = best_model.with_classes_of(content, path, data)
        classify.require_named(settings.major, shown.classes)
        model = Model(settings, len(shown.classes), data.channels)
        best_model.load_weights(model, content, path)
        model = model.to(device, memory_format=torch.channels_last).eval()
        place = files.make_folder(folder if len(models) == 1 else folder / path.parent.name)
        copies = make_copies(settings, content["seed"])
        found = classify.test(predictor(model, settings, device), shown, settings, device, copies, place)
        results.append({"seed": content["seed"], "best": content["best"], "test": found,
                        "of": best_model.identity(settings, model, shown, split)})  # fmt: skip
    distributed.leave()
    run.end("finished", "")
    best_model.report(results, folder)


# What the loop is made of ----------------------------------------------------------

# Settings that may differ between a run and its continuation without changing what is learnt.
FREE_TO_CHANGE = {
    "config", "row", "data_dir", "csv", "image_column", "group_column", "split_column",
    "splits_folder", "test_slides", "download", "gpus", "device", "amp", "compile",
    "workers", "deterministic", "timeout_minutes", "output_dir", "resume", "resume_force", "save_minutes",
    "keep_checkpoints", "init", "batch_size", "max_bad_fraction", "runs", "test_only",
    "model_path", "preload",
}  # fmt: skip
CHECKPOINT = resume.Kind(
    "finetune.py",
    dict.fromkeys(("model", "best", "optimizer", "scaler", "bad_images", "settings", "identity", "versions"), dict)
    | {"step": int, "step_of_run": int, "number": int, "history": list},
    FREE_TO_CHANGE,
)


def check(settings: Settings) -> None:
    """Fill in the last defaults, and refuse what cannot work before any process waits for another."""
    if settings.dataset is None and settings.data_dir is None:
        say("*** No data set is named, here or by the run: using the EMBEDDED demonstration set `shapes`. ***")
    for name in ("data_dir", "csv", "class_list", "splits_folder"):
        if (path := getattr(settings, name)) is not None:  # config.yaml is read from anywhere
            setattr(settings, name, os.path.abspath(os.path.expanduser(path)))
    settings.dataset = datasets.resolve_name(settings.dataset, settings.data_dir)
    settings.encoder = settings.encoder or "resnet50"
    published = settings.init is None and settings.method == "baseline"
    settings.stem = settings.stem or ("imagenet" if published else "auto")
    settings.seed = settings.seed or 0
    settings.image_size = settings.image_size or datasets.KNOWN[settings.dataset][0]
    settings.workers = auto_workers() if settings.workers is None else settings.workers
    settings.major = settings.major or MAJOR.get(settings.dataset)
    settings.warmup_epochs = auto.warmup(settings.warmup_epochs, settings.epochs, settings.schedule)
    labels.check_choice(settings.train_percent, settings.train_files)
    if settings.model_path is not None and not settings.test_only:
        raise UserError("model_path: is what --test_only tests; the encoder to start from is --init")
    ranges.check(settings)
    ranges.check_training(settings)
    if settings.init is None and not settings.test_only and settings.method not in (None, "baseline"):
        raise UserError("method says how to read a file of weights; name it with --init")
    if settings.warmup_epochs and settings.schedule == "plateau":
        raise UserError("warmup_epochs: is of the cosines; set --schedule cosine, or leave it away")
    if settings.jitter[3] > 0.5:
        raise UserError(f"jitter: {settings.jitter[3]:g} is too much hue; at most 0.5, half the circle")
    if not 0 < settings.val_fraction < 1:
        raise UserError(f"val_fraction: {settings.val_fraction} is not between 0 and 1")


def begin(settings: Settings) -> torch.device:
    """Join the other processes, and settle what the run computes in."""
    patience = 360 if settings.download else 1.5 * settings.timeout_minutes
    device = distributed.join(settings.device, patience)
    settings.amp = resolve_precision(settings.amp, device)
    torch.backends.cudnn.benchmark = not settings.deterministic
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return device


def place_of(folder: Path, settings: Settings, number: int) -> Path:
    """Where the files of a run go: the run folder, or one in it for each of several."""
    return files.make_folder(folder if settings.runs == 1 else folder / f"seed_{settings.seed + number}")


def counted(data: Images) -> str:
    """'98 images (akiec 7, bcc 10, ...)'."""
    counts = torch.bincount(data.labels, minlength=len(data.classes)).tolist()
    each = ", ".join(f"{name} {count}" for name, count in zip(data.classes[:10], counts))
    return one_line(f"{len(data)} images ({each}{', ...' if len(counts) > 10 else ''})")


def words_of(entry: dict, lrs: dict) -> str:
    auc = entry["val_auc"] if isinstance(entry["val_auc"], str) else f"{entry['val_auc']:.3f}"
    low, high = entry["val_acc1_interval"]
    return (
        f"epoch {entry['epoch']}  loss {entry['train_loss']:.4g}  val loss {entry['val_loss']:.4g}  auc {auc}  "
        f"acc {entry['val_acc1']:.3f} ({low:.2f}–{high:.2f})  lr {lrs['lr_head']:.3g}"
    )


def introduce(settings, origin, device, splits, source, order, folder) -> None:
    """The first lines: what will run, where, and why these numbers."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    recipes = [where for where in dict.fromkeys(origin.values()) if where not in ("default", "command line")]
    say(f"recipe      {' < '.join(recipes) or 'the defaults of finetune.py'}")
    say(f"device      {name} × {world_size()} process{'es' if world_size() > 1 else ''}, {name_of(settings.amp)}")
    say(f"init        {source or '*** untrained: no --init ***'}")
    say(f"model       {settings.encoder} {settings.encoder_kwargs or ''}" + (", frozen" if settings.freeze else ""))
    for split, data in splits.items():
        held = f"{settings.val_fraction:.0%} of every class of train, by seed"
        say(f"{split:<12}" + (held if data is None else counted(data)))
    tell_values(splits["train"])
    if settings.train_files or settings.train_percent != 100:
        say(f"labels      {settings.train_files or f'{settings.train_percent:g} % of every class, by seed'}")
    say(f"views       {settings.image_size} px")
    say(f"batch       {order.batch_size} per process × {world_size()} = {order.global_batch} (global)"
        + (", every class equally often" if settings.balanced else ""))  # fmt: skip
    lr_backbone = settings.lr if settings.lr_backbone is None else settings.lr_backbone
    say(f"lr          head {settings.lr:g}, backbone {'none, frozen' if settings.freeze else f'{lr_backbone:g}'}, "
        f"{settings.schedule}")  # fmt: skip
    say(f"length      at most {settings.epochs} epochs of {order.steps_per_epoch} steps"
        + (f", {settings.warmup_epochs:g} of warm-up" if settings.warmup_epochs else "")
        + (f", {settings.runs} runs" if settings.runs > 1 else ""))  # fmt: skip
    say(f"run folder  {folder}")


if __name__ == "__main__":
    with one_line_errors("finetune.py", failures.explain):
        main()

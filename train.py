"""Pre-train an encoder on images, without labels or (supcon) with them.

python train.py                                          the embedded data set, on this machine
torchrun --nproc_per_node 8 train.py --batch_size 256    the published recipe's batch on 8 GPUs
python train.py --help                                   every setting
"""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().with_name("ssl"))]  # see ssl/__init__.py

import contextlib
import dataclasses
import functools
import math
import os
import time
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ssl import distributed, failures, optim
from ssl.augment import View
from ssl.checkpoints import inherit, learnt_from, pretrained, restore, resume, run_folder
from ssl.console import Progress, say
from ssl.data import preload
from ssl.data.bad_images import BadImages
from ssl.data.cores import auto_workers
from ssl.data.images import Images
from ssl.data.loader import finish, training_batches
from ssl.data.order import Order
from ssl.data.values import tell_values
from ssl.data.worker import Batch
from ssl.distributed import is_main, world_size
from ssl.encoders import SMALL_IMAGE, build_encoder, stem_for
from ssl.errors import UserError, one_line_errors
from ssl.evaluation import fixed_head
from ssl.heads import projector
from ssl.losses import BarlowTwinsLoss, InfoNCELoss, SupConLoss
from ssl.report.view_page import write_views
from ssl.schedules import set_lr, step_decay, warmup_cosine
from ssl.settings import auto, config, ranges, shared
from ssl.settings.shared import ImageSettings, TrainingSettings, ViewSettings
from ssl.sources import datasets
from ssl.sources.validation import find_validation
from ssl.training import judging, stopping, trainable
from ssl.training.bad_steps import BadSteps
from ssl.training.first_fault import first_fault
from ssl.training.forward import blank_batch, rehearse
from ssl.training.guard import Guard, gradient_norm
from ssl.training.health import Health
from ssl.training.log import Metrics
from ssl.training.precision import choose_precision, name_of, resolve_precision
from ssl.training.threads import settle_threads
from ssl.training.watchdog import Watchdog

ROOT = Path(__file__).resolve().parent


@dataclass
class Settings(ImageSettings, ViewSettings, TrainingSettings):
    """Pre-train an encoder on images, without labels or (supcon) with them.

    The defaults are Barlow Twins on ImageNet as published. Over them lies the recipe of the method
    and data set in configs/, or the file that --config names: that is then the whole recipe, at
    any image size, unless it says `extends: FILE` (as seen from there) or `extends: auto` (the
    recipe of the method and data set). The first line of a run names the files.
    """

    # Where settings come from
    config: str | None = None  # YAML file, the whole recipe; the command line wins over it
    row: int | None = None  # which of the `rows` of that file, from 1
    # What to learn
    method: Literal["barlow_twins", "simclr", "supcon"] = "barlow_twins"  # loss and recipe; supcon: with labels
    balanced: bool = False  # show every class as often, by labels: an epoch draws with replacement
    image_size: int = 224  # pixels of a view's side
    image_column: str = "image"  # of the table: paths below data_dir, with or without extension
    label_column: str | None = None  # of the table: classes; a tenth is then kept for evaluate.py
    seed: int = 0  # of weights, order and views
    # Model
    encoder: str = "resnet50"  # a torchvision ResNet, wide_resnet_28_10, or the dotted path of an nn.Module class
    encoder_kwargs: dict = field(default_factory=lambda: {})  # arguments of that class
    stem: Literal["auto", "imagenet", "small"] = "auto"  # auto: small (3x3, no max-pool) up to 64 pixels
    projector: str = "8192-8192-8192"  # widths of the projector's layers, the last the embedding's; auto: by the images
    projector_bias: bool = False  # Barlow Twins: its layers have biases, too, although batch norm follows
    init: str | None = None  # start from the encoder in this run folder (and of its kind) or file, ours or of others
    init_format: pretrained.Kind | None = None  # insist on what that file is; unset: recognised by its names
    # Loss
    lambd: float = 5e-3  # Barlow Twins: weight of the off-diagonal terms
    loss_scale: float = 0.03125  # Barlow Twins: 1/32, what the published 32-GPU code really trained with
    temperature: float = 0.1  # SimCLR and SupCon
    base_temperature: float | None = None  # SimCLR and SupCon: multiply the loss by temperature / this
    # Optimizer
    batch_size: int = 256  # images per process and micro-batch
    accumulate: int = 1  # micro-batches a step
    accumulate_mode: Literal["exact", "split"] = "exact"  # loss of all of them together, or the mean of their losses
    epochs: int | Literal["auto"] = 100  # length of the run and of the schedule; auto: by the number of images
    max_steps: int | None = None  # stop after so many steps; the schedule still spans all epochs
    optimizer: Literal["lars", "lamb", "sgd", "adam", "adamw"] = "lars"  # lars and lamb for large batches
    lr: float | Literal["auto"] = 0.2  # of weights, before scaling with the batch; auto: by the authors' table
    bias_lr: float | None = 0.0048  # of biases and norms, before scaling; unset: the same as lr
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"  # lr x batch/256, x sqrt(batch), or as it is
    weight_decay: float = 1e-6  # of weights
    exclude_bias_and_norm_wd: bool = True  # biases and norms do not decay, nor do lars and lamb adapt their rate
    momentum: float = 0.9  # of lars and sgd
    schedule: Literal["cosine", "cosine_by_epoch", "step"] = "cosine"  # after the warm-up
    warmup_epochs: float | Literal["auto"] = 10  # linear up to lr; auto: a tenth of the run, 10 at most
    warmup_start: float = 0.0  # where the warm-up begins, as a share of lr
    final_lr: float = 0.001  # where the cosine ends, as a share of lr
    decay_epochs: list[int] = field(default_factory=lambda: [])  # step: lr is multiplied after each of these epochs
    decay_rate: float = 0.1  # step: by this
    clip_grad: float | None = None  # largest gradient norm
    sync_bn: bool = True  # batch norm over the global batch
    # Views
    rotation_prob: float = 1.0  # probability
    color_distortion_strength: float = 1.0  # multiplies jitter
    blur_prob: list[float] | Literal["auto"] = field(default_factory=lambda: [1.0, 0.1])  # auto: by the image size
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    blur_kernel: int = 23  # pixels, odd
    solarize_prob: list[float] = field(default_factory=lambda: [0.0, 0.2])  # of view 1, view 2
    solarize_threshold: float = 0.5019607843137255  # 128/255: from this brightness on, pixels are inverted
    # Judging meanwhile, on the validation split or a tenth of train's labels; nothing of training changes
    eval_every: int | None = None  # epochs between k-NN and a linear head on features; unset: never
    eval_head: Literal["probe", "fixed"] = "probe"  # evaluate.py's probe, or the fixed head of the SimCLR study
    linear_epochs: int = 90  # the fixed head's passes over the features
    linear_batch: int = 4096  # features a step of the fixed head, or all there are
    linear_lr: float = 0.1  # of the fixed head, times its batch / 256; cosine to 0
    linear_weight_decay: float = 0.0  # of the fixed head
    linear_momentum: float = 0.9  # of the fixed head
    eval_at_start: bool = False  # judge the untrained encoder, too
    ssl_val_interval: int | None = None  # epochs between losses on two views of the validation images; unset: never
    # What may go wrong with numbers
    max_bad_steps: int = 10  # in a row may have no finite gradient, and are left out; then back to the last checkpoint
    retry_lr: float = 0.5  # what lr is multiplied by from there on; a second time the run ends
    # Run folder
    output_dir: str | None = None  # run folder; unset: runs/METHOD_DATASET
    save_steps: int | None = None  # also save every so many steps
    save_epochs: int | None = None  # also save every so many epochs
    log_every: int = 10  # steps between lines of metrics.jsonl
    health_every: int | Literal["auto"] | None = "auto"  # steps between readings of health; auto: 20 a run, or each 100


def main() -> None:
    settings, origin = config.parse(Settings, recipe=find_recipe)
    auto.shorten_warmup(settings, origin)
    datasets.resolve(settings)
    if settings.init:
        take_architecture(settings, origin)
    check(settings)
    # The watchdog names the rank that hangs. Where it cannot, a collective gives up after `patience` minutes.
    patience = 360 if settings.download else 1.5 * settings.timeout_minutes
    device = distributed.start(settings.gpus, settings.device, patience, settings.deterministic)
    settings.amp = resolve_precision(settings.amp, device)

    # Run folder, before what may take long: it is ours, and says how this ends
    folder = Path(settings.output_dir or ROOT / "runs" / f"{settings.method}_{settings.dataset}")
    run = run_folder.RunFolder(folder, settings.keep_checkpoints)
    requests = stopping.StopRequests(folder, patience=1.5 * settings.timeout_minutes)
    settle_threads(run_folder.threads_of(folder))

    # Data
    load = functools.partial(datasets.load_as, settings)
    data = load("train" if learns_from_labels(settings) else "unlabelled")
    if settings.preload:
        data = preload.hold(data, settings.image_size)
    labels = require_labels(settings, data) if learns_from_labels(settings) else None
    order = Order(len(data), settings.batch_size, settings.accumulate, world_size(), settings.seed,
                  labels if settings.balanced else None)  # fmt: skip
    require_whole_batches(settings, order)
    for name, (value, why) in auto.settle(settings, order.global_batch, len(data)).items():
        say(f"auto        {name} {value} ({why})")
    if settings.stem == "auto" and "." not in settings.encoder:
        stem = stem_for(settings.image_size)
        say(f"auto        stem {stem} (views of {settings.image_size} pixels; small up to {SMALL_IMAGE})")
    ranges.check_training(settings)
    validation = find_validation(settings, data, load, learns_from_labels(settings))
    if settings.init and validation:
        learnt_from.check(settings.init, validation.images, settings.data_dir, "validation")
    views = make_views(settings)
    total = settings.epochs * order.steps_per_epoch
    stop = min(total, settings.max_steps or total)

    # Model
    torch.manual_seed(settings.seed)
    model = Model(settings, data.channels)
    source = take_init(settings, model.encoder) if settings.init else None
    trainable.require(model.encoder, settings.image_size, data.channels)
    filled = [name for name in ("mean", "std") if getattr(settings, name) is getattr(source, name, None) is None]
    inherit.normalisation(settings, source, data)
    statistics = settings.mean, settings.std
    mean, std = (torch.tensor(values, device=device) for values in statistics)
    if settings.sync_bn:
        model = distributed.synchronise(model, device)
    model = model.to(device, memory_format=torch.channels_last)
    criterion = make_criterion(settings)

    # Optimizer
    scale = lr_scale(settings, order.global_batch)
    optimizer = make_optimizer(settings, model, scale)
    autocast_dtype = choose_precision(settings.amp, device)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast_dtype == torch.float16)

    # Take up what the run folder holds
    identity = {"global_batch": order.global_batch, "data": data.fingerprint(settings.data_dir)}
    if labels is not None:
        identity["labels"] = data.label_checksum()
    state = resume.find_state(run, settings, identity, CHECKPOINT, filled)
    step, retries = (state["step"], state["retries"]) if state else (0, 0)
    if is_main():
        run.write("config.yaml", lambda path: config.write_yaml(path, dataclasses.asdict(settings)))
        run.write("about.json", lambda path: run_folder.write_about(path, origin, views, statistics, order))
    used = [(data, "pixels" if labels is None else "labels")]
    used += [(validation.images, "choice")] if settings.eval_every else []
    apart = [] if labels is None else learnt_from.set_apart(load)
    learnt_from.write(folder, learnt_from.begun_with(folder, state, settings), used, apart, settings.data_dir)
    introduce(settings, origin, device, data, statistics, order, scale, folder, step, stop)
    run.begin(step, stop)

    model.train()
    guard = Guard(model, optimizer)
    health = Health(settings.health_every, total, settings.warmup_epochs * order.steps_per_epoch, model.encoder,
                    criterion, optimizer)  # fmt: skip
    bad_steps = BadSteps(folder)
    bad_images = BadImages(folder, len(data) + len(data.bad), settings.max_bad_fraction,
                           state["bad_images"] if state else {})  # fmt: skip
    runner = distributed.parallel(model, device)
    if settings.compile:
        runner = torch.compile(runner)
    shape = data.channels, settings.image_size, settings.image_size
    failures.advise(
        functools.partial(failures.batch_that_fits, model, shape, settings.batch_size, settings.accumulate,
                          autocast_dtype, runner, optimizer)
    )  # fmt: skip

    def everything() -> dict:
        """What a checkpoint holds. Nothing random has a state: order, views and dropout are counted."""
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "step": step,
            "retries": retries,
            "guard": guard.state_dict(),
            "health": health.state_dict(),
            "bad_images": bad_images.known | bad_images.met,
            "judge": judge.state_dict(),
            "encoder_best": run.best,
            "settings": dataclasses.asdict(settings),
            "identity": identity,
            "versions": run_folder.versions(),
        }

    def take_up(state: dict) -> int:
        try:
            model.load_state_dict(state["model"])
            optim.load_state(optimizer, state["optimizer"])
            if state["scaler"]:  # empty where the run was not in float16 so far
                scaler.load_state_dict(state["scaler"])
            guard.load_state_dict(state["guard"])
            health.load_state_dict(state.get("health", {}))
        except (RuntimeError, ValueError, KeyError) as error:  # with --resume_force
            raise UserError(f"resume: the checkpoint does not fit this model and optimizer ({error})") from None
        judge.load_state_dict(state.get("judge", {}))
        run.best = state.get("encoder_best", {}) if is_main() else {}
        return state["step"]

    def save(wait: bool = False) -> None:
        run.save(everything(), model.encoder.state_dict(), wait)

    def embed(batch: Batch, net: nn.Module | None = None) -> tuple[Tensor, ...]:
        """The embeddings (n, D) of a micro-batch's views."""
        torch.manual_seed(batch.seed)  # of dropout, should the encoder have any
        with torch.no_grad():
            x = finish(batch, views, mean, std)
        with torch.autocast(device.type, autocast_dtype or torch.float32, enabled=autocast_dtype is not None):
            return (net or runner)(*x)

    def what_was_bad() -> int:
        """Write down the bad steps and images since the last time; how many images there were. All ranks call it."""
        # A float16 scaler tries out how large a gradient may be; at a scale below 1 that is no excuse.
        tries_out = scaler.is_enabled() and scaler.get_scale() >= 1
        for ago, ranks in guard.read(overflow_is_bad=not tries_out):
            bad_steps.write(step - ago, retries, ranks, lambda at=step - ago - 1: order.names(data, at))
        return bad_images.agree()

    def backward(loss: Tensor) -> None:
        """The loss is the global batch's already; DDP averages gradients, so undo its division."""
        scaler.scale(loss * world_size() * guard.scale(loss)).backward()

    def loss_of(net: nn.Module, micro_batches: list[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a global batch, and its parts, of another network than the one that learns."""
        z = [torch.cat(view) for view in zip(*(embed(batch, net) for batch in micro_batches))]
        return criterion(*z, *targets(criterion, micro_batches)), criterion.parts

    def evaluate() -> str | None:
        """Judge the encoder, if that is due; what asked to stop meanwhile. The time it takes is not training's."""
        nonlocal logged
        if not judge.due(step):
            return None

        def alive() -> str | None:
            watchdog.beat(step, "evaluating")
            requests.ask()
            return requests.answer()

        began = time.monotonic()
        asked = judge.judge(step, metrics, alive)
        logged += time.monotonic() - began
        if is_main() and not asked and run.saved_step == step:
            save()  # the checkpoint of this step, from which the run continued, does not know of it
        return asked

    # Continue, or begin
    workers = auto_workers() if settings.workers is None else settings.workers
    judge = judging.Judge(
        settings, validation, folder, model, loss_of, run.keep_best, views, order, statistics, workers, device
    )
    blank = functools.partial(blank_batch, len(views), settings.batch_size, data.channels, settings.image_size, device)
    rehearse(model, lambda: sum(z.float().sum() for z in embed(blank())))
    if state:
        step = take_up(state)
    del state
    if is_main() and run.saved_step is None:
        save()
    if is_main() and step == 0:
        write_views(folder / "views.png", data, views, *statistics, settings.seed)  # look at it

    # Loop
    batches = training_batches(data, views, order, step, stop, workers, device)
    bad_images.note(data.bad)
    bad_images.agree()
    metrics = Metrics(folder / "metrics.jsonl", step, judge.reached)
    health.open(folder, step)
    progress = Progress(stop, step)
    watchdog = Watchdog(settings.timeout_minutes * 60, run.failed)
    logged, logged_step, waited = time.monotonic(), step, 0.0
    asked_to_stop = evaluate()
    while step < stop and not asked_to_stop:
        requests.ask()
        guard.begin()
        health.begin(step + 1)
        set_lr(optimizer, lr_factor(settings, step, order.steps_per_epoch) * settings.retry_lr**retries)

        watchdog.beat(step, "reading data")
        began = time.monotonic()
        micro_batches = [next(batches) for _ in range(settings.accumulate)]
        waited += time.monotonic() - began
        for batch in micro_batches:
            bad_images.note(batch.bad)

        watchdog.beat(step, "computing")
        if settings.accumulate == 1:
            loss = criterion(*embed(micro_batches[0]), *targets(criterion, micro_batches))
            backward(loss)
        elif settings.accumulate_mode == "exact":
            loss = accumulate_exact(micro_batches, embed, criterion, backward, runner)
        else:
            loss = accumulate_split(micro_batches, embed, criterion, backward, runner)
        scaler.unscale_(optimizer)
        if settings.clip_grad is None:
            norm = gradient_norm(optimizer)
        else:
            norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        guard.judge(loss, norm)
        health.before_update()
        optimizer.step()  # unless the guard found it bad
        health.after_update()
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        step = run.step = step + 1
        asked_to_stop = requests.answer()

        if health.watching:
            share = waited / (time.monotonic() - logged)
            best = health.read(step, step / order.steps_per_epoch, loss, norm, guard.left_out, share, metrics)
            if best and not (settings.eval_every or judge.best):  # which are chosen by labels
                run.keep_best(model.encoder.state_dict(), health.best)
        if step % settings.log_every == 0 or step == stop:
            value = loss.item()
            now = time.monotonic()
            rate = (step - logged_step) * order.global_batch / (now - logged)
            lrs = {f"lr_{group['name']}": group["lr"] for group in optimizer.param_groups}
            parts = {name: part.item() for name, part in criterion.parts.items()}
            epoch = step / order.steps_per_epoch
            ruined = what_was_bad()
            metrics.write(
                epoch=round(epoch, 4), step=step, loss=value, **parts, **lrs,
                samples_per_second=rate, data_wait=waited / (now - logged), bad_images=ruined, bad_steps=guard.total,
            )  # fmt: skip
            progress.update(
                step,
                f"loss {value:.4g}  lr {lrs['lr_weights']:.3g}  {rate:.0f} samples/s  epoch {epoch:.1f}"
                + (f"  bad images {ruined}" if ruined else "")
                + (f"  bad steps {guard.total}" if guard.total else "")
                + health.note()
                + (f"  NOT SAVED since step {run.saved_step}: {run.trouble}" if run.trouble else ""),
            )
            if guard.row >= settings.max_bad_steps:
                words = what_went_wrong(model, criterion, embed, micro_batches, guard.row, step)
                if retries:
                    raise UserError(
                        f"{words}, again after going back with lr × {settings.retry_lr:g}. {run_folder.DIVERGED}"
                    )
                batches.close()
                metrics.close()
                health.close()
                run.settle()
                newest = run.newest(CHECKPOINT.fits)
                if newest is None:
                    raise UserError(f"{words}, and no checkpoint could be saved. {run_folder.DIVERGED}")
                step, retries = take_up(newest), 1
                run.step = step
                say(f"*** {words}; going back to step {step}, with lr × {settings.retry_lr:g} from there ***")
                if is_main():
                    save()
                batches = training_batches(data, views, order, step, stop, workers, device)
                metrics = Metrics(folder / "metrics.jsonl", step, judge.reached)
                health.open(folder, step)
                now = time.monotonic()
            logged, logged_step, waited = now, step, 0.0
        asked_to_stop = asked_to_stop or evaluate()
        due = is_main() and step < stop and not asked_to_stop and save_is_due(run, settings, step, order)
        if due and not guard.last_step_was_bad():
            save()

    # Save
    if step == stop and not judge.due(step):
        asked_to_stop = None  # it need not have asked
    watchdog.rest()
    batches.close()
    what_was_bad()
    if is_main():
        run.settle()
        if run.saved_step != step:
            save(wait=True)
    progress.close()
    metrics.close()
    health.close()
    distributed.leave()
    run.end("preempted" if asked_to_stop else "finished", asked_to_stop or "")
    if asked_to_stop:
        say(f"\nstopped by {asked_to_stop} at step {step} of {stop}, saved; the same command continues")
        stopping.leave_preempted()
    say(f"\nrun folder  {folder}\nencoder     {folder / 'encoder.pt'}")
    health.sum_up()
    judge.sum_up()
    if len(data.classes) > 1:
        say(f"judge it    python evaluate.py --model_path {folder}")


class Model(nn.Module):
    """Encoder and projector: views (n, C, H, W) -> embeddings (n, D), one view at a time through batch norm."""

    def __init__(self, settings: Settings, channels: int = 3):
        super().__init__()
        self.encoder, width = build_encoder(
            settings.encoder, settings.image_size, settings.stem, settings.encoder_kwargs, channels
        )
        self.projector = projector(
            width, settings.projector, batch_norm=settings.method == "barlow_twins", bias=settings.projector_bias
        )

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.projector(self.encoder(x)) for x in views)


def targets(criterion: nn.Module, batches: list[Batch]) -> list[Tensor]:
    """What the loss reads besides the embeddings: the labels of the batches, if it learns from them."""
    return [torch.cat([batch.labels for batch in batches])] if isinstance(criterion, SupConLoss) else []


def accumulate_exact(micro_batches: list[Batch], embed, criterion, backward, runner: nn.Module) -> Tensor:
    """Gradient of the loss of all micro-batches together, in the memory of one (Gao et al. 2021, GradCache).

    Embeddings first, without a graph; the loss's gradient on all of them; then each micro-batch
    again with its share of that gradient. Batch norm sees one micro-batch at a time, and its
    running statistics count each once.
    """
    norms = [m for m in runner.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    with torch.no_grad():
        parts = [embed(batch) for batch in micro_batches]
    for norm in norms:
        norm.track_running_stats = True
    z = [torch.cat(view).requires_grad_() for view in zip(*parts)]
    loss = criterion(*z, *targets(criterion, micro_batches))
    backward(loss)
    shares = zip(*(view.grad.split(len(micro_batches[0].index)) for view in z))
    for batch, share, sync in zip(micro_batches, shares, sync_last(runner, len(micro_batches))):
        with sync:
            torch.autograd.backward(embed(batch), share)
    return loss


def accumulate_split(micro_batches: list[Batch], embed, criterion, backward, runner: nn.Module) -> Tensor:
    """The ordinary kind: the mean of the micro-batches' losses, each blind to the other micro-batches."""
    losses, parts = [], []
    for batch, sync in zip(micro_batches, sync_last(runner, len(micro_batches))):
        with sync:
            loss = criterion(*embed(batch), *targets(criterion, [batch])) / len(micro_batches)
            backward(loss)
        losses.append(loss.detach())
        parts.append(criterion.parts)
    criterion.parts = {name: sum(part[name] for part in parts) / len(parts) for name in criterion.parts}
    return sum(losses)


def what_went_wrong(model: nn.Module, criterion, embed, micro_batches: list[Batch], row: int, step: int) -> str:
    """Words for bad steps in a row, the last of them of these micro-batches."""
    for batch in micro_batches:

        def compute(batch: Batch = batch) -> Tensor:
            return criterion(*embed(batch, model), *targets(criterion, [batch]))

        first = first_fault(model, lambda: criterion.parts, compute)
        if first:
            break
    first = first or "nothing, when computed once more: suspect the machine"
    return f"{row} steps in a row, up to step {step}, had no finite gradient; first not finite: {first}"


def sync_last(runner: nn.Module, count: int) -> list:
    """Contexts for `count` backward passes of which only the last averages gradients over the ranks."""
    quiet = getattr(runner, "no_sync", contextlib.nullcontext)
    return [*(quiet() for _ in range(count - 1)), contextlib.nullcontext()]


# What the loop is made of ---------------------------------------------------------


def find_recipe(asked: dict) -> Path | None:
    """The recipe in configs/ under the settings that were asked for."""
    method = asked.get("method", "barlow_twins")
    name = datasets.resolve_name(asked.get("dataset"), asked.get("data_dir"))
    size = asked.get("image_size", datasets.KNOWN[name][0])
    similar = "cifar10" if size <= datasets.SMALL and not name.startswith("ImageNet") else "imagenet"
    own = "imagenet100" if name in ("ImageNet50", "ImageNet200") else name.lower()
    own = similar if name == "folder" and similar == "cifar10" else own
    paths = [ROOT / "configs" / f"{method}_{name}.yaml" for name in (own, similar)]
    return next((path for path in paths if path.exists()), None)


def check(settings: Settings) -> None:
    """Refuse settings that cannot work, before any process waits for another."""
    ranges.check(settings)
    ranges.check_training(settings)
    for name in ("blur_prob", "solarize_prob"):
        if getattr(settings, name) != "auto" and len(getattr(settings, name)) != 2:
            raise UserError(
                f"{name}: expected two values, of view 1 and view 2, got {getattr(settings, name)}; "
                f"{settings.method} compares two views"
            )
    if settings.blur_kernel % 2 == 0 or settings.blur_kernel < 1:
        raise UserError(f"blur_kernel: {settings.blur_kernel} must be odd")
    set_of_fixed = [name for name, usual in vars(fixed_head.Head()).items() if getattr(settings, name) != usual]
    if set_of_fixed and settings.eval_head != "fixed":
        raise UserError(f"{set_of_fixed[0]}: is of the fixed head; pass --eval_head fixed, or leave it away")
    if settings.init is None and settings.init_format:
        raise UserError("init_format says how to read a file; name it with --init")
    if settings.schedule == "step" and not settings.decay_epochs:
        raise UserError("decay_epochs: schedule step needs the epochs after which lr drops, e.g. --decay_epochs 60 80")


def learns_from_labels(settings: Settings) -> bool:
    return settings.method == "supcon" or settings.balanced


def require_labels(settings: Settings, data: Images) -> Tensor:
    """The images' labels (N,). For supcon some may be -1: such an image is of a kind of its own (`losses.sup_con`)."""
    if not (data.labels >= 0).any():
        what = "balanced" if settings.balanced else "method supcon"
        raise UserError(
            f"{what}: needs labels, and {data.name} has none here; pass class folders, an array file with labels, or "
            "--csv FILE --label_column NAME"
        )
    if settings.method == "supcon" and len(data.labels.unique()) == 1:
        raise UserError(
            f"method supcon: all {len(data)} images are of one class, {data.classes[int(data.labels[0])]!r}: each is a "
            "positive of every other, and nothing can be learnt. Give two classes or more, or take --method simclr"
        )
    return data.labels


def require_whole_batches(settings: Settings, order: Order) -> None:
    if order.steps_per_epoch == 0:
        largest = order.count // (world_size() * settings.accumulate)
        to_do = f"--batch_size {largest} is the largest" if largest > 1 else "use fewer processes, or more images"
        raise UserError(
            f"batch_size: the global batch, {settings.batch_size} per process × {world_size()} processes × accumulate "
            f"{settings.accumulate} = {order.global_batch}, is larger than the data set ({order.count} images); {to_do}"
        )


def lr_factor(settings: Settings, step: int, steps_per_epoch: int) -> float:
    """What the learning rates are multiplied by at `step`."""
    epochs, warmup, start = settings.epochs, settings.warmup_epochs, settings.warmup_start
    if settings.schedule == "cosine_by_epoch":
        return warmup_cosine(step // steps_per_epoch, epochs, round(warmup), settings.final_lr, start)
    total = epochs * steps_per_epoch
    warmup = min(round(warmup * steps_per_epoch), total - 1)  # rounding must not make it the whole run
    if settings.schedule == "cosine":
        return warmup_cosine(step, total, warmup, settings.final_lr, start)
    milestones = [epoch * steps_per_epoch for epoch in settings.decay_epochs]
    return warmup_cosine(step, total, warmup, 1.0, start) * step_decay(step, milestones, settings.decay_rate)


def take_architecture(settings: Settings, origin: dict[str, str]) -> None:
    """Of the run or file that --init names, where neither the command line nor --config says otherwise."""
    mine = ("command line", settings.config, f"{settings.config} row {settings.row}")
    given = {name: getattr(settings, name) if origin[name] in mine else None
             for name in ("encoder", "encoder_kwargs", "stem")}  # fmt: skip
    run = pretrained.run_settings(settings.init, settings.init_format)
    if "encoder" in run:
        settings.encoder, kwargs, stem = restore.architecture(run, **given)
        settings.stem = stem or settings.stem
        taken = ["stem"] if given["stem"] is None else []
        if given["encoder"] is None:
            settings.encoder_kwargs = kwargs or {}
            taken += [name for name in ("encoder", "encoder_kwargs") if given[name] is None]
        config.lay_over(origin, taken, "the run of --init")


def take_init(settings: Settings, encoder: nn.Module) -> pretrained.Source:
    """Start from the weights of --init."""
    source = pretrained.load_encoder(encoder, settings.init, settings.init_format)
    say(f"init        encoder weights of {source}")
    return source


def make_views(settings: Settings) -> list[View]:
    jitter = [strength * settings.color_distortion_strength for strength in settings.jitter]
    shared = View(
        size=settings.image_size,
        crop_scale=tuple(settings.crop_scale),
        crop_ratio=tuple(settings.crop_ratio),
        flip=settings.flip,
        vertical_flip=settings.vertical_flip,
        rotation=settings.rotation,
        rotation_prob=settings.rotation_prob,
        jitter=(*jitter[:3], min(jitter[3], 0.5)),
        jitter_prob=settings.jitter_prob,
        grayscale=settings.grayscale,
        blur_sigma=tuple(settings.blur_sigma),
        blur_kernel=settings.blur_kernel,
        solarize_threshold=settings.solarize_threshold,
    )
    return [
        dataclasses.replace(shared, blur_prob=blur, solarize_prob=solarize)
        for blur, solarize in zip(settings.blur_prob, settings.solarize_prob)
    ]


def make_criterion(settings: Settings) -> nn.Module:
    # No check: the ranks' batches are alike by construction, and the loop looks at the loss.
    if settings.method == "barlow_twins":
        return BarlowTwinsLoss(settings.lambd, settings.loss_scale, check=False)
    contrast = {"simclr": InfoNCELoss, "supcon": SupConLoss}[settings.method]
    return contrast(settings.temperature, settings.base_temperature, check=False)


def lr_scale(settings: Settings, global_batch: int) -> float:
    return {"linear": global_batch / 256, "sqrt": math.sqrt(global_batch), "none": 1.0}[settings.lr_scaling]


def make_optimizer(settings: Settings, model: nn.Module, scale: float) -> torch.optim.Optimizer:
    bias_lr = settings.lr if settings.bias_lr is None else settings.bias_lr
    exclude = settings.exclude_bias_and_norm_wd
    bias_decay = 0.0 if exclude else settings.weight_decay
    groups = optim.parameter_groups(model, settings.lr * scale, bias_lr * scale, settings.weight_decay, bias_decay)
    options = {"momentum": settings.momentum} if settings.optimizer in ("lars", "sgd") else {}
    return optim.build(settings.optimizer, groups, settings.lr, exclude, **options)


# The run folder ---------------------------------------------------------------------

# Settings of this script that may differ between a run and its continuation: they do not change what is learnt.
FREE_TO_CHANGE = shared.FREE_TO_CHANGE | {
    "label_column", "max_steps", "save_steps", "save_epochs", "log_every", "health_every", "init_format", "accumulate",
    "max_bad_steps", "eval_every", "eval_head", "eval_at_start", "ssl_val_interval", "linear_epochs", "linear_batch",
    "linear_lr", "linear_weight_decay", "linear_momentum",
}  # fmt: skip
CHECKPOINT = resume.Kind(
    "train.py",
    dict.fromkeys(("model", "optimizer", "scaler", "guard", "bad_images", "settings", "identity", "versions"), dict)
    | {"step": int, "retries": int},
    FREE_TO_CHANGE,
)


def save_is_due(run: run_folder.RunFolder, settings: Settings, step: int, order: Order) -> bool:
    every = [settings.save_steps, settings.save_epochs and settings.save_epochs * order.steps_per_epoch]
    return any(steps and step % steps == 0 for steps in every) or run.due(settings.save_minutes)


def introduce(settings, origin, device, data, statistics, order, scale, folder, step, stop) -> None:
    """The first lines: what will run, where, and why these numbers."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    no_gpu = f" (no GPU: {failures.no_gpu()})" if device.type == "cpu" and settings.device == "auto" else ""
    if origin["dataset"] == origin["data_dir"] == "default":
        say(
            "*** No --dataset and no --data_dir: training on the EMBEDDED demonstration set `shapes`, "
            "not on ImageNet. ***"
        )
    files = [where for where in dict.fromkeys(origin.values()) if where not in ("default", "command line")]
    recipe = " < ".join(["the defaults of train.py", *(os.path.relpath(where) for where in files)])
    why = {
        "linear": f"{settings.lr:g} × global batch {order.global_batch} / 256",
        "sqrt": f"{settings.lr:g} × √{order.global_batch}",
        "none": "as set",
    }[settings.lr_scaling]
    bias = settings.lr if settings.bias_lr is None else settings.bias_lr
    where = "of noise, never read" if data.pool is not None else "from files" if data.paths else "from one file"
    where = "in memory" if data.resident is not None or data.held is not None else where
    say(f"recipe      {recipe}")
    processes = f"{world_size()} process{'es' if world_size() > 1 else ''}"
    say(f"device      {name} × {processes}, {name_of(settings.amp)}{no_gpu}")
    say(f"data        {settings.dataset}: {len(data)} images {where}, views of {settings.image_size} px")
    tell_values(data)
    if learns_from_labels(settings):
        say(f"labels      of {int((data.labels >= 0).sum())} images, {len(data.classes)} classes"
            + (", every class shown as often" if settings.balanced else ""))  # fmt: skip
    if data.channels != 3:
        say(f"views       {data.channels} channel{'s' if data.channels > 1 else ''}: "
            "saturation, hue and grey are left out")  # fmt: skip
    say(f"model       {settings.encoder} {settings.encoder_kwargs or ''} + projector {settings.projector}")
    say(
        f"batch       {settings.batch_size} per process × {world_size()} × accumulate {settings.accumulate} = "
        f"{order.global_batch} (global)"
    )
    say(f"lr          weights {settings.lr * scale:g}, biases and norms {bias * scale:g} ({why})")
    say(f"length      {settings.epochs} epochs of {order.steps_per_epoch} steps, {settings.warmup_epochs:g} of warm-up")
    say(f"run folder  {folder}" + (f", continuing at step {step} of {stop}" if step else ""))


if __name__ == "__main__":
    with one_line_errors("train.py", failures.explain):
        main()

"""Pre-train an encoder on images, without labels or (supcon) with them.

python train.py                        the embedded data set, on this machine
python train.py --data_dir IMAGES      your own images
torchrun --nproc_per_node 8 train.py --dataset ImageNet --data_dir IMAGENET    the published recipe on 8 GPUs
python train.py --help                 every setting
"""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().with_name("ssl"))]  # see ssl/__init__.py

import dataclasses
import math
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Literal

import torch
from torch import Tensor, nn

from ssl import distributed, failures, optim
from ssl.augment import View
from ssl.batch_norm import synchronise
from ssl.checkpoints import about, inherit, learnt_from, pretrained, resume
from ssl.checkpoints.run_folder import RunFolder
from ssl.console import say
from ssl.data import preload
from ssl.data.bad_images import BadImages
from ssl.data.cores import auto_workers
from ssl.data.loader import training_batches
from ssl.data.order import Order
from ssl.distributed import is_main, world_size
from ssl.encoders import build_encoder, is_known
from ssl.errors import one_line_errors
from ssl.heads import projector
from ssl.losses import BarlowTwinsLoss, InfoNCELoss, SupConLoss
from ssl.report.view_page import write_views
from ssl.schedules import set_lr, step_decay, warmup_cosine
from ssl.settings import auto, config, ranges, unread
from ssl.settings.shared import OF_A_VIEW, ImageSettings, TrainingSettings, ViewSettings
from ssl.sources import datasets
from ssl.sources.recipe import continued, find_recipe
from ssl.sources.validation import find_validation
from ssl.training import by_machine, estimate, introduce, trainable
from ssl.training.accumulation import accumulate_exact, accumulate_split
from ssl.training.checks import check, learns_from_labels, require_labels, require_whole_batches
from ssl.training.diverged import Diverged, diverged
from ssl.training.forward import Embed, blank_batch, compiled, rehearse, targets, try_step
from ssl.training.guard import Guard, gradient_norm
from ssl.training.health import Health
from ssl.training.judge_after import judge_after
from ssl.training.judging import Judge
from ssl.training.precision import choose_precision
from ssl.training.start import patience, start
from ssl.training.state import CHECKPOINT, TrainState
from ssl.training.stopping import StopRequests
from ssl.training.threads import settle_threads
from ssl.training.train_session import TrainSession
from ssl.training.training_log import TrainingLog

ROOT = Path(__file__).resolve().parent


@dataclass
class Settings(ImageSettings, ViewSettings, TrainingSettings):
    """Pre-train an encoder on images, without labels or (supcon) with them.

    The defaults are Barlow Twins on ImageNet as published. Over them lies the recipe of the method
    and data set in configs/, or the file that --config names: that file then replaces the recipe.
    To build on another file, it says `extends: FILE`, a path relative to itself, or `extends: auto`,
    the recipe of the method and data set. The line `recipe` of a run names the files.
    """

    FIRST = "data_dir", "encoder", "image_size", "batch_size", "epochs", "output_dir"  # in --help

    # Where settings come from
    config: str | None = None  # YAML file, the whole recipe; the command line wins over it
    row: int | None = None  # which of the `rows` of that file, from 1
    # What to learn
    method: Literal["barlow_twins", "simclr", "supcon"] = "barlow_twins"  # loss and recipe; supcon: with labels
    balanced: bool = False  # draw every class equally often, with replacement, by labels
    image_size: int | Literal["auto"] = 224  # pixels of a view's side; auto: by the machine
    short_side: int | Literal["auto"] | None = None  # hold images in memory, reduced to this; auto: twice image_size
    image_column: str = "image"  # of the table: paths below data_dir, with or without extension
    label_column: str | None = None  # of the table: classes; a tenth is then kept for evaluate.py
    seed: int = 0  # of weights, order and views
    # Model
    encoder: str = "resnet50"  # torchvision's name (vit_b_16), timm/NAME, wide_resnet_28_10, package.Class; or auto
    encoder_kwargs: dict = field(default_factory=lambda: {})  # further arguments of the encoder
    stem: Literal["auto", "imagenet", "small"] = "auto"  # of ResNets; auto: small (3x3, no max-pool) up to 64 pixels
    projector: str = "8192-8192-8192"  # widths of its layers, the last the embedding's; auto: by the number of images
    projector_bias: bool = False  # Barlow Twins: its layers have biases, too, although batch norm follows
    init: str | None = None  # encoder to start from: a run folder, a file, or a name: imagenet, barlow_twins, …
    init_format: pretrained.Kind | None = None  # what that file is; unset: recognised by its tensors' names
    # Loss
    lambd: float = 5e-3  # Barlow Twins: weight of the off-diagonal terms
    loss_scale: float = 0.03125  # Barlow Twins: 1/32, as the published training really had (docs/settings.md)
    temperature: float = 0.1  # SimCLR and SupCon
    base_temperature: float | None = None  # SimCLR and SupCon: multiply the loss by temperature / this
    # Optimizer
    batch_size: int | Literal["auto"] = 256  # images per process and micro-batch; auto: by images and memory
    accumulate: int | Literal["auto"] = 1  # micro-batches a step; auto: with batch_size
    accumulate_mode: Literal["exact", "split"] = "exact"  # loss of all of them together, or the mean of their losses
    epochs: int | Literal["auto"] = 100  # length of the run and of the schedule; auto: by the number of images
    max_steps: int | None = None  # stop after so many steps; the schedule still spans all epochs
    optimizer: Literal["lars", "lamb", "sgd", "adam", "adamw"] = "lars"  # lars and lamb for large batches
    lr: float | Literal["auto"] = 0.2  # of weights, before scaling with the batch; auto: by the authors' table
    bias_lr: float | None = 0.0048  # of biases and norms, before scaling; unset: the same as lr
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"  # lr x batch/256, x sqrt(batch), or as it is
    weight_decay: float = 1e-6  # of weights
    exclude_bias_and_norm_wd: bool = True  # no decay for biases and norms, and no trust ratio of lars and lamb
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
    views: int = 2  # of each image, from one decode; 2 to 16
    rotation_prob: float = 1.0  # of turning an image, by an angle up to `rotation`
    color_distortion_strength: float = 1.0  # multiplies jitter
    blur_prob: list[float] | Literal["auto"] = field(default_factory=lambda: [1.0, 0.1])  # as solarize_prob; or auto
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    blur_kernel: int = 23  # pixels, odd
    solarize_prob: list[float] = field(default_factory=lambda: [0.0, 0.2])  # one, two in turn, or one for each view
    solarize_threshold: float = 0.5019607843137255  # 128/255: from this brightness on, pixels are inverted
    stain_prob: list[float] = field(default_factory=lambda: [1.0])  # of stain_jitter; as solarize_prob
    # Judging meanwhile, on the validation split or a tenth of train's labels; nothing of training changes
    eval_every: int | None = None  # epochs between k-NN and a linear head on features; unset: never
    eval_head: Literal["probe", "fixed"] = "probe"  # evaluate.py's probe, or the fixed head of the SimCLR study
    linear_epochs: int = 90  # the fixed head's passes over the features
    linear_batch: int = 4096  # features a step of the fixed head, or all there are
    linear_lr: float = 0.1  # of the fixed head, times its batch / 256; cosine to 0
    linear_weight_decay: float = 0.0  # of the fixed head
    linear_momentum: float = 0.9  # of the fixed head
    eval_at_start: bool = False  # judge the untrained encoder, too
    evaluate_after: bool = False  # after the last step run evaluate.py, with both baselines, and make the pictures
    ssl_val_interval: int | None = None  # epochs between losses on views of the validation images; unset: never
    # What may go wrong with numbers
    max_bad_steps: int = 10  # after so many steps in a row without a finite gradient: back to the last checkpoint
    retry_lr: float = 0.5  # lr is then multiplied by this; the second time the run ends
    # Run folder
    output_dir: str | None = None  # run folder; unset: runs/METHOD_DATASET
    save_steps: int | None = None  # also save every so many steps
    save_epochs: int | None = None  # also save every so many epochs
    log_every: int = 10  # steps between lines of metrics.jsonl
    health_every: int | Literal["auto"] | None = "auto"  # steps between readings of health; auto: 20 a run, or 100


def main() -> None:
    settings, origin = config.parse(Settings, recipe=find_recipe)
    auto.shorten_warmup(settings, origin)
    datasets.resolve(settings)
    if settings.init:
        inherit.take_architecture(settings, origin)
    check(settings)
    device = start(settings)

    # Run folder, before anything slow: no other run can use it from here on, and it tells how this run ends
    folder = Path(settings.output_dir or ROOT / "runs" / f"{settings.method}_{settings.dataset}")
    begins = continued(folder, settings.resume) is None
    unread.check(settings, origin, begins)
    run = RunFolder(folder, settings.keep_checkpoints, begins)
    requests = StopRequests(folder, patience(settings))
    settle_threads(about.threads_of(folder))

    # Images
    load = partial(datasets.load_as, settings)
    with_labels = learns_from_labels(settings)
    data = load("train" if with_labels else "unlabelled")
    ranges.check_channels(settings, data.channels)
    found = by_machine.settle(settings, data, Model, device, folder)
    data = preload.as_asked(settings, data)
    labels = require_labels(settings, data) if with_labels else None
    balanced_by = labels if settings.balanced else None
    order = Order(len(data), settings.batch_size, settings.accumulate, world_size(), settings.seed, balanced_by)
    require_whole_batches(settings, order)
    introduce.tell_auto(settings, found | auto.settle(settings, order.global_batch, len(data)))
    ranges.check_training(settings)
    validation = find_validation(settings, data, load, with_labels)
    if settings.init and validation:
        learnt_from.check(settings.init, validation.images, settings.data_dir, "validation")
    views = make_views(settings)
    total = settings.epochs * order.steps_per_epoch
    last = min(total, settings.max_steps or total)

    # Model, loss, optimizer
    torch.manual_seed(settings.seed)
    model = Model(settings, data.channels)
    source = inherit.take_weights(settings, model.encoder, folder) if settings.init else None
    trainable.require(model.encoder, settings.image_size, data.channels)
    of_data = inherit.normalisation(settings, source, data)
    statistics = settings.mean, settings.std
    if settings.sync_bn:
        model = synchronise(model)
    model = model.to(device, memory_format=torch.channels_last).train()
    criterion = make_criterion(settings)
    scale = lr_scale(settings, order.global_batch)
    optimizer = make_optimizer(settings, model, scale)
    dtype = choose_precision(settings.amp, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    # What the run folder holds: a checkpoint to continue from, if there is one
    identity = {"global_batch": order.global_batch, "data": data.fingerprint(settings.data_dir)}
    identity |= {"labels": data.label_checksum()} if with_labels else {}
    identity |= {"micro_batch": order.batch_size * world_size()} if settings.accumulate_mode == "split" else {}
    before = resume.find_state(run, settings, identity, CHECKPOINT, [*of_data, "micro_batch"])  # old ones lack it
    inherit.require_weights(source, before)
    first = before["step"] if before else 0
    about.write(run, settings, origin, views, statistics, order, device)
    used = [(data, "labels" if with_labels else "pixels")]
    used += [(validation.images, "choice")] if settings.eval_every else []
    apart = learnt_from.set_apart(load) if with_labels else []
    learnt_from.write(folder, learnt_from.begun_with(folder, before, settings), used, apart, settings.data_dir)
    introduce.tell_choice(settings, origin, device)
    introduce.tell_start("train.py", settings, origin, device)
    introduce.tell_images(settings, data, with_labels)
    introduce.tell_training(settings, order, scale)
    if validation:
        introduce.tell_judging(settings, validation, order)
    say(f"run folder  {folder}" + (f", continuing at step {first} of {last}" if first else ""))
    run.begin(first, last)

    # What a step uses and changes
    guard = Guard(model, optimizer)  # before DDP: it makes the model's buffers parts of one tensor
    warmup = settings.warmup_epochs * order.steps_per_epoch
    health = Health(settings.health_every, total, warmup, model.encoder, criterion, optimizer)
    bad_images = BadImages.of(folder, data, settings.max_bad_fraction, before)
    bad_images.agree()
    net = distributed.parallel(compiled(model) if settings.compile else model, device)
    of_pixels = dtype if is_known(settings.encoder) else None  # another encoder may begin in float32
    embed = Embed(net, views, statistics, device, dtype, of_pixels, settings.compile)
    shape = data.channels, settings.image_size, settings.image_size
    try_batch = partial(try_step, model, embed, optimizer, shape)
    failures.advise(partial(failures.batch_that_fits, try_batch, settings.batch_size, settings.accumulate))
    workers = auto_workers() if settings.workers is None else settings.workers
    judge = Judge(settings, validation, run, order, workers, model=model, embed=embed, criterion=criterion)
    state = TrainState(model, optimizer, scaler, guard, health, judge)

    # Continue, or begin
    feed = partial(training_batches, data, views, order, stop=last, workers=workers, device=device)
    log = TrainingLog(run, data, order, last, bad_images)
    session = TrainSession(settings, run, requests, bad_images, identity, state=state, feed=feed, log=log)
    estimate.tell_pretraining(session, embed, workers, last - first)
    rehearse(model, lambda: embed.total(blank_batch(len(views), settings.batch_size, shape, device)))
    session.begin(before)
    del before
    if is_main() and state.step == 0:
        write_views(folder / "views.png", data, views, *statistics, settings.seed)  # look at it
    while True:
        try:
            pretrain(settings, state, embed, criterion, session)
            break
        except Diverged as error:
            session.go_back(error)
    session.close()
    session.end(f"step {state.step} of {last}")
    say(f"\nrun folder  {folder}\nencoder     {folder / 'encoder.pt'}")
    health.sum_up()
    judge.sum_up()
    judge_after(settings, folder, state.step, data.classes)


def pretrain(settings: Settings, state: TrainState, embed: Embed, criterion: nn.Module, session: TrainSession) -> None:
    """The loop: from the step of `state` to the last one, or until the run is asked to stop."""
    model, optimizer, scaler, guard, health = state.model, state.optimizer, state.scaler, state.guard, state.health
    steps_per_epoch = session.log.order.steps_per_epoch
    backward = partial(scaled_backward, scaler, guard)
    session.open()  # the iterator of batches and the logs, at the step of `state`
    session.judge_if_due()  # before the first step, and where a stop has cut an evaluation short
    while not session.is_over():
        guard.begin()  # it copies the running statistics, to put them back after a bad step
        health.begin(state.step + 1)  # it measures every so many steps
        set_lr(optimizer, lr_factor(settings, state.step, steps_per_epoch) * settings.retry_lr**state.retries)

        # Micro-batches of this rank, all views of every image. Also starts asking all ranks whether to stop.
        batches = session.read_step()
        if settings.accumulate == 1:
            z = embed(batches[0])  # finishes the views on the device; embeddings (n, D) of each view
            loss = criterion(*z, *targets(criterion, batches))  # of the global batch, the same on every rank
            backward(loss)
        elif settings.accumulate_mode == "exact":
            loss = accumulate_exact(batches, embed, criterion, backward)  # the loss of all micro-batches together
        else:
            loss = accumulate_split(batches, embed, criterion, backward)  # the mean of their losses

        scaler.unscale_(optimizer)  # only float16 has a scale; instead of scaler.step there is found_inf, below
        if settings.clip_grad is None:
            norm = gradient_norm(optimizer)
        else:
            norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        guard.mark(loss, norm)  # sets the optimizer's found_inf, for all ranks alike
        health.before_update()  # it measures the size of the update
        optimizer.step()  # changes nothing if found_inf is set
        health.after_update()
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        session.count_step()  # state.step += 1; all ranks now know of stop requests from before this step

        if health.watching:
            session.read_health(loss, norm)
        if state.step % settings.log_every == 0 or state.step == session.log.last:
            session.log.write(state, loss, criterion.parts)  # reads the guard's marks, too
            if guard.bad_in_a_row >= settings.max_bad_steps:
                raise diverged(state, embed, criterion, batches)  # main goes back to the newest checkpoint
        session.judge_if_due()  # the encoder, on validation images
        session.save_if_due()


def scaled_backward(scaler: torch.amp.GradScaler, guard: Guard, loss: Tensor) -> None:
    """Backward of `loss`, which is that of the global batch; with a loss that is not finite all gradients become NaN.

    DDP divides the sum of all ranks' gradients by the world size; the factor `world_size()` undoes the division.
    """
    scaler.scale(loss * world_size() * guard.scale(loss)).backward()


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
        stain_jitter=tuple(settings.stain_jitter),
    )
    of_views = zip(range(settings.views), *(cycle(getattr(settings, name)) for name in OF_A_VIEW))
    return [dataclasses.replace(shared, **dict(zip(OF_A_VIEW, values))) for _, *values in of_views]


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


if __name__ == "__main__":
    with one_line_errors("train.py", failures.explain):
        main()

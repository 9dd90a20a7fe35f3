"""Fine-tune an encoder on labels, or train a head on it, and test it.

python finetune.py --init runs/barlow_twins_shapes                   the run's own data set
python finetune.py --init moco_v2.pth --method moco --data_dir DIR   class folders with train/, val/, test/
python finetune.py --test_only --model_path RUN --data_dir OTHER     test a finished one on other images
python finetune.py --predict IMAGES --model_path RUN                 predict the classes of images without labels
python finetune.py --help                                            every setting
"""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().with_name("ssl"))]  # see ssl/__init__.py

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl import distributed, failures, files, optim
from ssl.augment import View
from ssl.batch_norm import synchronise
from ssl.checkpoints import about, inherit, learnt_from, overwritten, pretrained, resume, run_folder
from ssl.checkpoints.run_folder import RunFolder
from ssl.console import say
from ssl.data.bad_images import BadImages
from ssl.data.images import Images
from ssl.data.loader import training_batches
from ssl.data.values import tell_values
from ssl.distributed import is_main
from ssl.encoders import build_encoder, is_known
from ssl.errors import UserError, one_line_errors
from ssl.evaluation import classify, inference, predict, predictions
from ssl.schedules import plateau, warmup_cosine
from ssl.settings import auto, config, ranges, unread
from ssl.settings.shared import EncoderSettings, LabelSettings, TrainingSettings, ViewSettings
from ssl.sources import datasets, labels, to_predict
from ssl.sources.identity import identity_of
from ssl.sources.labelled import load_splits
from ssl.sources.recipe import continued
from ssl.sources.slides import MAJOR
from ssl.training import best_model, early_stopping, estimate, introduce, next_steps, trainable, trials
from ssl.training.epoch_log import EpochLog
from ssl.training.fit import CHECKPOINT, FREE_TO_CHANGE, Fit
from ssl.training.fit_session import FitSession
from ssl.training.forward import Embed, blank_batch, compiled, rehearse
from ssl.training.precision import autocast, choose_precision
from ssl.training.start import patience, start
from ssl.training.stopping import StopRequests
from ssl.training.threads import settle_threads
from ssl.training.trials import Trial

ROOT = Path(__file__).resolve().parent


@dataclass
class Settings(EncoderSettings, LabelSettings, ViewSettings, TrainingSettings):
    """Fine-tune an encoder on labels, or train a head on it, and test it.

    Unset values come from the run that --init belongs to, where it says 'the run's'. The best epoch is chosen on the
    validation split. The test split is scored once, with the weights of that epoch.
    """

    FIRST = "init", "data_dir", "epochs", "lr", "freeze", "output_dir"  # in --help

    # Where settings come from
    config: str | None = None  # YAML file of settings; the command line wins over it
    row: int | None = None  # which row of that file's table, from 1 on
    # What to begin with
    init: str | None = None  # encoder to start from: a run folder, a file, or a name: imagenet, …; unset: untrained
    method: Literal["simclr", "swav", "byol", "moco", "infomin", "baseline"] | None = None  # what --init must be of
    # Labels
    val_fraction: float = 0.1  # of every class, kept for validation where the data set has no split for it
    # How to learn
    freeze: bool = False  # train the head alone, on an encoder in evaluation mode
    batch_size: int = 32  # images per process
    epochs: int = 100  # at most
    lr: float = 1e-3  # of the head
    lr_backbone: float | None = None  # of the encoder; unset: the same
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"  # of head and encoder
    momentum: float = 0.9  # of sgd
    weight_decay: float = 1e-3  # of all weights
    schedule: Literal["plateau", "cosine", "cosine_by_epoch"] = "plateau"  # plateau: of the validation
    plateau_factor: float = 0.1  # what lr is multiplied by
    plateau_patience: int = 10  # after more epochs than this without a new best
    warmup_epochs: float | Literal["auto"] = 0.0  # of the cosines: linear up to lr; auto: a tenth of the run, up to 10
    min_lr: float = 1e-5  # where a schedule ends, or lr where that is less
    watch: Literal["loss", "auc", "balanced_accuracy", "last"] = "loss"  # of validation: chooses the epoch; or last
    patience: int = 22  # epochs without a new best after which training ends
    balanced: bool = False  # draw every class equally often
    sync_bn: bool = True  # batch norm over the global batch
    # Views of training, and of testing with copies
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue
    jitter_prob: float = 1.0  # probability
    grayscale: float = 0.0  # probability
    # Test
    test_only: bool = False  # test --model_path, train nothing
    predict: str | None = None  # folder, image or array: write what --model_path predicts for it, train nothing
    model_path: str | None = None  # with test_only or predict: run folder of finetune.py, or its best.pt
    copies: int = 1  # 1: the plain image; more: mean of the scores of so many random views of it
    major: list[str] | None = None  # classes whose test images are also reported apart from the others; unset: tissue's
    runs: int = 1  # repeat with seed, seed + 1, ..., and report mean and standard deviation
    # Run folder
    output_dir: str | None = None  # run folder; unset: runs/finetune_DATASET, MODEL/test_DATA or MODEL/predict_IMAGES
    save_minutes: float = 10.0  # between checkpoints; the end of every run is always saved


def main() -> None:
    settings, origin = config.parse(Settings)
    auto.shorten_warmup(settings, origin)
    if settings.predict is not None:
        return predict_only(settings, origin)
    if settings.test_only:
        return test_only(settings, origin)
    inherit.take_settings(settings, origin)
    check(settings)
    device = start(settings)

    # Run folder
    folder = Path(settings.output_dir or ROOT / "runs" / f"finetune_{settings.dataset}")
    begins = continued(folder, settings.resume) is None
    unread.check(settings, origin, begins)
    run = RunFolder(folder, settings.keep_checkpoints, begins)
    requests = StopRequests(folder, patience(settings))
    settle_threads(about.threads_of(folder))

    # Images
    splits = load_splits(settings)
    all_train, test = splits["train"], splits["test"]
    ranges.check_channels(settings, all_train.channels)
    first = trials.make(settings, folder, splits, number=0)
    longest = settings.epochs * trials.longest_epoch(first, settings, folder, splits)  # steps of a run, at most
    if settings.init:
        learnt_from.check(settings.init, test, settings.data_dir, chooses=first.val)

    # Model
    torch.manual_seed(settings.seed)
    dtype = choose_precision(settings.amp, device)
    model = Model(settings, len(all_train.classes), all_train.channels, dtype)
    source = inherit.not_needed(settings, folder) if settings.runs == 1 else None  # a further run begins with them
    replaced = source is not None  # by the checkpoint
    if settings.init and not replaced:
        source = pretrained.load_encoder(model.encoder, settings.init, settings.method, settings.encoder)
    inherit.normalisation(settings, source, all_train)
    model.encoder.requires_grad_(not settings.freeze)
    if not settings.freeze:
        trainable.require(model.encoder, settings.image_size, all_train.channels)
    if settings.sync_bn:
        model = synchronise(model)
    model = model.to(device, memory_format=torch.channels_last)
    loaded = run_folder.copied(model.encoder.state_dict())
    net = distributed.parallel(compiled(model) if settings.compile else model, device)

    # What the run folder holds: a checkpoint to continue from, if there is one
    identity = {
        "global_batch": first.order.global_batch,
        "several_runs": settings.runs > 1,  # each in a folder of its own
        "data": identity_of(first.train, settings.data_dir),
        "val_data": identity_of(first.val, settings.data_dir),
        "test_data": identity_of(test, settings.data_dir),
    }
    identity |= {} if replaced else {"init_encoder": run_folder.checksum(loaded) if settings.init else None}
    state = resume.find_state(run, settings, identity, CHECKPOINT, ["init_encoder"])  # old checkpoints have none
    inherit.require_weights(source, state)
    if state:
        early_stopping.require_kept(state["history"], state["best"], settings)
    identity = state["identity"] | identity if state else identity
    views, statistics = [random_view(settings)], (settings.mean, settings.std)
    about.write(run, settings, origin, views, statistics, first.order, device)
    introduce.tell_start("finetune.py", settings, origin, device)
    introduce.tell_fine_tuning(settings, source, splits, first.order)
    say(f"run folder  {folder}")
    run.begin(state["step"] if state else 0, settings.runs * longest)
    bad_images = BadImages.of(folder, all_train, settings.max_bad_fraction, state)
    session = FitSession(settings, run, requests, bad_images, identity)
    of_pixels = dtype if is_known(settings.encoder or "") else None  # another encoder may begin in float32
    embed = Embed(net, views, statistics, device, None, of_pixels, settings.compile)
    steps = settings.runs * longest - (state["step"] if state else 0)
    estimate.tell_fine_tuning(session, model, make_optimizer(settings, model), embed, first, steps)
    shape = all_train.channels, settings.image_size, settings.image_size
    rehearse(model, lambda: net(*embed.pixels(blank_batch(1, first.order.batch_size, shape, device))).sum())

    # Runs: the same again from other seeds
    ended = min(state["number"], settings.runs) if state else 0
    if ended and settings.resume_force:
        say(f"*** --resume_force changes no run that has ended ({ended} of {settings.runs}); the mean is over all ***")
    results = [best_model.read_results(trials.folder_of(settings, folder, number)) for number in range(ended)]
    for number in range(ended, settings.runs):
        trial = first if number == 0 else trials.make(settings, folder, splits, number)
        files.make_folder(trial.folder)
        before = folder if number else learnt_from.begun_with(folder, state, settings)
        used = [(trial.train, "labels"), *([] if settings.watch == "last" else [(trial.val, "choice")])]
        learnt_from.write(folder, before, used, [test], settings.data_dir)
        distributed.barrier()
        begin_weights(settings, model, loaded, trial)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        fit = Fit(number, model, make_optimizer(settings, model), scaler, steps_before=number * longest)
        if state is not None:
            fit.load_state_dict(state)
            best_model.write_best(trial.folder, fit.best)  # the file may be of epochs that the checkpoint has not seen
            state = None
        fine_tune(settings, trial, fit, embed, session)

        model.load_state_dict(fit.best["model"])
        found = score(settings, model, fit.best, test, trial.folder)
        results.append({"epochs": len(fit.history), **found, "of": best_model.identity(settings, model, test)})
        if is_main():
            files.write_text(files.json_text(results[-1]), trial.folder / "results.json")
    session.end()
    best_model.report(results, folder)
    next_steps.after_fine_tuning(folder, trials.folder_of(settings, folder, 0))


def fine_tune(settings: Settings, trial: Trial, fit: Fit, embed: Embed, session: FitSession) -> None:
    """The loop of one run: until no epoch or no patience is left, or the process is asked to stop."""
    model, order = fit.model, trial.order
    last = settings.epochs * order.steps_per_epoch
    how = {"workers": settings.workers, "device": fit.device}
    batches = training_batches(trial.train, embed.views, order, fit.step, last, **how)
    log = EpochLog(trial.folder, fit, last)
    while not session.asked and not early_stopping.finished(fit.history, settings):
        (batch,) = session.read(batches, fit.total_step())  # this rank's images
        set_lrs(fit, settings, order.steps_per_epoch)
        model.train()
        if settings.freeze:
            model.encoder.eval()  # its running statistics do not change

        torch.manual_seed(batch.seed)  # for dropout
        (x,) = embed.pixels(batch)  # random views (n, C, size, size)
        logits = embed.net(x)  # (n, classes)
        loss = F.cross_entropy(logits, batch.labels)  # mean over this rank; DDP takes the mean over the ranks
        fit.scaler.scale(loss).backward()
        fit.scaler.step(fit.optimizer)
        fit.scaler.update()
        fit.optimizer.zero_grad(set_to_none=True)
        fit.count_step(loss, order.batch_size)
        log.progress.move(fit.step)
        session.count(fit.total_step())  # all ranks now know whether the run was asked to stop

        if fit.step % order.steps_per_epoch == 0:
            end_epoch(settings, trial, fit, session, log)
        session.save_if_due(fit)
    session.watchdog.pause()
    batches.close()
    log.close()
    session.end_run(fit)


def end_epoch(settings: Settings, trial: Trial, fit: Fit, session: FitSession, log: EpochLog) -> None:
    """Validate, log the epoch, and keep its weights if they are the best."""
    epoch = {"epoch": fit.step // trial.order.steps_per_epoch, "train_loss": fit.end_epoch()}
    speed = log.images_per_second(fit, trial.order.global_batch)
    bad_images = session.bad_images.agree()
    session.watchdog.pause()  # while no step is made
    distributed.share_buffers(fit.model)
    fit.model.eval()
    if early_stopping.is_validated(epoch["epoch"], settings):
        epoch |= classify.validate(fit.model, trial.val, settings, fit.device)
    early_stopping.require_finite(epoch)
    fit.history.append(epoch)
    log.write(fit, speed, bad_images)
    if early_stopping.keeps_newest(fit.history, settings):
        fit.best = {
            "model": run_folder.copied(fit.model.state_dict()),
            "classes": trial.train.classes,
            "seed": trial.seed,
            "settings": dataclasses.asdict(settings),
            "best": epoch,
            "whole": trial.val.resident is not None,  # how --predict shows images
        }
        best_model.write_best(trial.folder, fit.best)
    log.start_clock(fit)


# Model -----------------------------------------------------------------------------


class Model(nn.Module):
    """Encoder and linear head: normalised pixels (n, C, H, W) -> logits (n, classes).

    The encoder computes in mixed precision (`dtype`, None: in float32).
    """

    def __init__(self, settings: Settings, classes: int, channels: int, dtype: torch.dtype | None = None):
        super().__init__()
        self.dtype = dtype
        self.encoder, width = build_encoder(
            settings.encoder, settings.image_size, settings.stem, settings.encoder_kwargs, channels
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        with autocast(self.dtype, x.device):
            h = self.encoder(x)
        return self.head(h.float())  # in float32: bf16 has too few digits to order images by


def begin_weights(settings: Settings, model: Model, encoder: dict[str, Tensor], trial: Trial) -> None:
    """The weights at the beginning of a run: `encoder`'s as loaded, the head's from N(0, 0.01), its biases 0.

    Without --init every run draws its own encoder: run `number` is the run that --seed SEED + number alone makes. The
    head is that of the published linear evaluation of Barlow Twins.
    """
    if trial.number and not settings.init:  # the first run's is `encoder`
        torch.manual_seed(trial.seed)
        encoder = Model(settings, len(trial.train.classes), trial.train.channels).encoder.state_dict()
    model.encoder.load_state_dict(encoder)
    generator = torch.Generator().manual_seed(trial.seed)
    weight = torch.empty(model.head.weight.shape).normal_(std=0.01, generator=generator)
    with torch.no_grad():
        model.head.weight.copy_(weight)
        model.head.bias.zero_()


def make_optimizer(settings: Settings, model: Model) -> torch.optim.Optimizer:
    lr_backbone = settings.lr if settings.lr_backbone is None else settings.lr_backbone
    groups = [{"name": "head", "params": list(model.head.parameters()), "base_lr": settings.lr}]
    if not settings.freeze:
        groups.append({"name": "backbone", "params": list(model.encoder.parameters()), "base_lr": lr_backbone})
    options = {"momentum": settings.momentum} if settings.optimizer == "sgd" else {}
    return optim.build(settings.optimizer, groups, settings.lr, weight_decay=settings.weight_decay, **options)


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


# Views -----------------------------------------------------------------------------


def random_view(settings: Settings) -> View:
    """The random crop, flips, rotation and colours that an image is trained with."""
    return View(
        size=settings.image_size,
        crop_scale=tuple(settings.crop_scale),
        crop_ratio=tuple(settings.crop_ratio),
        flip=settings.flip,
        vertical_flip=settings.vertical_flip,
        rotation=settings.rotation,
        jitter=tuple(settings.jitter),
        jitter_prob=settings.jitter_prob if any(settings.jitter) else 0.0,
        grayscale=settings.grayscale,
        blur_prob=0.0,
        solarize_prob=0.0,
        stain_jitter=tuple(settings.stain_jitter),
    )


# Test ------------------------------------------------------------------------------


def score(settings: Settings, model: Model, best: dict, test: Images, folder: Path) -> dict[str, object]:
    """What `model`, of the content `best` of a best.pt, finds on the images `test`. Writes files into `folder`."""
    device = next(model.parameters()).device
    found = classify.test(model.eval(), test, settings, device, copies_of(settings, best), folder)
    return {"seed": best["seed"], "best": best["best"], "test": found}


def copies_of(settings: Settings, best: dict) -> inference.Copies | None:
    """The random views whose scores are averaged; None where the plain image is scored."""
    return inference.Copies(settings.copies, random_view(settings), best["seed"]) if settings.copies > 1 else None


def load_model(settings: Settings, best: dict, path: Path, channels: int, device: torch.device) -> Model:
    """The model of the best.pt at `path`, whose content is `best`."""
    model = Model(settings, len(best["classes"]), channels, choose_precision(settings.amp, device))
    best_model.load_weights(model, best, path)
    return model.to(device, memory_format=torch.channels_last)


def begin_with(settings: Settings, origin: dict[str, str]) -> tuple[dict[Path, dict], Path, torch.device]:
    """({best.pt: its content}, their run folder, the device) of --model_path; take unset settings from the first."""
    models = best_model.models(settings.model_path)
    first = next(iter(models))
    best_model.take_settings(settings, origin, models[first]["settings"], first, FREE_TO_CHANGE)
    check(settings)
    device = start(settings)
    home = first.parent if len(models) == 1 else Path(settings.model_path)
    settle_threads(about.threads_of(home) or about.threads_of(home.parent))  # home may be one of several runs
    introduce.tell_model(models, settings, device)
    return models, home, device


def test_only(settings: Settings, origin: dict[str, str]) -> None:
    """Test a finished fine-tuning, on its own or on other images; of several runs each, and report their mean."""
    own_data = settings.dataset is not None or settings.data_dir is not None
    models, home, device = begin_with(settings, origin)
    folder = Path(settings.output_dir or home / f"test_{datasets.called(settings)}")
    places = {path: folder if len(models) == 1 else folder / path.parent.name for path in models}
    overwritten.require_no_run([folder, *places.values()])

    split = "all" if own_data else "test"  # all images of other data, except those that are kept for training
    data = datasets.load_labelled(settings, split)
    say(f"data        {settings.dataset}: {introduce.class_counts(data)}")
    tell_values(data)
    learnt_from.check(next(iter(models)), data, settings.data_dir)
    data = predict.as_chosen(data, next(iter(models.values())), settings)
    tests = {}
    for path, best in models.items():
        shown = best_model.with_classes_of(best, path, data, settings.leave_out)
        labels.require_named("major", settings.major, shown.classes)
        model = load_model(settings, best, path, data.channels, device)
        tests[path] = model, shown, best_model.identity(settings, model, shown, split)

    run = best_model.begin_test(folder, settings, [of for _, _, of in tests.values()])
    results = []
    for path, (model, shown, of) in tests.items():
        results.append(score(settings, model, models[path], shown, files.make_folder(places[path])) | {"of": of})
    distributed.leave()
    run.end("finished", "")
    best_model.report(results, folder)
    next_steps.after_test(next(iter(models)).parent)


def predict_only(settings: Settings, origin: dict[str, str]) -> None:
    """Write predictions.csv: what the model of a finished fine-tuning predicts for the images of --predict."""
    to_predict.take(settings)
    models, home, device = begin_with(settings, origin)
    path, best = best_model.only_one(models)
    images = to_predict.load(settings)
    best_model.require_as_trained(settings, images, best["settings"], path)
    file = predictions.new_file(settings.output_dir or home / f"predict_{datasets.called(settings)}")
    model = load_model(settings, best, path, images.channels, device).eval()
    predict.write(model, images, best, settings, device, copies_of(settings, best), file)
    distributed.leave()


# Settings --------------------------------------------------------------------------


def check(settings: Settings) -> None:
    """Fill in the last defaults, and refuse what cannot work before any process waits for another."""
    inherit.defaults(settings, "using")
    settings.image_size = settings.image_size or datasets.KNOWN[settings.dataset][0]
    of_data = [name for name in MAJOR.get(settings.dataset, []) if name not in (settings.leave_out or [])]
    settings.major = settings.major or of_data or None
    settings.warmup_epochs = auto.warmup(settings.warmup_epochs, settings.epochs, settings.schedule)
    labels.check_choice(settings.train_percent, settings.train_files)
    trains = not settings.test_only and settings.predict is None
    if settings.model_path is not None and trains:
        raise UserError("model_path: names the model that --test_only tests or --predict uses; to start from: --init")
    ranges.check(settings)
    ranges.check_training(settings)
    ranges.check_fine_tuning(settings)
    if settings.method and settings.init is None and trains:
        raise UserError("method says how to read a file of weights; name it with --init")


if __name__ == "__main__":
    with one_line_errors("finetune.py", failures.explain):
        main()

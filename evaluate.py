"""Judge a frozen encoder: linear evaluation, a swept probe, k-NN; or write its features.

python evaluate.py --model_path runs/barlow_twins_shapes
torchrun --nproc_per_node 8 evaluate.py --model_path RUN --protocol linear
python evaluate.py --features RUN/features.pt
python evaluate.py --help
"""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().with_name("ssl"))]  # see ssl/__init__.py

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl import distributed, failures
from ssl.augment import View
from ssl.checkpoints import inherit, learnt_from, pretrained, torch_file
from ssl.checkpoints.restore import restore
from ssl.console import Progress, say
from ssl.data import preload
from ssl.data.bad_images import tell_left_out
from ssl.data.cores import auto_workers
from ssl.data.images import Images
from ssl.data.loader import finish, training_batches
from ssl.data.order import Order, Shares
from ssl.data.values import tell_values
from ssl.distributed import is_main, rank, world_size
from ssl.encoders import build_encoder
from ssl.errors import UserError, one_line_errors
from ssl.evaluation import features, fixed_head, inference, metrics, npz, results
from ssl.evaluation.feature_rows import Rows, statistics
from ssl.evaluation.features import Split
from ssl.evaluation.probes import knn, probe, tenth_apart
from ssl.files import make_folder
from ssl.schedules import warmup_cosine
from ssl.settings import config, ranges
from ssl.sources import datasets, labels, leaks
from ssl.training import best_model
from ssl.training.threads import settle_threads

ROOT = Path(__file__).resolve().parent

Protocol = Literal["linear", "probe", "knn", "fixed", "features", "all"]


@dataclass
class Settings:
    """Judge a frozen encoder.

    The default is a swept probe and k-NN. The published linear evaluation is --protocol linear, whose batch of 256 is
    linear_batch, over all processes together.
    What is unset is as in the run that --model_path belongs to, where it says 'the run's'.
    Nothing is ever chosen on the test split.
    """

    # What to judge
    config: str | None = None  # YAML file of settings; the command line wins over it
    model_path: str | None = None  # run folder, or a file, ours or of others; unset: the published ResNet-50
    init: str | None = None  # the same, under the name that it has in train.py
    init_format: pretrained.Kind | None = None  # insist on what that file is; unset: recognised by its names
    encoder: str | None = None  # unset: the run's, or by the shapes of its weights, or resnet50
    encoder_kwargs: dict | None = None  # unset: the run's
    stem: Literal["auto", "imagenet", "small"] | None = None  # unset: the run's, or by the shapes of its weights
    random_init: bool = False  # also judge the same encoder untrained
    raw_pixels: bool = False  # also judge the pixels themselves (probe and knn)
    features: str | None = None  # or judge this file of --protocol features, without encoder and images
    # On what
    dataset: str | None = None  # unset: the run's
    data_dir: str | None = None  # unset: the run's
    class_list: str | None = None  # unset: the run's
    csv: str | None = None  # table that names the images below data_dir; unset: the run's
    image_column: str | None = None  # of the table: paths below data_dir; unset: the run's, or image
    label_column: str | None = None  # of the table: classes; unset: the run's
    positive: list[str] | None = None  # labels that are class 'positive', all others 'negative'; unset: the run's
    group_column: str | None = None  # of the table: patient, lesion or slide, never in two splits; unset: the run's
    split_column: str | None = None  # of the table: train, val or test; unset: the run's, or cut by the names
    splits_folder: str | None = None  # isic2019: folder of {train,val,test}_split_1.csv; unset: the run's
    test_slides: list[str] | None = None  # slides: hospitals, patients or slides that are the test; unset: the run's
    download: bool = False  # let torchvision download the data set
    image_size: int | None = None  # unset: the images' own size up to 64 pixels, above that the run's
    value_range: tuple[float, float] | None = None  # numbers of the files that are black and white; unset: the run's
    mean: list[float] | None = None  # of normalisation; unset: what the weights are used to, or the data set's
    std: list[float] | None = None  # of normalisation; unset: what the weights are used to, or the data set's
    max_bad_fraction: float = 0.001  # of the images may be unreadable, and 10 in any case; they are left out
    train_percent: float = 100.0  # share of the labels, of every class, by seed
    train_files: str | None = None  # or a file that lists the names of the training images to use
    # How
    protocol: list[Protocol] = field(default_factory=lambda: ["probe", "knn"])  # one or more; all: but fixed
    standardize: bool = False  # probe and knn: features minus train's mean over train's deviation, each dimension
    npz: bool = False  # protocol features: also write features.npz
    k: int = 20  # neighbours
    knn_temperature: float = 0.07  # of their votes
    probe_epochs: int = 30  # passes over the features
    linear_epochs: int = 100  # passes over the images
    linear_lr: float = 0.3  # cosine to 0, SGD with momentum 0.9
    linear_weight_decay: float = 1e-6  # of the linear head
    linear_batch: int = 256  # global batch of the linear head
    batch_size: int = 256  # images per process while features are read; no result depends on it
    # Machine and files
    gpus: int | None = None  # start so many processes here, as torchrun would
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    workers: int | None = None  # loader processes per process; unset: the cores it may use
    preload: bool = False  # decode the training files once, into shared memory: protocol linear reads them every epoch
    seed: int | None = None  # of held-out slices, label subsets, heads; unset: the run's, or 0
    output_dir: str | None = None  # where results.json goes; unset: the run folder (of finetune.py: evaluation in it)


def main() -> None:
    settings, origin = config.parse(Settings)
    of_linear = [name for name in origin if name.startswith("linear_") and origin[name] != "default"]
    if of_linear and not {"linear", "all"} & set(settings.protocol):
        raise UserError(f"{of_linear[0]}: is of protocol linear; fixed takes what its run says, the others have none")
    if settings.init and settings.model_path:
        raise UserError("init and model_path are two names for one thing, the file to judge; set one of them")
    settings.model_path = settings.model_path or settings.init
    if settings.features:
        return judge_features(settings)
    run = pretrained.run_settings(settings.model_path, settings.init_format) if settings.model_path else {}
    inherit.fill(settings, run)
    protocols = ["linear", "probe", "knn", "features"] if "all" in settings.protocol else settings.protocol
    check(settings, protocols)
    head = fixed_head.head_of(run if "fixed" in protocols else {})
    if settings.gpus is not None and "RANK" not in os.environ:
        distributed.start_processes(settings.gpus)
    device = distributed.join(settings.device, patience=360)  # rank 0 trains the probes while the others wait
    settle_threads()
    folder = open_folder(settings)
    say(f"device      {distributed.describe(device, settings.device)}")
    published = "" if "linear" in protocols else "; the published linear evaluation is --protocol linear"
    say(f"protocol    {', '.join(protocols)}{published}")
    say(f"batch       {settings.batch_size} images per process while features are read; no result depends on it")

    # Data
    everything, val, test = labelled_splits(settings, protocols)
    train = labels.choose(everything, settings.train_percent, settings.train_files, settings.seed)
    require_enough(train, protocols)
    leaks.check({"train": train, "val": val, "test": test})
    if settings.model_path is not None:
        learnt_from.check(settings.model_path, test, settings.data_dir)
    if settings.image_size is None:
        settings.image_size = judged_size(settings, run, train)
    if settings.preload:
        train = preload.hold(train, settings.image_size)
    classes = len(train.classes)

    # Encoder
    torch.manual_seed(settings.seed)
    built = settings.encoder, settings.image_size, settings.stem, settings.encoder_kwargs, train.channels
    encoder, width = build_encoder(*built)
    subjects: dict[str, nn.Module | None] = {}
    if settings.raw_pixels:
        subjects["raw_pixels"] = None
    if settings.random_init:
        subjects["random_init"] = encoder
    trained, _ = build_encoder(*built)
    source = load_weights(trained, settings)
    inherit.normalisation(settings, source, everything)
    subjects["trained"] = trained
    weights = results.of_weights(source, settings.model_path, trained)
    say(f"encoder     {settings.encoder}, {width} features, weights of {source}")
    if weights["steps"] == 0:
        say(f"*** {source.path}: this run has made 0 steps; its encoder is judged as it was before training ***")
    say(f"data        {settings.dataset}: {len(train)} train, {len(test)} test images, {classes} classes")
    tell_values(train)

    # Judge
    found: dict = {}
    for name, subject in subjects.items():
        judged: dict = {}
        before = None
        if subject is not None:
            subject.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)
            before = {key: value.clone() for key, value in subject.state_dict().items()}
        if set(protocols) != {"linear"}:
            if name == "trained" and "features" in protocols:
                train, test = write_features(
                    folder, settings, subject, weights["steps"], {"train": train, "val": val, "test": test}, device
                )
                pairs = [features.load(folder, device).splits[x].pair() for x in ("train", "test")] if is_main() else []
            else:
                (train_x, train), (test_x, test) = (extract(subject, x, settings, device, name) for x in (train, test))
                pairs = [(Rows((x,), device), data.labels.to(device)) for x, data in ((train_x, train), (test_x, test))]
            if is_main():
                judged |= judge(*pairs, classes, settings, protocols, head)
        distributed.barrier()
        if "linear" in protocols and subject is not None:
            judged["linear"] = linear_evaluation(subject, width, train, test, settings, device)
        if before is not None:
            prove_unchanged(subject, before)
        found |= judged if name == "trained" else {name: judged}
    distributed.leave()

    if is_main() and set(protocols) != {"features"}:
        of = {"weights": weights, "data": results.of_images(settings, test, train)}
        found["of"] = of | results.of_protocols(settings, protocols)
        results.report(found, list(subjects), folder)


def judge_features(settings: Settings) -> None:
    """Probe and k-NN from a features file. An encoder or images, where they are named too, must be those it is of."""
    protocols = ["probe", "knn"] if "all" in settings.protocol else settings.protocol
    if not set(protocols) <= {"probe", "knn", "fixed"}:
        raise UserError(f"protocol: {' '.join(protocols)} needs images; from --features there are probe, knn and fixed")
    if settings.random_init or settings.raw_pixels or settings.npz:
        raise UserError("random_init, raw_pixels and npz need images; leave them away with --features")
    if int(os.environ.get("WORLD_SIZE", settings.gpus or 1)) > 1:
        raise UserError("features: one process judges a features file; start evaluate.py without torchrun and --gpus")
    ranges.check(settings)
    labels.check_choice(settings.train_percent, settings.train_files)
    settle_threads()
    failures.advise(
        lambda: "the features of all splits lie there; pass --device cpu, or fewer with --protocol features"
    )
    run = pretrained.run_settings(settings.model_path) if settings.model_path and "fixed" in protocols else {}
    head = fixed_head.head_of(run)
    found = features.load(settings.features, distributed.join(settings.device))
    path = Path(settings.features)
    settings.output_dir = settings.output_dir or str(path if path.is_dir() else path.parent)
    folder = open_folder(settings)
    if settings.seed is None:
        settings.seed = config.coerce(found.settings.get("seed", 0), int, "features: seed")
    counts = ", ".join(f"{len(x)} {name}" for name, x in found.splits.items())
    say(f"features    {settings.features}: {counts}, "
        f"{found.splits['train'].rows.shape[1]} a sample, {len(found.classes)} classes")  # fmt: skip
    if settings.model_path:
        built = settings.encoder, settings.encoder_kwargs, settings.stem, settings.image_size
        encoder, _, _ = restore(settings.model_path, *built, settings.init_format)
        features.require_encoder(found, encoder, settings.features, settings.model_path)
    if settings.dataset or settings.data_dir:
        settings.dataset = datasets.resolve_name(settings.dataset, settings.data_dir)
        images = {name: datasets.load_labelled(settings, name) for name in ("train", "test")}
        percent = config.coerce(found.settings.get("train_percent", 100), float, "features: train_percent")
        images["train"] = labels.choose(images["train"], percent, None, settings.seed)
        features.require_data(found, images, settings.features, settings.data_dir)
    train = labels.choose(found.splits["train"], settings.train_percent, settings.train_files, settings.seed)
    require_enough(train, protocols)
    judged = judge(train.pair(), found.splits["test"].pair(), len(found.classes), settings, protocols, head)
    of = {"weights": results.of_weights_of(found), "data": results.of_features(settings.features, found, train)}
    judged["of"] = of | results.of_protocols(settings, protocols)
    results.report(judged, ["trained"], folder)


# Settings -----------------------------------------------------------------------------


def check(settings: Settings, protocols: list[str]) -> None:
    """Fill in the last defaults, and refuse what cannot work before any process waits for another."""
    if settings.dataset is None and settings.data_dir is None:
        say("*** No data set is named, here or by the run: judging on the EMBEDDED demonstration set `shapes`. ***")
    settings.dataset = datasets.resolve_name(settings.dataset, settings.data_dir)
    if settings.model_path is None:
        if settings.init_format:
            raise UserError("init_format says how to read a file; name it with --model_path")
        if settings.encoder not in (None, "resnet50"):
            raise UserError(f"encoder: the published weights are of a resnet50, not {settings.encoder}; set model_path")
        settings.stem = "imagenet"
    settings.encoder = settings.encoder or "resnet50"
    settings.stem = settings.stem or "auto"
    settings.seed = settings.seed or 0
    settings.workers = auto_workers() if settings.workers is None else settings.workers
    ranges.check(settings)
    if settings.batch_size < 1:
        raise UserError(f"batch_size: {settings.batch_size} must be at least 1")
    labels.check_choice(settings.train_percent, settings.train_files)
    if settings.npz and "features" not in protocols:
        raise UserError("npz: features are written by --protocol features; add it")
    if settings.standardize and not {"probe", "knn"} & set(protocols):
        raise UserError("standardize is for probe and knn; features are written as the encoder gives them")


def open_folder(settings: Settings) -> Path:
    """The folder for results.json, made and found writable before there is anything to lose.

    Where finetune.py has a results.json of its own it is the folder `evaluation` within.
    """
    if settings.output_dir is not None:
        folder = Path(settings.output_dir)
    elif settings.model_path is not None:
        folder = torch_file.find_encoder(settings.model_path).parent
    else:
        folder = ROOT / "runs" / "published"
    if best_model.is_of_finetuning(folder):
        folder = folder / "evaluation"
    return make_folder(folder)


def labelled_splits(settings: Settings, protocols: list[str]) -> tuple[Images, Images | None, Images]:
    """(train, val, test) of the data set; val only for protocol features, and where the data set has one of its own."""
    train, test = (datasets.load_labelled(settings, split) for split in ("train", "test"))
    val = datasets.load_labelled(settings, "val") if "features" in protocols else None
    if train.channels != test.channels:
        raise UserError(f"data_dir: train has images of {train.channels} channels, test of {test.channels}")
    return train, val, test


def require_enough(train: Images | Split, protocols: list[str]) -> None:
    least = 2 if "probe" in protocols else 1
    labels.require_each(
        train, least, "protocol probe needs at least 2 of every class, 1 of them held out, the others 1"
    )


def judged_size(settings: Settings, run: dict, data: Images) -> int:
    """Small images are judged as they are if the encoder reads them; others at the size the run trained on."""
    trained = config.coerce(run.get("image_size", datasets.KNOWN[settings.dataset][0]), int, "the run's image_size")
    if data.resident is None or min(data.resident.shape[2:]) == trained:
        return trained
    encoder, _ = build_encoder(settings.encoder, trained, settings.stem, settings.encoder_kwargs, data.channels)
    size = inference.judged_size(encoder, data, trained)
    if size == trained:
        say(f"images      at {trained} pixels, the only size that {settings.encoder} reads")
    return size


def load_weights(encoder: nn.Module, settings: Settings) -> pretrained.Source:
    """Put the weights to be judged into `encoder`; return where they came from."""
    if settings.model_path is None:
        return pretrained.load_published(encoder, "barlow_twins")
    return pretrained.load_encoder(encoder, settings.model_path, settings.init_format)


def prove_unchanged(encoder: nn.Module, before: dict[str, Tensor]) -> None:
    """Raise if judging touched the encoder."""
    changed = [key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])]
    if changed:
        raise RuntimeError(f"judging changed the frozen encoder: {', '.join(changed[:3])}")


# Protocols ------------------------------------------------------------------------------


def judge(
    train: tuple[Rows, Tensor],
    test: tuple[Rows, Tensor],
    classes: int,
    settings: Settings,
    protocols: list[str],
    head: fixed_head.Head,
) -> dict:
    """The probe, its winner chosen on a held-out tenth of `train`, k-NN and the study's head, of (features, labels)."""
    judged: dict = {}
    if "fixed" in protocols:
        judged["fixed"] = fixed_head.judge(train, test, classes, head, settings.seed)
    if settings.standardize and {"probe", "knn"} & set(protocols):
        mean, std = statistics(train[0])
        train, test = ((rows.standardised(mean, std), y) for rows, y in (train, test))
    if "probe" in protocols:
        parts = tenth_apart(train, settings.seed)
        judged["probe"] = probe(*parts, test, classes, settings.probe_epochs, seed=settings.seed)
    if "knn" in protocols:
        judged["knn"] = knn(train, test, classes, settings.k, settings.knn_temperature)
    return judged


def reading(settings: Settings, device: torch.device, name: str) -> dict:
    """How un-augmented images are read, for `inference`."""
    return dict(size=settings.image_size, batch_size=settings.batch_size, workers=settings.workers, device=device,
                mean=settings.mean, std=settings.std, title=f"features, {name}")  # fmt: skip


def extract(
    encoder: nn.Module | None, data: Images, settings: Settings, device: torch.device, name: str
) -> tuple[Tensor, Images]:
    """Representations (N, width) of all un-augmented images, in order, on every rank; pixels where encoder is None.

    Returned with the images they are of: `data` without those that cannot be read.
    """
    h, read, unread = inference.outputs(encoder or nn.Flatten(), data, **reading(settings, device, name))
    if not unread:
        return h, data
    tell_left_out(unread, len(data), settings.max_bad_fraction)
    return h[read], data.subset(read.nonzero()[:, 0].cpu())


def linear_evaluation(
    encoder: nn.Module, width: int, train: Images, test: Images, settings: Settings, device: torch.device
) -> dict:
    """The published protocol: a linear head on augmented views of a frozen encoder; its accuracies on test.

    Random crop and flip, SGD with momentum, cosine by epoch, weights from N(0, 0.01). The
    result is the last epoch's: choosing the best one would be choosing on the test split.
    It is the same on any number of processes, to rounding.
    """
    test_x, test = extract(encoder, test, settings, device, "test")
    mean, std = (torch.tensor(values, device=device) for values in (settings.mean, settings.std))
    view = View(
        settings.image_size, jitter_prob=0.0, grayscale=0.0, blur_prob=0.0, solarize_prob=0.0
    )  # crop and flip alone
    order = Order(len(train), min(settings.linear_batch, len(train)), 1, 1, settings.seed)
    shares = Shares(order, world_size())
    weight = shares.counts(rank()).to(device) * world_size() / order.global_batch  # DDP takes the mean over the ranks

    torch.manual_seed(settings.seed)
    head = nn.Linear(width, len(train.classes))
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    head = head.to(device)
    runner = DistributedDataParallel(head) if world_size() > 1 else head
    optimizer = torch.optim.SGD(
        head.parameters(), settings.linear_lr, momentum=0.9, weight_decay=settings.linear_weight_decay
    )
    total = settings.linear_epochs * order.steps_per_epoch
    batches = training_batches(train, [view], shares, 0, total, settings.workers, device)
    progress = Progress(total, 0)
    for step, batch in enumerate(batches):
        epoch = step // order.steps_per_epoch
        optimizer.param_groups[0]["lr"] = settings.linear_lr * warmup_cosine(epoch, settings.linear_epochs, 0, 0.0)
        with torch.no_grad():
            (x,) = finish(batch, [view], mean, std)
            h = encoder(x).float()
        loss = (F.cross_entropy(runner(h), batch.labels, reduction="none") * weight).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step + 1 == total:
            require_finite_head(head, step + 1)
            progress.update(step + 1, f"linear  loss {loss.item():.3f}  epoch {epoch + 1}")
    progress.close()
    with torch.no_grad():
        scores, truth = head(test_x), test.labels.to(device)
    found = metrics.of_hits(truth, metrics.hits(scores, truth))
    return found | metrics.acc5(metrics.hits(scores, truth, 5), len(train.classes))


def require_finite_head(head: nn.Linear, step: int) -> None:
    """Raise `UserError` where a linear head has NaN or Inf; the ranks have the same head, so all of them do."""
    if not head.weight.isfinite().all():
        raise UserError(
            f"protocol linear: after {step} steps the head has NaN or Inf; lower --linear_lr, or the encoder gives "
            "such features for augmented views of the training images"
        )


def write_features(
    folder: Path,
    settings: Settings,
    encoder: nn.Module,
    steps: int | None,
    images: dict[str, Images | None],
    device: torch.device,
) -> tuple[Images, Images]:
    """Write features.pt and its shards (`ssl.evaluation.features`), and features.npz if wanted; return train and test.

    Rank 0 writes, and holds a shard at a time. Images that cannot be read stay out of both.
    """
    written, kept = {}, {}
    for split, data in images.items():
        if data is not None:
            unread: dict[str, str] = {}
            read: list[Tensor] = []
            batches = inference.stream(encoder, data, unread, **reading(settings, device, split))
            batches = noting(batches, read)
            if is_main():
                written[split] = features.write_split(folder, split, data, batches)
            for _ in batches:  # the other ranks take part, and keep nothing
                pass
            unread = inference.of_all_ranks(unread)
            tell_left_out(unread, len(data), settings.max_bad_fraction)
            kept[split] = data.subset(torch.cat(read).nonzero()[:, 0]) if unread else data
    if is_main():
        about = dataclasses.asdict(settings) | {"steps": steps}
        path = features.finish(folder, written, images["train"].classes, features.encoder_checksum(encoder), about)
        say(f"features    {path}")
        if settings.npz:
            npz.write(features.load(folder), folder / "features.npz")
            say(f"features    {folder / 'features.npz'}")
    return kept["train"], kept["test"]


def noting(batches: Iterator[tuple[Tensor, Tensor]], read: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches; which of their images were read is put into `read`."""
    for h, good in batches:
        read.append(good.cpu())
        yield h, good


if __name__ == "__main__":
    with one_line_errors("evaluate.py", failures.explain):
        main()

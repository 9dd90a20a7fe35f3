"""Judge a frozen encoder: linear evaluation, a swept probe, k-NN, a report card; or write its features of any images.

python evaluate.py --model_path runs/barlow_twins_shapes
torchrun --nproc_per_node 8 evaluate.py --model_path RUN --protocol linear
python evaluate.py --model_path RUN --data_dir UNLABELLED --protocol features --csv_features
python evaluate.py --features RUN/features.pt
python evaluate.py --help
"""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().with_name("ssl"))]  # see ssl/__init__.py

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl import distributed, failures
from ssl.augment import View
from ssl.checkpoints import inherit, learnt_from, pretrained, published, source_run, torch_file
from ssl.console import Progress, say
from ssl.data import preload
from ssl.data.images import Images
from ssl.data.loader import finish, training_batches
from ssl.data.order import Order, Shares
from ssl.data.values import tell_values
from ssl.distributed import is_main, rank, world_size
from ssl.encoders import build_encoder
from ssl.errors import UserError, one_line_errors
from ssl.evaluation import card, checks, feature_origin, features, fixed_head, inference, npz, probes, results
from ssl.evaluation.feature_rows import Rows, Samples, statistics
from ssl.evaluation.inference import Reading
from ssl.evaluation.neighbours import nearest
from ssl.files import make_folder
from ssl.report import card_page, feature_files
from ssl.schedules import warmup_cosine
from ssl.settings import config, ranges
from ssl.settings.kinds import coerce
from ssl.settings.shared import DATA, EncoderSettings, LabelSettings, MachineSettings, require_same
from ssl.sources import datasets, every_image, labels, leaks
from ssl.training import best_model, next_steps
from ssl.training.precision import name_of
from ssl.training.threads import settle_threads

ROOT = Path(__file__).resolve().parent

Protocol = Literal["linear", "probe", "knn", "card", "fixed", "features", "all"]


@dataclass
class Settings(LabelSettings, EncoderSettings, MachineSettings):
    """Judge a frozen encoder.

    The default is a swept probe and k-NN. The published linear evaluation is --protocol linear. Its batch of 256 is
    linear_batch, over all processes together. Nothing is ever chosen on the test split.
    Unset values of the data set, its table, the encoder, value_range and seed come from the run of --model_path.
    """

    FIRST = "model_path", "data_dir", "protocol", "random_init", "raw_pixels", "output_dir"  # in --help

    # What to judge
    config: str | None = None  # YAML file of settings; the command line wins over it
    model_path: str | None = None  # encoder to judge: a run folder, a file, or a name: imagenet, barlow_twins, …
    init_format: pretrained.Kind | None = None  # insist on what that file is; unset: recognised by its names
    random_init: bool = False  # also judge the same encoder untrained
    raw_pixels: bool = False  # also judge the pixels themselves (probe and knn)
    features: str | None = None  # or judge this file of --protocol features, without encoder and images
    # How
    protocol: list[Protocol] = field(default_factory=lambda: ["probe", "knn"])  # one or more; all: without fixed, card
    standardize: bool = False  # probe and knn: features minus train's mean over train's deviation, each dimension
    npz: bool = False  # protocol features: also write features.npz
    csv_features: bool = False  # protocol features: also write features.csv, a row for every image
    near_duplicates: float | None = None  # list pairs of images whose features have a cosine above this, e.g. 0.95
    k: int = 20  # neighbours
    knn_temperature: float = 0.07  # of their votes
    probe_epochs: int = 30  # passes over the features
    corrupted_images: int = 2000  # card: test images that are also judged with noise, blur, JPEG, brightness; 0: none
    linear_epochs: int = 100  # passes over the images
    linear_lr: float = 0.3  # cosine to 0, SGD with momentum 0.9
    linear_weight_decay: float = 1e-6  # of the linear head
    linear_batch: int = 256  # global batch of the linear head
    batch_size: int = 256  # images per process while features are read; results differ by rounding at most
    # Images
    image_size: int | None = None  # unset: the images' own size up to 64 pixels, above that the run's
    # Output
    output_dir: str | None = None  # where results.json goes; unset: the run folder, see docs/judging.md


def main() -> None:
    settings, origin = config.parse(Settings)
    protocols = checks.protocols_of(settings, origin)
    checks.check(settings, protocols, origin)
    if settings.features:
        judge_features(settings, protocols)
    else:
        judge_images(settings, origin, protocols)


def judge_images(settings: Settings, origin: dict[str, str], protocols: list[str]) -> None:
    """Judge an encoder on images: extract their features, or train a head on views of them."""
    run = pretrained.run_settings(settings.model_path, settings.init_format, settings.encoder)
    fill(settings, run)
    head = fixed_head.settings_of(run if "fixed" in protocols else {})
    device, folder = begin(settings, run, protocols)

    drawn = {"drawn_at": datasets.drawn_at(settings)}  # they may be judged at another size, which is then filled in
    images, first = load_images(settings, run, protocols)
    subjects, width, source = build_encoders(settings, first.channels)
    inherit.normalisation(settings, source, first)
    if settings.npz:
        npz.require_memory(sum(map(len, images.values())), width)
    weights = results.about_weights(source, subjects["trained"])
    tell_encoder(settings, width, source, weights["steps"])
    tell_images(settings, images, first)

    on_features = {"probe", "knn", "fixed"} & set(protocols)
    if "linear" in protocols and not on_features:  # its views, too, are of images that can be read
        images |= {s: extract(lambda x: x[:, :1, 0, 0], images[s], settings, device, s)[1] for s in ("train", "test")}

    found, whole, start = {}, images, next(iter(images))
    for name, encoder in subjects.items():
        judged, pairs = {}, []
        encoder.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)
        before = {key: value.clone() for key, value in encoder.state_dict().items()}
        if name == "trained" and "features" in protocols:
            every = images if len(images[start]) == len(first) else images | {start: first}  # whatever labels judge
            about = drawn | {"steps": weights["steps"]} | feature_origin.some_keys(every, settings.data_dir)
            whole = features.write(folder, encoder, every, settings, device, about)
            images = whole | {start: images[start].among(whole[start])}
            if is_main() and on_features:
                pairs = features.load(folder, device).pairs(images["train"])
        elif on_features:
            for split in ("train", "test"):
                h, images[split] = extract(encoder, images[split], settings, device, name)
                if is_main():
                    pairs.append((Rows((h,), device), images[split].labels.to(device)))
        checks.require_enough(images, protocols)  # of those that could be read
        changed = card.changed_images(encoder, images["test"], settings, device, name) if "card" in protocols else ""
        if pairs:
            judged = judge(*pairs, first.classes, settings, protocols, head, card.groups_of(images), changed)
        distributed.barrier()
        if "linear" in protocols and name != "raw_pixels":
            judged["linear"] = linear_evaluation(encoder, width, images["train"], images["test"], settings, device)
        checks.require_unchanged(encoder, before)
        found |= judged if name == "trained" else {name: judged}
    distributed.leave()

    if is_main() and set(protocols) != {"features"}:
        found["of"] = results.of_images(settings, protocols, weights, images)
        results.report(found, list(subjects), folder)
        card_page.write(found, folder)
    if is_main() and "features" in protocols:  # after the numbers, which an error here must not lose
        feature_files.write(features.load(folder), settings, folder, device, whole)
    next_steps.after_evaluation(settings, origin, folder, first.classes)


def begin(settings: Settings, run: dict, protocols: list[str]) -> tuple[torch.device, Path]:
    """Join the other processes, make the folder of results.json, and say how it is judged: (device, folder)."""
    patience = 360  # minutes that the other ranks wait while rank 0 trains the probe
    device = distributed.start(settings.gpus, settings.device, patience)
    require_same(settings)
    settle_threads()
    folder = results_folder(settings, run, protocols)
    say(f"device      {distributed.describe(device, settings.device)}")
    say(f"precision   {name_of('off', device)}")
    other = "" if "linear" in protocols else "; the published linear evaluation is --protocol linear"
    say(f"protocol    {', '.join(protocols)}{other}")
    say(f"batch       {settings.batch_size} images per process while features are read")
    return device, folder


def tell_encoder(settings: Settings, width: int, source: pretrained.Source, steps: int | None) -> None:
    say(f"encoder     {settings.encoder}, {width} features, weights of {source}")
    if steps == 0:
        say(f"*** {source.path}: this run has made 0 steps; its encoder is judged as it was before training ***")


def tell_images(settings: Settings, images: dict[str, Images], first: Images) -> None:
    counts = ", ".join(f"{len(data)} {name}" for name, data in images.items()).removesuffix(" all")  # without splits
    say(f"data        {settings.dataset}: {counts} images, {len(first.classes) or 'no'} classes")
    tell_values(first)


def judge_features(settings: Settings, protocols: list[str]) -> None:
    """Judge a features file, without images. An encoder or images that are named too must be those of the file."""
    settle_threads()
    failures.advise(lambda: "the features of all splits are there; pass --device cpu, or write fewer of them")
    run = pretrained.run_settings(settings.model_path) if settings.model_path and "fixed" in protocols else {}
    head = fixed_head.settings_of(run)
    device = distributed.join(settings.device)
    found = features.load(settings.features, device)
    path = Path(settings.features)
    settings.output_dir = settings.output_dir or str(path if path.is_dir() else path.parent)
    folder = results_folder(settings, run, protocols)
    counts = ", ".join(f"{len(split)} {name}" for name, split in found.splits.items())
    say(f"features    {settings.features}: {counts}, {found.width} a sample, {len(found.classes) or 'no'} classes")
    feature_origin.require(found, settings)
    feature_files.write(found, settings, folder, device)
    if not protocols:
        return

    found = features.with_labels(found, settings.features)
    train = feature_origin.choose(found, settings)
    checks.require_enough({"train": train}, protocols)
    splits = found.splits | {"train": train}
    pairs = train.pair(), found.splits["test"].pair()
    judged = judge(*pairs, found.classes, settings, protocols, head, card.groups_of(splits), card.NO_IMAGES)
    judged["of"] = results.of_features(settings, protocols, found, train)
    results.report(judged, ["trained"], folder)
    card_page.write(judged, folder)
    next_steps.after_judging(found.settings.get("model_path"), {name: found.settings.get(name) for name in DATA})


# Settings -----------------------------------------------------------------------------


def fill(settings: Settings, run: dict) -> None:
    """Fill what is unset from the run of --model_path, else with defaults. Raises `UserError` for impossible values."""
    inherit.fill(settings, run)
    inherit.defaults(settings, "judging on")
    ranges.check(settings)


def results_folder(settings: Settings, run: dict, protocols: list[str]) -> Path:
    """Make the folder of what is written, before anything is computed; docs/judging.md says which."""
    if settings.output_dir is not None:
        folder, has_other_images = Path(settings.output_dir), False
    elif published.is_name(settings.model_path):
        folder, has_other_images = ROOT / "runs" / f"{settings.model_path}_{settings.encoder}", True
    else:
        folder = torch_file.find_encoder(settings.model_path).parent
        has_other_images = source_run.has_other_images(run, settings)
    if "features" in protocols and has_other_images:
        return make_folder(feature_origin.own_folder(folder, settings))  # the run's own features stay
    return make_folder(folder / "evaluation" if best_model.is_of_finetuning(folder) else folder)


# Data and encoder -----------------------------------------------------------------------


def load_images(settings: Settings, run: dict, protocols: list[str]) -> tuple[dict[str, Images], Images]:
    """(the splits, all of the first one): train with the chosen labels, test, and for protocol features val.

    For features alone: every image, with a label or without. Fills the image size. Raises `UserError` for images that
    cannot be judged.
    """
    if protocols == ["features"]:
        images = every_image.load(settings)
    else:
        names = ("train", "val", "test") if "features" in protocols else ("train", "test")
        loaded = {name: datasets.load_labelled(settings, name) for name in names}
        images = {name: data for name, data in loaded.items() if data is not None}
    checks.require_channels(images)
    if every_image.can_judge(images):
        leaks.check(images)
        learnt_from.check(settings.model_path, images["test"], settings.data_dir)
    images = datasets.shown_alike(settings, images)
    start, first = next(iter(images.items()))
    images[start] = labels.choose(first, settings.train_percent, settings.train_files, settings.seed)
    checks.require_enough(images, protocols)
    if settings.image_size is None:
        settings.image_size = judged_size(settings, run, images[start])
    if settings.preload:
        images[start] = preload.hold(images[start], settings.image_size)
    return images, first


def judged_size(settings: Settings, run: dict, data: Images) -> int:
    """Small images keep their size if the encoder can read it; others get the size that the run trained at."""
    trained = coerce(run.get("image_size", datasets.KNOWN[settings.dataset][0]), int, "the run's image_size")
    if data.resident is None or min(data.resident.shape[2:]) == trained:
        return trained
    encoder, _ = build_encoder(settings.encoder, trained, settings.stem, settings.encoder_kwargs, data.channels)
    size = inference.judged_size(encoder, data, trained)
    if size == trained:
        say(f"images      at {trained} pixels, the only size that {settings.encoder} reads")
    return size


def build_encoders(settings: Settings, channels: int) -> tuple[dict[str, nn.Module], int, pretrained.Source]:
    """({name: encoder to judge}, how many features they give, where the weights of `trained` came from)."""
    torch.manual_seed(settings.seed)
    built = settings.encoder, settings.image_size, settings.stem, settings.encoder_kwargs, channels
    subjects: dict[str, nn.Module] = {"raw_pixels": nn.Flatten()} if settings.raw_pixels else {}
    if settings.random_init:
        subjects["random_init"], _ = build_encoder(*built)
    subjects["trained"], width = build_encoder(*built)
    weights = settings.model_path, settings.init_format, settings.encoder
    return subjects, width, pretrained.load_encoder(subjects["trained"], *weights)


# Protocols ------------------------------------------------------------------------------


@failures.advising("leave card out; or judge a features file with --device cpu: --protocol features writes it")
def judge(
    train: Samples,
    test: Samples,
    classes: list[str],
    settings: Settings,
    protocols: list[str],
    head: fixed_head.HeadSettings,
    groups: card.GroupsOf,
    changed: card.Changed | str,
) -> dict:
    """Results of the protocols probe, knn, fixed and card, which is also of `changed` images, or says why it is not.

    `train` and `test` are (features (N, F), labels (N,)), and `groups` theirs. A tenth of `train` chooses the probe's
    settings. With a card, there is no probe where a class has one training image; the card says so.
    """
    judged, tuned, count = {}, None, len(classes)
    if "fixed" in protocols:
        judged["fixed"] = fixed_head.judge(train, test, count, head, settings.seed, groups["test"])
    if settings.standardize and {"probe", "knn"} & set(protocols):
        mean, std = statistics(train[0])
        train, test = ((rows.standardised(mean, std), y) for rows, y in (train, test))
    if "probe" in protocols and not ("card" in protocols and card.why_no_probe(train[1], classes)):
        parts = probes.hold_out_tenth(train, settings.seed, groups["train"])
        probe, chosen = probes.sweep(*parts, count, settings.probe_epochs, seed=settings.seed)
        judged["probe"], tuned = probes.accuracies(probe, *test, groups["test"]) | chosen, (probe, parts[1])
    if "knn" in protocols:
        near = nearest(train[0], test[0], settings.k)
        judged["knn"] = probes.vote(near, train[1], test[1], count, settings.knn_temperature, groups["test"])
    if "card" in protocols:
        judged["card"] = card.card(train, test, near, tuned, classes, groups, changed, settings)
    return judged


def extract(
    encoder: inference.Net, data: Images, settings: Settings, device: torch.device, name: str
) -> tuple[Tensor, Images]:
    """Features (N, width) of all images that can be read, not augmented, in order, on every rank; and these images."""
    h, read, bad = inference.outputs(encoder, data, Reading.of(settings, device), f"features, {name}")
    images = inference.readable(data, read, bad, settings.max_bad_fraction)
    return (h[read] if bad else h).float(), images


def linear_evaluation(
    encoder: nn.Module, width: int, train: Images, test: Images, settings: Settings, device: torch.device
) -> dict:
    """The published protocol: a linear head on features of augmented views; its accuracies on test.

    Random crop and flip, SGD with momentum, cosine by epoch, weights from N(0, 0.01). The head of the last epoch is
    judged: to take the best one would be a choice on the test split. Any number of processes gives the same, to
    rounding.
    """
    test_x, test = extract(encoder, test, settings, device, "test")
    mean, std = (torch.tensor(values, device=device) for values in (settings.mean, settings.std))
    view = View(settings.image_size, jitter_prob=0, grayscale=0, blur_prob=0, solarize_prob=0)  # crop and flip alone
    order = Order(len(train), min(settings.linear_batch, len(train)), 1, 1, settings.seed)
    shares = Shares(order, world_size())
    weight = shares.counts(rank()).to(device) * world_size() / order.global_batch  # DDP takes the mean over the ranks

    torch.manual_seed(settings.seed)
    head = nn.Linear(width, len(train.classes))
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    head.to(device)
    runner = distributed.parallel(head, device)
    decay = settings.linear_weight_decay
    optimizer = torch.optim.SGD(head.parameters(), settings.linear_lr, momentum=0.9, weight_decay=decay)
    total = settings.linear_epochs * order.steps_per_epoch
    batches = training_batches(train, [view], shares, 0, total, workers=settings.workers, device=device)
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
            if not head.weight.isfinite().all():  # the head is the same on all ranks
                raise UserError(
                    f"protocol linear: after {step + 1} steps the head has NaN or Inf; lower --linear_lr, or the "
                    "encoder gives NaN or Inf for augmented views of the training images"
                )
            progress.update(step + 1, f"linear  loss {loss.item():.3f}  epoch {epoch + 1}")
    progress.close()
    return probes.accuracies(probes.Heads.of(head), test_x, test.labels.to(device), test.groups)


if __name__ == "__main__":
    with one_line_errors("evaluate.py", failures.explain):
        main()

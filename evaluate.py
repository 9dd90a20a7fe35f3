"""Judge a frozen encoder: linear evaluation, a swept probe, k-NN; or write its features.

python evaluate.py --model_path runs/barlow_twins_shapes
torchrun --nproc_per_node 8 evaluate.py --model_path RUN --protocol linear
python evaluate.py --help
"""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().with_name("ssl"))]  # see ssl/__init__.py

import dataclasses
import json
import os
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl import checkpoint, config, distributed
from ssl.augment import View
from ssl.data import datasets
from ssl.data.datasets import Images
from ssl.data.loader import Order, auto_workers, finish, plain_batches, training_batches
from ssl.distributed import gather_rows, is_main, world_size
from ssl.encoders import build_encoder
from ssl.errors import UserError, one_line_errors
from ssl.metrics import correct_at
from ssl.probes import knn, probe
from ssl.report import Progress, say, table
from ssl.schedules import warmup_cosine

# The encoder its authors published (ResNet-50, 1000 epochs), for when no --model_path is given.
PUBLISHED = "https://dl.fbaipublicfiles.com/barlowtwins/ep1000_bs2048_lrw0.2_lrb0.0048_lambd0.0051/resnet50.pth"


@dataclass
class Settings:
    """Judge a frozen encoder.

    Data set, image size and encoder are those of the run that --model_path belongs to, unless set.
    Nothing is ever chosen on the test split.
    """

    # What to judge
    config: str | None = None  # YAML file of settings; the command line wins over it
    model_path: str | None = None  # run folder, encoder.pt or checkpoint.pt; unset: the published ResNet-50
    encoder: str | None = None  # unset: the run's, or resnet50
    encoder_kwargs: dict | None = None  # unset: the run's
    stem: Literal["auto", "imagenet", "small"] | None = None  # unset: the run's
    random_init: bool = False  # also judge the same encoder untrained
    raw_pixels: bool = False  # also judge the pixels themselves (probe and knn)
    # On what
    dataset: str | None = None  # unset: the run's
    data_dir: str | None = None  # unset: the run's
    class_list: str | None = None  # unset: the run's
    download: bool = False  # let torchvision download the data set
    image_size: int | None = None  # unset: the images' own size up to 64 pixels, above that the run's
    train_percent: Literal[1, 10, 100] = 100  # share of the labels, of every class, by seed
    train_files: str | None = None  # or a file that lists the names of the training images to use
    # How
    protocol: list[Literal["linear", "probe", "knn", "features", "all"]] = field(
        default_factory=lambda: ["probe", "knn"]
    )  # one or more
    k: int = 20  # neighbours
    knn_temperature: float = 0.07  # of their votes
    probe_epochs: int = 30  # passes over the features
    linear_epochs: int = 100  # passes over the images
    linear_lr: float = 0.3  # cosine to 0, SGD with momentum 0.9
    linear_weight_decay: float = 1e-6  # of the linear head
    linear_batch: int = 256  # global batch of the linear head
    batch_size: int = 256  # images per process while features are read
    # Machine and files
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    workers: int | None = None  # loader processes per process; unset: the cores it may use
    seed: int = 0  # of held-out slices, label subsets, heads
    output_dir: str | None = None  # where results.json goes; unset: the run folder


def main() -> None:
    settings, _ = config.parse(Settings)
    if settings.model_path is not None:
        inherit(settings)
    check(settings)
    device = distributed.join(settings.device)
    protocols = ["linear", "probe", "knn", "features"] if "all" in settings.protocol else settings.protocol

    # Data
    train, test = labelled_splits(settings)
    if settings.image_size is None:
        settings.image_size = judged_size(settings, train)
    classes = len(train.classes)
    fit_index, held_out_index = datasets.split_validation(train.labels, 0.1, settings.seed)

    # Encoder
    torch.manual_seed(settings.seed)
    encoder, width = build_encoder(settings.encoder, settings.image_size, settings.stem, settings.encoder_kwargs)
    subjects: dict[str, nn.Module | None] = {}
    if settings.raw_pixels:
        subjects["raw_pixels"] = None
    if settings.random_init:
        subjects["random_init"] = encoder
    trained, _ = build_encoder(settings.encoder, settings.image_size, settings.stem, settings.encoder_kwargs)
    source = load_weights(trained, settings.model_path)
    subjects["trained"] = trained
    say(f"encoder     {settings.encoder}, {width} features, weights of {source}")
    say(f"data        {settings.dataset}: {len(train)} train, {len(test)} test images, {classes} classes")

    # Judge
    folder = Path(settings.output_dir or default_folder(settings))
    results: dict = {}
    for name, subject in subjects.items():
        judged: dict = {}
        before = None
        if subject is not None:
            subject.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)
            before = {key: value.clone() for key, value in subject.state_dict().items()}
        if {"probe", "knn", "features"} & set(protocols):
            train_x, test_x = (extract(subject, data, settings, device, name) for data in (train, test))
            train_y, test_y = train.labels.to(device), test.labels.to(device)
            if "probe" in protocols and is_main():
                parts = [(train_x[index], train_y[index]) for index in (fit_index, held_out_index)]
                judged["probe"] = probe(*parts, (test_x, test_y), classes, settings.probe_epochs, seed=settings.seed)
            if "knn" in protocols and is_main():
                judged["knn"] = knn((train_x, train_y), (test_x, test_y), classes, settings.k, settings.knn_temperature)
            if "features" in protocols and is_main() and name == "trained":
                write_features(folder, settings, train, train_x, test, test_x)
        distributed.barrier()
        if "linear" in protocols and subject is not None:
            judged["linear"] = linear_evaluation(subject, width, train, test, settings, device)
        if before is not None:
            prove_unchanged(subject, before)
        results |= judged if name == "trained" else {name: judged}
    distributed.leave()

    # Report
    if is_main() and set(protocols) != {"features"}:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        say("\n" + results_table(results, subjects, protocols) + "\n")
        say(f"results     {folder / 'results.json'}")


# Settings -----------------------------------------------------------------------------


def inherit(settings: Settings) -> None:
    """Fill what is unset with the settings of the run that model_path belongs to."""
    file = checkpoint.find_encoder(settings.model_path)
    saved = file.parent / "config.yaml"
    run = config.read_yaml(saved) if saved.is_file() else {}
    given = set()  # who names a data set or an encoder does not want the rest of the run's
    if settings.dataset is not None or settings.data_dir is not None:
        given |= {"dataset", "data_dir", "class_list"}
    if settings.encoder is not None:
        given |= {"encoder_kwargs", "stem"}
    for name in ("encoder", "encoder_kwargs", "stem", "dataset", "data_dir", "class_list"):
        if getattr(settings, name) is None and name not in given:
            kind = next(f.type for f in dataclasses.fields(Settings) if f.name == name)
            setattr(settings, name, config.coerce(run.get(name), kind, f"{saved}: {name}"))
    if settings.stem == "auto" and "image_size" in run:  # as the run resolved it, whatever size is judged
        settings.stem = "small" if run["image_size"] <= datasets.SMALL else "imagenet"


def check(settings: Settings) -> None:
    settings.dataset = datasets.resolve_name(settings.dataset, settings.data_dir)
    settings.encoder = settings.encoder or "resnet50"
    settings.stem = settings.stem or "auto"
    for name in ("k", "probe_epochs", "linear_epochs", "batch_size", "linear_batch"):
        if getattr(settings, name) < 1:
            raise UserError(f"{name}: {getattr(settings, name)} must be at least 1")
    for name in ("knn_temperature", "linear_lr"):
        if getattr(settings, name) <= 0:
            raise UserError(f"{name}: {getattr(settings, name)} must be positive")
    if settings.train_files and settings.train_percent != 100:
        raise UserError("train_files and train_percent both choose the labels; set one of them")


def default_folder(settings: Settings) -> Path:
    if settings.model_path is None:
        return Path("runs/published")
    path = Path(settings.model_path)
    return path if path.is_dir() else path.parent


def labelled_splits(settings: Settings) -> tuple[Images, Images]:
    """(train, test) of the data set, train cut to the labels that may be used."""
    options = dict(image_size=settings.image_size, class_list=settings.class_list, seed=settings.seed)
    train, test = (
        datasets.load(settings.dataset, settings.data_dir, split, download=settings.download, **options)
        for split in ("train", "test")
    )
    if not train.classes or bool((train.labels < 0).any()):
        raise UserError(f"data_dir: {settings.data_dir} has images without labels; judging needs class folders")
    if settings.train_files:
        train = train.subset(listed(train, settings.train_files))
    elif settings.train_percent != 100:
        train = train.subset(datasets.split_validation(train.labels, settings.train_percent / 100, settings.seed)[1])
    counts = torch.bincount(train.labels, minlength=len(train.classes))
    if int(counts.min()) < 2:
        scarce = train.classes[int(counts.argmin())]
        raise UserError(
            f"class {scarce!r} has {int(counts.min())} training images; at least 2 are needed, 1 of them held out"
        )
    return train, test


def judged_size(settings: Settings, data: Images) -> int:
    """Small images are judged as they are; larger ones at the size the run trained on."""
    if data.resident is not None:
        return min(data.resident.shape[2:])
    saved = (
        None if settings.model_path is None else checkpoint.find_encoder(settings.model_path).with_name("config.yaml")
    )
    run = config.read_yaml(saved) if saved is not None and saved.is_file() else {}
    return config.coerce(run.get("image_size", datasets.KNOWN[settings.dataset][0]), int, f"{saved}: image_size")


def listed(data: Images, path: str) -> Tensor:
    """Indices of the images whose file names stand in the file `path`, one a line."""
    if data.paths is None:
        raise UserError(f"train_files: {data.name} has no file names to look up; use --train_percent")
    try:
        names = [line.strip() for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"train_files: cannot read {path} ({error})") from None
    place = {os.path.basename(image): index for index, image in enumerate(data.paths)}
    missing = [name for name in names if os.path.basename(name) not in place]
    if missing or not names:
        raise UserError(
            f"train_files: {len(missing)} of the {len(names)} names in {path} are not in the training split"
            + (f" (the first: {missing[0]!r})" if missing else "")
        )
    return torch.tensor(sorted({place[os.path.basename(name)] for name in names}))


def load_weights(encoder: nn.Module, model_path: str | None) -> str:
    """Put the weights to be judged into `encoder`; return where they came from."""
    if model_path is not None:
        return str(checkpoint.load_encoder(encoder, model_path))
    try:
        weights = torch.hub.load_state_dict_from_url(PUBLISHED, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(
            f"no --model_path, so the published weights were wanted, but they cannot be downloaded ({error}). "
            "Pass --model_path RUN_OR_FILE"
        ) from None
    encoder.load_state_dict({k: v for k, v in weights.items() if not k.startswith("fc.")})
    return PUBLISHED


def prove_unchanged(encoder: nn.Module, before: dict[str, Tensor]) -> None:
    """Raise if judging touched the encoder."""
    changed = [key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])]
    if changed:
        raise RuntimeError(f"judging changed the frozen encoder: {', '.join(changed[:3])}")


# Protocols ------------------------------------------------------------------------------


def statistics(settings: Settings, device: torch.device) -> tuple[Tensor, Tensor]:
    """(mean, std), each (3, 1, 1), of the data set's normalisation."""
    _, mean, std = datasets.KNOWN[settings.dataset]
    return tuple(torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))


def loader_workers(settings: Settings) -> int:
    return auto_workers() if settings.workers is None else settings.workers


@torch.no_grad()
def extract(encoder: nn.Module | None, data: Images, settings: Settings, device: torch.device, name: str) -> Tensor:
    """Representations (N, width) of all un-augmented images, in order, on every rank; pixels where encoder is None."""
    mean, std = statistics(settings, device)
    parts, done = [], 0
    progress = Progress(len(data), 0, "image")
    batches = plain_batches(data, settings.image_size, settings.batch_size, loader_workers(settings), device)
    for pixels, counts in batches:
        x = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        if encoder is None:
            h = x.flatten(1)
        elif len(x):
            h = encoder(x).float()
        else:  # the last batch left nothing for this rank
            h = encoder(x.new_zeros(1, *x.shape[1:]))[:0].float()
        parts.append(gather_rows(h, counts))
        done += sum(counts)
        progress.update(done, f"features, {name}")
    progress.close()
    return torch.cat(parts)


def linear_evaluation(
    encoder: nn.Module, width: int, train: Images, test: Images, settings: Settings, device: torch.device
) -> dict[str, float]:
    """The published protocol: a linear head on augmented views of a frozen encoder; acc1 and acc5 on test.

    Random crop and flip, SGD with momentum, cosine by epoch, weights from N(0, 0.01). The
    result is the last epoch's: choosing the best one would be choosing on the test split.
    """
    if settings.linear_batch % world_size():
        raise UserError(f"linear_batch: {settings.linear_batch} must be a multiple of the {world_size()} processes")
    mean, std = (statistic.flatten() for statistic in statistics(settings, device))
    view = View(
        settings.image_size, jitter_prob=0.0, grayscale=0.0, blur_prob=0.0, solarize_prob=0.0
    )  # crop and flip alone
    batch_size = min(settings.linear_batch, len(train)) // world_size()
    order = Order(len(train), batch_size, 1, world_size(), settings.seed)

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
    batches = training_batches(train, [view], order, 0, total, loader_workers(settings), device)
    progress = Progress(total, 0)
    for step, batch in enumerate(batches):
        epoch = step // order.steps_per_epoch
        optimizer.param_groups[0]["lr"] = settings.linear_lr * warmup_cosine(epoch, settings.linear_epochs, 0, 0.0)
        with torch.no_grad():
            (x,) = finish(batch, [view], mean, std)
            h = encoder(x).float()
        loss = F.cross_entropy(runner(h), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step + 1 == total:
            progress.update(step + 1, f"linear  loss {loss.item():.3f}  epoch {epoch + 1}")
    progress.close()
    with torch.no_grad():
        scores = head(extract(encoder, test, settings, device, "test"))
    labels = test.labels.to(device)
    return {f"acc{k}": correct_at(scores, labels, k).item() / len(labels) for k in (1, 5)}


def write_features(folder: Path, settings: Settings, train: Images, train_x, test: Images, test_x) -> None:
    """features.pt: plain tensors, loadable with weights_only."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {
        split: {
            "features": x.cpu(),
            "labels": data.labels,
            "names": [data.sample_name(i) for i in range(len(data))],
        }
        for split, data, x in (("train", train, train_x), ("test", test, test_x))
    }
    checkpoint.save(
        splits | {"classes": train.classes, "settings": dataclasses.asdict(settings)}, folder / "features.pt"
    )
    say(f"features    {folder / 'features.pt'}")


def results_table(results: dict, subjects: dict, protocols: list[str]) -> str:
    columns = [name for name in ("linear", "probe", "knn") if name in protocols]
    rows = [["", *({"linear": "linear", "probe": "linear probe", "knn": "k-NN"}[c] for c in columns)]]
    for name in subjects:
        judged = results if name == "trained" else results[name]
        title = {
            "raw_pixels": "raw pixels",
            "random_init": "untrained encoder",
            "trained": "trained encoder",
        }[name]
        rows.append([title, *(f"{100 * judged[c]['acc1']:.1f} %" if c in judged else "-" for c in columns)])
    return table(rows)


if __name__ == "__main__":
    with one_line_errors("evaluate.py"):
        main()

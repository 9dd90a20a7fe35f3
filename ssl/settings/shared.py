"""Settings that several scripts have. The Settings of a script inherit them and override the fields that differ."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from ssl import distributed


@dataclass
class DataSettings:
    """Which images. finetune.py and evaluate.py take unset values from the run's config.yaml (`inherit.fill`)."""

    # Images
    dataset: str | None = None  # shapes, CIFAR10/100, SVHN, STL10, ImageNet(50/100/200), isic2019, slides, folder, …
    data_dir: str | None = None  # folder of the data set, or of your own images, or a .npz or .npy file of them
    class_list: str | None = None  # for ImageNet50/100/200: file of lines 'wnid name'
    csv: str | None = None  # table that names the images to use below data_dir
    image_column: str | None = None  # of the table: paths below data_dir, with or without extension; unset: image
    label_column: str | None = None  # of the table: classes
    positive: list[str] | None = None  # of the table: these labels are class 'positive', all others are 'negative'
    group_column: str | None = None  # of the table: patient, lesion or slide; its images stay in one split
    split_column: str | None = None  # of the table: train, val or test; unset: cut by the names
    splits_folder: str | None = None  # isic2019: folder of {train,val,test}_split_1.csv
    leave_out: list[str] | None = None  # classes whose images are not used
    test_slides: list[str] | None = None  # slides: hospitals, patients or slides that are the test; or a csv says so


DATA = tuple(field.name for field in dataclasses.fields(DataSettings))


@dataclass
class ImageSettings(DataSettings):
    """Which images, and how they are read."""

    # Images
    download: bool = False  # let torchvision download the data set
    image_size: int | None = None  # pixels of a side
    value_range: tuple[float, float] | None = None  # numbers of the files that are black and white; unset: their type's
    mean: list[float] | None = None  # of pixels in 0..1, one a channel; unset: those of the weights, or of the data set
    std: list[float] | None = None  # of pixels in 0..1, one a channel; unset: those of the weights, or of the data set
    max_bad_fraction: float = 0.001  # of the images may be unreadable, and 10 in any case
    preload: bool = False  # decode image files once, into memory that a machine's processes and workers share
    short_side: int | None = None  # preload, and reduce images to this short side, in pixels
    # Random numbers
    seed: int | None = None  # of everything that is drawn at random; unset: the run's, or 0


@dataclass
class LabelSettings(ImageSettings):
    """Which images with which labels: of finetune.py and evaluate.py."""

    # Labels
    train_percent: float = 100.0  # share of the labels, of every class, by seed
    train_files: str | None = None  # or a file that lists the names of the training images to use


@dataclass
class EncoderSettings:
    """The encoder of finetune.py and evaluate.py. Unset values are read from the run or from the weights."""

    # Encoder
    encoder: str | None = None  # unset: the run's, or by the shapes of its weights, or resnet50
    encoder_kwargs: dict | None = None  # unset: the run's
    stem: Literal["auto", "imagenet", "small"] | None = None  # unset: the run's, or by the shapes of its weights


@dataclass
class ViewSettings:
    """Random views, of train.py and finetune.py."""

    # Views
    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area that a crop keeps
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)  # its width / height
    flip: float = 0.5  # probability
    vertical_flip: float = 0.0  # probability
    rotation: float = 0.0  # largest angle, degrees, either way; corners turn black
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
    jitter_prob: float = 0.8  # probability
    grayscale: float = 0.2  # probability
    stain_jitter: tuple[float, float] = (0.0, 0.0)  # H&E tissue: each stain times 1 ± the first, plus 0 ± the second


OF_A_VIEW = "blur_prob", "solarize_prob", "stain_prob"  # of train.py: one value for all views, two in turn, or one each


@dataclass
class MachineSettings:
    """Processes and devices."""

    # Machine
    gpus: int | None = None  # start so many processes here, as torchrun would
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    workers: int | None = None  # loader processes per process; unset: the cores it may use, but one


@dataclass
class TrainingSettings(MachineSettings):
    """How train.py and finetune.py compute, and their run folder."""

    # Machine
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"  # auto: bf16 where the hardware has it, else fp16 on CUDA
    compile: bool = False  # torch.compile the model, and on a GPU the views' operations; takes minutes at the start
    deterministic: bool = False  # on a GPU: the same bits every time, slower; a CPU gives them anyway
    timeout_minutes: float = 10.0  # without a step, after which the run is ended and the rank it waits for is named
    # Run folder
    output_dir: str | None = None  # run folder
    resume: str = "auto"  # auto: continue the run in output_dir; none: refuse to; or a checkpoint file
    resume_force: bool = False  # continue although settings differ that change what is learnt
    save_minutes: float = 10.0  # between checkpoints; beginning and end are always saved
    keep_checkpoints: int = 2  # how many of the newest stay


# Settings that may differ between processes: where a machine has its files, and what it computes on.
OF_A_MACHINE = {field.name for field in dataclasses.fields(MachineSettings)} | set(
    """
    config data_dir class_list csv splits_folder train_files download init features model_path predict output_dir
    """.split()
)


def require_same(settings) -> None:
    """Raise `UserError`, on all ranks, for a setting that differs between them. All ranks call it."""
    distributed.require_same({name: value for name, value in vars(settings).items() if name not in OF_A_MACHINE})


# Settings that may differ between a run and its continuation, as they do not change what is learnt. The global batch is
# compared on its own, and so is the micro-batch with accumulate_mode split; else it changes batch norm alone.
FREE_TO_CHANGE = {field.name for field in dataclasses.fields(TrainingSettings)} | set(
    """
    config row data_dir csv image_column group_column split_column splits_folder test_slides download max_bad_fraction
    preload init batch_size
    """.split()
)

"""What `auto` becomes by machine and images, and that a run which is continued keeps it."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from ssl.checkpoints import inherit
from ssl.data.images import Images
from ssl.data.stack import Stack
from ssl.errors import UserError
from ssl.settings import auto, config
from ssl.settings.auto import Machine, ViewCost
from ssl.training import by_machine

CPU = torch.device("cpu")
LAPTOP = Machine("cpu", 2, 8 << 30)
SMALL = ViewCost(0.08e9, 0.6e6, 1_400_000)  # the encoder for a CPU, at 48 pixels
RESNET50 = ViewCost(8.2e9, 44e6, 36_000_000)  # at 224 pixels, in bf16


def photographs(count: int, side: int = 256) -> Images:
    return Images("folder", torch.zeros(count), [], pool=torch.zeros(1, 3, side, side, dtype=torch.uint8))


def files(count: int) -> Images:
    return Images("folder", torch.zeros(count), [], paths=["x.jpg"] * count)


def read(*words: str, recipe: str = "barlow_twins_folder_cpu") -> train.Settings:
    path = Path(train.__file__).parent / "configs" / f"{recipe}.yaml"
    return config.parse(train.Settings, ["--config", str(path), "--data_dir", "x", *words])[0]


@pytest.fixture
def machine(monkeypatch):
    """Pretend another machine."""

    def pretend(wanted: Machine) -> None:
        monkeypatch.setattr(by_machine, "machine_of", lambda device: wanted)

    return pretend


# Rules ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "batch"),
    [(1, 2), (2, 2), (5, 4), (40, 16), (100, 16), (200, 16), (256, 32), (2_000, 32), (50_000, 32)],
)
def test_the_batch_on_a_cpu_follows_the_images(images, batch):
    assert auto.batch(images, 1, LAPTOP, SMALL) == (batch, 1)


def test_little_memory_makes_more_micro_batches_of_the_same_step():
    sizes = [auto.batch(2_000, 1, Machine("cpu", 2, memory), SMALL) for memory in (8 << 30, 100_000_000, 60_000_000)]
    assert all(size * micro == 32 for size, micro in sizes)
    assert [micro for _, micro in sizes] == sorted({micro for _, micro in sizes})


@pytest.mark.parametrize(
    ("memory", "expected"), [(8, (32, 8)), (12, (64, 4)), (16, (64, 4)), (24, (128, 2)), (40, (256, 1)), (80, (256, 1))]
)
def test_a_resnet50_keeps_its_256_images_a_step_on_a_gpu_of_any_memory(memory, expected):
    assert auto.batch(50_000, 1, Machine("cuda", 8, memory * 10**9), RESNET50) == expected


def test_fewer_images_than_a_batch_are_a_smaller_batch_of_every_process():
    assert auto.batch(100, 1, Machine("cuda", 8, 80 << 30), RESNET50) == (64, 1)
    assert auto.batch(100, 4, Machine("cuda", 8, 80 << 30), RESNET50) == (16, 1)


def test_epochs_on_a_cpu_fall_with_the_images_and_rise_with_the_cores():
    def epochs(images: int, cores: int = 2, cost: ViewCost = SMALL) -> int:
        return auto.epochs_on_cpu(images, 48, Machine("cpu", cores, 8 << 30), cost)

    lengths = [epochs(images) for images in (1, 5, 100, 800, 2_000, 50_000)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == lengths[2] == auto.MOST_EPOCHS and lengths[-1] == auto.LEAST_EPOCHS
    assert lengths[0] > lengths[3] > lengths[4] > lengths[5]
    assert epochs(2_000, cores=1) < epochs(2_000, cores=2) < epochs(2_000, cores=8)
    assert epochs(2_000, cost=RESNET50) == auto.LEAST_EPOCHS


def test_twice_the_views_take_twice_the_memory_and_the_time():
    memory = Machine("cuda", 8, 24 * 10**9)
    assert auto.batch(50_000, 1, memory, RESNET50, views=2) == auto.batch(50_000, 1, memory, RESNET50) == (128, 2)
    assert auto.batch(50_000, 1, memory, RESNET50, views=4) == (64, 4)
    two, four = (auto.epochs_on_cpu(2_000, 48, LAPTOP, SMALL, views) for views in (2, 4))
    assert two == pytest.approx(2 * four, abs=1)


def test_many_views_are_counted_in_what_is_settled(machine):
    machine(Machine("cuda", 8, 24 * 10**9))
    settings = read("--amp", "bf16", "--views", "4", recipe="barlow_twins_folder")
    found = by_machine.settle(settings, photographs(50_000), train.Model, torch.device("cuda"))
    assert (settings.batch_size, settings.accumulate) == (64, 4)
    assert "an image takes 1.8e+02 MB" in found["batch_size"][1]  # 4 times 44
    machine(LAPTOP)
    lengths = []
    for views, gflop in (("2", "0.54"), ("4", "1.1")):
        settings = read("--views", views)
        found = by_machine.settle(settings, photographs(2_000), train.Model, CPU)
        assert f"{gflop} GFLOP each" in found["epochs"][1]
        lengths.append(settings.epochs)
    assert lengths[0] == pytest.approx(2 * lengths[1], abs=1) and lengths[1] > auto.LEAST_EPOCHS


@pytest.mark.parametrize(("images", "gigabytes", "side"), [(2_000, 4, 96), (50_000, 32, 96), (50_000, 4, None)])
def test_images_are_held_in_memory_where_a_quarter_of_it_is_enough(images, gigabytes, side):
    assert auto.short_side(images, 48, Machine("cpu", 2, gigabytes << 30)) == side


# Settled --------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["barlow_twins_folder_cpu", "simclr_folder_cpu", "supcon_folder_cpu"])
def test_the_recipe_for_a_cpu_is_settled_with_reasons(machine, recipe):
    machine(LAPTOP)
    settings = read(recipe=recipe)
    found = by_machine.settle(settings, photographs(2_000), train.Model, CPU)
    assert (settings.encoder, settings.encoder_kwargs) == (auto.CPU_ENCODER, auto.CPU_KWARGS)
    assert (settings.image_size, settings.batch_size, settings.accumulate) == (48, 32, 1)
    assert auto.LEAST_EPOCHS < settings.epochs < auto.MOST_EPOCHS
    assert "auto" not in {getattr(settings, name) for name in found if name != "encoder_kwargs"}
    assert all(why for _, why in found.values()) and "2 cores" in found["epochs"][1]


def test_what_the_user_sets_stays_and_the_rest_follows_it(machine):
    machine(LAPTOP)
    settings = read("--encoder", "resnet18", "--batch_size", "8", "--epochs", "7")
    found = by_machine.settle(settings, photographs(2_000), train.Model, CPU)
    assert (settings.encoder, settings.encoder_kwargs, settings.batch_size) == ("resnet18", {}, 8)
    assert (settings.image_size, settings.epochs, settings.accumulate) == (96, 7, 1)
    assert not {"encoder", "batch_size", "epochs"} & found.keys()
    settings = read("--image_size", "128", "--short_side", "500", "--encoder_kwargs", "{width: 8}")
    by_machine.settle(settings, files(2_000), train.Model, CPU)
    assert (settings.image_size, settings.short_side, settings.encoder_kwargs) == (128, 500, {"width": 8})


def test_small_images_are_seen_at_their_own_size_and_files_are_held(machine):
    machine(LAPTOP)
    settings = read()
    by_machine.settle(settings, photographs(2_000, side=28), train.Model, CPU)
    assert (settings.image_size, settings.short_side) == (28, None)
    settings = read()
    by_machine.settle(settings, files(2_000), train.Model, CPU)
    assert (settings.image_size, settings.short_side) == (48, 96)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("encoder", "side", "size"),
    [("auto", 8, 16), ("auto", 15, 16), ("auto", 16, 16), ("auto", 17, 17), ("resnet18", 8, 8), ("vit_b_16", 20, 96)],
)
def test_images_that_are_too_small_for_the_encoder_are_enlarged(machine, channels, encoder, side, size):
    machine(LAPTOP)
    settings = read("--encoder", encoder)
    small = torch.zeros(1, channels, side, side + 1, dtype=torch.uint8)
    found = by_machine.settle(settings, Images("array", torch.zeros(20), [], pool=small), train.Model, CPU)
    assert settings.image_size == size
    assert (found["image_size"][1] == "the images are no larger") is (size == side)
    train.Model(settings, channels)  # its encoder reads these images


def test_a_resnet50_is_counted_as_it_was(machine):
    """In bf16: 8.2 GFLOP and 44 MB a view of 224 pixels; twice as many bytes in float32."""
    settings = read("--encoder", "resnet50", "--image_size", "224", "--amp", "bf16")
    found = by_machine.cost(settings, photographs(9), train.Model)
    assert found.flops == pytest.approx(RESNET50.flops, rel=0.02)
    assert found.memory == pytest.approx(RESNET50.memory, rel=0.02)
    whole = by_machine.cost(dataclasses.replace(settings, amp="off"), photographs(9), train.Model)
    assert whole.memory == pytest.approx(2 * found.memory, rel=0.05)


def test_an_encoder_whose_cost_is_not_known_is_taken_for_a_resnet50(machine):
    def build(*arguments):
        torch.zeros(1).item()  # fails without numbers, as some encoders do
        return train.Model(*arguments)

    machine(Machine("cuda", 8, 12 * 10**9))
    settings = read("--encoder", "resnet18", recipe="barlow_twins_folder")
    found = by_machine.settle(settings, photographs(50_000), build, torch.device("cuda"))
    assert settings.batch_size * settings.accumulate == 256 and settings.batch_size <= 64
    assert "ResNet-50" in found["batch_size"][1]


@pytest.mark.parametrize("wrong", [["--encoder_kwargs", "{widht: 8}"], ["--encoder", "resnet19"]])
def test_settings_that_no_encoder_has_are_an_error_and_no_unknown_cost(machine, wrong):
    machine(LAPTOP)
    with pytest.raises(UserError, match=r"does not take encoder_kwargs|no image classifier of torchvision"):
        by_machine.settle(read(*wrong), photographs(2_000), train.Model, CPU)


def test_on_a_gpu_only_the_batch_follows_the_machine(machine):
    machine(Machine("cuda", 8, 12 * 10**9))
    settings = read("--amp", "bf16", recipe="barlow_twins_folder")
    found = by_machine.settle(settings, photographs(50_000), train.Model, torch.device("cuda"))
    assert {name: value for name, (value, _) in found.items()} == {"batch_size": 64, "accumulate": 4}
    assert settings.epochs == "auto"  # by the images, as published
    explicit = read("--batch_size", "256", "--accumulate", "1", recipe="barlow_twins_folder")
    assert by_machine.settle(explicit, photographs(50_000), train.Model, torch.device("cuda")) == {}


def test_a_run_that_is_continued_keeps_its_values_on_another_machine(machine, tmp_path):
    machine(LAPTOP)
    begun = read()
    by_machine.settle(begun, files(2_000), train.Model, CPU, tmp_path)
    config.write_yaml(tmp_path / "config.yaml", dataclasses.asdict(begun))
    machine(Machine("cpu", 16, 1 << 30))
    failed = read()  # the control: without a checkpoint there is nothing to continue
    by_machine.settle(failed, files(2_000), train.Model, CPU, tmp_path)
    assert failed.epochs > begun.epochs
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    for words, folder in (([], tmp_path), (["--resume", str(tmp_path / "checkpoint.pt")], tmp_path / "new")):
        again = read(*words)
        found = by_machine.settle(again, files(2_000), train.Model, CPU, folder)
        names = ("encoder", "encoder_kwargs", "image_size", "short_side", "batch_size", "accumulate", "epochs")
        assert all(getattr(again, name) == getattr(begun, name) for name in names)
        assert found["epochs"] == (begun.epochs, "as this run began")
    assert by_machine.settle(mine := read("--epochs", "5"), files(9), train.Model, CPU, tmp_path) and mine.epochs == 5


def test_memory_and_cores_are_those_of_each_process(monkeypatch):
    monkeypatch.setattr(by_machine, "free_memory", lambda *_: (8 << 30, "this machine"))
    monkeypatch.setitem(os.environ, "LOCAL_WORLD_SIZE", "4")
    assert by_machine.machine_of(CPU).memory == 2 << 30


@pytest.mark.parametrize(("processes", "batch"), [(1, 32), (2, 16), (4, 8), (3, 32)])
def test_a_run_that_is_continued_keeps_its_global_batch_on_other_processes(monkeypatch, tmp_path, processes, batch):
    """With three it cannot: the start is then refused, as the global batch differs."""
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    config.write_yaml(tmp_path / "config.yaml", {"batch_size": 32, "accumulate": 1})
    (tmp_path / "about.json").write_text('{"global_batch": 32, "processes": 1}')
    monkeypatch.setattr(by_machine, "world_size", lambda: processes)
    settings = read()
    by_machine.settle(settings, photographs(2_000), train.Model, CPU, tmp_path)
    assert (settings.batch_size, settings.accumulate) == (batch, 1)


def test_the_size_of_images_in_an_array_is_known_although_one_cannot_be_read(machine):
    machine(LAPTOP)
    numbers = np.full((20, 40, 30, 3), 7, np.uint16)
    stored = Stack(numbers, np.arange(20), (0, 5))  # each has a number outside this range
    settings = read()
    by_machine.settle(settings, Images("array", torch.zeros(20), [], stored=stored), train.Model, CPU)
    assert settings.image_size == 30


def test_weights_to_start_from_decide_the_encoder_that_the_recipe_leaves_open(machine):
    machine(LAPTOP)
    for words, encoder in (
        (["--init", "imagenet"], "resnet50"),
        (["--init", "imagenet", "--encoder", "auto"], "resnet50"),
        (["--init", "imagenet", "--encoder", "resnet18"], "resnet18"),
    ):
        words = ["--device", "cpu", "--data_dir", "x", "--output_dir", "nowhere", *words]
        settings, origin = config.parse(train.Settings, words, recipe=train.find_recipe)
        assert "folder_cpu" in origin["epochs"]  # the control: the recipe that says auto
        inherit.take_architecture(settings, origin)
        by_machine.settle(settings, photographs(2_000), train.Model, CPU)
        assert (settings.encoder, settings.encoder_kwargs, settings.stem) == (encoder, {}, "imagenet")

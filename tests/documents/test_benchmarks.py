"""Benchmarks: no part is broken, what they write is whole, and what they say follows from their numbers."""

import itertools
import json
import mmap
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import running
import torch
from PIL import Image
from running import options

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path += [str(BENCHMARKS), str(ROOT)]

import gpu_compiled
import gpu_correct
import gpu_kernels
import gpu_machine
import gpu_project
import gpu_resnet50
import measure
import photographs
import preload
import simulated
import speedrun
import stain
import throughput
import turns
from losses import plain_info_nce

import train
from ssl import losses
from ssl.data.images import Images
from ssl.errors import UserError
from ssl.evaluation import features
from ssl.evaluation.feature_rows import Rows
from ssl.pixels import jitter_stains
from ssl.sources import datasets

PARTS = ["machine", "correct", "resnet50", "compiled", "kernels", "cifar", "project"]


@pytest.fixture(autouse=True)
def little_noise(monkeypatch):
    """The data set `fake` with 256 images; to make 50,000 takes longer than the tests."""
    noise = torch.randint(256, (256, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Images("fake", torch.zeros(256, dtype=torch.long), ["0"], resident=noise)
    monkeypatch.setattr(datasets, "_fake", lambda *arguments: images)


def run(module, path: Path, monkeypatch, *arguments) -> dict:
    """What a benchmark writes; it runs in this process."""
    monkeypatch.setattr(sys, "argv", [module.__name__, "--json", str(path), *map(str, arguments)])
    module.main()
    return json.loads(path.read_text())


# Every part, tiny ---------------------------------------------------------------------


def test_losses_views_and_trainings_are_compared_and_every_check_can_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_correct, "TOLERANCE", {"bf16": 0.1, "fp16": 1e-9})
    with pytest.raises(SystemExit) as ended:
        run(gpu_correct, tmp_path / "correct.json", monkeypatch)
    rows = json.loads((tmp_path / "correct.json").read_text())["rows"]
    missed = [row["check"] for row in rows if not row["holds"]]
    assert len(rows) >= 29 and missed == ["4 steps, fp16 as float32: loss"] and ended.value.code == 1
    assert all(row["difference"] > 0 for row in rows if "bfloat16" in row["check"])  # they were not the same thing
    assert not gpu_correct.check("what is not a number", float("nan"), 1.0)["holds"]


def test_each_time_that_the_host_waits_is_counted(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def wait() -> None:
        assert modes == ["warn"]
        for _ in range(2):  # at the same place, which Python would tell once
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    assert gpu_correct.host_waits(wait) == 2 and modes == ["warn", "default"]


def test_kernels_are_set_beside_their_plain_forms(tmp_path, monkeypatch):
    results = run(gpu_kernels, tmp_path / "kernels.json", monkeypatch)
    assert [row["name"] for row in results["rows"]] == ["barlow", "info_nce", "LARS", "LAMB"]
    for row in results["rows"]:
        assert all(row["fits"].values()) and min(row["seconds"].values()) > 0


def test_what_does_not_fit_is_told_and_ours_is_measured(monkeypatch):
    def too_large(*data):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(gpu_kernels.PLAIN, "info_nce", too_large)
    row = gpu_kernels.compare_loss("info_nce", 16, 8, "cpu")
    assert row["fits"] == {"ours": True, "plain": False} and list(row["seconds"]) == ["ours"]
    assert "does not fit" in gpu_kernels.show({"rows": [row]})


def test_the_machine_is_measured_and_a_run_under_torchrun_continues(tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        run(gpu_machine, tmp_path / "machine.json", monkeypatch)
    results = json.loads((tmp_path / "machine.json").read_text())
    assert ended.value.code == 0 and results["torchrun"]["same_bits"] and results["torchrun"]["backend"] == "gloo"
    assert len(results["rows"]) == 7 and all(row["speed"] > 0 for row in results["rows"])


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "resnet50.json"
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(gpu_resnet50, path, monkeypatch)
    return path


def test_steps_are_timed_on_one_batch_on_jpegs_and_beside_the_published_loop(resnet50):
    results = json.loads(resnet50.read_text())
    assert list(results["rows"]) == ["synthetic", "synthetic, batch 2", "real JPEGs, 1 workers", "published, JPEGs"]
    for row in results["rows"].values():
        assert sum(row["shares"].values()) == pytest.approx(1, abs=1e-3) and set(row["shares"]) == set(turns.PARTS)
        assert row["samples_per_second"] > 0 and row["peak_memory_mb"] > 0
    assert results["of_synthetic"] > 0 and results["of_published"] > 0 and results["input_samples_per_second"] > 0
    times = [row["milliseconds"] for row in results["longest"]]
    assert len(times) == 30 and times == sorted(times, reverse=True) and times[-1] > 0


def test_a_compiled_step_is_timed_beside_an_eager_one_and_has_its_loss(tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        run(gpu_compiled, tmp_path / "compiled.json", monkeypatch)
    results = json.loads((tmp_path / "compiled.json").read_text())
    assert ended.value.code == 0 and results["loss_apart"] <= gpu_compiled.TOLERANCE
    assert list(results["rows"]) == ["synthetic, eager", "synthetic, compiled", "real JPEGs, compiled"]


SMALL = "--encoder ssl.encoders.SmallResNet --encoder_kwargs {width:\\ 8,stages:\\ 2} --projector 64-64 --batch_size 12"


def collectives(path: Path, world: int, settings: str) -> dict[str, dict]:
    """What collectives.py counts for the small network."""
    command = [sys.executable, str(BENCHMARKS / "collectives.py"), "--world", str(world), "--json", str(path)]
    command += shlex.split(f"{SMALL} --amp off {settings}")
    subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return json.loads(path.read_text())["sent"]


def test_what_a_step_sends_is_counted_by_kind_and_agrees_with_the_projection(tmp_path):
    settings = train.Settings(
        encoder="ssl.encoders.SmallResNet", encoder_kwargs={"width": 8, "stages": 2}, projector="64-64"
    )
    model = train.Model(settings)
    for world in (8, 32):
        sent = collectives(tmp_path / "sent.json", world, "--dataset shapes")
        norms = gpu_project.norm_messages(model, world)
        assert sent["batch norm"] == {"messages": len(norms), "megabytes": pytest.approx(sum(norms) / 1e6, rel=1e-3)}
        gradients = 2 * (world - 1) / world * 4 * sum(p.numel() for p in model.parameters())
        assert sent["gradients"]["megabytes"] == pytest.approx(gradients / 1e6, rel=1e-3)
        loss = gpu_project.loss_messages(world, 12, 64, torch.float32)
        assert sent["loss"] == {"messages": len(loss), "megabytes": pytest.approx(sum(loss) / 1e6, rel=1e-3)}
        assert sent["stop requests"]["messages"] == 1


@pytest.mark.parametrize("method", ["simclr --accumulate 3", "supcon --balanced true --accumulate 3 --clip_grad 1"])
def test_more_micro_batches_send_more_of_batch_norm_and_gradients_once(method, tmp_path):
    once = collectives(tmp_path / "once.json", 8, f"--dataset shapes --method {method.split()[0]}")
    more = collectives(tmp_path / "more.json", 8, f"--dataset shapes --method {method}")
    # Twice forward, once back, where it was once each: exact accumulation computes the embeddings again.
    assert more["batch norm"]["messages"] == 3 * once["batch norm"]["messages"] * 3 / 2
    assert more["gradients"] == once["gradients"] and more["loss"]["messages"] == once["loss"]["messages"]


def test_many_gpus_are_projected_from_the_measured_rate(resnet50, tmp_path, monkeypatch):
    results = run(gpu_project, tmp_path / "project.json", monkeypatch, "--measured", resnet50)
    assert [row["gpus"] for row in results["rows"]] == [8, 32]
    for row in results["rows"]:
        assert row["samples_per_second"]["worst"] <= row["samples_per_second"]["best"]
        assert row["samples_per_second"]["best"] <= row["gpus"] * row["measured_samples_per_second"] * 1.001
        assert row["messages"]["loss"] > 0
    monkeypatch.setattr(sys, "argv", ["", "--json", str(tmp_path / "x"), "--measured", str(tmp_path / "none.json")])
    with pytest.raises(UserError, match="run part resnet50 first"):
        gpu_project.main()


def test_throughput_says_where_the_time_of_all_processes_goes(tmp_path):
    photographs.make_photographs(tmp_path / "photographs", 17)
    said = subprocess.run(
        [
            sys.executable,
            str(BENCHMARKS / "throughput.py"),
            *options(gpus=2, device="cpu", epochs=3, warmup_epochs=0, steps=2, turns=1),
            *gpu_resnet50.TINY[:-1],
            "0",
            *options(data_dir=tmp_path / "photographs", json=tmp_path / "t.json"),
        ],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ).stdout
    found = json.loads((tmp_path / "t.json").read_text())
    assert found["processes"] == 2 and len(found["samples_per_second_per_process"]) == 2 and not found["resident"]
    assert found["samples_per_second"] == pytest.approx(sum(found["samples_per_second_per_process"]), rel=1e-3)
    assert found["hours"] == pytest.approx(3 * 16 / found["samples_per_second"] / 3600, rel=1e-3)
    assert set(found["parts"]) == {"real", "synthetic", "synthetic, gradients not exchanged"}
    assert f"3 epochs would take {60 * found['hours']:.1f} minutes" in said  # not 0.0 hours
    assert 0 <= found["communication"] < 1 and said.count(f"bottleneck: {found['bottleneck']}") == 1, said


def test_throughput_takes_the_recipe_of_own_images_with_what_it_leaves_to_them(tmp_path, monkeypatch, capsys):
    photographs.make_photographs(tmp_path / "photographs", 17)
    monkeypatch.setattr(
        "sys.argv",
        [
            "throughput.py",
            *gpu_resnet50.TINY[:4],
            *options(encoder_kwargs="{width: 16}", batch_size=8, data_dir=tmp_path / "photographs", device="cpu"),
            *options(workers=0, preload=True, steps=1, turns=1),
        ],
    )
    throughput.main()
    said = capsys.readouterr().out
    for words in ("folder, in memory", "projector 512-512", "; 300 epochs would take"):
        assert words in said
    words = "estimate    ", "measuring   6 steps, ", "turn 1 of 1  real", "turn 1 of 1  synthetic", "real reaches"
    places = [said.index(word) for word in words]
    assert places == sorted(places)


def test_throughput_speaks_before_it_makes_a_whole_step(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(
        "sys.argv", ["throughput.py", *gpu_resnet50.TINY[:8], *options(dataset="fake", batch_size=64, device="cpu")]
    )
    monkeypatch.setattr(throughput, "take_turn", None)
    forward = train.Model.forward
    monkeypatch.setattr(train.Model, "forward", lambda self, *x: shown.append(len(x[0])) or forward(self, *x))
    monkeypatch.setattr(throughput.estimate, "free_memory", lambda: (10**6, "this machine"))
    monkeypatch.setattr(throughput.estimate, "free_swap", lambda: 0)
    with pytest.raises(UserError, match="memory: steps of batch_size 64 need"):
        throughput.main()
    said = capsys.readouterr().out
    assert "batch 64 per process" in said and "estimate    " in said and max(shown) < 64


# What they say ------------------------------------------------------------------------


def numbers(wait=0.0, workers=4, brings=800.0, rate=1000.0, communication=0.0, **shares) -> dict:
    shares = dict.fromkeys(turns.PARTS, 0.0) | {"forward": 0.3, "backward": 0.6} | shares | {"wait": wait}
    return dict(
        parts={"real": {"data_wait": wait, "shares": shares}, "synthetic": {"samples_per_second": rate}},
        workers=workers,
        resident=workers is None,
        input_samples_per_second=brings,
        communication=communication,
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            numbers(0.34),
            "input: the GPU waits 34% of the time for images; 4 workers bring 800 samples/s, training "
            "without waiting takes 1000. Pass --workers 16: this process has cores for them",
        ),
        (numbers(0.34, workers=0), "Pass --workers 16"),
        (numbers(0.34, workers=16), "20 workers on as many cores would do, or smaller files"),
        (numbers(0.34, workers=16, brings=2000.0), "Give the job more cores"),
        (numbers(0.2, workers=None), "input: cutting views from memory takes 20% of the time, for which the GPU waits"),
        (numbers(communication=0.3), "communication: exchanging gradients takes 30% of a step"),
        (numbers(), "the model: forward and backward are 90% of a step, try --compile true"),
        (numbers(forward=0.1, backward=0.2, loss=0.6), "loss: 60% of a step"),
    ],
)
def test_the_bottleneck_is_told_in_words(given, expected):
    assert expected in throughput.bottleneck(given, "cuda", 16, compiled=False)


def test_a_small_training_has_one_digest_also_interrupted():
    command = [sys.executable, BENCHMARKS / "digest.py", "--only", "SimCLR"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    (whole, checksum), (cut, again) = (line.rsplit(maxsplit=1) for line in said.splitlines())
    assert (whole, cut) == ("SimCLR, 2 processes", "SimCLR, 2 processes, interrupted")
    assert checksum == again and len(checksum) == 64


def test_laps_add_up_by_part(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 4.0, 8.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    laps = measure.Laps("cpu")
    for part in ("wait", "step", "wait", "step"):
        laps(part)
    assert laps.seconds() == {"wait": 2.0, "step": 6.0}


def test_on_a_gpu_no_event_is_read_before_it_has_happened(monkeypatch):
    done = []

    class Event:
        count = 0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            Event.count += 1
            self.at = Event.count

        def elapsed_time(self, end):
            assert done, "read without waiting"
            return 1000.0 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append(True))
    laps = measure.Laps("cuda")
    laps("wait")
    assert not done  # nor does anybody wait within a turn
    laps("step")
    assert laps.seconds() == {"wait": 1.0, "step": 1.0}


def test_what_a_run_holds_anyway_is_no_measurement_of_preload(tmp_path, monkeypatch):
    for name in "ab":
        Image.new("RGB", (40, 40)).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(sys, "argv", ["preload.py", "--data_dir", str(tmp_path)])
    with pytest.raises(UserError, match="has images of at most 64 pixels; expected larger"):
        preload.main()


def test_memory_is_read_in_bytes():
    before = measure.own_memory("RssAnon")
    with mmap.mmap(-1, 50_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:  # no memory that was used before
        held.write(b"1" * len(held))
        assert 45e6 < measure.own_memory("RssAnon") - before < 150e6
    assert measure.own_memory("VmHWM") >= measure.own_memory("VmRSS") > measure.own_memory("RssAnon")


def test_files_are_written_whole_or_not_at_all(tmp_path):
    measure.write_json(tmp_path / "a.json", {"x": [1.23456789, {"y": 2}]})
    with pytest.raises(TypeError):
        measure.write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1.2346, {"y": 2}]}


# Pretended ranks ----------------------------------------------------------------------


def test_a_loss_that_sees_its_own_rank_alone_is_found_out():
    z1, z2 = torch.randn(2, 32, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError):
        simulated.gradients(lambda a, b: plain_info_nce(a, b, None), z1, z2, world=4)
    simulated.gradients(lambda a, b: losses.info_nce(a, b, check=False)[0], z1, z2, world=4)
    assert not torch.distributed.is_initialized()


def test_an_error_on_a_simulated_rank_is_raised():
    with pytest.raises(ZeroDivisionError):
        simulated.on_ranks(2, lambda rank: 1 / 0)


def test_the_bytes_of_the_gathering_loss_are_those_of_its_embeddings():
    sent = gpu_project.loss_messages(8, 4, 512, torch.bfloat16)
    embeddings = 2 * 7 * 4 * 512 * 2  # two views, the rows of seven others, two bytes a number
    assert embeddings <= sum(sent) <= embeddings + len(sent) * 7 * 4 * 512 * 4


# Stains --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tissue(tmp_path_factory) -> Path:
    """A folder of train/, val/, test/ of three classes, nine pictures each."""
    root, generator = tmp_path_factory.mktemp("tissue"), np.random.default_rng(0)
    for split, label, number in itertools.product(("train", "val", "test"), "xyz", range(9)):
        path = root / split / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(2, 255, (80, 70, 3), dtype=np.uint8)).save(path)
    return root


def test_every_scanner_has_a_third_of_each_class_and_its_own_stains_and_white(tissue, tmp_path):
    stain.make_images(tissue, tmp_path / "images")
    for split, label in itertools.product(("train", "val", "test"), "xyz"):
        names = sorted(path.name for path in (tmp_path / "images" / split / label).iterdir())
        assert [name[0] for name in names] == list("aaabbbccc")
        assert sorted(name[2:] for name in names) == [f"{number}.png" for number in range(9)]
    image = Image.open(tissue / "test" / "x" / "0.png")
    a, b, c = (np.asarray(stain.scanned(image, name)) / 255 for name in "abc")
    pixels = torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1)[None]
    expected = jitter_stains(pixels, torch.tensor([[0.7, 1.3, 1.0]]), torch.zeros(1, 3))[0].permute(1, 2, 0).numpy()
    assert abs(a - np.asarray(image) / 255).max() < 1e-6
    assert abs(b - expected * [1.0, 0.95, 0.88]).max() <= 0.51 / 255
    assert abs(c - a).mean() > 0.02 < abs(c - b).mean()
    with pytest.raises(UserError, match="must hold train/CLASS, val/CLASS and test/CLASS"):
        stain.make_images(tissue / "train", tmp_path / "none")


@pytest.mark.parametrize(("known", "expected"), [("class", (1, 1, 0, 1)), ("scanner", (0, 0, 1, 0))])
def test_what_a_planted_encoder_knows_is_found(known, expected, monkeypatch):
    classes, scanners = torch.arange(90) % 3, torch.arange(90) // 3 % 3
    h = torch.eye(3)[{"class": classes, "scanner": scanners}[known]] + 1e-3 * torch.randn(90, 3)
    names = [f"/somewhere/a_b/{'abc'[scanner]}_{number}.png" for number, scanner in enumerate(scanners.tolist())]
    part = features.Split("planted", Rows((h,), torch.device("cpu")), classes, list("xyz"), names)
    found = features.Features({"train": part, "test": part}, list("xyz"), None, {})
    monkeypatch.setattr(stain.features, "load", lambda path: found)
    for share, wanted in zip(stain.judge(Path(), "test").values(), expected, strict=True):
        assert share == 1 if wanted else share < 0.6


def test_the_stain_benchmark_trains_and_judges_each_seed(tissue, tmp_path, monkeypatch, capfd):
    words = options(output_dir=tmp_path, split="val", seeds=[3, 4], name="half", stain_jitter=[0.5, 0.1])
    words += options(epochs=1, batch_size=9, encoder_kwargs="{width: 8, stages: 2}", projector="16-16", workers=0)
    monkeypatch.setattr(sys, "argv", ["stain.py", str(tissue), *words])
    stain.main()
    found = json.loads((tmp_path / "half_val.json").read_text())
    assert [run["seed"] for run in found["runs"]] == [3, 4] and found["split"] == "val"
    assert all(0 <= run[name] <= 1 for run in found["runs"] for name in stain.MEASURES)
    about = json.loads((tmp_path / "half_seed4" / "about.json").read_text())
    assert [view["stain_jitter"] for view in about["views"]] == [[0.5, 0.1]] * 2
    assert "mean ± sd" in capfd.readouterr().out


# Training until a target ---------------------------------------------------------------


def train_until(folder: Path, images: Path, target: str, monkeypatch, *words, **settings) -> dict:
    """What speedrun.py writes of a tiny run."""
    config = running.recipe("barlow_twins")
    given = {"data_dir": images, "batch_size": 16, "encoder": "ssl.encoders.SmallResNet", "workers": 0, "amp": "off"}
    given |= {"encoder_kwargs": "{width: 8, stages: 2}", "projector": "16-16", "log_every": 3, "warmup_epochs": 1}
    arguments = [config, "--target", target, "--output_dir", folder, *words, *options(**given | settings)]
    monkeypatch.setattr(sys, "argv", ["speedrun.py", *map(str, arguments)])
    speedrun.main()
    return json.loads((folder / "speedrun.json").read_text())


def test_a_run_is_stopped_when_its_target_is_reached(images, tmp_path, monkeypatch, capfd):
    found = train_until(tmp_path, images, "probe=0.1", monkeypatch, epochs=400)
    (run,) = found["runs"]
    folder, at = tmp_path / "seed0", run["at"]
    status = json.loads((folder / "status.json").read_text())
    assert run["reached"] and run["ended"] == "at the target"
    assert (status["state"], status["reason"]) == ("preempted", "the file named stop")
    assert at["step"] <= run["steps"] <= status["step"] == status["saved_step"] < 400 * 4
    assert not (folder / "stop").exists() and (folder / "encoder.pt").exists()
    assert at == next(row for row in run["curve"] if row["probe"] >= 0.1)
    assert (at["images"], at["views"]) == (16 * at["step"], 2 * 16 * at["step"]) and at["step"] == 4 * at["epoch"]
    assert 0 < at["seconds"] <= run["training_seconds"] < run["wall_seconds_to_target"] < run["wall_seconds"]
    assert run["judged_n"] == 6 and "test" not in run and not (folder / "results.json").exists()
    assert (found["threads"], found["precision"], found["views"], found["global_batch"]) == (1, "off", 2, 16)
    said = capfd.readouterr().out
    assert "probe 0.1" in said and "reached" in said and str(tmp_path / "speedrun.json") in said


def test_a_run_that_misses_its_target_ends_by_itself_and_its_test_split_is_scored_once(
    images, tmp_path, monkeypatch, capfd
):
    words = "--seeds", 3, 4, "--test", "--eval_every", 2
    found = train_until(tmp_path, images, "knn=1", monkeypatch, *words, epochs=3)
    assert [run["seed"] for run in found["runs"]] == found["seeds"] == [3, 4]
    for run in found["runs"]:
        assert (run["reached"], run["ended"]) == (False, "at its end") and run["at"] == run["curve"][-1]
        assert [row["epoch"] for row in run["curve"]] == [2, 3]
        assert json.loads(Path(run["folder"], "status.json").read_text())["state"] == "finished"
        results = json.loads(Path(run["folder"], "results.json").read_text())
        assert run["test"] == {kind: pytest.approx(results[kind]["acc1"], abs=1e-4) for kind in ("knn", "probe")}
    said = capfd.readouterr().out
    assert "not reached at its end" in said and "0 of 2" in said and "±" in said and "test probe" in said


def test_a_run_ends_after_its_minutes(images, tmp_path, monkeypatch, capfd):
    (run,) = train_until(tmp_path, images, "knn=1", monkeypatch, "--minutes", 0.01, epochs=400)["runs"]
    assert (run["reached"], run["ended"]) == (False, "after --minutes") and run["steps"] < 400 * 4
    assert run["training_seconds"] >= 0.6
    assert "not reached after --minutes" in capfd.readouterr().out


def test_a_run_that_something_else_stopped_is_no_measurement_and_its_test_split_is_not_scored(
    images, tmp_path, monkeypatch
):
    def stop_when_it_trains() -> None:
        while not (tmp_path / "seed0" / "metrics.jsonl").exists():
            time.sleep(0.05)
        (tmp_path / "seed0" / "stop").touch()

    threading.Thread(target=stop_when_it_trains, daemon=True).start()
    with pytest.raises(UserError, match=r"seed0: the run was stopped from outside at step [0-9]+; it is no measu"):
        train_until(tmp_path, images, "knn=1", monkeypatch, "--test", epochs=400)
    assert not (tmp_path / "seed0" / "results.json").exists()


def test_the_last_state_of_a_command_is_always_seen_and_no_command_is_left_behind(tmp_path):
    for code in ("", "import time; time.sleep(1.2)", "raise SystemExit(3)"):
        states = list(speedrun.watched([sys.executable, "-c", code]))
        assert states[-1] == (3 if "3" in code else 0) and set(states[:-1]) <= {None}
    waiting = "import time; open('begun', 'w'); time.sleep(600)"
    process = speedrun.watched([sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {waiting}"])
    while not (tmp_path / "begun").exists():
        assert next(process) is None
    pid = process.gi_frame.f_locals["process"].pid
    process.close()  # as an error or Ctrl-C in the caller does
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_run_that_fails_ends_the_benchmark(images, tmp_path, monkeypatch):
    wrong = {"data_dir": images / "none", "epochs": 2}
    with pytest.raises(UserError, match=r"train\.py ended with exit status 2; what it said"):
        train_until(tmp_path, images, "knn=1", monkeypatch, **wrong)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--target knn=85", "target: 'knn=85' is not knn=SHARE or probe=SHARE, a share above 0 and up to 1"),
        ("--target loss=0.5", "target: 'loss=0.5' is not knn=SHARE"),
        ("--target knn", "target: 'knn' is not knn=SHARE"),
        ("--target probe=nan", "target: 'probe=nan' is not"),
        ("--target knn=0.8 --minutes 0", "minutes: 0 must be positive"),
        ("--target knn=0.8 --minutes nan", "minutes: nan must be positive"),
        ("--target knn=0.8 --eval_every 0", "eval_every: 0 must be at least 1"),
        ("--target knn=0.8 --seeds 1 1", "seeds: one is given twice"),
        ("--target knn=0.8 --seed 1", "--seed is given twice"),
        ("--target knn=0.8 --evaluate_after true", "--evaluate_after is given twice"),
        ("--target knn=0.8 --epoch 3", "unknown setting --epoch; did you mean 'epochs'"),
    ],
)
def test_what_no_run_to_a_target_can_use_is_refused(words, said, tmp_path):
    recipe = str(running.recipe("barlow_twins"))
    with pytest.raises(UserError, match=re.escape(said)):
        speedrun.parse([recipe, *words.split(), "--output_dir", str(tmp_path)])
    (tmp_path / "seed7").mkdir()
    with pytest.raises(UserError, match="seed7 is there already"):
        speedrun.parse([recipe, *"--target knn=0.8 --seeds 6 7".split(), "--output_dir", str(tmp_path)])


def test_the_clock_is_the_logs_and_leaves_judging_out():
    lines = [{"step": 10, "samples_per_second": 100.0}, {"step": 12}, {"step": 20, "samples_per_second": 50.0}]
    clock = speedrun.Clock(lines, batch=20)  # 0.2 s a step, then 0.4 s
    assert [clock(step) for step in (0, 5, 10, 12, 20, 25)] == pytest.approx([0, 1, 2, 2.8, 6, 8])
    assert speedrun.Clock(lines[1:2], 20)(12) is None and speedrun.Clock([], 20)(0) == 0


@pytest.mark.parametrize(("accumulate", "mode", "forwards"), [(1, "exact", 1), (2, "exact", 2), (2, "split", 1)])
def test_flop_are_those_of_every_layer_forward_and_back(accumulate, mode, forwards):
    how = {"width": 8, "stages": 1}
    settings = train.Settings(encoder="ssl.encoders.SmallResNet", encoder_kwargs=how, projector="16-16")
    settings.accumulate, settings.accumulate_mode = accumulate, mode
    model, forward, first = train.Model(settings), 0, []

    def count(layer, inputs, output):
        products = layer.weight[0].numel() * output[0].numel()  # of one image
        nonlocal forward
        forward += 2 * products
        first.append(2 * products)

    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    model(torch.rand(2, 3, 24, 24))
    about = {"mean": [0.5] * 3, "views": [{"size": 24}] * 3}
    expected = 3 * (forwards * forward + 2 * forward - first[0])  # the first layer's input has no gradient
    assert speedrun.flop_per_image(settings, about) == expected


# gpu.sh -------------------------------------------------------------------------------


def shell(tmp_path: Path, *arguments) -> tuple[int, list[str], str]:
    """gpu.sh with a `timeout` that only writes down what it was asked: (status, asked, said)."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    for name, body in {
        "timeout": 'echo "$@" >> "$ASKED"; case "$5" in *kernels*) exit 124;; *correct*) exit 1;; esac; touch "$7"',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    asked = tmp_path / "asked"
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": "python", "ASKED": str(asked)}
    process = subprocess.run(
        [str(BENCHMARKS / "gpu.sh"), "--out", str(tmp_path / "out"), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    return process.returncode, asked.read_text().splitlines() if asked.exists() else [], process.stdout + process.stderr


def test_all_parts_together_end_within_nine_minutes(tmp_path, monkeypatch):
    status, asked, said = shell(tmp_path)
    scripts = [Path(line.split()[4]).name for line in asked]
    assert scripts == ["throughput.py" if part == "cifar" else f"gpu_{part}.py" for part in PARTS]
    assert sum(float(word) for line in asked for word in line.split()[1:3]) <= 540 - 5
    assert status == 1 and "kernels: cut short after" in said and "correct: failed" in said, said
    states = [json.loads(line) for line in (tmp_path / "out" / "parts.jsonl").read_text().splitlines()]
    assert [state["part"] for state in states] == PARTS
    assert [state["state"] == "whole" for state in states] == [part not in ("correct", "kernels") for part in PARTS]
    assert len(list((tmp_path / "out").iterdir())) <= 8


def test_a_part_runs_alone_and_training_has_a_longer_limit_of_its_own(tmp_path):
    before = tmp_path / "out" / "cifar.json"
    before.parent.mkdir()
    before.write_text("{}")
    _, asked, _ = shell(tmp_path, "--cifar", "DIR", "--minutes", "2", "cifar")
    (line,) = asked
    assert line.split()[1:3] == ["150", "840"] and before.exists()
    script, *arguments = line.split()[4:]
    given, changed = speedrun.parse(arguments)
    assert Path(script).name == "speedrun.py" and changed == ["--data_dir", "DIR"]
    assert (given.target, given.minutes, given.json) == (("knn", 0.9), 2, before)
    status, _, said = shell(tmp_path, "resnet51")
    assert status == 2 and "resnet51 is none of" in said

"""The errors of somebody's first hour: what went wrong, and what to do, in a line."""

import errno
import functools
import re
import shutil

import pytest
import torch
import torch.distributed as dist
import torchvision
from torch import nn

import evaluate
import train
from ssl import distributed, failures, optim
from ssl.augment import View
from ssl.errors import UserError, one_line_errors
from ssl.evaluation import fixed_head, probes
from ssl.evaluation.feature_rows import Rows
from ssl.sources import datasets, labels
from ssl.training import judging
from ssl.training.forward import Embed, try_step

OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture
def photos(tmp_path):
    """A folder of two classes, of one image each."""
    for name in ("ants", "bees"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        (folder / "1.ppm").write_bytes(b"P6 40 40 255\n" + bytes(40 * 40 * 3))
    return tmp_path / "photos"


# what somebody does; what the error says is wrong; what it says to do
FIRST_HOUR = [
    (
        ["--device", "cuda"],
        r"wants a GPU of its own, but PyTorch sees 0 \(.*(built without CUDA|no NVIDIA driver|too old)",
        "Pass --device cpu",
    ),
    (["--data_dir", "{photos}/nowhere"], "data_dir: .*nowhere is not a folder", ""),
    (["--data_dir", "{photos}/ants/1.ppm"], r"data_dir: .*1.ppm is not a folder \(it is a file\)", ""),
    (["--data_dir", "{empty}"], "data_dir: .* has no images", r"looked for \.apng, \.bmp, "),
    (["--data_dir", "{photos}", "--dataset", "ImageNet"], "is not ImageNet: there is no train/ of class folders", ""),
    (["--dataset", "CIFAR10", "--data_dir", "{empty}"], "CIFAR10 is not in", "pass --download, or"),
    (["--data_dir", "{photos}", "--batch_size", "1"], "batch norm needs at least 2 images per process", ""),
    (
        ["--data_dir", "{photos}", "--batch_size", "64"],
        "global batch, .* is larger than the data set",
        "--batch_size 2 is the largest",
    ),
    (["--dataset", "cifar10"], "dataset: 'cifar10' is none of", "did you mean CIFAR10"),
    (["--datset", "CIFAR10"], "unknown setting --datset", "did you mean 'dataset'"),
    (["--image_size", "224"], "`shapes` at 224 pixels would take minutes", "--data_dir or --dataset"),
    (["--lr", "fast"], "lr: ", "number"),
    (["--init", "{resnet}"], "not weights of this encoder", "it fits --encoder resnet18"),
    (["--resume", "{resnet}"], "not a checkpoint of train.py", "expected"),
    (["--gpus", "0"], "gpus: 0 is not a number of processes", ""),
]


@pytest.mark.parametrize("arguments, wrong, to_do", FIRST_HOUR, ids=[" ".join(case[0]) for case in FIRST_HOUR])
def test_a_mistake_of_the_first_hour_is_named_with_what_to_do(photos, tmp_path, monkeypatch, arguments, wrong, to_do):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    empty = tmp_path / "empty"
    empty.mkdir()
    resnet = tmp_path / "resnet.pt"
    torch.save(torchvision.models.resnet18().state_dict(), resnet)
    arguments = [argument.format(photos=photos, empty=empty, resnet=resnet) for argument in arguments]
    small = ["--encoder", "ssl.encoders.SmallResNet", "--encoder_kwargs", "{width: 8}", "--projector", "16-16"]
    where = ["--workers", "0", "--output_dir", str(tmp_path / "run")]
    where += [] if "--image_size" in arguments else ["--image_size", "32"]
    monkeypatch.setattr("sys.argv", ["train.py", *small, *where, *arguments])
    with pytest.raises(UserError, match=wrong) as caught:
        train.main()
    assert re.search(to_do, str(caught.value)) and "\n" not in str(caught.value)


def test_one_image_a_class_cannot_be_judged(photos):
    data = datasets.load("folder", str(photos), "train", image_size=32, seed=0)
    with pytest.raises(UserError, match=r"ants.*at least 2 of every class"):
        labels.require_each(data, 2, "protocol probe needs at least 2 of every class, 1 of them held out")


def test_a_port_that_is_taken_is_named(monkeypatch):
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in dict(RANK=0, WORLD_SIZE=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=server.port).items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(dist.DistNetworkError) as caught:
        distributed.join("cpu", patience=0.1)
    words = failures.explain(caught.value)
    assert f"could not find each other at 127.0.0.1:{server.port}" in words and "the port is free" in words


class Hungry(nn.Module):
    """A network that takes `most` views of images at once, and no more."""

    def __init__(self, most: int):
        super().__init__()
        self.most, self.norm, self.seen = most, nn.BatchNorm2d(3), []

    def forward(self, *views):
        self.seen.append(len(views[0]))
        if sum(map(len, views)) > self.most:
            raise OOM
        return tuple(self.norm(x).mean((2, 3)) for x in views)


@pytest.mark.parametrize(
    "most, batch, views, expected, tried",
    [
        (200, 256, 2, "--batch_size 64 --accumulate 8 should fit, and is the same global batch and loss", [128, 64]),
        (200, 256, 4, "--batch_size 32 --accumulate 16 should fit, and is the same global batch", [128, 64, 32]),
        (200, 255, 2, "--batch_size 85 --accumulate 6 should fit, and is the same global batch and loss", [85]),
        (3, 12, 2, "not even --batch_size 2 fits; choose a smaller --encoder", [6, 4, 3, 2]),
        (200, 251, 2, "smaller --batch_size or --image_size (none that divides 251 could be tried)", []),
    ],
)
def test_out_of_memory_says_which_batch_would_fit(most, batch, views, expected, tried):
    model = Hungry(most).train()
    embed = Embed(model, [View(size=8)] * views, ([0.0] * 3, [1.0] * 3), torch.device("cpu"), None)
    optimizer = optim.build("adam", optim.parameter_groups(model, 0.1, 0.1, 0.0, 0.0), 0.1)
    step = functools.partial(try_step, model, embed, optimizer, (3, 8, 8))
    failures.advise(lambda: failures.batch_that_fits(step, batch, 2))
    words = failures.explain(OOM)
    assert words.startswith("out of memory on ") and expected in words
    assert model.seen == tried and all(model.norm.running_mean == 0)
    assert all(model.norm.weight == 1)
    assert bool(optimizer.state) == ("should fit" in expected)  # what the optimizer keeps has been counted


def test_a_run_that_runs_out_of_memory_says_which_batch_would_fit(photos, tmp_path, monkeypatch):
    for i in range(2, 14):
        shutil.copy(photos / "ants" / "1.ppm", photos / "ants" / f"{i}.ppm")
    whole = train.Model.forward

    def hungry(model, *views):
        if len(views[0]) > 4:
            raise OOM
        return whole(model, *views)

    monkeypatch.setattr(train.Model, "forward", hungry)
    small = ["--encoder", "ssl.encoders.SmallResNet", "--encoder_kwargs", "{width: 8}", "--projector", "16-16"]
    what = ["--data_dir", str(photos), "--image_size", "32", "--batch_size", "8", "--workers", "0"]
    monkeypatch.setattr("sys.argv", ["train.py", *small, *what, "--output_dir", str(tmp_path / "run")])
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train.main()
    assert "--batch_size 4 --accumulate 2 should fit" in failures.explain(caught.value)


@pytest.mark.parametrize("script", ["evaluate.py", "train.py"])
def test_a_probe_of_many_classes_that_needs_too_much_memory_says_so_not_image_size(monkeypatch, script):
    """20,000 classes, from a features file or while a network learns; after a probe that went well the old advice is
    back."""

    def hungry(*_, **__):
        raise OOM

    rows = Rows((torch.randn(40, 8),), torch.device("cpu")), torch.arange(40) % 2
    failures.advise(lambda: "a smaller batch")
    probes.sweep(rows, rows, 2, epochs=1)
    assert "a smaller batch" in failures.explain(OOM)
    monkeypatch.setattr(probes, "fit_heads", hungry)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        if script == "evaluate.py":
            settings, head, groups = evaluate.Settings(seed=0), fixed_head.HeadSettings(), {"train": None, "test": None}
            evaluate.judge(rows, rows, [f"{i}" for i in range(20_000)], settings, ["probe"], head, groups, "")
        else:
            judging.accuracies(rows, rows, 20_000, None, 0, lambda: None)
    words = failures.explain(caught.value)
    assert "20 heads of 20000 classes × 8 features, which need 0.048 GiB" in words
    assert "--protocol knn" in words and "image_size" not in words and "batch" not in words


def test_advice_that_fails_itself_hides_nothing():
    failures.advise(lambda: 1 / 0)
    assert "out of memory" in failures.explain(OOM) and "a smaller --batch_size" in failures.explain(OOM)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory")])
def test_memory_of_the_machine_is_told_from_that_of_a_gpu(error):
    failures.advise(lambda: "advice")
    assert failures.explain(error) == "out of memory on this machine: advice"


ASYNCHRONOUS = "CUDA kernel errors might be asynchronously reported at some other API call"
NCCL = """NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:275, unhandled cuda error, NCCL version 2.20.5
ncclUnhandledCudaError: Call to CUDA function failed.
Last error:
"""


@pytest.mark.parametrize(
    "error",
    [
        getattr(torch, "AcceleratorError", RuntimeError)(f"CUDA error: out of memory\n{ASYNCHRONOUS}"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        dist.DistBackendError(f"{NCCL}Cuda failure 2 'out of memory'"),
        dist.DistBackendError(f"{NCCL}Failed to CUDA calloc async 6291456 bytes"),
    ],
    ids=str,
)
def test_memory_of_a_gpu_is_known_by_every_name(error):
    failures.advise(lambda: "advice")
    assert failures.explain(error) == "out of memory on the GPU: advice"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp\nlong story"), "NCCL_DEBUG=INFO"),
        (dist.DistBackendError(f"{NCCL}Cuda failure 1 'invalid argument'"), "NCCL_DEBUG=INFO"),
        (
            RuntimeError("Gloo connectFullMesh failed with [../gloo/transport/tcp/pair.cc:144] no error"),
            "GLOO_SOCKET_IFNAME",
        ),
        (
            RuntimeError("[../gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:7"),
            "If another rank has failed, its error is the reason",
        ),
        (
            RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 600000ms for recv operation"),
            "the processes lost each other",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/a/run"), "/a/run: Permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/a/b"), "/a/b: File name too long"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory on this machine: "),
        (dist.DistNetworkError("Gloo connectFullMesh failed with timed out connecting"), "GLOO_SOCKET_IFNAME"),
        (
            RuntimeError("adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set"),
            "deterministic: adaptive_avg_pool2d_backward_cuda does not have",
        ),
        (
            RuntimeError(f"CUDA error: no kernel image is available for execution on the device\n{ASYNCHRONOUS}"),
            "install the one for your GPU",
        ),
    ],
)
def test_failures_of_the_machine_are_told_apart(error, expected):
    words = failures.explain(error)
    assert expected in words and "\n" not in words


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: an illegal memory access was encountered"), RuntimeError("out of memory?")]
)
def test_other_errors_of_a_gpu_keep_their_traceback(error):
    assert failures.explain(error) is None


@pytest.mark.parametrize("fault", [KeyError("ours"), FileNotFoundError(errno.ENOENT, "No such file", "a")], ids=str)
def test_a_fault_of_the_program_keeps_its_traceback(fault):
    with pytest.raises(type(fault)), one_line_errors("train.py", failures.explain):
        raise fault


def test_a_rank_that_is_empty_is_none(monkeypatch):
    monkeypatch.setenv("RANK", "")
    monkeypatch.setenv("LOCAL_RANK", "")
    assert distributed.is_main() and distributed.start(device="cpu").type == "cpu" and not dist.is_initialized()

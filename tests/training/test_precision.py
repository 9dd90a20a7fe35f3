"""Mixed precision: what auto becomes, and what the machine has."""

import pytest
import torch

from ssl import distributed
from ssl.training import precision
from ssl.training.precision import choose_precision, has_precision, resolve_precision

CPU = torch.device("cpu")


def forget() -> None:
    """What this process remembers of its CPU, and what it has told."""
    precision._cpu_flags.cache_clear()
    precision._tell_if_imitated.cache_clear()


@pytest.fixture(autouse=True)
def other_cpus():
    forget()
    yield
    forget()


@pytest.mark.parametrize(
    "flags, auto, has",
    [
        ("flags : avx2 avx512f", "off", ["off"]),
        ("flags : avx2 avx512f avx512_bf16", "bf16", ["bf16", "off"]),
        ("flags : avx2 avx512f amx_bf16 avx512_fp16", "bf16", ["bf16", "fp16", "off"]),
        (None, "off", ["off"]),
    ],
)
def test_auto_on_a_cpu_is_what_its_flags_name(tmp_path, monkeypatch, flags, auto, has):
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(flags)
    assert resolve_precision("auto", CPU) == auto
    assert choose_precision("auto", CPU) == (torch.bfloat16 if auto == "bf16" else None)
    assert [amp for amp in ("bf16", "fp16", "off") if has_precision(amp, CPU)] == has


def test_a_process_reads_once_what_its_cpu_has(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("flags : amx_bf16")
    assert choose_precision("auto", CPU) == torch.bfloat16
    (tmp_path / "cpuinfo").unlink()
    assert choose_precision("auto", CPU) == torch.bfloat16


def test_auto_on_a_gpu_is_the_first_that_it_has(monkeypatch):
    gpu = torch.device("cuda")
    for has, auto in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has, **_: has)
        assert resolve_precision("auto", gpu) == auto


def test_float32_on_a_gpu_is_not_tf32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.backends.cuda.matmul.allow_tf32 = True  # as NVIDIA's containers have it; join puts it back
    distributed.join("cuda")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert precision.name_of("off", torch.device("cuda")) == "float32 (not TF32)"
    assert precision.name_of("off", CPU) == "float32"  # which has no TF32 that one could mean


def test_what_a_cpu_imitates_is_told_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    for flags, told in (("flags : avx512_fp16", 0), ("flags : avx2", 1)):
        (tmp_path / "cpuinfo").write_text(flags)
        forget()
        for amp in ("fp16", "fp16", "auto", "off"):
            choose_precision(amp, CPU)
        said = capsys.readouterr().out
        assert said.count("*** amp fp16: this CPU has no instructions for it") == told == said.count("***") // 2


def test_what_is_asked_for_is_taken_whatever_the_machine_has():
    assert [resolve_precision(amp, CPU) for amp in ("bf16", "fp16", "off")] == ["bf16", "fp16", "off"]
    assert [choose_precision(amp, CPU) for amp in ("bf16", "fp16", "off")] == [torch.bfloat16, torch.float16, None]

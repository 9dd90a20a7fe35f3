"""Files of a run: whole or not there, and no stranger's code is run."""

import collections
import contextlib
import errno
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ssl.checkpoints import pretrained, torch_file
from ssl.encoders import SmallResNet, build_encoder
from ssl.errors import UserError
from ssl.sources.recipe import continued


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_what_is_saved_comes_back(tmp_path):
    value = {"a": torch.randn(3), "b": [1, 2.5, "x", None], "c": {"d": True}}
    torch_file.save(value, tmp_path / "x.pt")
    back = torch_file.load(tmp_path / "x.pt")
    assert torch.equal(back.pop("a"), value.pop("a")) and back == value
    assert os.listdir(tmp_path) == ["x.pt"]


@pytest.mark.parametrize("old", [False, True])
def test_every_plain_value_comes_back(tmp_path, old):
    """All that PyTorch writes as a call, more than once too: what is written twice is kept by number."""
    w, count = torch.randn(2, 3), collections.Counter("abca")
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(net.parameters())
    net(w).sum().backward()
    optimizer.step()
    plans = [
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 7]),
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9),
    ]
    plain = [set(), {1, "a", (2, "b")}, set(range(3000)), count, count, collections.Counter(), w.shape, torch.Size([])]
    plain += [(), ((), ((1, 2), 3, 4, 5)), collections.OrderedDict(a={1: 2}), torch.device("cpu"), torch.float16, 2**63]
    tensors = [w, (w,), ((w, w), w), [w, w.T, w[0]], nn.Parameter(w), w.to(torch.complex64).conj()]
    value = {"plain": plain, "again": plain, "plans": [plan.state_dict() for plan in plans]}
    path = tmp_path / "x.pt"
    weights = [net.state_dict(), optimizer.state_dict(), tensors]
    torch.save(value | {"weights": weights}, path, _use_new_zipfile_serialization=not old)
    back = torch_file.load(path)
    found = back.pop("weights")
    assert back == value and [type(part) for part in back["plain"]] == [type(part) for part in plain]
    assert found[0]._metadata == net.state_dict()._metadata
    torch.testing.assert_close(found, weights, rtol=0, atol=0)


def test_a_failed_save_leaves_the_old_file_and_no_debris(tmp_path):
    torch_file.save({"a": 1}, tmp_path / "x.pt")
    with pytest.raises(AttributeError):
        torch_file.save({"a": lambda: None}, tmp_path / "x.pt")
    assert torch_file.load(tmp_path / "x.pt") == {"a": 1}
    assert os.listdir(tmp_path) == ["x.pt"]


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    torch_file.save({"a": 1}, tmp_path / "x.pt")
    with pytest.raises(TypeError, match=r"x\.pt: numpy.*scalar is neither a tensor nor a plain value"):
        torch_file.save({"a": np.float64(0.5)}, tmp_path / "x.pt")
    assert torch_file.load(tmp_path / "x.pt") == {"a": 1}
    assert os.listdir(tmp_path) == ["x.pt"]


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_cut_file_is_named(tmp_path, keep):
    path = tmp_path / "x.pt"
    torch_file.save({"a": torch.randn(1000)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 or keep == 0 else keep * len(content))])
    with pytest.raises(UserError, match=r"x\.pt: .*xpected"):
        torch_file.load(path)


@pytest.mark.parametrize("where", [0.2, 0.5, 0.8])
def test_one_turned_bit_is_found(tmp_path, where):
    path = tmp_path / "x.pt"
    torch_file.save({"a": torch.randn(10_000)}, path)
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)  # PyTorch itself does not look
    with pytest.raises(UserError, match=r"x\.pt: damaged.*checksum"):
        torch_file.load(path)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_damage_is_one_clear_error_or_none(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.pt"
    torch_file.save({"a": torch.arange(5), "b": {"c": [1, 2.5, None, "x"]}}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        torch_file.load(path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    ruined = SmallResNet(4).state_dict()
    ruined["stem.0.weight"][0, 0, 0, 0] = float("nan")
    torch_file.save(ruined, tmp_path / "encoder.pt")
    with pytest.raises(UserError, match=r"holds NaN or Inf, in 'stem\.0\.weight'"):
        pretrained.load_encoder(SmallResNet(4), tmp_path)


NO_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 62914560 bytes")


def test_too_little_memory_is_not_called_damage(tmp_path, monkeypatch):
    torch_file.save({"a": 1}, tmp_path / "x.pt")
    torch.save({"a": 1}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)

    def load(*arguments, **options):
        raise NO_MEMORY

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(torch_file.Unreadable, match=r"x\.pt: too little memory"):
        torch_file.load(tmp_path / "x.pt")
    with pytest.raises(UserError, match="damaged"):  # its claims were not compared with its size
        torch_file.load(tmp_path / "old.pt")


def test_what_the_system_does_not_let_read_is_not_called_damage(tmp_path, monkeypatch):
    torch_file.save({"a": 1}, tmp_path / "x.pt")

    def load(*arguments, **options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(UserError, match=r"x\.pt: cannot be read \(Input/output error\)"):
        torch_file.load(tmp_path / "x.pt")


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    for name, write in (("zip", torch.save), ("legacy", lambda v, f: pickle.dump(v, f))):
        with open(tmp_path / name, "wb") as file:
            write({"model": Payload(tmp_path / "ran")}, file)
        with pytest.raises(UserError, match="refused"):
            torch_file.load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_checkpoints_are_those_that_a_run_writes_and_others_stay(tmp_path):
    strays = ("1.bak.pt", "old.pt", "01.pt", "0.pt", "٣.pt", "1.pt.damaged", "pt.damaged", "pt.bak", "1pt")
    for name in strays:
        (tmp_path / f"checkpoint.{name}").touch()
    (tmp_path / "checkpoint1.pt").touch()
    assert torch_file.kept(tmp_path) == [] and continued(tmp_path, "auto") is None
    written = ["checkpoint.pt", *(f"checkpoint.{number}.pt" for number in (1, 2, 9, 10))]
    for name in reversed(written):
        (tmp_path / name).touch()
    assert torch_file.kept(tmp_path) == [tmp_path / name for name in written]
    assert continued(tmp_path, "auto") == tmp_path
    torch_file.rotate({"step": 1}, tmp_path, keep=2)
    assert torch_file.kept(tmp_path) == [tmp_path / name for name in written[:2]]
    assert all((tmp_path / f"checkpoint.{name}").exists() for name in strays)


def test_foreign_files_and_folders_are_named(tmp_path):
    (tmp_path / "a.pt").write_text("hello")
    for path, expected in (
        (tmp_path / "a.pt", "xpected a file"),
        (tmp_path, "neither encoder.pt, best.pt nor checkpoint.pt"),
        (tmp_path / "b.pt", "no such file"),
    ):
        with pytest.raises(UserError, match=expected):
            pretrained.load_encoder(SmallResNet(4), path)
    torch_file.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds no weights by name"):
        pretrained.load_encoder(SmallResNet(4), tmp_path / "list.pt")


def test_an_encoder_is_loaded_strictly(tmp_path):
    torch_file.save(SmallResNet(4).state_dict(), tmp_path / "encoder.pt")
    fresh = SmallResNet(4)
    assert pretrained.load_encoder(fresh, tmp_path).path == tmp_path / "encoder.pt"
    saved = torch_file.load(tmp_path / "encoder.pt")
    assert all(torch.equal(v, saved[k]) for k, v in fresh.state_dict().items())
    for other, expected in (
        (SmallResNet(8), "does not fit"),
        (SmallResNet(4, stages=4), "lacks"),
        (nn.Linear(2, 2), "lacks"),
    ):
        with pytest.raises(UserError, match=expected):
            pretrained.load_encoder(other, tmp_path)
    with pytest.raises(UserError, match="has unknown"):
        pretrained.load_encoder(SmallResNet(4, stages=2), tmp_path)


def test_encoder_file_has_torchvision_names_with_only_fc_missing(tmp_path):
    encoder, width = build_encoder("resnet50", 224)
    torch_file.save(encoder.state_dict(), tmp_path / "encoder.pt")
    plain = torchvision.models.resnet50()
    outcome = plain.load_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True), strict=False)
    assert outcome.missing_keys == ["fc.weight", "fc.bias"] and not outcome.unexpected_keys and width == 2048


def test_a_supervised_torchvision_file_loads_without_its_classifier(tmp_path):
    torch_file.save(torchvision.models.resnet18().state_dict(), tmp_path / "r.pt")
    encoder, _ = build_encoder("resnet18", 224)
    pretrained.load_encoder(encoder, tmp_path / "r.pt")


def test_no_flipped_bit_in_the_list_of_contents_passes(tmp_path):
    """No checksum covers it, and one of its bits makes PyTorch read nothing where a tensor was."""
    weights = {"a": torch.arange(7.0), "b": torch.ones(3, 2)}
    torch_file.save(weights, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "whole.pt") as records:
        start = records.start_dir
    unnoticed_by_torch = 0
    for position in range(8 * start, 8 * len(content)):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        (tmp_path / "x.pt").write_bytes(damaged)
        try:
            found = torch_file.load(tmp_path / "x.pt")
        except UserError:
            with contextlib.suppress(Exception):
                loaded = torch.load(tmp_path / "x.pt", weights_only=True)
                unnoticed_by_torch += not all(torch.equal(loaded[name], weights[name]) for name in weights)
        else:
            assert all(torch.equal(found[name], weights[name]) for name in weights), divmod(position, 8)
    assert unnoticed_by_torch  # the control

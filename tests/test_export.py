"""An encoder in other programs' formats computes what it computed here, or nothing is written."""

import importlib.util
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import lively
from torch import nn

import hubconf
from ssl import export
from ssl.checkpoints import pretrained, safetensors, torch_file
from ssl.encoders import SmallResNet, build_encoder
from ssl.errors import UserError
from ssl.settings import config

ROOT = Path(__file__).resolve().parents[1]


def needs(*packages: str):
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (requirements-dev.txt)")


of_today = pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="the exporter of PyTorch 2.6 does not fit the onnxscript of today"
)


@pytest.fixture
def resnet_run(tmp_path) -> Path:
    """A run folder with a ResNet-18 of 64-pixel images in it, normalised in its own way."""
    encoder = lively(build_encoder("resnet18", 224)[0])
    torch.save(encoder.state_dict(), tmp_path / "encoder.pt")
    config.write_yaml(
        tmp_path / "config.yaml",
        {
            "encoder": "resnet18",
            "stem": "imagenet",
            "image_size": 64,
            "dataset": "folder",
            "mean": [0.0, 0.0, 0.0],
            "std": [1.0, 1.0, 1.0],
        },
    )
    return tmp_path


@pytest.fixture
def small_run(tmp_path) -> Path:
    """One of a SmallResNet."""
    torch.save(lively(SmallResNet(4, 2)).state_dict(), tmp_path / "encoder.pt")
    settings = {"encoder": "ssl.encoders.SmallResNet", "encoder_kwargs": {"width": 4, "stages": 2}, "image_size": 32}
    config.write_yaml(tmp_path / "config.yaml", settings | {"dataset": "CIFAR10", "stem": "auto"})
    return tmp_path


def images(size: int = 64) -> torch.Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def expected(folder: Path, x: torch.Tensor) -> torch.Tensor:
    """The features of the fixture's encoder, by torchvision alone or by SmallResNet."""
    state = torch.load(folder / "encoder.pt", weights_only=True)
    network = torchvision.models.resnet18() if "conv1.weight" in state else SmallResNet(4, 2)
    network.fc = nn.Identity()
    network.load_state_dict(state)
    return network.eval()(x)


# torchvision, timm, torch.hub -------------------------------------------------------------


def test_a_runs_encoder_has_torchvisions_names(resnet_run, tmp_path, capsys):
    export.main([str(resnet_run), "--to", "torchvision", "--output_dir", str(tmp_path / "out")])
    assert "encoder.torchvision.pt: identical features" in capsys.readouterr().out
    written = torch.load(tmp_path / "out" / "encoder.torchvision.pt", weights_only=True)
    assert written.keys() == torch.load(resnet_run / "encoder.pt", weights_only=True).keys()


def test_a_torchvision_file_called_encoder_pt_is_exported_without_its_classifier(tmp_path, capsys):
    torch.save(lively(torchvision.models.resnet18()).state_dict(), tmp_path / "encoder.pt")
    export.main([str(tmp_path / "encoder.pt"), "--image_size", "64", "--to", "torchvision"])
    assert "encoder.torchvision.pt: identical features" in capsys.readouterr().out
    assert not any("fc" in name for name in torch.load(tmp_path / "encoder.torchvision.pt", weights_only=True))


def test_a_foreign_file_becomes_torchvisions(resnet_run, tmp_path, capsys):
    state = torch.load(resnet_run / "encoder.pt", weights_only=True)
    moco = {f"module.encoder_q.{k}": v for k, v in state.items()} | {"module.queue": torch.ones(2)}
    torch.save({"state_dict": moco}, tmp_path / "moco.tar")
    export.main([str(tmp_path / "moco.tar"), "--to", "torchvision"])
    assert "MoCo v2" in capsys.readouterr().out
    network = torchvision.models.resnet18()
    outcome = network.load_state_dict(torch.load(tmp_path / "encoder.torchvision.pt", weights_only=True), strict=False)
    assert outcome.missing_keys == ["fc.weight", "fc.bias"] and not outcome.unexpected_keys
    network.fc = nn.Identity()
    with torch.no_grad():
        assert torch.equal(network.eval()(images()), expected(resnet_run, images()))


def test_torchvision_takes_its_other_classifiers(tmp_path, capsys):
    encoder = lively(build_encoder("mobilenet_v3_small", 64)[0])
    torch.save({"model": encoder.state_dict()}, tmp_path / "file.pth")
    how = ["--encoder", "mobilenet_v3_small", "--image_size", "64", "--to", "torchvision"]
    export.main([str(tmp_path / "file.pth"), *how])
    assert "encoder.torchvision.pt: identical features" in capsys.readouterr().out
    state = torch.load(tmp_path / "encoder.torchvision.pt", weights_only=True)
    outcome = torchvision.models.mobilenet_v3_small().load_state_dict(state, strict=False)
    assert outcome.missing_keys == ["classifier.3.weight", "classifier.3.bias"] and not outcome.unexpected_keys
    with pytest.raises(UserError, match=r"only timm/NAME and torchvision's ResNets for three"):
        export.main([str(tmp_path / "file.pth"), *how[:-1], "timm"])


@needs("timm", "safetensors")
def test_timm_takes_the_file_and_the_folder(resnet_run, capsys):
    import timm

    export.main([str(resnet_run), "--to", "timm"])
    assert "timm: identical features" in capsys.readouterr().out
    for network in (
        timm.create_model("resnet18", num_classes=0, checkpoint_path=str(resnet_run / "timm" / "model.safetensors")),
        timm.create_model(f"local-dir:{resnet_run / 'timm'}", pretrained=True),
    ):
        with torch.no_grad():
            assert torch.equal(network.eval()(images()), expected(resnet_run, images()))
    assert timm.data.resolve_model_data_config(network)["mean"] == [0.0, 0.0, 0.0]
    assert timm.data.resolve_model_data_config(network)["input_size"] == [3, 64, 64]


def test_timms_config_says_how_wide_a_bottleneck_is(tmp_path):
    torch.save(build_encoder("resnet50", 64, "imagenet")[0].state_dict(), tmp_path / "encoder.pt")
    export.main([str(tmp_path), "--to", "timm", "--image_size", "32"])
    about = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert (about["architecture"], about["num_features"]) == ("resnet50", 2048)
    assert about["pretrained_cfg"]["std"] == [0.229, 0.224, 0.225]


def test_torch_hub_gives_the_encoder_in_another_process(resnet_run, tmp_path):
    code = """
import sys, torch
encoder = torch.hub.load(sys.argv[1], "encoder", path=sys.argv[2], source="local")
assert not encoder.training
x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))
with torch.no_grad():
    torch.save(encoder(x), sys.argv[3])
"""
    command = [sys.executable, "-c", code, ROOT, resnet_run, tmp_path / "out.pt"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "out.pt"), expected(resnet_run, images()))


def test_a_class_that_a_strangers_folder_names_is_not_imported(small_run, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("import os; os.mkdir('ran')\nfrom ssl.encoders import SmallResNet as Net\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    config.write_yaml(small_run / "config.yaml", {"encoder": "evil.Net", "encoder_kwargs": {"width": 4, "stages": 2}})
    hub = {"source": "local", "path": str(small_run)}
    with pytest.raises(UserError, match=r"names 'evil\.Net', and importing that runs its code"):
        torch.hub.load(str(ROOT), "encoder", **hub)
    with pytest.raises(UserError, match=r"names 'evil\.Net', and importing that runs its code"):
        export.main([str(small_run)])
    assert not (tmp_path / "ran").exists()
    kwargs = {"width": 4, "stages": 2}
    torch.hub.load(str(ROOT), "encoder", encoder="evil.Net", encoder_kwargs=kwargs, image_size=32, **hub)
    assert (tmp_path / "ran").exists()  # the control


@needs("safetensors")
def test_one_channel_is_read_off_the_weights(tmp_path, capsys):
    torch.save(lively(SmallResNet(4, 2, in_channels=1)).state_dict(), tmp_path / "encoder.pt")
    settings = {"encoder": "ssl.encoders.SmallResNet", "encoder_kwargs": {"width": 4, "stages": 2}, "image_size": 32}
    config.write_yaml(tmp_path / "config.yaml", settings | {"method": "barlow_twins", "dataset": "array"})
    export.main([str(tmp_path)])
    told = capsys.readouterr().out
    assert "encoder.safetensors: identical features" in told and "of its training, which are not recorded" in told
    encoder = torch.hub.load(str(ROOT), "encoder", path=str(tmp_path / "encoder.safetensors"), source="local")
    assert encoder(torch.rand(2, 1, 32, 32)).shape == (2, 16)


@needs("safetensors")
def test_the_normalisation_is_told(resnet_run, small_run, capsys):
    """That of the settings, or else the data set's; both fixtures write to one folder, the second stays."""
    export.main([str(small_run)])
    assert "normalised with mean [0.4914, 0.4822, 0.4465] std [0.247, 0.2435, 0.2616]" in capsys.readouterr().out


# ONNX -----------------------------------------------------------------------------------


@needs("onnx", "onnxscript", "onnxruntime")
@of_today
def test_onnx_computes_the_same_for_any_number_of_images(small_run, capsys):
    import onnxruntime

    export.main([str(small_run), "--to", "onnx"])
    assert "encoder.onnx: features equal to" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(small_run / "encoder.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        x = images(32)[:count]
        (h,) = session.run(["features"], {"images": x.numpy()})
        assert torch.allclose(torch.from_numpy(h), expected(small_run, x), rtol=1e-4, atol=1e-5)
    assert sorted(os.listdir(small_run)) == ["config.yaml", "encoder.onnx", "encoder.pt"]


def test_without_the_exporter_it_says_what_to_install(small_run, monkeypatch):
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, find=importlib.util.find_spec: None if name == "onnxscript" else find(name),
    )
    with pytest.raises(UserError, match=r"pip install .*onnxscript$"):
        export.main([str(small_run), "--to", "onnx"])


# safetensors ------------------------------------------------------------------------------

TENSORS = {
    "a": torch.arange(6.0).view(2, 3).T,
    "scalar": torch.tensor(7),
    "empty": torch.empty(0, 3),
    "ü\n": torch.ones(2).half(),
    "bool": torch.tensor([True, False, True]),
    "bf16": torch.randn(3).bfloat16(),
    "i8": torch.tensor([-1], dtype=torch.int8),
}


@needs("safetensors")
def test_safetensors_reads_ours_and_we_read_theirs(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    safetensors.write(TENSORS, tmp_path / "ours", {"format": "pt"})
    contiguous = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(contiguous, tmp_path / "theirs")
    with safe_open(tmp_path / "ours", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    for found in (load_file(tmp_path / "ours"), safetensors.read(tmp_path / "theirs")):
        assert set(found) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
            assert found[name].shape == tensor.shape


@needs("safetensors")
def test_what_is_exported_is_read_again_as_init(small_run, capsys):
    export.main([str(small_run)])
    assert "encoder.safetensors: identical features" in capsys.readouterr().out
    encoder = SmallResNet(4, 2)
    source = pretrained.load_encoder(encoder, small_run / "encoder.safetensors")
    assert source.format == "only an encoder"
    with torch.no_grad():
        assert torch.equal(encoder.eval()(images(32)), expected(small_run, images(32)))


def test_without_the_package_it_says_what_to_install(small_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    before = sorted(os.listdir(small_run))
    with pytest.raises(UserError, match=r"pip install safetensors$"):
        export.main([str(small_run)])
    assert sorted(os.listdir(small_run)) == before
    (small_run / "x.safetensors").write_bytes(file_of({"a": entry()}, bytes(8)))
    with pytest.raises(UserError, match=r"pip install safetensors$"):
        pretrained.load_encoder(SmallResNet(4), small_run / "x.safetensors")


def file_of(header, numbers: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def entry(begin=0, end=8, shape=(2,), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


DAMAGED = {
    "nothing": b"",
    "half a length": b"\1\0\0",
    "a header larger than the file": struct.pack("<Q", 2**62) + b"{}",
    "no JSON": file_of(b"{]"),
    "no text": file_of(b"\xff\xfe{}"),
    "deep": file_of(b"[" * 100_000),
    "a list": file_of([]),
    "an entry that is none": file_of({"a": 3}, bytes(8)),
    "an unknown dtype": file_of({"a": entry(dtype="OBJECT")}, bytes(8)),
    "a dtype that is none": file_of({"a": entry(dtype=["F32"])}, bytes(8)),
    "a negative size": file_of({"a": entry(shape=(-1, -2))}, bytes(8)),
    "a size that is true": file_of({"a": entry(0, 4, shape=(True,))}, bytes(4)),
    "a fractional size": file_of({"a": entry(shape=(2.0,))}, bytes(8)),
    "a huge size": file_of({"a": entry(shape=(2**62, 2**62))}, bytes(8)),
    "another size": file_of({"a": entry(shape=(3,))}, bytes(8)),
    "beyond the end": file_of({"a": entry(0, 8)}, bytes(7)),
    "backwards": file_of({"a": entry(8, 0)}, bytes(8)),
    "an overlap": file_of({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "a hole": file_of({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)),
    "something behind": file_of({"a": entry()}, bytes(9)),
    "metadata that is no words": file_of({"__metadata__": {"a": 1}}),
    "an integer of many digits": file_of(b'{"a":' + b"9" * 10_000 + b"}"),
}


@needs("safetensors")
@pytest.mark.parametrize("name", DAMAGED)
def test_a_header_that_lies_is_one_clear_error(tmp_path, name):
    path = tmp_path / "x.safetensors"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(UserError, match=r"x\.safetensors: damaged, or not a safetensors file \(.+\)"):
        pretrained.load_encoder(SmallResNet(4), path)


@needs("safetensors")
def test_the_same_header_without_a_lie_is_read(tmp_path):
    """The control."""
    (tmp_path / "x").write_bytes(file_of({"a": entry(), "b": entry(8, 12, shape=())}, struct.pack("<fff", 1, 2, 3)))
    found = safetensors.read(tmp_path / "x")
    assert torch.equal(found["a"], torch.tensor([1.0, 2])) and torch.equal(found["b"], torch.tensor(3.0))


@needs("safetensors")
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4), st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_any_damage_is_one_clear_error_or_other_numbers(tmp_path_factory, changes, cut):
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    safetensors.write({"a": torch.arange(5), "b": torch.ones(2, 2)}, path, {"format": "pt"})
    content = bytearray(path.read_bytes())
    for place, change in changes:
        content[place % len(content)] ^= change
    path.write_bytes(content[: len(content) - cut])
    try:
        found = safetensors.read(path)
    except UserError as error:
        assert "damaged.safetensors: " in str(error)
    else:
        assert cut == 0 and sum(tensor.nbytes for tensor in found.values()) <= 56


# What is refused --------------------------------------------------------------------------


@needs("safetensors")
def test_a_folder_of_somebody_elses_stays(resnet_run):
    """An export writes timm/: a clone of timm is called so, too. The control: an earlier export is replaced."""
    theirs = resnet_run / "timm" / "models"
    theirs.mkdir(parents=True)
    (theirs / "mine.py").write_text("mine")
    with pytest.raises(UserError, match=r"timm holds 'models', which no export has written; name another folder"):
        export.main([str(resnet_run), "--to", "timm"])
    assert (theirs / "mine.py").read_text() == "mine"
    out = resnet_run / "out"
    for _ in range(2):
        export.main([str(resnet_run), "--to", "timm", "--output_dir", str(out)])
        assert sorted(os.listdir(out)) == ["timm"] and len(os.listdir(out / "timm")) == 2


@needs("safetensors")
def test_the_file_that_was_read_stays(tmp_path):
    state = lively(torchvision.models.resnet18()).state_dict()
    (tmp_path / "timm").mkdir()
    for file, target in (("encoder.safetensors", "safetensors"), ("timm/model.safetensors", "timm")):
        safetensors.write(state, tmp_path / file, {"format": "pt"})
        before = (tmp_path / file).read_bytes()
        for path in (tmp_path / file, Path(os.path.relpath(tmp_path / file))):
            with pytest.raises(UserError, match=r"would replace .*safetensors, which was read; name another folder"):
                export.main([str(path), "--to", target, "--output_dir", str(tmp_path)])
        assert (tmp_path / file).read_bytes() == before


@pytest.mark.parametrize("target", ["torchvision", "timm"])
def test_what_a_target_does_not_know_is_one_line(tmp_path, target):
    (tmp_path / "small").mkdir()
    torch.save(build_encoder("resnet18", 32)[0].state_dict(), tmp_path / "small" / "encoder.pt")
    with pytest.raises(UserError, match=f"{target} has no resnet18 with the small 3×3 stem"):
        export.main([str(tmp_path / "small"), "--encoder", "resnet18", "--stem", "small", "--to", target])
    torch.save(SmallResNet(4, 2).state_dict(), tmp_path / "encoder.pt")
    with pytest.raises(UserError, match=f"{target} has no such encoder"):
        net = ["--encoder", "ssl.encoders.SmallResNet", "--encoder_kwargs", "{width: 4, stages: 2}"]
        export.main([str(tmp_path), *net, "--image_size", "32", "--to", target])


@pytest.mark.parametrize(
    "target", ["torchvision", "safetensors", "timm", pytest.param("onnx", marks=[needs("onnxruntime"), of_today])]
)
def test_other_features_are_an_error_and_leave_no_file(resnet_run, monkeypatch, target):
    """A stand-in for every way to go wrong: the weights that are written are not the encoder's."""
    if target in ("safetensors", "timm"):
        pytest.importorskip(target)
    (resnet_run / "encoder.pt").rename(resnet_run / "other.pt")
    before = sorted(os.listdir(resnet_run))
    spoilt = lively(build_encoder("resnet18", 224)[0], seed=1)
    monkeypatch.setattr(export.Export, "weights", lambda self: spoilt.state_dict())
    if target == "onnx":
        monkeypatch.setattr(torch.onnx, "export", lambda _, *rest, f=torch.onnx.export, **how: f(spoilt, *rest, **how))
    with pytest.raises(UserError, match=r"computes other features .*nothing was written"):
        export.main([str(resnet_run / "other.pt"), "--to", target])
    assert sorted(os.listdir(resnet_run)) == before


def test_the_fixed_images_and_their_checksum_are_the_same_everywhere():
    x = export.fixed_images(2, 3, 5)
    assert x.shape == (2, 3, 5, 5) and x.min() >= -2 and x.max() <= 2
    plain = [(i * 2654435761 % 2**32) / 2**30 - 2 for i in range(150)]
    assert torch.allclose(x.flatten(), torch.tensor(plain))
    assert float(export.checksum(x)) == pytest.approx(sum(math.cos(i + 1) * v for i, v in enumerate(plain)), rel=1e-4)
    assert export.checksum(x) != export.checksum(x + 0.01)


def test_as_a_command_it_ends_in_one_line(tmp_path):
    done = forked.run("-m", "ssl.export", "nowhere")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("export: error: nowhere: no such file or run folder, nor published weights (")
    for arguments, words in (([], "name a run folder or a file"), (["x", "--to", "tensorflow"], "none of torchvision")):
        with pytest.raises(UserError, match=words):
            export.main(arguments)


@needs("safetensors")
def test_mean_and_std_go_with_an_export(tmp_path):
    network = SmallResNet(4, 2)
    run = tmp_path / "run"
    run.mkdir()
    torch_file.save(network.state_dict(), run / "encoder.pt")
    about = {"encoder": "ssl.encoders.SmallResNet", "encoder_kwargs": {"width": 4, "stages": 2}, "image_size": 32}
    config.write_yaml(run / "config.yaml", about | {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]})
    export.main([str(run), "--to", "safetensors", "--output_dir", str(tmp_path / "moved")])
    source = pretrained.load_encoder(SmallResNet(4, 2), tmp_path / "moved" / "encoder.safetensors")
    assert (source.mean, source.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert hubconf.encoder(str(run)).normalisation == {"mean": source.mean, "std": source.std}
    safetensors.write(network.state_dict(), tmp_path / "theirs.safetensors", {"format": "pt", "mean": "who knows"})
    assert pretrained.load_encoder(SmallResNet(4, 2), tmp_path / "theirs.safetensors").mean is None

"""Files that name what is not here: their weights are read, their code is not run."""

import argparse
import collections
import copyreg
import datetime
import enum
import functools
import os
import pathlib
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import TINY, TINY_STATE, Tiny, features, lively, put, tiny_layouts
from test_hostile import PICKLES, THREE, Payload, old_format, saved, with_pickle
from torch import nn

from ssl.checkpoints import pretrained, standins, torch_file
from ssl.encoders import build_encoder
from ssl.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, on pickles of other protocols
FORMATS = [(old, protocol) for old in (False, True) for protocol in (2, 4, 5)]


def save(value, path, old: bool = False, protocol: int = 2):
    torch.save(value, path, _use_new_zipfile_serialization=not old, pickle_protocol=protocol)


class AttributeDict(dict):
    """As Lightning's: a mapping with a class of its own."""


class Names(list):
    pass


class Stage(enum.Enum):
    FIT = 1


class Slots:
    __slots__ = ("a",)

    def __init__(self):
        self.a = 1


@pytest.fixture
def lightning_file(tmp_path):
    """As Lightning writes the Barlow Twins of a repository whose LARS has a function of its file model.py."""
    theirs = types.ModuleType("model")
    exec("def exclude_bias_and_norm(p):\n    return p.ndim == 1", theirs.__dict__)
    weights = put("encoder.", TINY_STATE) | put("projector.", {"0.weight": torch.ones(2, 2)})
    group = {"lr": 0.2, "weight_decay_filter": theirs.exclude_bias_and_norm, "params": [0, 1]}
    sys.modules["model"] = theirs
    save(
        {
            "epoch": 99,
            "global_step": 5,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": weights,
            "loops": {},
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(1.0), "dirpath": "/a"}},
            "optimizer_states": [{"state": {0: {"mu": torch.ones(3)}}, "param_groups": [group]}],
            "lr_schedulers": [],
            "hyper_parameters": AttributeDict(args=argparse.Namespace(lr=1)),
        },
        tmp_path / "model.ckpt",
    )
    del sys.modules["model"]
    return tmp_path / "model.ckpt"


def test_a_file_of_lightning_that_names_a_function_of_its_repository_is_read(lightning_file):
    encoder = Tiny()
    source = pretrained.load_encoder(encoder, lightning_file)
    assert torch.equal(features(encoder), features(TINY)) and source.format.startswith("Lightning")
    told = "with stand-ins: 'model.exclude_bias_and_norm', 'test_standins.AttributeDict', 'argparse.Namespace'"
    assert told in str(source) and "optimizer_states" in source.left_out
    with pytest.raises(ModuleNotFoundError, match="No module named 'model'"):  # the control
        torch.load(lightning_file, weights_only=False)


@pytest.mark.parametrize("old, protocol", FORMATS)
def test_weights_beside_objects_of_any_class_are_read_and_nothing_is_run(tmp_path, old, protocol):
    path = tmp_path / "x.pth"
    objects = [
        argparse.Namespace(where=pathlib.Path("x")),
        AttributeDict(a=1),
        np.float64(1),
        np.zeros(3),
        Names([1, 2]),
        collections.defaultdict(list, {1: [2]}),
        collections.Counter("ab"),
        {Stage.FIT: 1, Slots: 2},
        Slots(),
        b"bytes",
        datetime.timedelta(1),
        frozenset([1]),
        {1, 2},
        1j,
        functools.partial(print, 1),
        torch.float16,
        Payload,
        torch.device("cpu"),
        nn.Parameter(torch.ones(2)),
        nn.Linear(2, 2),
        Payload(tmp_path / "ran"),
    ]
    save(
        {"model": put("encoder.", TINY_STATE) | put("head.", {"weight": torch.ones(1)}), "opt": objects},
        path,
        old,
        protocol,
    )
    encoder = Tiny()
    source = pretrained.load_encoder(encoder, path)
    assert torch.equal(features(encoder), features(TINY))
    assert {"argparse.Namespace", "posix.mkdir", "builtins.print", "test_standins.Stage"} <= set(source.stand_ins)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="refused"):  # a file of ours holds nothing of the kind
        torch_file.load(path)
    torch.load(path, weights_only=False)  # the control: it was live
    assert (tmp_path / "ran").is_dir()


def test_tensors_are_those_that_torch_reads(tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 4)
    value = {
        "a": base,
        "view": base[:, 1:, ::2].transpose(0, 1),
        "half": base.half(),
        "bool": base > 3,
        "scalar": torch.tensor(3),
        "grad": nn.Parameter(base[0]),
        "u16": base.to(torch.uint16),
        "bf16": base.bfloat16(),
        "empty": torch.empty(0, 3),
        "beside": argparse.Namespace(),
    }
    save(value, tmp_path / "x.pt")
    found, names = torch_file.load_foreign(tmp_path / "x.pt")
    assert names == ["argparse.Namespace"]
    for name in set(value) - {"beside"}:
        assert torch.equal(found[name], value[name]) and found[name].dtype == value[name].dtype
    assert found["view"].untyped_storage().data_ptr() == found["a"].untyped_storage().data_ptr()  # shared, as it was


# Whole modules -------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True])
def test_a_whole_pickled_module_is_its_weights(tmp_path, old):
    net = lively(torchvision.models.resnet18())
    net.register_buffer("scratch", torch.ones(1), persistent=False)
    for number, value in enumerate((net, nn.DataParallel(net), {"epoch": 3, "model": net})):
        path = tmp_path / f"{number}.pt"
        save(value, path, old)
        encoder, _ = build_encoder("resnet18", 224)
        source = pretrained.load_encoder(encoder, path)
        assert torch.equal(encoder.layer4[1].conv2.weight, net.layer4[1].conv2.weight)
        assert torch.equal(encoder.bn1.running_var, net.bn1.running_var)
        assert source.format.startswith("torchvision names with a classifier")
        assert "torchvision.models.resnet.ResNet" in source.stand_ins
    whole = torch_file.load_foreign(tmp_path / "0.pt")[0]
    assert set(whole) == set(net.state_dict()) and all(torch.equal(whole[k], w) for k, w in net.state_dict().items())


def test_a_module_that_holds_itself_is_refused(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2))
    net._modules["0"]._modules["again"] = net
    save(net, tmp_path / "x.pt")
    with pytest.raises(UserError, match="contain themselves"):
        torch_file.load_foreign(tmp_path / "x.pt")


def test_a_program_of_torchscript_is_refused_by_name(tmp_path):
    save({}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as records:
        records.writestr("x/constants.pkl", b"")  # what torch.load goes by
    with pytest.raises(UserError, match="TorchScript"):
        torch_file.load_foreign(tmp_path / "x.pt")


# Files that mean harm ---------------------------------------------------------------------


@pytest.mark.parametrize("name", PICKLES)
def test_what_claims_more_than_the_file_has_is_refused_here_too(tmp_path, name):
    """Each beside a name that nobody knows, so that it is the reader with stand-ins that reads it."""
    prefix, rest = PICKLES[name][:2], PICKLES[name][2:]
    unknown = prefix + b"cnobody\nknows\n0" + rest
    for file, content in (("zip", with_pickle(unknown)), ("old", old_format(unknown))):
        (tmp_path / file).write_bytes(content)
        try:
            value, _ = torch_file.load_foreign(tmp_path / file)
        except UserError:
            continue
        inert = ("bytearray", "Tensor of no numbers", "hidden method", "attributes of a list of tensors")
        assert name in inert  # stand-ins make nothing of these
        assert not isinstance(value, torch.Tensor | bytearray) and not getattr(value, "__dict__", {})


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
MISCHIEF = {
    "attributes of a function": b"\x80\2" + REBUILD + b"N}X\x0c\0\0\0__defaults__K\1s\x86b.",
    "attributes of a class": b"\x80\2ccollections\nOrderedDict\nN}X\5\0\0\0itemsK\1s\x86b.",
    "memory": b"\x80\2ctorch.storage\nUntypedStorage\n\x8a\x06\0\0\0\0\0\x10\x85R.",
    "memory, otherwise": b"\x80\2(ctorch.storage\nUntypedStorage\n\x8a\x06\0\0\0\0\0\x10o.",
    "a name by number": b"\x80\2\x82\x01.",
    "a frame of gigabytes": b"\x80\4\x95\0\0\0\0\1\0\0\0.",
    "a reference that is no storage": b"\x80\2X\1\0\0\0aX\1\0\0\0b\x86Q.",
    "a call of what is no name": b"\x80\2]X\1\0\0\0a\x85R.",
    "a sum of tensors": b"\x80\2" + THREE + b"(" + THREE + b"\x90.",
    "an item of a tensor": b"\x80\2" + THREE + b"K\0K\1s.",
    "items of a tensor": b"\x80\2" + THREE + b"(K\0K\1u.",
    "a size of a tensor": b"\x80\2ctorch\nSize\n" + THREE + b"\x85R.",
    "a reference that is a tensor": b"\x80\2" + THREE + b"Q.",
    "a memory slot of gigabytes": b"\x80\2]r\xff\xff\xff\x7f.",
}


@pytest.mark.parametrize("name", MISCHIEF)
def test_what_a_pickle_could_do_besides_naming_is_refused(tmp_path, name):
    copyreg._extension_registry[("os", "mkdir")] = 1
    copyreg._inverted_registry[1] = ("os", "mkdir")
    before = standins.CALLED["torch._utils._rebuild_tensor_v2"].__defaults__
    try:
        for file, content in (("zip", with_pickle), ("old", old_format)):
            content = content(MISCHIEF[name].replace(b"\x80\2", b"\x80\2cnobody\nknows\n0", 1))
            (tmp_path / file).write_bytes(content)
            if name == "a memory slot of gigabytes":  # a dictionary's, here
                assert torch_file.load_foreign(tmp_path / file)[0] == []
                continue
            with pytest.raises(UserError, match=rf"{file}: (refused|damaged)"):
                torch_file.load_foreign(tmp_path / file)
    finally:
        copyreg.clear_extension_cache()
        del copyreg._extension_registry[("os", "mkdir")], copyreg._inverted_registry[1]
    assert standins.CALLED["torch._utils._rebuild_tensor_v2"].__defaults__ == before
    assert callable(collections.OrderedDict.items)


NAMED = {"opt": argparse.Namespace(a=[1])} | tiny_layouts()["supcontrast"][0]
FILES = [saved(NAMED, _use_new_zipfile_serialization=new) for new in (True, False)]


@settings(max_examples=200, deadline=None)
@given(st.booleans(), st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=3))
def test_any_damage_is_one_clear_error_or_does_none(tmp_path_factory, old, changes):
    """The old format has no checksums: there a damaged file may load, with other numbers."""
    content = bytearray(FILES[old])
    for place, change in changes:
        content[place % len(content)] ^= change
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(content)
    encoder = Tiny()
    try:
        pretrained.load_encoder(encoder, path)
    except UserError:
        return
    assert old or torch.equal(features(encoder), features(TINY))


def test_names_are_told_in_one_printable_line(tmp_path):
    content = pickle_of_names([f"\x1b[2J{number}" for number in range(50)])
    (tmp_path / "x.pt").write_bytes(with_pickle(content))
    _, names = torch_file.load_foreign(tmp_path / "x.pt")
    told = str(pretrained.Source("x", "y", stand_ins=tuple(names)))
    assert told.isprintable() and "and 45 more" in told


def pickle_of_names(names: list[str]) -> bytes:
    return b"\x80\2]" + b"".join(f"cnobody\n{name}\na".encode() for name in names) + b"."


def test_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_ink.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "x.pt").write_bytes(with_pickle(b"\x80\2cevil_ink\nNet\n)R."))
    assert torch_file.load_foreign(tmp_path / "x.pt")[1] == ["evil_ink.Net"]
    assert not os.path.exists(tmp_path / "ran") and "evil_ink" not in sys.modules

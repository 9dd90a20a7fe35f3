"""Other people's checkpoints: recognised by their names, taken whole or refused, and their code not run."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import NAMES, RESNET18, SIMCLR, TINY, TINY_STATE, Tiny, features, layouts, lively, put, tiny_layouts
from PIL import Image
from running import run, tiny
from torch import nn

import evaluate
import finetune
import train
from ssl import export
from ssl.checkpoints import inherit, pretrained, restore, torch_file
from ssl.encoders import SmallResNet, build_encoder
from ssl.errors import UserError
from ssl.estimators import SimCLR
from ssl.settings import config

SMALL = {"width": 4, "stages": 2}

# Recognised and taken -------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_format_is_recognised_and_its_encoder_computes_the_same(tmp_path, name):
    content, called, _ = layouts(RESNET18.state_dict())[name]
    path = tmp_path / "file.pth"
    torch.save(content, path)
    chosen, kwargs, stem = restore.architecture(pretrained.run_settings(path))
    assert (chosen, kwargs, stem) == ("resnet18", None, "imagenet")  # by the shapes
    encoder, _ = build_encoder(chosen, 32, stem)  # small images, too
    source = pretrained.load_encoder(encoder, path)
    assert source.path == path and source.format.split(":")[0] == called and called in str(source)
    assert torch.equal(features(encoder), features(RESNET18))
    assert (source.mean, source.std) == (([0.0] * 3, [1.0] * 3) if name in SIMCLR else (None, None))
    told = {
        "supervised": "fc",
        "byol": "fc",
        "moco": "encoder_q.fc",
        "moco v3": "predictor",
        "sthalles": "backbone.fc",
        "infomin": "head_jig",
        "ours": "projector",
        "ours, fine-tuned": "head",
        "swav published": "prototypes",
        "barlow checkpoint": "bn",
        "solo-learn": "momentum_backbone",
        "spijkervet": "projector",
    }
    assert told.get(name, "") in (*source.left_out, "") and (source.left_out == ()) == (
        name in ("encoder.pt", "compiled")
    )


@pytest.mark.parametrize("built", [False, True])
def test_what_an_estimator_saved_is_read_with_its_encoder(tmp_path, capsys, built):
    """Built by the estimator, the file says how; else the shapes say it."""
    width = 512 if built else 16
    encoder = copy.deepcopy(RESNET18) if built else SmallResNet
    sizes = dict(proj_input_dim=width, proj_hidden_dim=8, proj_output_dim=8, encoder_kwargs=None if built else SMALL)
    model = SimCLR(encoder, **sizes, views=lambda x: x, batch_size=4, max_epochs=1, verbose=False)
    model.fit(torch.rand(4, 3, 32, 32)).save(tmp_path / "est.pt")
    network, source, about = restore.restore(tmp_path / "est.pt")
    assert torch.equal(features(network), features(model.encoder))
    assert (source.format, source.mean) == ("what an estimator of ours saved", None)
    assert about["name"] == ("resnet18" if built else "ssl.encoders.small.SmallResNet")
    export.main([str(tmp_path / "est.pt")])
    assert "images      in 0..1, normalised with the mean and std of its training, which are" in capsys.readouterr().out


@pytest.mark.data
@pytest.mark.parametrize("width", ["resnet18", "resnet50"])
def test_the_published_layouts_are_taken(real_data, width):
    """Exactly the names and shapes of the files, at full size; big heads are one number, seen many times."""
    described = json.loads((real_data / "ckpt_layouts" / f"{width}.json").read_text())
    expected = {
        "torchvision_supervised": "torchvision names with a classifier",
        "barlowtwins_resnet50_pth": "only an encoder",
        "barlowtwins_checkpoint_pth": "Barlow Twins' checkpoint.pth",
        "moco_v2": "MoCo v2",
        "swav_pretrain": "SwAV",
        "byol_converted": "torchvision names with a classifier and no num_batches_tracked",
        "simclr_tonylins": "torchvision names with a classifier",
        "simclr_flat_virtualspaceman": "torchvision names with a classifier",
        "infomin_pycontrast": "InfoMin",
        "supcontrast_ckpt": "SupContrast",
        "lightning_backbone": "Lightning (solo-learn, lightly and others)",
        "sthalles_simclr": "sthalles' SimCLR",
        "spijkervet_simclr": "Spijkervet's SimCLR",
    }
    assert set(described) == set(expected)
    theirs, _ = build_encoder(width, 224)
    lively(theirs)
    for name, layout in described.items():
        prefix = layout["prefix"].split(" or ")[0]
        own = put(prefix, theirs.state_dict())
        weights = {key: own.get(key, torch.ones(()).expand(shape)) for key, shape in layout["keys"]}
        beside = dict.fromkeys(layout.get("siblings", ()), 0)
        content = {layout["wrap"]: weights} | beside if layout["wrap"] else weights
        encoder, _ = build_encoder(width, 224)
        source = pretrained.take(encoder, content, Path(name))
        assert source.format.split(":")[0] == expected[name]
        assert torch.equal(features(encoder), features(theirs)), name


def test_encoder_and_stem_follow_the_weights_unless_the_user_sets_them(tmp_path, capsys):
    path = tmp_path / "theirs.ckpt"
    torch.save({"state_dict": put("backbone.", build_encoder("resnet18", 32)[0].state_dict())}, path)
    expected = ("resnet18", "small")

    def chosen(settings) -> tuple:
        return settings.encoder, settings.stem

    for script, file in ((evaluate, "model_path"), (finetune, "init")):
        for asked, wanted in (
            ({}, expected),
            ({"stem": "auto"}, expected),
            ({"stem": "imagenet"}, ("resnet18", "imagenet")),
            ({"encoder": "resnet18"}, expected),
            ({"encoder": "resnet34"}, ("resnet34", None)),
        ):
            settings = script.Settings(**{file: str(path)}, **asked)
            inherit.fill(settings, pretrained.run_settings(path))
            assert chosen(settings) == wanted
    for words, wanted in (
        ([], expected),
        (["--dataset", "CIFAR10"], expected),
        (["--image_size", "224"], expected),
        (["--stem", "imagenet"], ("resnet18", "imagenet")),
        (["--encoder", "resnet34"], ("resnet34", "auto")),
    ):
        settings, origin = config.parse(train.Settings, ["--init", str(path), *words], recipe=train.find_recipe)
        inherit.take_architecture(settings, origin)
        assert chosen(settings) == wanted and settings.encoder_kwargs == {}
    assert f"by shapes   {path}: resnet18, stem small" in capsys.readouterr().out
    _, source, about = restore.restore(path)
    assert about["name"] == "resnet18" and about["stem"] == "small" and source.format.startswith("Lightning")


@pytest.mark.parametrize(
    "text",
    [
        "seed: 5\nmodel:\n  name: resnet50\n",
        "defaults: &d\n  lr: 1\nmodel: *d\n",
        "encoder:\n  name: resnet50\nmethod: byol\n",
        "encoder: resnet50\nimage_size: 96\nmean: [0.1, 0.2, 0.3]\nstd: [0.1, 0.2, 0.3]\n",
    ],
)
def test_the_config_yaml_of_another_project_says_nothing(tmp_path, text):
    encoder, _ = build_encoder("resnet18", 224)
    torch.save({"state_dict": put("backbone.", encoder.state_dict())}, tmp_path / "theirs.ckpt")
    (tmp_path / "config.yaml").write_text(text)
    _, source, about = restore.restore(tmp_path / "theirs.ckpt")
    assert (about["name"], about["image_size"], about["stem"], source.mean) == ("resnet18", 224, "imagenet", None)
    settings = {"method": "byol", "encoder": "resnet18", "image_size": 96}  # the control: of a run of ours
    config.write_yaml(tmp_path / "config.yaml", settings)
    assert restore.restore(tmp_path / "theirs.ckpt")[2]["image_size"] == 96


def test_a_checkpoint_of_ours_alone_says_its_own_settings(tmp_path):
    small = SmallResNet(4, 2)
    own = {
        "encoder": "ssl.encoders.SmallResNet",
        "encoder_kwargs": {"width": 4, "stages": 2},
        "image_size": 32,
        "stem": "auto",
        "mean": [0.1] * 3,
        "std": [0.2] * 3,
    }
    torch_file.save({"model": put("encoder.", small.state_dict()), "settings": own, "step": 1}, tmp_path / "moved.pt")
    encoder, source, _ = restore.restore(tmp_path / "moved.pt")
    assert torch.equal(features(encoder), features(small))
    assert (source.mean, source.std) == ([0.1] * 3, [0.2] * 3)
    torch_file.save({"model": {}, "settings": own | {"encoder": "evil.Net"}}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="importing that runs its code"):
        restore.restore(tmp_path / "evil.pt")


def test_a_kind_is_insisted_on():
    accepted = 0
    for name, (content, called, kinds) in tiny_layouts().items():
        for kind in pretrained.Kind.__args__:
            if kind in kinds:
                source = pretrained.take(Tiny(), content, Path(name), kind)
                assert (source.mean == [0.0] * 3) == (kind == "simclr")
                accepted += 1
            else:
                with pytest.raises(UserError, match=f"asked for as {kind}") as raised:
                    pretrained.take(Tiny(), content, Path(name), kind)
                assert f"it is {called}" in str(raised.value) and min(kinds) in str(raised.value)
    assert accepted >= len(NAMES)


def test_what_names_cannot_tell_is_said_until_it_is_told():
    content = tiny_layouts()["supervised"][0]
    assert "supervised, or a converted SimCLR; --init_format" in pretrained.take(Tiny(), content, Path("x")).format
    assert pretrained.take(Tiny(), content, Path("x"), "simclr").format.endswith("taken as simclr")


def test_of_two_encoders_the_trained_one_is_taken():
    for name in ("moco", "solo-learn"):
        encoder = Tiny()
        source = pretrained.take(encoder, tiny_layouts()[name][0], Path(name))
        assert torch.equal(features(encoder), features(TINY))
        assert {"encoder_k", "momentum_backbone"} & set(source.left_out)  # and the other is named


def test_names_in_a_file_do_not_steer_a_terminal():
    """A Lightning module may have any names beside the encoder, and the first lines tell them."""
    content = tiny_layouts()["solo-learn"][0]
    content["state_dict"] |= {f"\x1b[2Jforged\n{i}": torch.ones(1) for i in range(100)}
    told = str(pretrained.take(Tiny(), content, Path("x")))
    assert told.isprintable() and r"\x1b[2Jforged\n0" in told and len(told) < 500


def test_one_channel_of_unit_images(tmp_path):
    weights = SmallResNet(4, in_channels=1).state_dict()
    torch.save(put("encoder.", weights) | {"projector.0.weight": torch.ones(1)}, tmp_path / "x.pt")
    source = pretrained.load_encoder(SmallResNet(4, in_channels=1), tmp_path / "x.pt")
    assert (source.mean, source.std) == ([0.0], [1.0])


def test_lunits_pathology_encoders_are_known_by_their_files_names(tmp_path):
    for name in ("bt_rn50_ep200.torch", "swav_rn50_ep200.torch", "bt_rn50_ep100.torch"):
        torch.save(TINY.state_dict(), tmp_path / name)
        source = pretrained.load_encoder(Tiny(), tmp_path / name)
        assert (source.mean == [0.70322989, 0.53606487, 0.66096631]) == ("ep200" in name) == ("Lunit" in str(source))


def test_what_older_runs_left_to_the_data_is_read_from_about_json(tmp_path):
    torch_file.save(TINY.state_dict(), tmp_path / "encoder.pt")
    config.write_yaml(tmp_path / "config.yaml", {"mean": None, "std": [0.5] * 3})
    (tmp_path / "about.json").write_text(json.dumps({"mean": [0.1] * 3, "std": [0.2] * 3}))
    source = pretrained.load_encoder(Tiny(), tmp_path)
    assert (source.mean, source.std) == ([0.1] * 3, [0.5] * 3)


def test_the_normalisation_of_a_run_comes_with_its_encoder(tmp_path):
    torch_file.save(TINY.state_dict(), tmp_path / "encoder.pt")
    config.write_yaml(tmp_path / "config.yaml", {"mean": [0.0, 0.0, 0.0], "std": None})
    source = pretrained.load_encoder(Tiny(), tmp_path)
    assert (source.mean, source.std) == ([0.0] * 3, None)


@pytest.mark.parametrize(
    ("encoder", "kwargs"),
    [
        (
            "torchvision.models.VisionTransformer",
            dict(patch_size=8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8),
        ),
        ("torchvision.models.ShuffleNetV2", dict(stages_repeats=[1, 1, 1], stages_out_channels=[4, 8, 16, 16, 8])),
    ],
)
def test_a_run_whose_encoder_kept_its_classifier_is_judged_with_it_or_not_at_all(tmp_path, encoder, kwargs):
    """As classes of torchvision had it in an earlier version."""
    settings = dict(method="barlow_twins", encoder=encoder, encoder_kwargs=kwargs, image_size=32)
    settings |= dict(mean=[0.1] * 3, std=[0.2] * 3)
    config.write_yaml(tmp_path / "config.yaml", settings)
    whole = build_encoder(encoder, 32, kwargs=kwargs | {"num_classes": 1000})[0].eval()
    torch_file.save(whole.state_dict(), tmp_path / "encoder.pt")
    for path in (tmp_path, tmp_path / "encoder.pt"):
        with pytest.raises(UserError, match=r"kept its classifier .* --encoder_kwargs with num_classes: 1000 added"):
            restore.restore(path)
    network, source, _ = restore.restore(tmp_path, encoder, kwargs | {"num_classes": 1000}, image_size=32)
    x = torch.randn(2, 3, 32, 32)
    assert network(x).shape == (2, 1000) and torch.equal(network(x), whole(x)) and source.mean == [0.1] * 3
    torch.save(whole.state_dict(), tmp_path / "theirs.pt")  # of others, who trained it with labels
    assert restore.restore(tmp_path / "theirs.pt")[1].left_out


# Whole or refused -----------------------------------------------------------------------


def weights_of(content: dict) -> dict:
    """The mapping of a file that holds its weights."""
    return content.get("state_dict", content.get("model", content))


def own_names(content: dict) -> list[str]:
    """The names of the encoder's weights in it."""
    plain = {id(w): name for name, w in weights_of(content).items()}
    return [plain[id(w)] for w in TINY_STATE.values() if id(w) in plain]


@pytest.mark.parametrize("name", sorted(tiny_layouts()))
def test_any_missing_weight_unknown_name_or_other_shape_is_listed(name):
    _, called, _ = tiny_layouts()[name]

    def make() -> dict:
        return tiny_layouts()[name][0]

    for key in own_names(make()):
        for change in ("removed", "renamed", "reshaped", "ruined"):
            content = make()
            if not weights_of(content)[key].is_floating_point() and change == "ruined":
                continue
            weight = weights_of(content).pop(key)
            listed = key.split("module.")[-1].removeprefix("base_encoder.")
            listed = listed.removeprefix("encoder_q.").removeprefix("encoder.").removeprefix("backbone.")
            if change == "renamed":
                weights_of(content)[key + "x"] = weight
            elif change == "reshaped":
                weights_of(content)[key] = torch.ones(5, 1)
            elif change == "ruined":
                weights_of(content)[key] = torch.full_like(weight, float("nan"))
            encoder = Tiny()
            untouched = features(encoder)
            words = {"removed": "lacks", "renamed": "lacks", "reshaped": "does not fit:", "ruined": "NaN or Inf, in"}
            with pytest.raises(UserError) as raised:
                pretrained.take(encoder, content, Path("file"))
            assert words[change] in str(raised.value) and listed in str(raised.value)
            assert change != "renamed" or f"{listed}x" in str(raised.value)
            assert torch.equal(features(encoder), untouched)
    content = make()
    prefix = own_names(content)[0].removesuffix("conv1.weight")
    weights_of(content)[prefix + "layer9.weight"] = torch.ones(1)
    with pytest.raises(UserError, match=r"has unknown .*layer9\.weight"):
        pretrained.take(Tiny(), content, Path("file"))
    if prefix.endswith(("encoder.", "backbone.", "encoder_q.")):  # beside the encoder
        content = make()
        weights_of(content)["novel.weight"] = torch.ones(1)
        if "Lightning" in called:  # its modules have any heads
            assert "novel" in pretrained.take(Tiny(), content, Path("file")).left_out
        else:
            with pytest.raises(UserError, match=r"has unknown 'novel\.weight'"):
                pretrained.take(Tiny(), content, Path("file"))


def fuzzed(data) -> tuple[nn.Module, bool]:
    """An encoder after a file of which some names and tensors were changed, and whether it was taken."""
    found = tiny_layouts()
    content = found[data.draw(st.sampled_from(sorted(found)))][0]
    weights = weights_of(content)
    for _ in range(data.draw(st.integers(1, 4))):
        key = data.draw(st.sampled_from(sorted(weights))) if weights else "x"
        other = data.draw(
            st.sampled_from(
                [
                    "module." + key,
                    "backbone." + key,
                    "encoder." + key,
                    key.partition(".")[2],
                    key.replace("1", "2"),
                    key + ".x",
                    "fc.weight",
                    "queue",
                    "",
                ]
            )
        )
        action = data.draw(st.sampled_from(["drop", "rename", "copy", "reshape", "number"]))
        weight = weights.pop(key, torch.ones(1)) if action in ("drop", "rename") else weights.get(key, torch.ones(1))
        if action in ("rename", "copy"):
            weights[other] = weight
        elif action == "reshape":
            weights[key] = torch.ones(3)
        elif action == "number":
            weights[key] = 3
    encoder = lively(Tiny(), seed=9)
    try:
        pretrained.take(encoder, content, Path("file"), data.draw(st.sampled_from([None, *pretrained.Kind.__args__])))
    except UserError:
        return encoder, False
    return encoder, True


def is_whole(encoder: nn.Module, taken: bool) -> bool:
    """All of its weights from the file, or none of them. num_batches_tracked may be 0."""
    expected = TINY_STATE if taken else lively(Tiny(), seed=9).state_dict()
    return all(torch.equal(w, expected[k]) for k, w in encoder.state_dict().items() if "num_batches" not in k)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_no_change_of_names_gives_half_an_encoder(data):
    encoder, taken = fuzzed(data)
    assert is_whole(encoder, taken)


def test_a_lenient_fill_would_give_half_an_encoder(monkeypatch):
    """The control."""

    def lenient(encoder, weights, where):
        fitting = {k: w for k, w in weights.items() if k in TINY_STATE and w.shape == TINY_STATE[k].shape}
        encoder.load_state_dict(fitting, strict=False)

    monkeypatch.setattr(pretrained, "fill", lenient)
    halves = []

    @given(st.data())
    @settings(max_examples=100, deadline=None, database=None)
    def count(data):
        halves.append(not is_whole(*fuzzed(data)))

    count()
    assert any(halves)


def test_the_same_weight_under_two_names_is_refused():
    content = layouts(TINY_STATE)["lightly, numbered"][0]
    pretrained.take(Tiny(), content, Path("file"))  # the control
    content["state_dict"] |= put("backbone.", {"conv1.weight": torch.zeros(4, 3, 3, 3)})
    with pytest.raises(UserError, match=r"lacks 'bn1\.weight'"):
        pretrained.take(Tiny(), content, Path("file"))
    content = TINY_STATE | put("module.", TINY_STATE)
    with pytest.raises(UserError, match="holds weights twice"):
        pretrained.take(Tiny(), content, Path("file"))


@pytest.mark.parametrize(
    "theirs, stem, size, flags",
    [
        ("resnet18", "imagenet", 224, "--encoder resnet18"),
        ("wide_resnet50_2", "imagenet", 224, "--encoder wide_resnet50_2"),
        ("resnext50_32x4d", "small", 224, "--encoder resnext50_32x4d --stem small"),
        ("resnet50", "small", 224, "--stem small"),
        ("resnet50", "imagenet", 32, "--stem imagenet"),
    ],
)
def test_the_error_says_which_encoder_would_fit(theirs, stem, size, flags):
    weights = build_encoder(theirs, 224, stem)[0].state_dict()
    wanted, _ = build_encoder("resnet50", size)
    with pytest.raises(UserError, match=f"pass {flags}$"):
        pretrained.take(wanted, {"state_dict": put("backbone.", weights)}, Path("file"))


def test_what_holds_no_weights_names_the_formats(tmp_path):
    for content in ([1, 2], {}, {"model": 3}, {"state_dict": {"a": 1}}, {"model": {"encoder.a": "b"}, "settings": {}}):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(UserError, match=r"x\.pt: holds no weights by name; expected .*MoCo v2"):
            pretrained.load_encoder(Tiny(), tmp_path / "x.pt")


# The scripts ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simclr_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("foreign") / "simclr.tar"
    weights = lively(SmallResNet(8, 2)).state_dict()
    torch.save(put("encoder.", weights) | {"projector.0.weight": torch.ones(2)}, path)
    return path


@pytest.mark.slow
def test_training_and_judging_give_simclr_the_pixels_it_is_used_to(images, simclr_file, tmp_path):
    common = ["train.py", *tiny(data_dir=images, init=simclr_file, max_steps=1)]
    done = run(*common, init_format="simclr", output_dir=tmp_path / "run")
    assert (
        "mean 0 0 0, std 1 1 1 (as the weights were trained with)" in done.stdout
        and "Spijkervet's SimCLR" in done.stdout
    )
    saved = config.read_yaml(tmp_path / "run" / "config.yaml")
    assert (saved["mean"], saved["std"]) == ([0.0] * 3, [1.0] * 3)
    run(*common, output_dir=tmp_path / "own", mean=[0.5, 0.5, 0.5])
    own = config.read_yaml(tmp_path / "own" / "config.yaml")
    assert (own["mean"], own["std"]) == ([0.5] * 3, [1.0] * 3)
    again = run(*common, init_format="simclr", output_dir=tmp_path / "run")  # the run goes on as before
    assert "continuing at step 1" in again.stdout

    size = ["--encoder", "ssl.encoders.SmallResNet", "--encoder_kwargs", "{width: 8, stages: 2}", "--image_size", 32]
    judge = ["evaluate.py", "--data_dir", images, "--protocol", "features", "--workers", 1]
    for name, how in (
        ("foreign", ["--model_path", simclr_file, *size]),
        ("second", ["--model_path", tmp_path / "run", "--image_size", 32]),  # what the run was used to, on named data
    ):
        run(*judge, *how, output_dir=tmp_path / name)
        encoder = SmallResNet(8, 2)
        pretrained.load_encoder(encoder, how[1])
        found = torch.load(tmp_path / name / "features.pt", weights_only=True)["test"]
        pixels = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255 for path in found["names"]]
        with torch.no_grad():
            expected = encoder.eval()(torch.stack(pixels))
            other = encoder((torch.stack(pixels) - 0.45) / 0.23)  # the control
        assert torch.allclose(found["features"], expected, atol=1e-5)
        assert not torch.allclose(found["features"], other, atol=1e-1)


@pytest.fixture(scope="module")
def pixels_twice(tmp_path_factory) -> tuple[Path, Path]:
    """The same dark pictures as an .npz and as folders of PNG, in one order."""
    folder = tmp_path_factory.mktemp("twice")
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 32), ("test", 12)):
        labels = np.arange(count) // (count // 2)
        x = generator.integers(0, 60, (count, 32, 32, 3), dtype=np.uint8) + 20 * labels[:, None, None, None].astype(
            "u1"
        )
        arrays |= {f"{split}_images": x, f"{split}_labels": labels}
        for number, (picture, label) in enumerate(zip(x, labels)):
            (folder / "png" / split / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / "png" / split / str(label) / f"{number:02}.png")
    np.savez(folder / "a.npz", **arrays)
    return folder / "a.npz", folder / "png"


@pytest.mark.slow
def test_what_was_measured_in_training_goes_with_the_weights(pixels_twice, tmp_path):
    """Pixels in another file format are judged, fine-tuned and trained on as those of training were."""
    npz, png = pixels_twice
    train_it = ["train.py", *tiny(data_dir=npz, output_dir=tmp_path / "run", max_steps=1)]
    assert "(measured)" in run(*train_it).stdout
    saved = config.read_yaml(tmp_path / "run" / "config.yaml")
    pixels = np.load(npz)["train_images"] / 255
    np.testing.assert_allclose(saved["mean"], pixels.mean((0, 1, 2)), rtol=1e-4)
    assert "continuing at step 1" in run(*train_it).stdout  # measured again, and still this run's settings
    found, judge = {}, {"model_path": tmp_path / "run", "protocol": "features", "workers": 1}
    for name, data in (("npz", npz), ("png", png)):
        told = run("evaluate.py", **judge, data_dir=data, output_dir=tmp_path / name)
        assert "(as the weights were trained with)" in told.stdout
        found[name] = torch.load(tmp_path / name / "features.pt", weights_only=True)["test"]["features"]
    torch.testing.assert_close(found["png"], found["npz"])
    own = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # the control: ImageNet's
    run("evaluate.py", **judge, **own, data_dir=png, output_dir=tmp_path / "own")
    other = torch.load(tmp_path / "own" / "features.pt", weights_only=True)["test"]["features"]
    assert not torch.allclose(other, found["npz"], atol=0.01)
    more = {"init": tmp_path / "run", "data_dir": png}
    run("finetune.py", **more, epochs=1, workers=1, amp="off", output_dir=tmp_path / "tuned")
    run("train.py", *tiny(max_steps=1), **more, output_dir=tmp_path / "again")
    best = torch_file.load(tmp_path / "tuned" / "best.pt")["settings"]
    for settings_of in (best, config.read_yaml(tmp_path / "again" / "config.yaml")):
        assert (settings_of["mean"], settings_of["std"]) == (saved["mean"], saved["std"])


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["train.py", *tiny(init_format="moco")], "name it with --init"),
        (["evaluate.py", "--init_format", "moco"], "name it with --model_path"),
        (["train.py", *tiny(init="FILE", init_format="moco")], "asked for as moco (MoCo v2), but by its"),
        (["train.py", "--init", "FILE", "--init_format", "mocov2"], "'mocov2' is none of ours, barlow_twins"),
    ],
)
def test_wrong_words_about_a_file_are_one_clear_line(simclr_file, tmp_path, arguments, expected):
    arguments = [simclr_file if word == "FILE" else word for word in arguments]
    done = run(*arguments, dataset="shapes", output_dir=tmp_path, check=False)
    assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1

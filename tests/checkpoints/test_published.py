"""Weights by name: one file at one address, downloaded once, checked, and never mistaken for others."""

import dataclasses
import hashlib
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from layouts import RESNET18, features, layouts, lively
from running import TINY, options, run, weights
from torch import nn

import evaluate
import finetune
import train
from ssl.checkpoints import inherit, learnt_from, pretrained, published, restore, torch_file
from ssl.encoders import build_encoder
from ssl.errors import UserError
from ssl.settings import config

V1 = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
CLASSIFIERS = torchvision.models.list_models(torchvision.models)
LAYOUTS = {  # of each file, as its authors write it
    "barlow_twins": "encoder.pt",
    "vicreg": "encoder.pt",
    "swav": "swav published",
    "moco_v2": "moco",
    "moco_v3": "moco v3",
    "dino": "encoder.pt",
}


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """torch.hub's folder of downloads, empty; there is no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def imagenet(hub) -> Path:
    """torchvision's file of resnet18, with other numbers, as if it had been downloaded."""
    path = hub / Path(V1.url).name
    torch.save(layouts(RESNET18.state_dict())["supervised"][0], path)
    return path


def offline(*_, **__):
    raise AssertionError("asked for a download")


# The file ---------------------------------------------------------------------------------


def test_a_file_is_downloaded_once_and_told_before(hub, tmp_path, capsys, monkeypatch):
    far = tmp_path / "far.pth"
    torch.save(RESNET18.state_dict(), far)
    known = dataclasses.replace(published.OTHERS["dino"], url=far.as_uri())
    path = published.fetch(known)
    assert path == hub / "dino_resnet50_pretrain.pth" and path.read_bytes() == far.read_bytes()
    assert capsys.readouterr().out == f"download    {far.as_uri()} (94 MB) to {path}\n"
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    assert published.fetch(known) == path and capsys.readouterr().out == ""


@pytest.mark.parametrize("right", [True, False])
def test_a_file_that_has_a_hash_in_its_name_must_have_it(hub, tmp_path, right):
    far = tmp_path / "far.pth"
    far.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights" if right else b"others").hexdigest()[:8]
    known = dataclasses.replace(published.of_torchvision("resnet18"), url=far.as_uri(), file=f"far-{digest}.pth")
    if right:
        assert published.fetch(known).read_bytes() == b"weights"
        return
    with pytest.raises(UserError, match=r"cannot be downloaded \(invalid hash value"):
        published.fetch(known)
    assert not list(hub.iterdir())


def test_without_a_network_the_error_says_what_to_fetch_and_where_to_put_it(hub):
    for name in published.NAMES:
        known = published.find(name, "resnet50")
        with pytest.raises(UserError) as error:
            published.fetch(known)
        words = f". Fetch {known.url} on another machine, and put it here as {hub / known.file}"
        assert f"{name!r} cannot be downloaded (" in str(error.value) and str(error.value).endswith(words)


def test_a_file_that_was_cut_is_told_with_its_address(imagenet):
    imagenet.write_bytes(imagenet.read_bytes()[:1000])
    with pytest.raises(UserError, match=f"{imagenet.name}: damaged.* It should be {V1.url}; remove it"):
        pretrained.load_encoder(build_encoder("resnet18", 64)[0], "imagenet", called="resnet18")


# Whose weights ----------------------------------------------------------------------------


def test_no_two_names_share_a_file_or_an_address():
    known = [*published.OTHERS.values(), *(published.of_torchvision(name) for name in ("resnet18", "resnet50"))]
    assert len({one.file for one in known}) == len({one.url for one in known}) == len(known)
    assert "resnet50.pth" not in {one.file for one in known}  # torch.hub keeps two authors' files under it


def test_imagenet_is_what_torchvision_calls_v1_for_each_of_its_classifiers():
    without = []
    for name in CLASSIFIERS:
        try:
            known = published.find("imagenet", name)
        except UserError:
            without.append(name)
            continue
        entry = torchvision.models.get_model_weights(name).IMAGENET1K_V1
        assert known.url == entry.url and torch.hub.HASH_REGEX.search(known.file) and known.size.endswith(" MB")
        if name not in ("googlenet", "inception_v3"):
            assert list(known.mean) == entry.transforms().mean and list(known.std) == entry.transforms().std
    assert without == ["regnet_y_128gf", "vit_h_14"]  # these have SWAG's alone
    for other in ("ssl.encoders.SmallResNet", "wide_resnet_28_10", "timm/resnet50", "fasterrcnn_resnet50_fpn"):
        with pytest.raises(UserError, match=f"no weights IMAGENET1K_V1 of '{other}'; pass an --encoder"):
            published.find("imagenet", other)
    assert published.find("imagenet", "torchvision.models.resnet18").url == V1.url


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_models_that_normalise_anew_get_pixels_as_their_torchvision_model_makes_them(name):
    known = published.find("imagenet", name)
    model = torchvision.models.get_model(name, weights=None, transform_input=True, init_weights=False)
    pixels = torch.rand(1, 3, 4, 4)
    preset = torchvision.models.get_model_weights(name).IMAGENET1K_V1.transforms()
    normalise = torchvision.transforms.functional.normalize
    theirs = model._transform_input(normalise(pixels, preset.mean, preset.std))
    torch.testing.assert_close(normalise(pixels, known.mean, known.std), theirs)


def test_a_file_or_folder_of_the_same_name_wins(tmp_path, monkeypatch, imagenet):
    monkeypatch.chdir(tmp_path)
    assert published.is_name("imagenet") and published.is_name("dino")
    (tmp_path / "dino").mkdir()
    torch.save(lively(build_encoder("resnet18", 64, "imagenet")[0], 5).state_dict(), tmp_path / "imagenet")
    assert not published.is_name("imagenet") and not published.is_name("dino")
    encoder, _ = build_encoder("resnet18", 64, "imagenet")
    source = pretrained.load_encoder(encoder, "imagenet", called="resnet18")
    assert source.path == Path("imagenet") and source.mean is None
    with pytest.raises(
        UserError, match=r"dino: holds neither encoder.* It hides the published weights 'dino': to use these, rename it"
    ):
        pretrained.load_encoder(encoder, "dino")
    assert not published.is_name(None) and not published.is_name("runs/mine")


# Loaded -----------------------------------------------------------------------------------


def test_imagenet_fills_the_encoder_and_says_what_it_is(imagenet):
    encoder, _ = build_encoder("resnet18", 32, "imagenet")
    source = pretrained.load_encoder(encoder, "imagenet", called="resnet18")
    assert torch.equal(features(encoder), features(RESNET18))
    assert (source.path, source.left_out) == (V1.url, ("fc",))
    assert (source.mean, source.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    for words in ("imagenet: resnet18, torchvision's IMAGENET1K_V1", "with labels; licence: BSD-3-Clause code"):
        assert words in str(source)
    again, source, about = restore.restore("imagenet", encoder="resnet18")  # for torch.hub and export
    assert torch.equal(features(again), features(RESNET18)) and about["stem"] == "imagenet"


@pytest.mark.parametrize("name", published.OTHERS)
def test_the_authors_files_are_read_as_they_are_written(hub, monkeypatch, name):
    known = dataclasses.replace(published.OTHERS[name], encoder="resnet18")  # a smaller one
    monkeypatch.setitem(published.OTHERS, name, known)
    torch.save(layouts(RESNET18.state_dict())[LAYOUTS[name]][0], hub / known.file)
    assert pretrained.run_settings(name) == {"encoder": "resnet18", "stem": "imagenet"}
    encoder, _ = build_encoder("resnet18", 32, "imagenet")
    source = pretrained.load_encoder(encoder, name, called="resnet18")
    assert torch.equal(features(encoder), features(RESNET18)) and source.mean == [0.485, 0.456, 0.406]
    assert f"{name}: resnet18, " in str(source) and "without labels" in str(source) and known.licence in str(source)


@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_other_classifiers_of_torchvision_lose_what_the_encoder_lacks(hub, name):
    model = lively(torchvision.models.get_model(name))
    torch.save(old_names(model.state_dict()), hub / published.find("imagenet", name).file)
    encoder, _ = build_encoder(name, 64, pretrained.run_settings("imagenet", called=name)["stem"])
    source = pretrained.load_encoder(encoder, "imagenet", called=name)
    assert source.left_out in (("classifier",), ("fc",)) and source.path.startswith("https://download.pytorch.org/")
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def old_names(state: dict) -> dict:
    """As torchvision's files of DenseNets still have them."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): value for name, value in state.items()}


def test_a_classifier_keeps_what_the_encoder_has_of_it_and_nothing_is_lost_unseen(tmp_path):
    model, (encoder, _) = lively(torchvision.models.convnext_tiny()), build_encoder("convnext_tiny", 64)
    state = model.state_dict()
    torch.save(state, tmp_path / "file.pth")
    source = pretrained.load_encoder(encoder, tmp_path / "file.pth", "baseline")
    assert source.format == "torchvision's classifier" and "classifier.0.weight" in encoder.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())
    del state["classifier.0.weight"]
    torch.save(state | {"more.weight": torch.ones(1)}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"lacks 'classifier\.0\.weight'; has unknown 'more\.weight'"):
        pretrained.load_encoder(encoder, tmp_path / "file.pth")


def test_a_vit_of_another_image_size_is_refused_with_its_own():
    vit = dict(patch_size=8, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8)
    state = torchvision.models.VisionTransformer(image_size=32, **vit).state_dict()
    encoder = torchvision.models.VisionTransformer(image_size=32, **vit)
    encoder.heads = nn.Identity()
    assert pretrained.take(encoder, state, "file").left_out == ("heads",)
    encoder = torchvision.models.VisionTransformer(image_size=16, **vit)
    encoder.heads = nn.Identity()
    with pytest.raises(UserError, match=r"It is for images of 32 pixels; pass --image_size 32$"):
        pretrained.take(encoder, state, "file")


def test_what_cannot_fit_is_refused_before_a_download(hub, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    encoder, _ = build_encoder("resnet18", 64, "imagenet")
    with pytest.raises(UserError, match="encoder: barlow_twins is a resnet50, not a resnet18; leave --encoder out"):
        pretrained.load_encoder(encoder, "barlow_twins", called="resnet18")
    with pytest.raises(UserError, match="imagenet: these published weights are not of moco"):
        pretrained.load_encoder(encoder, "imagenet", "moco", "resnet18")


def test_channels_and_sizes_that_cannot_fit_are_refused_before_a_download(hub, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    grey, _ = build_encoder("resnet18", 64, "imagenet", None, 1)
    with pytest.raises(UserError, match="imagenet: these weights are for images of 3 channels, and yours have 1"):
        pretrained.load_encoder(grey, "imagenet", called="resnet18")
    vit, _ = build_encoder("vit_b_16", 96)
    with pytest.raises(UserError, match="for images of 224 pixels, not 96; pass --image_size 224"):
        pretrained.load_encoder(vit, "imagenet", called="vit_b_16")


def test_a_folder_of_downloads_that_cannot_be_used_is_told_on_all_ranks(hub, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied", str(self))

    gathered = []
    monkeypatch.setattr(published, "gather_objects", lambda value: gathered.append(value) or [None, value])
    monkeypatch.setattr(Path, "is_file", refused)
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*Permission denied.*; TORCH_HOME can name another"):
        published.fetch(published.OTHERS["dino"])
    assert len(gathered) == 1  # the other ranks do not wait for this one


def test_the_small_stem_does_not_fit_and_the_error_says_which(imagenet):
    with pytest.raises(UserError, match=r"not weights of this encoder.*pass --stem imagenet\. It should be https"):
        pretrained.load_encoder(build_encoder("resnet18", 32)[0], "imagenet", called="resnet18")


def test_a_record_says_what_the_weights_have_seen(capsys, tmp_path):
    assert learnt_from.read("imagenet") == learnt_from.Record(unknown=["imagenet"])
    for name, how in (("imagenet", "with"), ("barlow_twins", "without")):
        learnt_from._tell_unknown(name)
        words = f"learnt      {name}: learnt from ImageNet's training images, {how} labels"
        assert capsys.readouterr().out.startswith(words)


@pytest.mark.parametrize(
    ("name", "continues"),
    [
        ("checkpoint.pt", True),
        ("checkpoint.12.pt", True),
        ("checkpoint_old.pt", False),
        ("checkpoint.old.pt", False),
        ("checkpoint.pt.damaged", False),
    ],
)
def test_only_a_checkpoint_that_continues_replaces_published_weights(hub, tmp_path, name, continues):
    config.write_yaml(tmp_path / "config.yaml", {"init": "dino"})
    (tmp_path / name).touch()
    assert bool(torch_file.kept(tmp_path)) == continues
    settings = SimpleNamespace(init="dino", encoder="resnet50", resume="auto")
    assert (inherit.not_needed(settings, tmp_path) is not None) == continues


@pytest.mark.parametrize("script", [train, finetune])
def test_without_its_checkpoint_no_script_trains_random_weights(images, imagenet, tmp_path, monkeypatch, script):
    how = {"data_dir": images, "encoder": "resnet18", "init": "imagenet", "stem": "imagenet", "image_size": 32}
    how |= {"workers": 0, "amp": "off", "batch_size": 12, "epochs": 2, "output_dir": tmp_path / "run"}
    how |= {"method": "barlow_twins", "evaluate_after": False} if script is train else {}
    config.write_yaml(tmp_path / "config.yaml", {"init": "imagenet"})
    monkeypatch.setattr(inherit, "continued", lambda *_: tmp_path)  # as if a checkpoint were here
    monkeypatch.setattr("sys.argv", [script.__name__, *options(**how)])
    with pytest.raises(UserError, match=r"was not read.*but none was found"):
        script.main()
    assert not list((tmp_path / "run").glob("*.pt"))


# The scripts ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_starts_from_imagenet_and_continues_without_the_file(images, imagenet, tmp_path):
    common = TINY | dict(data_dir=images, init="imagenet", encoder="resnet18", encoder_kwargs={}, evaluate_after=False)
    done = run("train.py", **common, max_steps=1, output_dir=tmp_path / "run")
    assert "imagenet: resnet18, torchvision's IMAGENET1K_V1" in done.stdout
    assert "mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (as the weights were trained with)" in done.stdout
    saved = config.read_yaml(tmp_path / "run" / "config.yaml")
    assert (saved["init"], saved["encoder"], saved["stem"]) == ("imagenet", "resnet18", "imagenet")  # of 16 pixels, too
    assert torch_file.load(tmp_path / "run" / learnt_from.FILE)["unknown"] == ["imagenet"]
    run("train.py", **common, max_steps=2, output_dir=tmp_path / "straight")

    away = imagenet.rename(tmp_path / imagenet.name)
    done = run("train.py", **common, max_steps=2, output_dir=tmp_path / "run")
    assert "continuing at step 1 of 2" in done.stdout and "changed" not in done.stdout
    assert torch.equal(weights(tmp_path / "run"), weights(tmp_path / "straight"))
    for path in torch_file.kept(tmp_path / "run"):  # to begin anew
        path.rename(path.with_name(f"{path.stem}_old.pt"))
    for folder in ("new", "run"):  # the controls: these begin with the weights
        done = run("train.py", **common, max_steps=2, output_dir=tmp_path / folder, check=False)
        assert done.returncode == 2 and "cannot be downloaded" in done.stderr and done.stderr.count("\n") == 1
    shutil.move(away, imagenet)


@pytest.mark.slow
def test_a_fine_tuning_continues_without_the_file_that_it_began_with(images, imagenet, tmp_path):
    how = {"data_dir": images, "encoder": "resnet18", "init": "imagenet", "stem": "imagenet", "image_size": 32}
    how |= {"batch_size": 12, "lr": 0.05, "workers": 0, "amp": "off", "output_dir": tmp_path / "run"}
    run("finetune.py", **how, epochs=1)
    run("finetune.py", **how | {"output_dir": tmp_path / "straight"}, epochs=2)
    before = torch_file.load(tmp_path / "run" / "checkpoint.pt")["identity"]
    away = imagenet.rename(tmp_path / imagenet.name)
    run("finetune.py", **how, epochs=1)  # nothing is left to do
    done = run("finetune.py", **how, epochs=2, resume_force=True)
    assert f"init        {V1.url} (imagenet" in done.stdout
    assert torch.equal(weights(tmp_path / "run"), weights(tmp_path / "straight"))
    assert torch_file.load(tmp_path / "run" / "checkpoint.pt")["identity"] == before
    renamed = shutil.copytree(tmp_path / "run", tmp_path / "renamed")
    for path in torch_file.kept(renamed):  # to begin anew
        path.rename(path.with_name(f"{path.stem}_old.pt"))
    # The controls: these begin with the weights.
    for more in ({"output_dir": tmp_path / "new"}, {"runs": 2}, {"output_dir": renamed}):
        done = run("finetune.py", **how | more, epochs=2, resume_force=True, check=False)
        assert done.returncode == 2 and "cannot be downloaded" in done.stderr and done.stderr.count("\n") == 1
    # A run that began with other weights is not taken for this one.
    torch.save(RESNET18.state_dict(), tmp_path / "mine.pth")
    other = how | {"init": tmp_path / "mine.pth", "output_dir": tmp_path / "mine"}
    run("finetune.py", **other, epochs=1)
    done = run("finetune.py", **other | {"init": "imagenet"}, epochs=1, check=False)
    assert done.returncode == 2 and "cannot be downloaded" in done.stderr
    shutil.move(away, imagenet)


@pytest.mark.slow
def test_judging_and_fine_tuning_take_the_same_names(images, imagenet, tmp_path):
    common = {"data_dir": images, "encoder": "resnet18", "image_size": 32, "workers": 0}
    done = run("evaluate.py", **common, model_path="imagenet", protocol="knn", output_dir=tmp_path / "judged")
    assert "learnt      imagenet: learnt from ImageNet's training images, with labels" in done.stdout
    for words in ({"init": "imagenet"}, {"method": "baseline"}):
        folder = tmp_path / next(iter(words))
        done = run("finetune.py", **common, **words, epochs=1, amp="off", freeze=True, output_dir=folder)
        assert "learnt      imagenet: learnt from ImageNet's training images, with labels" in done.stdout
        assert config.read_yaml(folder / "config.yaml")["init"] == "imagenet"
        assert torch.equal(torch.load(folder / "encoder.pt")["conv1.weight"], RESNET18.conv1.weight)


def test_the_folder_of_results_has_the_names_of_weights_and_encoder(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "ROOT", tmp_path)
    settings = evaluate.Settings(model_path="imagenet", encoder="resnet18")
    assert evaluate.results_folder(settings, {}, ["knn"]) == tmp_path / "runs" / "imagenet_resnet18"
    settings.dataset = "CIFAR10"
    assert evaluate.results_folder(settings, {}, ["features"]) == tmp_path / "runs/imagenet_resnet18/features_CIFAR10"

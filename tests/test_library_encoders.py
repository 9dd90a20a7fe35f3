"""The models of torchvision and timm as encoders: without their classifier, for any size and number of channels."""

import importlib.util
import itertools
import re
import sys

import pytest
import torch
import torchvision
from torch import nn

from ssl.checkpoints import pretrained
from ssl.encoders import build_encoder
from ssl.encoders.library import torchvision_names
from ssl.errors import UserError

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")

# name: (pixels, width) of a cheap member of every family
FAMILIES = {
    "alexnet": (64, 4096),
    "convnext_tiny": (64, 768),
    "densenet121": (64, 1024),
    "efficientnet_b0": (64, 1280),
    "mobilenet_v2": (64, 1280),
    "mobilenet_v3_small": (64, 1024),
    "regnet_y_400mf": (64, 440),
    "resnet18": (96, 512),
    "shufflenet_v2_x0_5": (64, 1024),
    "swin_t": (64, 768),
    "swin_v2_t": (64, 768),
    "vit_b_32": (64, 768),
}
LARGE = ["efficientnet_v2_s", "maxvit_t", "vgg11_bn", "vit_b_16", "vit_l_16"]  # built, not computed


def images(size: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(3))


def last_linear(network: nn.Module) -> nn.Linear:
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


@torch.no_grad()
def what_its_classifier_reads(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    found = []
    last_linear(network).register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    network.eval()(x)
    return found[0]


def take_weights(encoder: nn.Module, whole: nn.Module) -> None:
    """Those of `whole`, which has the same names, and besides those of its classifiers of 1000 classes alone."""
    state, own = whole.state_dict(), encoder.state_dict()
    classifiers = [m for m in whole.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    besides = sum(state[name].numel() for name in state.keys() - own.keys())
    assert besides == sum(p.numel() for m in classifiers for p in m.parameters())
    encoder.load_state_dict({name: state[name] for name in own})


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_classifier_of_torchvision_gives_what_its_last_layer_read(name):
    size, width = FAMILIES[name]
    its_size = {"image_size": size} if name.startswith("vit") else {}
    torch.manual_seed(0)
    whole = torchvision.models.get_model(name, **its_size)
    encoder, found = build_encoder(name, size, "auto")
    take_weights(encoder, whole)
    h = encoder.eval()(images(size))
    assert found == width and h.shape == (2, width) and h.std() > 0
    assert torch.equal(h, what_its_classifier_reads(whole, images(size)))
    assert not any(isinstance(m, nn.Linear) and m.out_features == 1000 for m in encoder.modules())


@pytest.mark.parametrize("name", LARGE)
def test_large_ones_are_built_without_their_classifier(name):
    with torch.device("meta"):
        whole = torchvision.models.get_model(name)
        encoder, width = build_encoder(name, 224)
    assert width == last_linear(whole).in_features
    left = whole.state_dict().keys() - encoder.state_dict().keys()
    assert not encoder.state_dict().keys() - whole.state_dict().keys()
    assert {name.rpartition(".")[2] for name in left} <= {"weight", "bias"} and 1 <= len(left) <= 2


def test_every_family_of_torchvision_is_an_encoder_or_refused():
    refused = {}
    for family, names in itertools.groupby(torchvision_names(), re.compile(r"[a-z]+(_v\d)?").match):
        name = min(names, key=len)
        if family[0] != "regnet":  # it reads its weights while it is built: not on the meta device
            try:
                with torch.device("meta"):
                    build_encoder(name, 224)
            except UserError as error:
                refused[family[0]] = str(error)
    assert refused.keys() == {"googlenet", "inception_v3", "squeezenet", "mnasnet"}
    assert "aux_logits: false" in refused["googlenet"] and "not in a linear classifier" in refused["squeezenet"]
    with torch.device("meta"):
        assert build_encoder("googlenet", 64, kwargs={"aux_logits": False, "init_weights": False})[1] == 1024


def test_dropout_before_the_classifier_is_taken_off_too():
    encoder, _ = build_encoder("mobilenet_v3_small", 32)
    assert not any(isinstance(module, nn.Dropout) for module in encoder.modules())
    encoder, _ = build_encoder("alexnet", 64)
    assert sum(isinstance(module, nn.Dropout) for module in encoder.modules()) == 2  # between its hidden layers


@pytest.mark.parametrize("name", ["convnext_tiny", "mobilenet_v3_small", "vit_b_32"])
@pytest.mark.parametrize("channels", [1, 5])
def test_the_first_convolution_reads_any_channels(name, channels):
    torch.manual_seed(0)
    plain, _ = build_encoder(name, 64)
    encoder, width = build_encoder(name, 64, channels=channels)
    assert encoder.eval()(images(64, channels)).shape == (2, width)
    first, of_rgb = (next(m for m in net.modules() if isinstance(m, nn.Conv2d)) for net in (encoder, plain))
    sizes = [convolution(images(64, convolution.in_channels)).std().item() for convolution in (first, of_rgb)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    assert encoder.state_dict().keys() == plain.state_dict().keys()


def test_a_vit_is_built_for_the_image_size():
    for size in (32, 96):
        encoder, _ = build_encoder("vit_b_32", size)
        assert encoder.encoder.pos_embedding.shape[1] == (size // 32) ** 2 + 1
    with pytest.raises(UserError, match=r"^image_size: vit_b_32 cuts .* 32 pixels, and 50 .*--image_size 32 or 64$"):
        build_encoder("vit_b_32", 50)


def test_a_dotted_path_of_a_model_is_its_name():
    with torch.device("meta"):
        for path in ("torchvision.models.vit_b_32", "vit_b_32"):
            encoder, width = build_encoder(path, 64)
            assert width == 768 and isinstance(encoder.heads.head, nn.Identity)
        assert build_encoder("torchvision.models.resnet18", 32)[0].conv1.stride == (1, 1)


def test_a_class_of_torchvision_loses_its_classifier_unless_it_is_asked_for():
    path = "torchvision.models.VisionTransformer"
    kwargs = dict(patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16)
    assert build_encoder(path, 32, kwargs=kwargs)[1] == 16
    assert build_encoder(path, 32, kwargs=kwargs | {"num_classes": 10})[1] == 10
    assert build_encoder(path, 32, kwargs=kwargs, channels=2)[0].conv_proj.in_channels == 2
    assert build_encoder(path, 32, kwargs=kwargs | {"mlp_dim": 1000})[1] == 16  # a hidden layer is no classifier


@pytest.mark.parametrize(
    "name, kwargs, expected",
    [
        ("vit_b16", {}, "did you mean 'vit_b_16'"),
        ("convnext", {}, "did you mean 'convnext_"),
        ("vit_b_32", {"weights": "DEFAULT"}, "does not take encoder_kwargs"),
        ("vit_b_32", {"depth": 3}, "does not take encoder_kwargs"),
        ("torchvision.models.get_model", {"name": "resnet18"}, "not an nn.Module class"),
    ],
)
def test_what_is_no_model_is_named(name, kwargs, expected):
    with pytest.raises(UserError, match=expected):
        build_encoder(name, 64, kwargs=kwargs)


@pytest.mark.parametrize("name", ["vit_b_32", "torchvision.models.convnext_tiny"])
def test_a_small_stem_is_for_resnets(name):
    with pytest.raises(UserError, match="stem: small is for ResNets"):
        build_encoder(name, 64, "small")


# timm -------------------------------------------------------------------------------------


@needs_timm
@pytest.mark.parametrize(
    "name, size, kwargs",
    [
        ("vit_tiny_patch16_224", 64, {"depth": 2}),
        ("deit_tiny_distilled_patch16_224", 64, {"depth": 2}),
        ("convnext_atto", 64, {"depths": [1, 1, 1, 1]}),
        ("mobilenetv3_small_050", 64, {}),
        ("resnet10t", 64, {}),
    ],
)
def test_a_model_of_timm_gives_what_its_classifier_read(name, size, kwargs):
    import timm

    sized = {"img_size": size} if "patch16" in name else {}
    torch.manual_seed(0)
    whole = timm.create_model(name, **sized, **kwargs)
    encoder, width = build_encoder(f"timm/{name}", size, kwargs=kwargs)
    take_weights(encoder, whole)
    with torch.no_grad():
        features = whole.eval().forward_head(whole.forward_features(images(size)), pre_logits=True)
        features = sum(features) / 2 if isinstance(features, tuple) else features
        assert torch.equal(encoder.eval()(images(size)), features)
    assert features.shape == (2, width)


@needs_timm
def test_a_model_of_timm_has_the_size_and_the_channels_of_the_images():
    encoder, width = build_encoder("timm/vit_tiny_patch16_224", 48, kwargs={"depth": 1}, channels=2)
    assert encoder.pos_embed.shape[1] == 10 and encoder.eval()(images(48, 2)).shape == (2, width)
    with pytest.raises(UserError, match=r"patches of 16 pixels, and 50 .* --image_size 48 or 64$"):
        build_encoder("timm/vit_tiny_patch16_224", 50, kwargs={"depth": 1})
    for path in ("timm.models.vit_tiny_patch16_224", "timm/vit_tiny_patch16_224.augreg_in21k"):
        assert build_encoder(path, 48, kwargs={"depth": 1})[1] == width
    of_class = dict(patch_size=8, embed_dim=24, depth=1, num_heads=2)
    assert build_encoder("timm.models.VisionTransformer", 32, kwargs=of_class)[1] == 24


@needs_timm
def test_weights_of_a_vit_of_another_size_are_refused_with_their_size():
    theirs, ours = (build_encoder("timm/vit_tiny_patch16_224", size, kwargs={"depth": 1})[0] for size in (64, 96))
    with pytest.raises(UserError, match=r"pos_embed is .* It is for images of 64 pixels; pass --image_size 64$"):
        pretrained.take(ours, theirs.state_dict(), "file")
    assert pretrained.take(theirs, theirs.state_dict(), "file").format == "only an encoder"


@needs_timm
@pytest.mark.parametrize("name", ["timm/rexnet_100", "timm/ghostnet_100", "timm.models.RexNet"])
def test_a_model_of_timm_has_no_dropout_before_its_classifier_unless_it_is_asked_for(name):
    def rates(**kwargs):
        with torch.device("meta"):
            encoder, _ = build_encoder(name, 64, kwargs=kwargs)
        modules = list(encoder.modules())
        return {m.p for m in modules if isinstance(m, nn.Dropout)} | {getattr(m, "drop_rate", 0.0) for m in modules}

    assert rates() == {0.0} and 0.3 in rates(drop_rate=0.3)


@needs_timm
@pytest.mark.parametrize(
    "name, kwargs, expected",
    [
        ("vit_tiny_patch16_224", {}, "did you mean 'timm/vit_tiny_patch16_224'"),
        ("timm/vit_tiny_patch16", {}, "did you mean 'vit_"),
        ("timm/vit_tiny_patch16_224.nothing", {}, "has no model .*Invalid pretrained tag"),
        ("timm/local-dir:nowhere", {}, "has no model"),
        ("timm/convnext_atto", {"pretrained": True}, "does not take encoder_kwargs"),
        ("timm/convnext_atto", {"checkpoint_path": "x.pth"}, "does not take encoder_kwargs"),
        ("timm/convnext_atto", {"features_only": True}, r"must give representations|does not take"),
    ],
)
def test_what_is_no_model_of_timm_is_named(name, kwargs, expected):
    with pytest.raises(UserError, match=expected):
        build_encoder(name, 64, kwargs=kwargs)


def test_without_timm_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install timm$"):
        build_encoder("timm/convnext_atto", 64)
    with pytest.raises(UserError, match="is no image classifier of torchvision"):
        build_encoder("convnext_atto", 64)

"""Checkpoints in the layouts that other projects write."""

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock


class Tiny(nn.Module):
    """Under the names of a torchvision ResNet, in a hundredth of the numbers."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(BasicBlock(4, 4))

    def forward(self, x):
        return self.layer1(self.bn1(self.conv1(x))).mean((2, 3))


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """With weights and statistics none of which is like another's, or like those of a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            scale = 0.1 if value.ndim > 1 else 0.3
            value.copy_(scale * torch.randn(value.shape, generator=generator) + ("var" in name or value.ndim == 1))
            if "var" in name:
                value.abs_().add_(0.5)
        else:
            value.fill_(7)
    return network.eval()


def features(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))


def put(prefix: str, weights: dict) -> dict:
    return {prefix + name: weight for name, weight in weights.items()}


def layouts(trunk: dict) -> dict:
    """Name -> (content of a file, how it is called, which kinds accept it); `trunk` is under torchvision's names."""
    one, bad = torch.ones(2), {name: torch.full_like(w, 3) for name, w in trunk.items()}
    mlp = {"0.weight": one, "0.bias": one, "2.weight": one, "2.bias": one}
    batch_norm = {"running_mean": one, "running_var": one, "num_batches_tracked": one}
    fc = {"fc.weight": one, "fc.bias": one}
    optimizer = {"state": {}, "param_groups": []}
    lightning = {"epoch": 1, "global_step": 2, "pytorch-lightning_version": "2", "optimizer_states": [optimizer]}
    sequential = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    numbered = {sequential[name.split(".")[0]] + name[name.index(".") :]: w for name, w in trunk.items()}
    untracked = {name: w for name, w in trunk.items() if "num_batches_tracked" not in name}
    moco = put("module.encoder_q.", trunk | put("fc.", mlp)) | put("module.encoder_k.", bad | put("fc.", mlp))
    moco |= {"module.queue": one, "module.queue_ptr": one}
    moco_v3 = {f"module.{side}_encoder.": w | put("fc.", mlp) for side, w in (("base", trunk), ("momentum", bad))}
    moco_v3 = {prefix + name: w for prefix, part in moco_v3.items() for name, w in part.items()}
    moco_v3 |= put("module.predictor.", mlp)
    swav = put("module.", trunk | put("projection_head.", mlp) | {"prototypes.weight": one})
    pycontrast = put("module.", put("encoder.", trunk) | put("head.", mlp))
    byol_names = "torchvision names with a classifier and no num_batches_tracked"
    any_head = "torchvision names with a classifier"
    alone = ("only an encoder", {"ours", "barlow_twins", "vicreg"})
    lightning_names = ("Lightning (solo-learn, lightly and others)", {"lightning"})
    return {
        "ours": (
            {
                "model": put("encoder.", trunk) | put("projector.", mlp),
                "optimizer": optimizer,
                "settings": {},
                "step": 3,
            },
            "a checkpoint of ours",
            {"ours"},
        ),
        "ours, fine-tuned": (
            {
                "model": put("encoder.", trunk) | put("head.", {"weight": one, "bias": one}),
                "classes": ["a", "b"],
                "settings": {},
            },
            "a checkpoint of ours",
            {"ours"},
        ),
        "encoder.pt": (dict(trunk), *alone),
        "barlow checkpoint": (
            {
                "epoch": 1,
                "optimizer": optimizer,
                "model": put("module.", put("backbone.", trunk) | put("projector.", mlp) | put("bn.", batch_norm)),
            },
            "Barlow Twins' checkpoint.pth",
            {"barlow_twins"},
        ),
        "vicreg checkpoint": (
            {
                "epoch": 1,
                "optimizer": optimizer,
                "model": put("module.", put("backbone.", trunk) | put("projector.", mlp)),
            },
            "VICReg's model.pth",
            {"vicreg"},
        ),
        "moco": ({"epoch": 1, "arch": "resnet50", "state_dict": moco, "optimizer": optimizer}, "MoCo v2", {"moco"}),
        "moco v3": ({"epoch": 1, "arch": "resnet50", "state_dict": moco_v3}, "MoCo v3", {"moco_v3"}),
        "swav published": (swav, "SwAV", {"swav"}),
        "swav checkpoint": ({"epoch": 1, "state_dict": swav, "optimizer": optimizer, "amp": {}}, "SwAV", {"swav"}),
        "infomin": (
            {
                "model": pycontrast | put("module.head_jig.", mlp),
                "contrast": {"memory_1": one},
                "optimizer": optimizer,
                "epoch": 1,
                "model_ema": {},
            },
            "InfoMin",
            {"infomin"},
        ),
        "supcontrast": (
            {"model": put("encoder.", trunk) | put("head.", mlp), "optimizer": optimizer, "epoch": 1},
            "SupContrast",
            {"supcontrast", "infomin"},
        ),
        "supcontrast, parallel": (
            {"model": put("encoder.module.", trunk) | put("head.", mlp), "epoch": 1},
            "SupContrast",
            {"supcontrast", "infomin"},
        ),
        "pycontrast": ({"model": pycontrast}, "SupContrast", {"supcontrast", "infomin"}),
        "spijkervet": (
            put("encoder.", trunk) | {"projector.0.weight": one, "projector.2.weight": one},
            "Spijkervet's SimCLR",
            {"simclr"},
        ),
        "sthalles": (
            {
                "epoch": 1,
                "arch": "resnet18",
                "optimizer": optimizer,
                "state_dict": put("backbone.", trunk | put("fc.", mlp)),
            },
            "sthalles' SimCLR",
            {"simclr"},
        ),
        "solo-learn": (
            {
                "state_dict": put("backbone.", trunk)
                | put("momentum_backbone.", bad)
                | put("projector.", mlp)
                | put("classifier.", fc)
                | {"queue": one, "prototypes.weight": one}
            }
            | lightning,
            *lightning_names,
        ),
        "solo-learn, old": (
            {"state_dict": put("encoder.", trunk) | put("projector.", mlp)} | lightning,
            *lightning_names,
        ),
        "lightly, numbered": (
            {"state_dict": put("backbone.", numbered) | put("projection_head.layers.", mlp)} | lightning,
            *lightning_names,
        ),
        "byol": (untracked | fc, byol_names, {"byol", "baseline"}),
        "supervised": (trunk | fc, any_head, {"simclr", "baseline"}),
        "simclr, converted": ({"state_dict": trunk | fc}, any_head, {"simclr", "baseline"}),
        "compiled": ({"model": put("_orig_mod.module.", trunk)}, *alone),
    }


RESNET18 = lively(torchvision.models.resnet18())
RESNET18.fc = nn.Identity()
TINY = lively(Tiny())
NAMES = list(layouts(RESNET18.state_dict()))
SIMCLR = {"spijkervet", "sthalles"}
TINY_STATE = TINY.state_dict()


def tiny_layouts() -> dict:
    """Copies that a test may change."""
    found = layouts(TINY_STATE)
    del found["lightly, numbered"]  # a ResNet's children
    return found

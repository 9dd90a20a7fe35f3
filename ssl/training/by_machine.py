"""Settle the settings that are `auto` and follow the machine: its device, cores and memory. The rules are in `auto`.

A run that is continued keeps what its config.yaml says, on any machine.
"""

import contextlib
import dataclasses
import os
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssl import files
from ssl.console import counted
from ssl.data.cores import usable_cores
from ssl.data.images import Images
from ssl.data.memory import free_memory
from ssl.distributed import broadcast_object, world_size
from ssl.errors import UserError
from ssl.settings import auto, config
from ssl.settings.auto import Machine, ViewCost
from ssl.settings.kinds import coerce
from ssl.sources.recipe import continued
from ssl.training.precision import DTYPES
from ssl.training.step_cost import Kept

Build = Callable[[typing.Any, int], nn.Module]  # (settings, channels) -> encoder and projector
KEPT = "encoder image_size short_side batch_size accumulate epochs lr warmup_epochs projector blur_prob".split()
LIKE_RESNET50 = ViewCost(8.2e9, 88e6, 36_000_000)  # at 224 pixels, in float32: of an encoder whose cost is not known


def settle(
    settings, data: Images, build: Build, device: torch.device, folder: Path | None = None
) -> dict[str, tuple[object, str]]:
    """Set what is auto and follows the machine, alike on all ranks; and what a run in `folder` that continues has.

    Returns {name: (value, reason)}.
    """
    found = {}
    for step in (partial(_kept, folder), _encoder, _image_size, _short_side, _batch_and_length):
        found |= broadcast_object(step(settings, data, build, device))
        for name, (value, _) in found.items():
            setattr(settings, name, value)
    return found


# In this order: each may follow those before ----------------------------------------


def _kept(folder: Path | None, settings, *_) -> dict:
    """What is auto, and the run that continues has. With other processes than before, the global batch stays."""
    run_folder = folder and continued(folder, settings.resume)
    if not (run_folder and (path := run_folder / "config.yaml").is_file()):
        return {}
    run, kinds = config.read_yaml(path), typing.get_type_hints(type(settings))
    names = [name for name in KEPT if getattr(settings, name) == "auto" and name in run]
    names += ["encoder_kwargs"] if "encoder" in names and not settings.encoder_kwargs else []
    kept = {name: coerce(run.get(name), kinds[name], f"{path}: {name}") for name in names}
    global_batch = files.json_object(run_folder / "about.json").get("global_batch")
    share = world_size() * kept.get("accumulate", settings.accumulate)
    if "batch_size" in kept and isinstance(global_batch, int) and global_batch % share == 0:
        kept["batch_size"] = global_batch // share
    return {name: (value, "as this run began") for name, value in kept.items()}


def _encoder(settings, *_) -> dict:
    if settings.encoder != "auto":
        return {}
    kwargs = settings.encoder_kwargs or auto.CPU_KWARGS
    why = "a small network, for a CPU"
    return {"encoder": (auto.CPU_ENCODER, why), "encoder_kwargs": (kwargs, why)}


def _image_size(settings, data: Images, build: Build, device: torch.device) -> dict:
    """The first of the usual sizes that the encoder reads, or the images' own if they are smaller and in memory.

    Images that are smaller than the encoder reads are enlarged, to LEAST_SIZE if that is enough.
    """
    if settings.image_size != "auto":
        return {}
    usual = auto.CPU_SIZES["auto" if settings.encoder == auto.CPU_ENCODER else "own"]
    own = usual[-1] if data.array is None else min(*data.array.shape[2:], usual[-1])
    sizes = [size for size in sorted({auto.LEAST_SIZE, own, *usual}) if size >= min(own, usual[0])]
    for size in sizes:
        with contextlib.suppress(UserError):  # it may read the next
            cost(dataclasses.replace(settings, image_size=size), data, build)
            break
    why = "the images are no larger" if size == own < usual[-1] else "a CPU's time goes with the pixels"
    return {"image_size": (size, "the encoder reads no smaller images" if own < size == auto.LEAST_SIZE else why)}


def _short_side(settings, data: Images, build: Build, device: torch.device) -> dict:
    if settings.short_side != "auto":
        return {}
    held = data.resident is not None or settings.preload
    if data.paths is None or held or not hasattr(os, "memfd_create"):
        return {"short_side": (None, "these images are read as they are")}
    side, why = auto.short_side(len(data), settings.image_size, machine_of(device)), "too many to be held in memory"
    return {"short_side": (side, why if side is None else "twice the views' side: images are held in memory")}


def _batch_and_length(settings, data: Images, build: Build, device: torch.device) -> dict:
    on_cpu = settings.epochs == "auto" and device.type == "cpu"
    if not on_cpu and "auto" not in (settings.batch_size, settings.accumulate):
        return {}
    machine, measured, found = machine_of(device), cost(settings, data, build), {}
    used = measured or LIKE_RESNET50
    how = "" if measured else "assumed, as of a ResNet-50: "
    if settings.batch_size == "auto":
        times = 1 if settings.accumulate == "auto" else settings.accumulate
        size, micro = auto.batch(len(data) // times, world_size(), machine, used, settings.views)
        memory = f"{machine.memory / 1e9:.3g} GB {'of this GPU' if machine.kind == 'cuda' else 'free'}"
        each = settings.views * used.memory / 1e6
        why = f"{len(data)} images; {memory}, of which an image takes {how}{each:.2g} MB, not measured"
        found["batch_size"] = size, why
        if settings.accumulate == "auto":
            found["accumulate"] = micro, f"{size * micro} images of a process in a step"
    elif settings.accumulate == "auto":
        found["accumulate"] = 1, "the batch size is set"
    if on_cpu:
        each = 3 * settings.views * used.flops / 1e9
        why = f"{len(data)} images, {how}{each:.2g} GFLOP each, {counted(machine.cores, 'core')}: about five minutes"
        why += f"; at least {auto.LEAST_EPOCHS}, at most {auto.MOST_EPOCHS}"
        found["epochs"] = auto.epochs_on_cpu(len(data), settings.image_size, machine, used, settings.views), why
    return found


# Machine and cost -------------------------------------------------------------------


def machine_of(device: torch.device) -> Machine:
    """What the rules know of this machine, for each of its processes."""
    cores = usable_cores()
    if device.type == "cuda":
        return Machine("cuda", cores, torch.cuda.mem_get_info(device)[1])
    free, _ = free_memory()
    return Machine("cpu", cores, free // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def cost(settings, data: Images, build: Build) -> ViewCost | None:
    """What a view costs in the precision of `settings`, computed on tensors without numbers; None where that fails.

    Memory is the difference between a batch of four and one of two: what does not grow with the views is left out.
    Raises what `build` raises with numbers, too: the user need not wait until the images are read.
    """
    projector = settings.projector
    if projector == "auto":
        projector = auto.projector(settings.method, len(data))
    settings = dataclasses.replace(settings, projector=projector)
    dtype = DTYPES.get(settings.amp) or torch.float32
    try:
        with torch.device("meta"):
            model = build(settings, data.channels).to(dtype).train()
            size = data.channels, settings.image_size, settings.image_size
            (flops, two), (_, four) = (_count(model, torch.zeros(n, *size, dtype=dtype)) for n in (2, 4))
    except Exception:  # for want of numbers, or for what is wrong with the settings
        build(settings, data.channels)
        return None
    return ViewCost(flops / 2, (four - two) / 2, sum(parameter.numel() for parameter in model.parameters()))


def _count(model: nn.Module, views: Tensor) -> tuple[int, int]:
    """(operations of a forward pass, bytes of the tensors that it keeps for backward)."""
    kept = Kept(model)
    with FlopCounterMode(display=False) as counter, kept:
        (z,) = model(views)
    del z  # only now: it keeps what is counted
    return counter.get_total_flops(), kept.total()

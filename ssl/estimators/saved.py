"""The file of an estimator: tensors and plain values. Reading it runs no code of the file."""

import importlib
import inspect
import math
import pickle

import numpy as np
from torch import nn

from ssl.checkpoints import torch_file
from ssl.checkpoints.run_folder import copied
from ssl.console import say
from ssl.distributed import broadcast_object, rank
from ssl.encoders import is_known
from ssl.errors import UserError, one_line
from ssl.estimators import optimization
from ssl.estimators.arguments import is_plain


def write(model, path) -> None:
    """As `Estimator.save`; `model` is the estimator."""
    params = model.get_params()
    encoder = params.pop("encoder")
    kind = encoder if inspect.isclass(encoder) else type(encoder)
    params = {name: _unwrapped(value) for name, value in params.items()}
    plain = {name: value for name, value in params.items() if is_plain(value)}
    content = {
        "estimator": type(model).__name__,
        "encoder": f"{kind.__module__}.{kind.__qualname__}",
        "params": plain,
        "unsaved": sorted(set(params) - set(plain)),
        "instance": not inspect.isclass(encoder),
        "model": copied(model.net.state_dict()),
        "progress": _unwrapped(copied(optimization.state(model))),
        "step": model.step,
        "steps_per_epoch": model.steps_per_epoch,
        "seed": model.seed,
        "partial": {name: _number(value) for name, value in model.epoch_sums.items()},
        "history": [{name: _number(value) for name, value in line.items()} for line in model.history],
    }
    problem = None
    if rank() == 0:  # where no group was joined, each process writes
        try:
            _save(content, path)
        except (OSError, RuntimeError, *NOT_PLAIN) as error:
            problem = f"{path} cannot be written ({error})"
    if problem := broadcast_object(problem):
        raise UserError(f"save: {problem}")


NOT_PLAIN = (TypeError, AttributeError, pickle.PicklingError)  # of a value that no file can hold


def _save(content: dict, path) -> None:
    """Write the file, with {} for a state of optimizer and scheduler that no file can hold."""
    try:
        torch_file.save(content, path)
    except NOT_PLAIN as error:
        if not content["progress"]:
            raise
        torch_file.save(content | {"progress": {}}, path)
        say(f"*** save: no file can hold the state of optimizer or scheduler ({error}); a fit cannot resume ***")


KINDS = dict(
    estimator=str,
    encoder=str,
    params=dict,
    unsaved=list,
    instance=bool,
    model=dict,
    step=int,
    seed=int,
    history=list,
)


def read(cls, path, encoder, params: dict):
    """As `Estimator.load`."""
    content = torch_file.load(path)
    if not _is_estimator(content):
        raise UserError(f"{path}: not a file of an estimator's save")
    if content["estimator"] != cls.__name__:
        raise UserError(f"{path}: holds a {one_line(content['estimator'])}; load it with that class")
    plain = inspect.isclass(encoder) and not inspect.signature(encoder).parameters  # it is built in one way alone
    if content["instance"] and not (isinstance(encoder, nn.Module) or "encoder_kwargs" in params or plain):
        raise UserError(
            f"{path}: its encoder was an instance of {one_line(content['encoder'])}; how it was built is not known; "
            "pass one that is built alike as encoder=…, or the class and encoder_kwargs=…"
        )
    if encoder is None:
        encoder = _known(path, content)
    kept = {name: value for name, value in content["params"].items() if name not in params}
    if not inspect.isclass(encoder):  # it is built already
        kept.pop("encoder_kwargs", None)
    missing = {str(name) for name in content["unsaved"]} - set(params)
    if "encoder_kwargs" in missing and inspect.isclass(encoder):
        raise UserError(f"{path}: could not hold encoder_kwargs; pass them to load, or an encoder that is built")
    model = cls(encoder, **kept, **params)
    try:
        model.net.load_state_dict(content["model"])
    except RuntimeError as error:
        raise UserError(f"{path}: does not fit this encoder and projection head ({one_line(error)[:300]})") from None
    model.step, model.seed, model.history = content["step"], content["seed"], content["history"]
    model.steps_per_epoch = content.get("steps_per_epoch")
    model.epoch_sums, model.loaded = content.get("partial", {}), content.get("progress")
    model.unsaved = missing & {"optimizer", "lr_scheduler", "optimizer_kwargs"}
    return model


def _is_estimator(content) -> bool:
    """Whether a file's content is what `write` writes."""
    if not isinstance(content, dict) or not all(isinstance(content.get(name), kind) for name, kind in KINDS.items()):
        return False
    sums, steps = content.get("partial", {}), content.get("steps_per_epoch")  # files of earlier versions have none
    return (
        all(isinstance(name, str) and name != "encoder" for name in content["params"])
        and isinstance(sums, dict)
        and all(isinstance(value, int | float) for value in sums.values())
        and content["step"] >= 0
        and isinstance(steps, int | None)
        and isinstance(content.get("progress"), dict | None)
    )


def _known(path, content: dict) -> type[nn.Module]:
    """The encoder's class, if it is ours, torchvision's or timm's, so that importing it runs no other code."""
    name = content["encoder"]
    if not (is_known(name) and "." in name):
        raise UserError(f"{path}: its encoder is a {one_line(name)}; pass that class, or an instance, as encoder=…")
    module, _, kind = name.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), kind, None)
    except ImportError as error:
        raise UserError(f"{path}: its encoder, {one_line(name)}, cannot be imported ({one_line(error)})") from None
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
        raise UserError(f"{path}: its encoder, {one_line(name)}, is no nn.Module class here")
    return kind


def _unwrapped(value):
    """`value` with Python's numbers instead of numpy's, which grids of parameters are made of."""
    if isinstance(value, dict):
        return {key: _unwrapped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_unwrapped(item) for item in value] if isinstance(value, list) else tuple(map(_unwrapped, value))
    return value.item() if isinstance(value, np.generic) else value


def _number(value) -> float:
    return value if isinstance(value, int) else float(value) if value is not None else math.nan

"""Find the checkpoint that a run continues from, and refuse one of another run."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ssl import optim
from ssl.checkpoints import about, run_folder, torch_file
from ssl.console import say
from ssl.errors import UserError
from ssl.settings.shared import TrainingSettings

NOT_REPORTED = {"config", "row", "resume", "resume_force", "output_dir", "max_steps", "download"}


@dataclass(frozen=True)
class Kind:
    """The checkpoints of a script: their contents by name and type.

    `free` are the settings that may change when a run continues, since they do not change what is learnt.
    """

    script: str
    contents: dict[str, type]
    free: set[str]

    def fits(self, state: object) -> bool:
        """Whether `state`, the content of a file, is such a checkpoint."""
        return (
            isinstance(state, dict)
            and set(state) >= set(self.contents)
            and all(isinstance(state[part], kind) for part, kind in self.contents.items())
        )


def find_state(
    run: run_folder.RunFolder, settings: TrainingSettings, identity: dict, kind: Kind, filled: Sequence[str] = ()
) -> dict | None:
    """The checkpoint that this run continues from; None where there is none.

    `identity` is what must be the same besides the settings: the global batch, the images. What `filled` names may be
    null or missing in the checkpoint: settings filled from the data, and what older versions did not write. Raises
    `UserError` for a checkpoint of another run, unless `settings.resume_force`.
    """
    if settings.resume == "none" and torch_file.kept(run.folder):
        raise UserError(f"output_dir: {run.folder} already holds a run; choose another --output_dir, or --resume auto")
    state, path = _read(run, settings.resume, kind)
    if state is None:
        return None
    changed = _changes(state, settings, identity, filled)
    refused = [words for name, words in changed.items() if name not in kind.free]
    if refused and not settings.resume_force:
        raise UserError(
            f"{path} is of a run with other settings ({'; '.join(refused)}); choose another --output_dir, or the "
            "settings of that run, or --resume_force to continue it with these"
        )
    if "optimizer" in changed:
        raise UserError(
            f"{path} is of a run with another optimizer ({changed['optimizer']}), whose state this one cannot read; "
            "choose another --output_dir, and --init to begin with its encoder"
        )
    versions = [
        f"{name} {state['versions'].get(name)} -> {version}"
        for name, version in about.versions().items()
        if state["versions"].get(name) != version
    ]
    told = [words for name, words in changed.items() if name not in NOT_REPORTED] + versions
    if told:
        say(f"changed     {'; '.join(told)}")
    return state


def load_state(
    state: dict, model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler, **others: Any
) -> None:
    """Load model, optimizer, scaler and `others` from a checkpoint. The options of the optimizer stay this run's.

    What the checkpoint lacks of `others` is loaded from {}. Raises `UserError` where the checkpoint is of another model
    or optimizer, which --resume_force allows to try.
    """
    try:
        model.load_state_dict(state["model"])
        optim.load_state(optimizer, state["optimizer"])
        if state["scaler"]:  # empty where the run was not in float16 so far
            scaler.load_state_dict(state["scaler"])
        for name, part in others.items():
            part.load_state_dict(state.get(name, {}))
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"resume: the checkpoint does not fit this model and optimizer ({error}); choose another --output_dir, and "
            "--init to begin with its encoder"
        ) from None


def _read(run: run_folder.RunFolder, resume: str, kind: Kind) -> tuple[dict | None, Path]:
    """(the newest checkpoint of the folder, else that at `resume`, else None; its path)."""
    state, path = run.newest(kind.fits), run.folder / "checkpoint.pt"
    if resume in ("auto", "none"):
        return state, path
    if state is not None:
        say(f"resume      {path}, not {resume}: the folder's own checkpoint is newer")
        return state, path
    path = Path(resume)
    if not path.exists():
        raise UserError(f"resume: {path} does not exist; expected auto, none or a checkpoint file")
    state = torch_file.load(path)
    if not kind.fits(state):
        raise UserError(f"{path}: not a checkpoint of {kind.script} (expected {', '.join(sorted(kind.contents))})")
    return state, path


def _changes(state: dict, settings: TrainingSettings, identity: dict, filled: Sequence[str]) -> dict[str, str]:
    """{name: "name: before -> now"} of what differs from the checkpoint. Settings that it lacks had their defaults."""
    before = _defaults(settings) | state["settings"] | state["identity"]
    now = dataclasses.asdict(settings) | identity
    return {
        name: f"{name.replace('_', ' ') if name in identity else name}: {before.get(name)!r} -> {value!r}"
        for name, value in now.items()
        if _plain(before.get(name)) != _plain(value) and not (name in filled and before.get(name) is None)
    }


def _defaults(settings: TrainingSettings) -> dict:
    """The default of every setting."""
    fields = dataclasses.fields(settings)
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in fields
    }


def _plain(value: object) -> object:
    """YAML and checkpoints hold tuples as lists."""
    return list(value) if isinstance(value, tuple) else value

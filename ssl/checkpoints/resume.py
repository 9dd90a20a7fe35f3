"""Whether what a run folder holds is of this very run, and what has changed since."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl.checkpoints import run_folder, torch_file
from ssl.console import say
from ssl.errors import UserError

NOT_WORTH_A_WORD = {"config", "row", "resume", "resume_force", "output_dir", "max_steps", "download"}


@dataclass(frozen=True)
class Kind:
    """The checkpoints of a script: what they hold, by name and type.

    `free` are the settings that may differ between a run and its continuation without changing what
    is learnt.
    """

    script: str
    contents: dict[str, type]
    free: set[str]

    def fits(self, state) -> bool:
        """Whether a file's content is such a checkpoint."""
        return (
            isinstance(state, dict)
            and set(state) >= set(self.contents)
            and all(isinstance(state[part], kind) for part, kind in self.contents.items())
        )


def find_state(
    run: run_folder.RunFolder, settings, identity: dict, kind: Kind, filled: Sequence[str] = ()
) -> dict | None:
    """The checkpoint to continue from, if there is one, and it is one of this very run.

    `identity` says what besides the settings makes two runs one: the global batch, the images. `filled` are settings
    that the user left to the data, which may be null in the checkpoint. Raises `UserError` for another run's, unless
    `settings.resume_force`.
    """
    if settings.resume == "none" and torch_file.kept(run.folder):
        raise UserError(f"output_dir: {run.folder} already holds a run; choose another --output_dir, or --resume auto")
    state, path = run.newest(kind.fits), run.folder / "checkpoint.pt"
    if state is not None and settings.resume not in ("auto", "none"):
        say(f"resume      {path}, not {settings.resume}: this folder's own is newer")
    elif settings.resume not in ("auto", "none"):
        path = Path(settings.resume)
        if not path.exists():
            raise UserError(f"resume: {path} does not exist; expected auto, none or a checkpoint file")
        state = torch_file.load(path)
        if not kind.fits(state):
            raise UserError(f"{path}: not a checkpoint of {kind.script} (expected {', '.join(sorted(kind.contents))})")
    if state is None:
        return None
    before = _defaults(settings) | state["settings"] | state["identity"]  # a setting that came later was its default
    now = dataclasses.asdict(settings) | identity
    changed = {
        name: f"{name.replace('_', ' ') if name in identity else name}: {before.get(name)!r} -> {value!r}"
        for name, value in now.items()
        if _plain(before.get(name)) != _plain(value) and not (name in filled and before.get(name) is None)
    }
    refused = [words for name, words in changed.items() if name not in kind.free]
    if refused and not settings.resume_force:
        raise UserError(
            f"{path} is of a run with other settings ({'; '.join(refused)}); choose another --output_dir, or the "
            "settings of the run to continue it, or --resume_force to continue it all the same"
        )
    if "optimizer" in changed:
        raise UserError(
            f"{path} is of a run with another optimizer ({changed['optimizer']}), whose state this one cannot read; "
            "choose another --output_dir, and --init to begin with its encoder"
        )
    versions = [
        f"{name} {state['versions'].get(name)} -> {version}"
        for name, version in run_folder.versions().items()
        if state["versions"].get(name) != version
    ]
    told = [words for name, words in changed.items() if name not in NOT_WORTH_A_WORD] + versions
    if told:
        say(f"changed     {'; '.join(told)}")
    return state


def _defaults(settings) -> dict:
    fields = dataclasses.fields(settings)
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in fields
    }


def _plain(value):
    return list(value) if isinstance(value, tuple) else value

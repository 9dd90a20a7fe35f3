"""The jobs of a plan: which scripts with which settings make the weights, the features and the fine-tuned networks."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ssl.checkpoints import torch_file
from ssl.console import counted
from ssl.encoders import build_encoder
from ssl.evaluation import logistic
from ssl.worth.jobs import Job
from ssl.worth.look import Look
from ssl.worth.measure import BATCH
from ssl.worth.plan import EPOCHS, FROM_NOTHING, SEEN, Cell, Network, Plan, holds_in_memory, tune_epochs
from ssl.worth.splits import HELD, called, write_list
from ssl.worth.starts import NOTHING

SAVE_MINUTES = 1.0  # between checkpoints: so much is lost at most
# Of fine-tuning, for all starts. The encoder of public weights takes smaller steps.
TUNING = {
    "batch_size": BATCH,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 1e-2,
    "schedule": "cosine",
    "warmup_epochs": "auto",
    "min_lr": 0.0,
    "crop_scale": [0.3, 1.0],
    "watch": "last",  # few validation images choose epochs badly, and their loss rises long before accuracy falls
}
PUBLIC_LR = 1e-4  # of the encoder in fine-tuning from public weights
CONTINUED = 0.1  # times the recipe's learning rate, where pre-training goes on from public weights
METHOD = {  # what results of one comparison must have in common, as JSON has it
    "version": 2,  # of the files that are left in its folder
    "fine-tuning": TUNING | {"public_lr": PUBLIC_LR, "seen": SEEN, "from_nothing": FROM_NOTHING},
    "epochs": {kind: list(bounds) for kind, bounds in EPOCHS.items()},
    "frozen": logistic.WORDS,
    "held_out": HELD,
    "continued": CONTINUED,
}


@dataclass(frozen=True)
class Work:
    """The jobs in `folder`."""

    folder: Path
    found: Look
    data: dict  # settings of the user's images
    pretrain_on: dict  # settings of the images to pre-train on, the same or more
    machine: dict  # settings of the machine, for all scripts
    threads: int | None  # of a job; None: as it settles itself

    def short_run(self, name: str, settings: dict, steps: int) -> Job:
        """A few steps of train.py, to see what it settles and how fast it is."""
        few = {"max_steps": steps, "log_every": 1, "health_every": 1000, "evaluate_after": False}
        return self._job(f"measure {name}", "train.py", f"measured/{name}", self.pretrain_on | settings | few)

    def pretraining(self, network: Network, plan: Plan) -> Job:
        epochs = plan.epochs[network.name]
        settings = {"epochs": epochs, "warmup_epochs": "auto", "evaluate_after": False, "save_minutes": SAVE_MINUTES}
        settings = self.pretrain_on | network.recipe | settings
        if network.short_side:  # as it was measured; with jobs beside it less memory is free
            settings["short_side"] = network.short_side
        if network.weights is not None:
            settings |= {"lr": CONTINUED * network.lr, "init": network.weights}
        start = network.starts[1]
        return self._job(f"pre-train {start}, {counted(epochs, 'epoch')}", "train.py", f"{start}/pretrained", settings)

    def features(self, network: Network, start: str) -> Job:
        settings = self.data | network.settings | {"image_size": network.judge_size, "protocol": "features"}
        settings |= {"model_path": self.weights(network, start), "batch_size": 64}
        needs = self._needs(network, start)
        return self._job(f"features of {start}", "evaluate.py", f"{start}/features", settings, needs)

    def tuned_at(self, start: str, cell: Cell) -> Path:
        return self.folder / start / "tuned" / _called(cell)

    def _list(self, cell: Cell) -> Path:
        return self.folder / "labels" / f"{_called(cell)}.txt"

    def write_list(self, cell: Cell) -> None:
        """The file of the images with labels, for `tuning`."""
        chosen = self.found.draw(cell.count, cell.seed).chosen.tolist()
        write_list((self.found.train.sample_name(i) for i in chosen), self._list(cell))

    def tuning(self, network: Network, start: str, cell: Cell) -> Job:
        """The fine-tuning of a start. It reads the file that `write_list` has written."""
        draw, sizes = self.found.draw(cell.count, cell.seed), self.found.sizes()
        settings = self.data | network.settings | TUNING | {"image_size": network.train_size, "seed": cell.seed}
        settings |= {
            "init": None if start == NOTHING else self.weights(network, start),
            "lr_backbone": None if network.weights is None else PUBLIC_LR,
            "epochs": tune_epochs(network, start, len(draw.fit)),
            "val_fraction": HELD,
            "balanced": self.found.balanced,
            "train_files": self._list(cell),
            "save_minutes": SAVE_MINUTES,
        }
        settings["patience"] = settings["epochs"]  # none: each has its whole schedule
        if holds_in_memory(network, sizes, cell):
            settings["short_side"] = network.short_side
        labels = f"{called(cell.count)} label{'' if cell.count == 1 else 's'} a class"
        what = f"fine-tune {start}, {labels}, seed {cell.seed}"
        return self._job(what, "finetune.py", self.tuned_at(start, cell), settings, self._needs(network, start))

    def weights(self, network: Network, start: str) -> str:
        """What --init or --model_path takes."""
        if start == NOTHING:
            return str(self.folder / NOTHING / "encoder.pt")
        if start == network.name and network.weights is not None:
            return network.weights
        return str(self.folder / start / "pretrained")

    def write_untrained(self, network: Network, channels: int, seed: int) -> None:
        """The encoder with random weights."""
        torch.manual_seed(seed)
        named = network.settings
        built = named["encoder"], network.judge_size, named["stem"], named["encoder_kwargs"]
        encoder, _ = build_encoder(*built, channels)
        (self.folder / NOTHING).mkdir(parents=True, exist_ok=True)
        torch_file.save(encoder.state_dict(), Path(self.weights(network, NOTHING)))

    def _needs(self, network: Network, start: str) -> Path | None:
        """The folder of the pre-training that makes the weights of a start."""
        return self.folder / start / "pretrained" if start == network.starts[1] else None

    def _job(self, what: str, script: str, place: str | Path, settings: dict, needs: Path | None = None) -> Job:
        return Job(what, script, self.folder / place, self.machine | settings, self.threads, needs)


def _called(cell: Cell) -> str:
    return f"labels_{called(cell.count)}_seed_{cell.seed}"

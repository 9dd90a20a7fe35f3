"""train.py with an encoder whose output is NaN, as SPOIL says: 'first step, last step, rank, most retries'."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import train
from ssl.distributed import rank
from ssl.errors import one_line_errors
from ssl.training.guard import Guard

first, last, whose, most_retries = map(int, os.environ["SPOIL"].split(","))
now = {"step": -1, "retries": 0, "factor": 0.0}
real_factor, real_set, real_init = train.lr_factor, train.set_lr, train.Model.__init__


def lr_factor(settings, step, steps_per_epoch):
    now["step"], now["factor"] = step, real_factor(settings, step, steps_per_epoch)
    return now["factor"]


def set_lr(optimizer, factor):
    now["retries"] = int(factor != now["factor"])
    real_set(optimizer, factor)


def spoil(module, inputs, output):
    spoilt = first <= now["step"] <= last and rank() == whose and now["retries"] <= most_retries
    return output * float("nan") if spoilt else output


def init(self, settings, channels):
    real_init(self, settings, channels)
    layers = [module for module in self.encoder.modules() if not any(module.children())]
    layers[3].register_forward_hook(spoil)


train.lr_factor, train.set_lr, train.Model.__init__ = lr_factor, set_lr, init
if os.environ.get("UNGUARDED"):
    Guard.mark = lambda self, loss, norm: self.record.append(norm.new_zeros(2))

if __name__ == "__main__":
    with one_line_errors("train.py"):
        train.main()

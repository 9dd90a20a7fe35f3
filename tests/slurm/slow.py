"""An encoder that leaves time to disturb a job: it sleeps in a job's first two starts, and computes the same always."""

import os
import time

from torch import Tensor

from ssl.encoders import SmallResNet


class SlowResNet(SmallResNet):
    def forward(self, x: Tensor) -> Tensor:
        if "SLURM_JOB_ID" in os.environ and int(os.environ.get("SLURM_RESTART_COUNT", 0)) < 2:
            time.sleep(1)
        return super().forward(x)

"""An encoder that leaves time to disturb a job: it sleeps in the job's first start, and computes the same always."""

import os
import time

from torch import Tensor

from ssl.encoders import SmallResNet


class SlowResNet(SmallResNet):
    def forward(self, x: Tensor) -> Tensor:
        if "SLURM_JOB_ID" in os.environ and "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(0.2)
        return super().forward(x)

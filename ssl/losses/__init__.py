"""Losses over the global batch, exact on any number of processes.

The rule: value and gradient on W processes equal those of one process that holds the whole batch, for any split of the
rows, uneven too. Each rank gets the true gradient of its own rows. (DDP then averages parameter gradients over the
ranks, so a training loop multiplies such a loss by the world size; see train.py.)

Shapes: n rows on this rank, N on all ranks together, D dimensions.
"""

from ssl.losses.barlow import BarlowTwinsLoss, barlow_twins, cheaper_form
from ssl.losses.contrastive import InfoNCELoss, SupConLoss, info_nce, sup_con

__all__ = [
    "BarlowTwinsLoss",
    "InfoNCELoss",
    "SupConLoss",
    "barlow_twins",
    "cheaper_form",
    "info_nce",
    "sup_con",
]

"""Barlow Twins and SimCLR as objects with fit and transform, for samples of any kind.

>>> from ssl.estimators import BarlowTwins
>>> model = BarlowTwins(MyEncoder, proj_input_dim=64, max_epochs=50, views=my_view, batch_size=128, random_state=0)
>>> features = model.fit(volumes).transform(volumes)

Losses, optimizers, schedules, processes and files are those of train.py.
"""

from ssl.estimators.methods import BarlowTwins, SimCLR

__all__ = ["BarlowTwins", "SimCLR"]

"""The calibration subspace: the weights of the pool's samples (AdaPruner, arXiv 2503.06184).

:mod:`~adapruner.calibration.choice` is a point of the subspace, :mod:`~adapruner.calibration.pool` turns it into one weight per
sample, :mod:`~adapruner.calibration.clusters` finds groups where sources have no labels, :mod:`~adapruner.calibration.spread`
says how much the choice matters. The winning weights leave a run as :mod:`adapruner.data.calibration_set`.
"""

"""Several methods over budgets and seeds: one ``fit`` per cell, resumable, then one table and one plot.

:mod:`~adapruner.compare.spec` says what is compared, :mod:`~adapruner.compare.cells` what one run is and when it
counts as done, :mod:`~adapruner.compare.schedule` runs what is missing, :mod:`~adapruner.compare.summary` has the
table's mathematics, :mod:`~adapruner.compare.tables`, :mod:`~adapruner.compare.plot` and
:mod:`~adapruner.compare.pareto` write it down.

Nothing here loads torch: the work is done in processes of its own, so that a cell that fails or is killed takes nothing along.
"""

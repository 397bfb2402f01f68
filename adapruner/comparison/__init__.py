"""Several methods over budgets and seeds: one ``fit`` per cell, resumable, then one table and one plot.

:mod:`~adapruner.comparison.spec` says what is compared, :mod:`~adapruner.comparison.cells` what one run is and when it
counts as done, :mod:`~adapruner.comparison.schedule` runs what is missing, :mod:`~adapruner.comparison.summary` has the
table's mathematics, :mod:`~adapruner.comparison.tables`, :mod:`~adapruner.comparison.plot` and
:mod:`~adapruner.comparison.pareto` write it down.

Nothing here loads torch: the work is done in processes of its own, so that a cell that fails or is killed takes nothing along.
"""

"""Several methods over budgets and seeds: one ``fit`` per cell, resumable, then one table and one plot.

:mod:`~adapruner.compare.spec` says what is compared, :mod:`~adapruner.compare.cells` what one run is and when it
counts as done, :mod:`~adapruner.compare.schedule` runs what is missing, :mod:`~adapruner.compare.summary` has the
table's mathematics and :mod:`~adapruner.compare.pareto` the fronts', :mod:`~adapruner.compare.tables` and
:mod:`~adapruner.compare.plots` write both down.

Nothing here loads torch: the work is done in processes of its own, so that a cell that fails or is killed takes nothing along.
"""

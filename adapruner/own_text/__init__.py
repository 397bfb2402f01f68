"""Text that the dense model writes itself, for whoever has none at hand.

:mod:`~adapruner.own_text.settings` says how much and how, :mod:`~adapruner.own_text.boundaries` where a document begins and ends,
:mod:`~adapruner.own_text.writer` draws it, :mod:`~adapruner.own_text.rows_file` keeps it so that a killed call goes on.
"""

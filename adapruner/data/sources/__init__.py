"""The kinds of text sources, one file each: a data set of the hub, local files, the demo corpus, texts in memory.

A new kind is a file here, or a file of one's own that ``--import`` names; both define a subclass of
:class:`adapruner.data.text_source.SourceKind` under the decorator ``@SOURCE_KINDS.register(name)``.
"""

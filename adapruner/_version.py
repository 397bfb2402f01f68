"""The one place the version is written; ``pyproject.toml`` reads it from here.

A literal, so that a bare checkout, an editable install and a wheel all say the same.
"""

__version__ = "0.1.0"

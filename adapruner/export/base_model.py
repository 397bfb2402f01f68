"""Where the base model of a run lies, kept in the run's ``config.yaml`` so that it is found from other folders and after a move."""

from __future__ import annotations

import json
import os
from pathlib import Path

from adapruner.errors import ConfigurationError
from adapruner.models.loading import model_source

_NOTE = "# base model: "


def place_of_model(name_or_path: str, run: Path) -> str:
    """A comment for ``config.yaml``: the path of a local model, absolute and from the run's folder; nothing for a hub name.

    >>> place_of_model("org/model", Path("run"))
    ''
    """
    if model_source(name_or_path) != name_or_path or not os.path.exists(os.path.expanduser(name_or_path)):
        return ""
    path = os.path.abspath(os.path.expanduser(name_or_path))
    try:
        from_run = os.path.relpath(path, os.path.abspath(run))
    except ValueError:  # another drive
        from_run = path
    return f"{_NOTE}{json.dumps({'absolute': path, 'from_run': from_run})}\n"


def find_base_model(name_or_path: str, config: str, run: Path) -> str:
    """The path of a run's base model, or its name on the hub.

    Args:
        name_or_path: as ``config.yaml`` has it.
        config: the text of ``config.yaml``.
        run: where the run's folder is now.

    Raises:
        ConfigurationError: if it was a local one, which is not there any more.
    """
    note = next((line for line in config.splitlines() if line.startswith(_NOTE)), None)
    if note is None:
        return name_or_path
    try:
        record = json.loads(note.removeprefix(_NOTE))
        places = [str(record["absolute"]), os.path.normpath(run.resolve() / str(record["from_run"]))]
    except (ValueError, KeyError, TypeError, RecursionError):
        return name_or_path
    found = next((place for place in places if os.path.exists(place)), None)
    if found is None:
        raise ConfigurationError(
            f"model: expected the base model of the run, got nothing at {' or '.join(dict.fromkeys(places))}; give its folder by --model"
        )
    return found

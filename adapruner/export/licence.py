"""The licence of the base model, read from what is at hand: its own README, its licence file, the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_KEYS = ("license", "license_name", "license_link")
_HUB_SECONDS = 5.0
#: Words near the top of a licence file -> the hub's name of the licence.
_TEXTS = (
    (r"apache license\s+version 2\.0", "apache-2.0"),
    (r"\bmit license\b|permission is hereby granted, free of charge", "mit"),
    (r"bsd 3-clause", "bsd-3-clause"),
    (r"bsd 2-clause", "bsd-2-clause"),
    (r"gnu affero general public license\s+version 3", "agpl-3.0"),
    (r"gnu general public license\s+version 3", "gpl-3.0"),
    (r"llama 2 community license", "llama2"),
    (r"llama 3\.1 community license", "llama3.1"),
    (r"llama 3\.2 community license", "llama3.2"),
    (r"llama 3\.3 community license", "llama3.3"),
    (r"meta llama 3 community license", "llama3"),
    (r"gemma terms of use", "gemma"),
)


def base_licence(source: str, revision: str | None = None) -> dict[str, str]:
    """``license`` and, where given, ``license_name`` and ``license_link``; empty where nothing says.

    Never fails: a licence that cannot be read is one that the card does not claim. The hub is asked only for a name such
    as ``org/model``, with a time limit of 5 s.

    Args:
        source: the base model's folder or hub name.
        revision: on the hub.
    """
    try:
        if Path(source).is_dir():
            return _of_folder(Path(source))
        return (_of_cache(source, revision) or _of_hub(source, revision)) if is_hub_name(source) else {}
    except Exception:  # offline, gated, gone, slow, unreadable: the card then says that it does not know
        return {}


def is_hub_name(name: str) -> bool:
    """``org/model``, and not a path on this machine."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None and not Path(name).exists()


def _of_folder(folder: Path) -> dict[str, str]:
    stated = _of_card(folder / "README.md")
    if stated:
        return stated
    for file in sorted(path for path in folder.iterdir() if re.match(r"(?i)licen[cs]e|copying", path.name) and path.is_file()):
        top = _text(file)[:3000].lower()
        name = next((name for words, name in _TEXTS if re.search(words, top)), None)
        return {"license": name} if name else {"license": "other", "license_name": file.name}
    return {}


def _of_card(file: Path) -> dict[str, str]:
    """What the front matter of a model card states; nothing where there is none, or it is damaged."""
    from huggingface_hub import ModelCard

    text = _text(file).lstrip("\ufeff")
    try:
        return _stated(ModelCard(text, ignore_metadata_errors=True).data.to_dict()) if text.startswith("---") else {}
    except Exception:  # whatever a parser of YAML raises
        return {}


def _of_cache(name: str, revision: str | None) -> dict[str, str]:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "README.md", revision=revision)
    return _of_card(Path(found)) if isinstance(found, str) else {}


def _of_hub(name: str, revision: str | None) -> dict[str, str]:
    from huggingface_hub import HfApi

    card = HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS).card_data
    return {} if card is None else _stated({key: card.get(key) for key in _KEYS})


def _stated(record: dict[str, Any]) -> dict[str, str]:
    values = {key: record.get(key) for key in _KEYS}
    if isinstance(values["license"], list) and values["license"]:
        values["license"] = values["license"][0]
    found = {key: " ".join(value.split()) for key, value in values.items() if isinstance(value, str) and value.strip()}
    return found if "license" in found else {}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

"""Whether a name can be had from the Hugging Face hub: asked once, since its library tries a dead connection for most of a minute.

Asked by the library's own client, and so at the endpoint (``HF_ENDPOINT``), through the proxy and with the token that it uses.
"""

from __future__ import annotations

import difflib
import time
from pathlib import Path
from typing import Any, Literal

Kind = Literal["model", "dataset"]
#: What nearly every repository of a kind has.
_FILES: dict[str, str] = {"model": "config.json", "dataset": "README.md"}
#: Attempts to connect, and seconds between two.
_TRIES, _PAUSE = 2, 1.0
_FOUND: set[tuple[str, str, str | None]] = set()


def hub_fault(name: str, kind: Kind = "model", revision: str | None = None) -> str | None:
    """Why nothing can be had from the hub under a name, in words; ``None`` where it may be there.

    A hub that answers slowly, or with an error of its own, is left to the library, which has patience.

    Args:
        name: ``owner/name``.
        kind: of the repository.
        revision: branch, tag or commit; the main one when empty.

    >>> hub_fault("my model")
    "'my model' cannot be a hub name, which has letters, digits, '-', '_' and '.' and at most one '/'"
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return f"{name!r} cannot be a hub name, which has letters, digits, '-', '_' and '.' and at most one '/'"
    if (name, kind, revision) in _FOUND or _is_cached(name, kind, revision):
        return None
    if constants.HF_HUB_OFFLINE:
        return "the hub is not asked, as HF_HUB_OFFLINE says, and its cache has none of this name"
    fault = _asked(name, kind, revision)
    if fault is None:
        _FOUND.add((name, kind, revision))
    return fault


def nearest_path(path: str) -> str:
    """A hint at a file or folder of a similar name: ``did you mean 'my-model'? ``, else nothing.

    >>> nearest_path("no such folder/at all")
    ''
    """
    place = Path(path).expanduser()
    try:
        names = [found.name for found in place.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(place.name, names, n=1, cutoff=0.75)
    return f"did you mean {str(place.with_name(close[0]))!r}? " if close and place.name else ""


def _is_cached(name: str, kind: Kind, revision: str | None) -> bool:
    """Whether the library has anything of it: a tokenizer alone has no ``config.json``."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.file_download import repo_folder_name

    if isinstance(try_to_load_from_cache(name, _FILES[kind], revision=revision, repo_type=kind), str):
        return True
    snapshots = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind) / "snapshots"
    return snapshots.is_dir() and any(snapshots.iterdir())


def _asked(name: str, kind: Kind, revision: str | None) -> str | None:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    url = hf_hub_url(name, _FILES[kind], repo_type=kind, revision=revision)
    reason: Any = None
    for attempt in range(_TRIES):
        time.sleep(_PAUSE if attempt else 0)
        try:
            get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            return None
        except GatedRepoError:  # the library says how to be let in
            return None
        except RepositoryNotFoundError:
            return f"{constants.ENDPOINT} has no {kind} of this name, or a private one (hf auth login)"
        except Exception as error:  # of whichever HTTP client the library has
            if not any("Connect" in kind_of.__name__ for kind_of in type(error).__mro__):
                return None
            reason = error
    return f"{constants.ENDPOINT} cannot be reached ({' '.join(str(reason).split()) or type(reason).__name__:.100})"

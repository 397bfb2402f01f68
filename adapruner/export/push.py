"""Puts an export on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapruner.errors import ConfigurationError, ModelError

#: A shard that is left over would be loaded instead of the new ones.
_OF_AN_EARLIER_EXPORT = ["model*.safetensors", "model.safetensors.index.json", "adapter/*"]


def check_push(repo_id: str, api: Any = None) -> None:
    """Refuses, before hours of work, a name the hub would not take and a machine that cannot push.

    Args:
        repo_id: ``user/name`` or ``organisation/name``.
        api: ``huggingface_hub.HfApi`` by default.

    Raises:
        ConfigurationError: in these cases.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if repo_id.count("/") != 1:
            raise HFValidationError("no owner before a single slash")
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigurationError(f"push: expected a hub name such as user/model, got {repo_id!r} ({_first_line(error)}); mend it") from None
    try:
        (api or HfApi()).whoami()
    except Exception as error:  # no token, a wrong one, no network: all mean that nothing can be pushed
        raise ConfigurationError(
            f"push: expected a hub that knows this user, got {_first_line(error)}; log in with 'hf auth login' or set HF_TOKEN"
        ) from None


def push_folder(folder: str | Path, repo_id: str, message: str, api: Any = None) -> str:
    """Uploads an export in one commit and returns its address. A repository that is not there yet is made, private.

    Args:
        folder: the export.
        repo_id: ``user/name``.
        message: of the commit.
        api: ``huggingface_hub.HfApi`` by default.

    Raises:
        ModelError: if the hub refuses or cannot be reached; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    hub = api or HfApi()
    try:
        url = hub.create_repo(repo_id, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message=message, delete_patterns=_OF_AN_EARLIER_EXPORT)
    except Exception as error:  # every error of the library and of the network, in one line
        raise ModelError(
            f"push: expected {repo_id} to take the folder, got {_first_line(error)}; "
            f"the export is whole: push it with 'hf upload {repo_id} {folder}'"
        ) from error
    return str(url)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

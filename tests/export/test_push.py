from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapruner.errors import ConfigurationError, ModelError
from adapruner.export.push import check_push, push_folder


class FakeApi:
    """Keeps what it was asked; fails where told to."""

    def __init__(self, fails: dict[str, Exception] | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fails = fails or {}

    def _call(self, name: str, **arguments: Any) -> None:
        self.calls.append((name, arguments))
        if name in self.fails:
            raise self.fails[name]

    def whoami(self) -> dict[str, str]:
        self._call("whoami")
        return {"name": "me"}

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self._call("create_repo", repo_id=repo_id, **options)
        return f"hub/{repo_id}"

    def upload_folder(self, **options: Any) -> None:
        self._call("upload_folder", **options)


def test_the_folder_goes_up_in_one_commit_to_a_private_repository(tmp_path: Path) -> None:
    api = FakeApi()
    assert push_folder(tmp_path, "me/small", "Pruned", api) == "hub/me/small"
    (create, made), (upload, sent) = api.calls
    assert (create, made) == ("create_repo", {"repo_id": "me/small", "private": True, "exist_ok": True})
    assert upload == "upload_folder"
    assert (sent["repo_id"], sent["folder_path"], sent["commit_message"]) == ("me/small", str(tmp_path), "Pruned")


def test_shards_of_an_earlier_push_go_and_foreign_files_stay(tmp_path: Path) -> None:
    from fnmatch import fnmatch

    api = FakeApi()
    push_folder(tmp_path, "me/small", "Pruned", api)
    patterns = api.calls[1][1]["delete_patterns"]
    gone = [
        name
        for name in ("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter/x", "notes.md")
        if any(fnmatch(name, pattern) for pattern in patterns)
    ]
    assert gone == ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter/x"]


@pytest.mark.parametrize("step", ["create_repo", "upload_folder"])
def test_a_hub_that_refuses_is_one_line_with_the_way_on(tmp_path: Path, step: str) -> None:
    api = FakeApi({step: RuntimeError("403 Forbidden\nRequest ID: 1\nsecond line")})
    with pytest.raises(
        ModelError, match=r"^push: expected me/small to take the folder, got 403 Forbidden; .*hf upload me/small .*'$"
    ) as caught:
        push_folder(tmp_path, "me/small", "Pruned", api)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["small", "a/b/c", "me/", "/small", "me/with space", "me/double..dot", ""])
def test_a_name_that_the_hub_would_not_take_is_refused(name: str) -> None:
    api = FakeApi()
    with pytest.raises(ConfigurationError, match=r"^push: expected a hub name such as user/model, got "):
        check_push(name, api)
    assert api.calls == []


def test_whoever_is_not_logged_in_hears_it_before_the_work() -> None:
    with pytest.raises(ConfigurationError, match=r"^push: expected a hub that knows this user, got no token; log in with 'hf auth login'"):
        check_push("me/small", FakeApi({"whoami": RuntimeError("no token\nmore")}))
    api = FakeApi()
    check_push("me/small", api)
    assert [name for name, _ in api.calls] == ["whoami"]


def test_an_error_without_words_is_named_by_its_kind() -> None:
    with pytest.raises(ConfigurationError, match="got TimeoutError; log in"):
        check_push("me/small", FakeApi({"whoami": TimeoutError()}))

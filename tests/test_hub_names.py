"""The hub is asked once, and a dead connection costs a second; a hub that answers somehow is left to its library."""

from __future__ import annotations

import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants

from adapruner import hub_names
from adapruner.data.text_source import TextSource, read_documents
from adapruner.errors import ConfigurationError, DataError, ModelError
from adapruner.hub_names import hub_fault, nearest_path
from adapruner.models.loading import load_tokenizer
from adapruner.models.model_names import check_model_name

NOBODY = "http://127.0.0.1:9"


class Hub(HTTPServer):
    """An endpoint of one's own, as ``HF_ENDPOINT`` names it."""

    status, wait = 404, 0.0

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.headers: dict[str, str] = {}
        hub = self

        class Answer(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.asked.append(self.path)
                time.sleep(hub.wait)
                self.send_response(hub.status)
                for name, value in hub.headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        super().__init__(("127.0.0.1", 0), Answer)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Sets where the hub is; at first nobody is there, nothing is cached, and the hub may be asked."""

    def at(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")

    at(NOBODY)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_names, "_PAUSE", 0.01)
    monkeypatch.setattr(hub_names, "_FOUND", set())
    return at


def cached(folder: Path, name: str) -> None:
    place = folder / "cache" / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    (place / "snapshots" / "abc").mkdir(parents=True)
    (place / "snapshots" / "abc" / "config.json").write_text("{}")


def test_nobody_is_there() -> None:
    began = time.monotonic()
    fault = hub_fault("owner/name")
    assert fault is not None
    assert fault.startswith(f"{NOBODY} cannot be reached (")
    assert "refused" in fault
    assert time.monotonic() - began < 2


def test_a_cached_model_is_there_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(tmp_path, "owner/name")
    monkeypatch.setattr(hub_names, "_asked", lambda *_: "asked")
    assert hub_fault("owner/name") is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_fault("owner/name") is None
    fault = hub_fault("owner/other")
    assert fault is not None
    assert "HF_HUB_OFFLINE" in fault


def test_a_hub_of_one_s_own_is_asked_once(hub: Hub, endpoint: Any) -> None:
    endpoint(f"http://127.0.0.1:{hub.server_port}")
    hub.status, hub.headers = 200, {"ETag": "abc", "X-Repo-Commit": "abc", "Content-Length": "2"}
    assert hub_fault("owner/name", revision="v1") is None
    assert hub_fault("owner/name", revision="v1") is None
    assert hub.asked == ["/owner/name/resolve/v1/config.json"]


def test_a_hub_that_knows_no_such_name(hub: Hub, endpoint: Any) -> None:
    endpoint(f"http://127.0.0.1:{hub.server_port}")
    hub.headers = {"X-Error-Code": "RepoNotFound"}
    for kind, file in (("model", "config.json"), ("dataset", "README.md")):
        fault = hub_fault("owner/name", kind)  # type: ignore[arg-type]
        assert fault == f"http://127.0.0.1:{hub.server_port} has no {kind} of this name, or a private one (hf auth login)"
        assert hub.asked.pop().endswith(f"owner/name/resolve/main/{file}")


@pytest.mark.parametrize(
    ("status", "headers"), [(404, {"X-Error-Code": "EntryNotFound"}), (403, {"X-Error-Code": "GatedRepo"}), (503, {}), (500, {})]
)
def test_whatever_else_a_hub_answers_is_for_its_library(status: int, headers: dict[str, str], hub: Hub, endpoint: Any) -> None:
    endpoint(f"http://127.0.0.1:{hub.server_port}")
    hub.status, hub.headers = status, headers
    assert hub_fault("owner/name") is None
    assert len(hub.asked) == 1


def test_a_slow_hub_is_waited_for_by_its_library(hub: Hub, endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint(f"http://127.0.0.1:{hub.server_port}")
    hub.wait = 1.0
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    assert hub_fault("owner/name") is None


def test_similar_names(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    assert nearest_path(str(tmp_path / "my-modle")) == f"did you mean {str(tmp_path / 'my-model')!r}? "
    assert nearest_path(str(tmp_path / "another")) == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./my-modle", r"got './my-modle', which is not there; did you mean 'my-model'\?$"),
        ("/no/such", r"got '/no/such', which is not there; correct the path$"),
        ("my-model-of-old/", r"got 'my-model-of-old/', which is not there; correct the path$"),
        ("a/b/c", r"got 'a/b/c', which is not there; correct the path$"),
        ("model.gguf", r"expected a GGUF file, got 'model.gguf', which is not there; correct the path$"),
        (
            "two words",
            r"got 'two words': no folder here, and 'two words' cannot be a hub name, .*; correct the name, or give a local folder$",
        ),
        ("my-modle", r"got 'my-modle': no folder here, and http://127.0.0.1:9 cannot be reached \(.*\); did you mean 'my-model'\?$"),
    ],
)
def test_models(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    for check in (check_model_name, load_tokenizer):
        with pytest.raises(ModelError, match=message):
            check(name)
    check_model_name("my-model")
    check_model_name("package:whatever")  # by whom it is loaded


def test_a_name_that_no_file_system_takes() -> None:
    with pytest.raises(ConfigurationError, match=r"model\.name_or_path: expected a path that a file system takes"):
        check_model_name("x" * 300)


def test_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"source 'x': expected the hub data set 'owner/name', got none: http://127.* cannot be reached"):
        next(read_documents(TextSource("x", hub="owner/name")))
    (tmp_path / "owner___na_me").mkdir()  # of an earlier run: the library may have all of it
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"text": "a text"}])
    assert [document.text for document in read_documents(TextSource("x", hub="owner/Na-me"))] == ["a text"]

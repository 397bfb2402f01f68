"""What vLLM answered, from its own environment: one process for all folders, since starting it takes half a minute."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from adapruner.export.formats.deci import write_deci

from . import cases
from .results import RECORD, Row, save

PYTHON = "ADAPRUNER_VLLM_PYTHON"
"""Environment variable: the interpreter of an environment that has vLLM. ``make test-vllm`` builds one and sets it."""
_SCRIPT = Path(__file__).with_name("vllm_answers.py")


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """The interpreter that has vLLM."""
    if PYTHON not in os.environ:
        pytest.skip(f"needs vLLM in an environment of its own: make test-vllm, or {PYTHON}=its interpreter")
    return os.environ[PYTHON]


def clean_environment() -> dict[str, str]:
    """Nothing of ours is imported on the other side, and threads are vLLM's own affair."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}


def ask(python: str, groups: list[list[dict[str, Any]]], folder: Path) -> dict[str, Any]:
    """What :mod:`vllm_answers` writes of these jobs, by key; ``versions`` besides."""
    jobs, answers = folder / "jobs.json", folder / "answers.json"
    jobs.write_text(json.dumps(groups))
    command = [python, str(_SCRIPT), str(jobs), str(answers)]
    done = subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(answers.read_text())
    return {"versions": found["versions"], **{answer["key"]: answer for answer in found["answers"]}}


def job(key: str, folder: Path, implementation: str, prompts: list[list[int]], new_tokens: int, rounds: int = 0) -> dict[str, Any]:
    """One engine to start."""
    longest = len(prompts[0]) + new_tokens
    sizes = {"new_tokens": new_tokens, "longest": longest, "rounds": rounds}
    return {"key": key, "folder": str(folder), "implementation": implementation, "prompts": prompts, **sizes}


@pytest.fixture(scope="session")
def rows(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Row]:
    """(family, form, how it is served) -> what came of it; written to the record that the page is made of."""
    base, found, groups = tmp_path_factory.mktemp("vllm"), {}, []
    for served in cases.exports(base):
        ways = ["vllm", "transformers"] if served.stock else ["transformers"]
        if served.family in cases.DECI_FAMILIES:
            write_deci(served.folder, f"{served.folder}-deci")
            ways.append("deci")
        for way in ways:
            folder = Path(f"{served.folder}-deci") if way == "deci" else served.folder
            key = f"{served.family}|{served.form}|{way}"
            prompts = cases.prompts(cases.vocabulary()).tolist()
            groups.append([job(key, folder, "vllm" if way == "deci" else way, prompts, cases.NEW_TOKENS)])
            found[served.family, served.form, way] = (served, key)
    answers = ask(vllm_python, groups, base)
    made = {name: Row.of(*name, served.tokens, answers[key]) for name, (served, key) in found.items()}
    save(RECORD, rows=list(made.values()), versions=answers["versions"])
    return made

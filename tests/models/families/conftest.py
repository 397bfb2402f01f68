"""All exports of all families, loaded by one other process: starting one for each would take minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.models.families import conformance
from tests.models.families.table import ROWS

_LOADER = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import torch
from safetensors.torch import load_file, save_file
import transformers
folders, ids = json.loads(open(sys.argv[1]).read()), load_file(sys.argv[2])["ids"]
found = {}
for folder, stock in folders.items():
    config = json.loads(open(folder + "/config.json").read())
    experts = {"experts_implementation": "eager"} if "num_experts" in config or "num_local_experts" in config else {}
    for auto in config.get("auto_map", ["AutoModelForCausalLM"]):
        model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=not stock, **experts).eval()
        with torch.no_grad():
            if auto == "AutoModelForCausalLM":
                found[folder] = model(ids).logits.contiguous()
            found[folder + "|" + auto] = model.base_model(ids)[0].contiguous()
assert "adapruner" not in sys.modules
save_file(found, sys.argv[3])
"""


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """(row's name, ``uniform`` | ``irregular`` | ``query_head``) -> record, logits before and logits in a fresh process; the hidden states
    before, and in that process by every Auto class that the folder names."""
    base: Path = tmp_path_factory.mktemp("families")
    made: dict[tuple[str, str], dict[str, Any]] = {}
    for index, row in enumerate(ROWS):
        for form in ("uniform", "irregular", "query_head"):
            widths, units = ("uniform", "query_head") if form == "query_head" else (form, "kv_group")
            record, expected, trunk = conformance.export(row, widths, units, base / f"{index}-{form}")  # type: ignore[arg-type]
            made[row.name, form] = {"record": record, "expected": expected, "trunk": trunk}
    (base / "folders.json").write_text(json.dumps({str(m["record"].path): m["record"].stock for m in made.values()}))
    save_file({"ids": conformance.token_ids()}, base / "ids.safetensors")
    files = [str(base / name) for name in ("folders.json", "ids.safetensors", "logits.safetensors")]
    done = subprocess.run([sys.executable, "-c", _LOADER, *files], cwd=base, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = load_file(files[2])
    for value in made.values():
        name = str(value["record"].path)
        value["loaded"] = loaded[name]
        value["trunks"] = {key.partition("|")[2]: hidden for key, hidden in loaded.items() if key.startswith(f"{name}|")}
    return made

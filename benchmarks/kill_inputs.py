"""A model and text so small that a whole run takes seconds: the demo's family, tokenizer and documents."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

SOURCES = ("stdlib", "numpy")
_DOCUMENTS, _CHARACTERS = 200, 1200


def make_inputs(folder: Path) -> Path:
    """``base/`` and one ``.jsonl`` a source in ``folder``, made in a process of its own, as forks must not compute."""
    if (folder / "base").is_dir():
        return folder
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _make(folder)
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1] != 0:
        raise SystemExit(f"kill_test: expected a model and text in {folder}, got a failure; see above")
    return folder


def _make(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from adapruner.data.text_source import TextSource, read_documents
    from adapruner.demo import MODEL_FOLDER

    new = folder / "base.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for file in MODEL_FOLDER.glob("*token*"):
        shutil.copy(file, new)
    for name in SOURCES:
        text = "".join(d.text for d in read_documents(TextSource(name, demo=name, split="calibration")))[: _DOCUMENTS * _CHARACTERS]
        rows = [json.dumps({"text": text[at : at + _CHARACTERS]}) for at in range(0, len(text), _CHARACTERS)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    config = AutoConfig.from_pretrained(MODEL_FOLDER)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    for name, value in {**sizes, "head_dim": 12, "initializer_range": 0.1}.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(new)
    new.replace(folder / "base")

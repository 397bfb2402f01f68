"""The export at the end of ``fit``: its model card, adapters kept apart, the push."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.callbacks.pruned_export import PrunedExportCallback
from adapruner.errors import ConfigurationError, ModelError
from adapruner.export import push
from adapruner.export.loading import load
from tests.callbacks.conftest import all_callbacks, search_callback


def with_export(**options: Any) -> list[Any]:
    return [*all_callbacks()[:-1], PrunedExportCallback(**{"verify": False, **options})]


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(ids, use_cache=False).logits
    return logits


def test_the_card_tells_what_the_run_measured(finished: Any) -> None:
    report = json.loads((finished.folder / "report.json").read_text())
    card = (finished.folder / "model" / "README.md").read_text()
    value = next(row["value"] for row in report["perplexity"] if (row["stage"], row["window"]) == ("recovered", 16))
    assert f"| adapruner | recovered | {value:.4g} |" in card
    assert "| l2 | reconstructed |" in card
    for part in ("LoRA of rank 2, alpha 4, 4 steps", "seeds: search 0, recovery 0", "### Cost", "### Search", finished.search.plan.hash):
        assert part in card


def test_without_a_report_the_card_is_whole_too(fit: Any, tmp_path: Path) -> None:
    fit(tmp_path, [search_callback(), PrunedExportCallback(verify=False)], max_steps=1)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "## How it came about" in card
    assert "## Measured" not in card


def test_adapters_kept_apart_are_the_recovery(fit: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    run = fit(tmp_path, with_export(adapters="folder", verify=True))
    ids, folder = run.data.search_windows.input_ids[:2], tmp_path / "model"
    merged, plain = logits_of(run.module.language, ids), load(folder)
    apart = logits_of(plain, ids)
    assert (apart - merged).abs().max() > 1e-3  # the recovery is not in it
    adapted = PeftModel.from_pretrained(plain, folder / "adapter")
    torch.testing.assert_close(logits_of(adapted, ids), merged, rtol=1e-5, atol=1e-5)
    export = json.loads((tmp_path / "report.json").read_text())["export"]
    assert export["path"] == str(folder)
    assert export["max_abs_logit_difference"] < 1e-4
    card = (folder / "README.md").read_text()
    assert "PeftModel.from_pretrained" in card
    assert "| adapruner | recovered |" in card  # measured after the folder was written
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_adapters_apart_without_a_recovery_are_refused_before_the_search(fit: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^export.adapters: expected a run with LoRA recovery for a folder of adapters, got none"):
        fit(tmp_path, [search_callback(), PrunedExportCallback(adapters="folder")])
    assert not (tmp_path / "study.journal").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, r"^export.dtype: expected float32, bfloat16 or float16, got 'float8'"),
        ({"max_shard_size": "many"}, r"^export.max_shard_size: expected a size such as 2GB, got 'many'"),
        ({"adapters": "folder", "pad": True}, r"^export.pad: expected adapters merged, got adapters: folder"),
        ({"adapters": "apart"}, r"^export.adapters: expected merged or folder, got 'apart'"),
    ],
)
def test_options_are_checked_when_given(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PrunedExportCallback(**options)


def test_the_push_comes_after_the_report(fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(push, "check_push", lambda name: calls.append((name, (tmp_path / "study.journal").exists())))
    monkeypatch.setattr(push, "push_folder", lambda folder, name, text: calls.append((folder, name, (tmp_path / "report.json").exists())))
    run = fit(tmp_path, with_export(push="me/small"), max_steps=1)
    assert calls[0] == ("me/small", False)
    assert calls[-1] == (tmp_path / "model", "me/small", True)
    assert run.search.plan is not None


def test_a_push_that_fails_costs_nothing_that_was_made(fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> str:
        raise ModelError("push: expected me/small to take the folder, got 403; push it by hand")

    monkeypatch.setattr(push, "check_push", lambda name: None)
    monkeypatch.setattr(push, "push_folder", refuse)
    with pytest.raises(ModelError, match=r"^push: expected me/small to take the folder"):
        fit(tmp_path, with_export(push="me/small"), max_steps=1)
    assert (tmp_path / "report.json").is_file()
    assert load(tmp_path / "model") is not None


def test_a_name_the_hub_would_not_take_is_refused_before_the_search(fit: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^push: expected a hub name such as user/model, got 'small'"):
        fit(tmp_path, with_export(push="small"))
    assert not (tmp_path / "study.journal").exists()

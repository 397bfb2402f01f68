"""One against two processes on gloo: search, surgery, recovery, resume, FSDP2. All runs are made once (conftest.py)."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapruner.recovery.last_checkpoint import find_checkpoint
from tests.distributed.runs import KILLED_AT, SAMPLES, STEPS, TRIALS

pytestmark = pytest.mark.slow  # processes are started, twice two
FSDP1 = ("fsdp1", "fsdp1-resumed", "fsdp1-shards", "fsdp1-shards-resumed")
RUNS = ("search", "resumed", "fsdp2", "fsdp2-resumed", "fsdp2-last", *FSDP1)


def seen(runs: Any, name: str) -> dict[int, list[int]]:
    """Step -> samples that both ranks saw."""
    steps: dict[int, list[int]] = {}
    for rank in runs.ranks:
        for step, *rows in rank[name]["seen"]:
            steps.setdefault(step, []).extend(rows)
    return {step: sorted(rows) for step, rows in steps.items()}


def test_both_ranks_cut_by_the_plan_that_the_killed_run_had_found(runs: Any) -> None:
    plan = json.loads((runs.folder / "killed" / "plan.json").read_text())
    for rank in runs.ranks:
        for name in RUNS:
            assert rank[name]["plan"] == plan["hash"]
            assert rank[name]["widths"] == runs.alone["widths"]
    first, second = (rank["search"] for rank in runs.ranks)
    assert first["resumed"] == TRIALS  # from the journal: the same world size
    assert first["values"] == second["values"]
    assert plan["provenance"]["world size"] == 2


def test_calibration_is_shared_out_and_is_that_of_one_process(runs: Any) -> None:
    """Statistics are kept per sample: exact. Gram matrices are sums: float noise."""
    alone, together = (load_file(runs.folder / name / "statistics.safetensors") for name in ("searched", "killed"))
    assert alone.keys() == together.keys()
    assert all(torch.equal(values, together[name]) for name, values in alone.items())
    alone, together = (load_file(runs.folder / name / "grams.safetensors") for name in ("searched", "killed"))
    assert alone.keys() == together.keys()
    for name, values in alone.items():
        torch.testing.assert_close(together[name], values, rtol=1e-5, atol=1e-4, msg=name)


def test_fixed_recipes_have_the_values_of_one_process(runs: Any) -> None:
    assert runs.ranks[0]["search"]["values"] == pytest.approx(runs.searched["values"], rel=1e-5)


def test_recovery_on_two_ranks_is_that_of_one_at_the_same_global_batch(runs: Any) -> None:
    alone = {step: sorted(rows) for step, *rows in runs.alone["seen"]}
    assert seen(runs, "search") == alone
    assert sorted(itertools.chain(*(alone[step] for step in range(6)))) == list(range(SAMPLES))  # an epoch: every sample once
    reached = [loss for _, loss in runs.ranks[0]["search"]["history"]]
    assert reached == pytest.approx([loss for _, loss in runs.alone["history"]], rel=1e-5)
    assert reached[-1] < reached[0]
    assert runs.ranks[0]["search"]["tokens"] == runs.alone["tokens"] > 0
    assert runs.distance("search", "search", ranks=(0, 1)) == 0.0
    moved = torch.load(runs.folder / "killed" / "step=4.ckpt", weights_only=True)["state_dict"]
    assert max(float(v.abs().max()) for name, v in moved.items() if "lora_B" in name) > 0.01
    assert runs.distance("alone", "search") < 2e-6


def test_a_killed_run_resumed_in_the_middle_of_an_epoch_is_bit_equal(runs: Any) -> None:
    assert runs.distance("search", "resumed") == 0.0
    assert sorted(seen(runs, "resumed")) == list(range(KILLED_AT, STEPS))
    assert seen(runs, "resumed")[KILLED_AT] == seen(runs, "search")[KILLED_AT]
    assert runs.ranks[0]["resumed"]["history"] == runs.ranks[0]["search"]["history"]


def test_fsdp2_is_ddp(runs: Any) -> None:
    assert (runs.folder / "fsdp2" / f"step={KILLED_AT}.ckpt" / "meta.pt").is_file()  # it was sharded
    assert runs.distance("alone", "fsdp2") < 2e-6
    assert runs.distance("fsdp2", "fsdp2", ranks=(0, 1)) == 0.0
    assert runs.distance("fsdp2", "fsdp2-resumed") == 0.0
    assert seen(runs, "fsdp2") == seen(runs, "search")
    for rank in runs.ranks:
        assert rank["fsdp2"]["class"] == "LlamaForCausalLM"  # whole, without adapters, on every rank


@pytest.mark.parametrize("name", ["fsdp1", "fsdp1-shards"])
def test_fsdp1_is_ddp(runs: Any, name: str) -> None:
    checkpoint = runs.folder / name / f"step={KILLED_AT}.ckpt"
    assert (checkpoint / "meta.pt").is_file() if name == "fsdp1-shards" else checkpoint.is_file()
    assert runs.distance("alone", name) < 2e-6
    assert runs.distance(name, name, ranks=(0, 1)) == 0.0
    assert runs.distance(name, f"{name}-resumed") == 0.0
    assert runs.distance(name, f"{name}-last") == 0.0  # nothing left to train
    assert sorted(seen(runs, f"{name}-resumed")) == list(range(KILLED_AT, STEPS))
    reached = [loss for _, loss in runs.ranks[0][name]["history"]]
    assert reached == pytest.approx([loss for _, loss in runs.ranks[0]["search"]["history"]], rel=1e-5)
    for rank in runs.ranks:
        assert rank[name]["class"] == "LlamaForCausalLM"  # whole, without adapters, on every rank


def test_fsdp1_shards_adapters_of_another_dtype(runs: Any) -> None:
    """A model of bfloat16 has adapters in float32; one flat tensor cannot hold both."""
    losses = {name: [loss for _, loss in runs.ranks[0][name]["history"]] for name in ("fsdp1-bf16", "ddp-bf16")}
    assert losses["fsdp1-bf16"][0] == losses["ddp-bf16"][0]
    assert losses["fsdp1-bf16"] == pytest.approx(losses["ddp-bf16"], rel=2e-2)  # a rounding that falls the other way is 0.4 %
    assert losses["fsdp1-bf16"][-1] < losses["fsdp1-bf16"][0]


def test_the_last_sharded_checkpoint_is_whole_and_found(runs: Any) -> None:
    run = runs.folder / "fsdp2"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert find_checkpoint(run, {"what": "a test"}, shards=True) == run / "checkpoints" / "last.ckpt"
    assert find_checkpoint(run, {"what": "another"}, shards=True) is None
    assert find_checkpoint(run, {"what": "a test"}) is None  # one process cannot go on from shards
    assert runs.distance("fsdp2", "fsdp2-last") == 0.0
    assert seen(runs, "fsdp2-last") == {}


def test_plans_that_differ_are_refused_on_all_ranks(runs: Any) -> None:
    plan = runs.alone["plan"]
    for rank in runs.ranks:
        assert rank["plans differ"].startswith(f"PlanError: plan: expected one plan on all 2 ranks, got {plan} on rank 0 and ")
        assert rank["plans differ"].endswith("on rank 1; give all machines the same plan file, model and data")


def test_a_study_of_another_world_size_is_refused_on_all_ranks(runs: Any) -> None:
    for rank in runs.ranks:
        assert rank["journal of one"].startswith("StudyError: search: expected the study in ")
        assert "to have the same world size (1), got 2; choose another run folder" in rank["journal of one"]

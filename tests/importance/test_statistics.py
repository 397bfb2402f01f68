"""Statistics against autograd's full weight gradients, one sample at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.multiprocessing.reductions import StorageWeakRef

from adapruner.errors import DataError, ModelError
from adapruner.importance.statistics import UnitStatistics, collect_statistics, statistics_per_sample
from adapruner.models.tracing import trace_structure
from tests.conftest import TokenWindows, build_model, build_windows


def sample_gradients(model: Any, windows: Any, row: int) -> None:
    """Leaves dL/dw of one sample's mean loss in ``.grad``."""
    model.zero_grad()
    keep = windows.attention_mask[row : row + 1]
    model(windows.input_ids[row : row + 1], attention_mask=keep, labels=windows.labels[row : row + 1], use_cache=False).loss.backward()


@pytest.mark.parametrize("padded", [False, True])
def test_first_and_second_equal_autograd(tiny_model: Any, token_windows: Any, family: str, padded: bool) -> None:
    model, windows = tiny_model(family), token_windows(padded=padded)
    structure = trace_structure(model)
    statistics = collect_statistics(model, structure, windows, batch_size=3)
    for row in range(len(windows.input_ids)):
        sample_gradients(model, windows, row)
        for member in (m for g in structure.groups for m in g.members):
            weight = model.get_submodule(member.module).weight
            products = weight.detach() * weight.grad
            squares = products.square().sum(1 - member.dim)
            torch.testing.assert_close(statistics.member["first", member.module][row], products.sum(1 - member.dim), rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(statistics.member["second", member.module][row], squares, rtol=1e-3, atol=1e-8)


def test_batch_equals_one_sample_at_a_time(tiny_model: Any, token_windows: Any, family: str) -> None:
    model, windows = tiny_model(family), token_windows(padded=True)
    structure = trace_structure(model)
    together = collect_statistics(model, structure, windows, batch_size=5)
    for row in range(5):
        alone = collect_statistics(model, structure, windows.select([row]))
        for table in ("member", "inputs"):
            for key, values in getattr(alone, table).items():
                torch.testing.assert_close(getattr(together, table)[key][row], values[0], rtol=1e-3, atol=1e-6)
        assert float(together.loss[row]) == pytest.approx(float(alone.loss[0]), rel=1e-5)
        assert float(together.tokens[row]) == 9 - row


def test_input_sums_equal_hooks(tiny_model: Any, token_windows: Any) -> None:
    model, windows = tiny_model("llama_gqa_2"), token_windows()
    structure = trace_structure(model)
    statistics = collect_statistics(model, structure, windows, needs=frozenset({"input_sum", "input_square_sum"}))
    for group in structure.groups:
        seen: list[torch.Tensor] = []
        handle = model.get_submodule(group.output.module).register_forward_pre_hook(lambda _, a, seen=seen: seen.append(a[0]))
        with torch.no_grad():
            model(windows.input_ids)
        handle.remove()
        torch.testing.assert_close(statistics.inputs["input_sum", group.name], seen[0].sum(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(statistics.inputs["input_square_sum", group.name], seen[0].square().sum(1), rtol=1e-4, atol=1e-5)
    assert not statistics.member


def test_weight_norms(tiny_model: Any, token_windows: Any) -> None:
    model = tiny_model("qwen3")
    structure = trace_structure(model)
    statistics = collect_statistics(model, structure, token_windows(), needs=frozenset())
    for member in (m for g in structure.groups for m in g.members):
        weight = model.get_submodule(member.module).weight.detach()
        rows = weight if member.dim == 0 else weight.T
        torch.testing.assert_close(statistics.weights["l1", member.module], torch.stack([r.abs().sum() for r in rows]))
        torch.testing.assert_close(statistics.weights["l2", member.module], torch.stack([(r**2).sum() for r in rows]))


def test_model_is_left_as_it_was(tiny_model: Any, token_windows: Any) -> None:
    model = tiny_model("llama").train()
    model.model.layers[1].eval()
    modes = [m.training for m in model.modules()]
    model.model.norm.weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    collect_statistics(model, trace_structure(model), token_windows())
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("model_name", ["llama_gqa_2", "llama_biased"])
def test_summed_gradients_in_one_batch_and_in_many(tiny_model: Any, token_windows: Any, monkeypatch: Any, model_name: str) -> None:
    model, windows = tiny_model(model_name), token_windows()
    structure, needs = trace_structure(model), frozenset({"summed_first", "summed_mix"})
    at_once = collect_statistics(model, structure, windows, needs=needs, batch_size=5)
    monkeypatch.setattr("adapruner.importance.layer_runs.ACCUMULATED_VALUES", 1)  # one layer a pass
    in_parts = collect_statistics(model, structure, windows, needs=needs, batch_size=2)
    for member in (m for g in structure.groups for m in g.members):
        for kind in needs:
            torch.testing.assert_close(at_once.weights[kind, member.module], in_parts.weights[kind, member.module], rtol=1e-4, atol=1e-8)


def test_round_trip_through_safetensors(tiny_model: Any, token_windows: Any, tmp_path: Any) -> None:
    model = tiny_model("llama_gqa_4")
    statistics = collect_statistics(model, trace_structure(model), token_windows())
    save_file(statistics.to_tensors(), tmp_path / "s.safetensors")
    back = UnitStatistics.from_tensors(load_file(tmp_path / "s.safetensors"))
    assert back.samples == statistics.samples
    for table in ("member", "inputs", "weights"):
        one, other = getattr(statistics, table), getattr(back, table)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_weights_that_are_not_finite_name_the_sample(tiny_model: Any, token_windows: Any) -> None:
    model = tiny_model("llama")
    structure = trace_structure(model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="expected a finite loss, got nan on sample 0"):
        collect_statistics(model, structure, token_windows())


def test_pool_without_text(tiny_model: Any, token_windows: Any) -> None:
    model = tiny_model("llama")
    structure, windows = trace_structure(model), token_windows()
    with pytest.raises(DataError, match="expected at least one sample, got none"):
        collect_statistics(model, structure, windows.select([]))
    silent = TokenWindows(windows.input_ids, torch.full_like(windows.labels, -100), windows.attention_mask)
    with pytest.raises(DataError, match="expected a token to predict, got none in sample 0"):
        collect_statistics(model, structure, silent)


def test_gates_at_the_values_equal_gates_at_the_output(tiny_model: Any, token_windows: Any) -> None:
    """A unit's output is linear in v (and in up): both ends give dL/dm of its gate, whatever the grouping."""
    for name in ("llama", "llama_gqa_4", "llama_mqa"):
        model = tiny_model(name)
        structure = trace_structure(model)
        first = collect_statistics(model, structure, token_windows(), needs=frozenset({"first"})).member
        for group in structure.groups:
            source = group.members[-2]
            assert source.role in ("v_proj", "up_proj")
            inner = first["first", source.module].view(5, group.units, -1).sum(2)
            outer = first["first", group.output.module].view(5, group.units, -1).sum(2)
            torch.testing.assert_close(inner, outer, rtol=1e-3, atol=1e-6)


def test_hooks_and_gradients_are_gone_after_an_error(tiny_model: Any, token_windows: Any) -> None:
    model, windows = tiny_model("llama"), token_windows()
    windows.labels[4] = -100
    with pytest.raises(DataError, match="expected a token to predict, got none in sample 4"):
        collect_statistics(model, trace_structure(model), windows, batch_size=2)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_pass_over_more_batches_leaves_no_more_tensors_behind() -> None:
    """A hook that holds the tensor it is registered on is never freed; every batch's activations would stay."""
    import gc

    def left_behind(batches: int) -> int:
        model = build_model("llama_gqa_2")
        structure = trace_structure(model)
        gc.collect()
        before = sum(isinstance(found, torch.Tensor) for found in gc.get_objects())
        statistics = collect_statistics(model, structure, build_windows(samples=batches), batch_size=1)
        gc.collect()
        after = sum(isinstance(found, torch.Tensor) for found in gc.get_objects())
        assert statistics.samples == batches
        return after - before

    assert left_behind(2) == left_behind(20)


@pytest.mark.parametrize("needs", [{"first"}, {"first", "second"}, {"second", "input_sum"}, {"first_absolute", "input_square_sum"}])
def test_what_is_kept_for_a_sample_is_known_before(tiny_model: Any, token_windows: Any, family: str, needs: set[str]) -> None:
    model, windows = tiny_model(family), token_windows()
    structure = trace_structure(model)
    found = collect_statistics(model, structure, windows, needs=frozenset(needs))
    kept = sum(t.numel() for table in (found.member, found.inputs) for t in table.values())
    assert kept == len(windows.input_ids) * statistics_per_sample(structure, frozenset(needs))


def test_an_output_that_no_statistic_reads_is_not_held(tiny_model: Any, token_windows: Any) -> None:
    """Autograd saves no output of o_proj and down_proj either, so that they are gone when the next layer runs."""
    model, held, gone = tiny_model("llama_gqa_2"), [], []
    structure = trace_structure(model)
    for group in structure.groups:
        output = model.get_submodule(group.output.module)
        output.register_forward_hook(lambda _, __, output: held.append(StorageWeakRef(output.untyped_storage())))
    model.model.norm.register_forward_pre_hook(lambda *_: gone.append([storage.expired() for storage in held]))
    collect_statistics(model, structure, token_windows(), needs=frozenset({"first", "second"}))
    assert gone[0] == [True] * len(structure.groups)

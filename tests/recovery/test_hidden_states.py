"""Hidden states in files: the same numbers, nothing left behind, and a disk without room refused before the work."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.errors import ConfigurationError
from adapruner.models.tracing import trace_structure
from adapruner.recovery import hidden_states
from adapruner.recovery.hidden_states import MappedStates, StateStore, folder_with_room
from adapruner.recovery.reconstruction import ReconstructionConfig, prune_and_reconstruct, reconstruction_gib
from adapruner.recovery.streams import states_gib
from tests.oracles.reconstruction import plan_for
from tests.tiny import random_windows, tiny_llama

IDS = random_windows(6, 24, seed=5).input_ids
CPU = torch.device("cpu")


@pytest.mark.parametrize("form", ["sequential", "local"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_refit_from_files_is_the_one_in_memory_to_the_bit(tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    in_memory = tiny_llama(attention_bias=True).to(dtype)
    from_files = copy.deepcopy(in_memory)
    structure = trace_structure(in_memory)
    plan = plan_for(structure)
    for layer in (0, 1):  # nothing removed here: the streams part in the last layer only
        plan.kept.update({g.name: list(range(g.units)) for g in structure.groups if g.layer == layer})
    for model, gib in ((in_memory, 8.0), (from_files, 0.0)):
        config = ReconstructionConfig(batch_size=4, form=form, states_gib=gib, states_folder=str(tmp_path))
        prune_and_reconstruct(model, structure, plan, IDS, config)
    for name, value in in_memory.state_dict().items():
        assert torch.equal(value, from_files.state_dict()[name]), name
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_files_are_used_only_above_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    structure = trace_structure(model)
    mapped: list[Path] = []
    made = MappedStates.__init__
    monkeypatch.setattr(MappedStates, "__init__", lambda self, file, *rest: (mapped.append(file), made(self, file, *rest))[1])
    size = states_gib(model, structure, IDS.numel(), ReconstructionConfig())
    for limit, expected in ((size * 1.01, False), (size * 0.99, True)):
        mapped.clear()
        config = ReconstructionConfig(batch_size=4, states_gib=limit, states_folder=str(tmp_path))
        prune_and_reconstruct(copy.deepcopy(model), structure, plan_for(structure), IDS, config)
        assert bool(mapped) is expected
        assert all(tmp_path in file.parents for file in mapped)


def most_mapped(folder: Path, config: ReconstructionConfig) -> int:
    """Bytes of mapped files that are alive at once in a refit of every layer."""
    alive: dict[int, int] = {}
    most, made = [0], MappedStates.__init__

    def counting(self: MappedStates, file: Path, shapes: Any, dtype: torch.dtype, device: torch.device) -> None:
        made(self, file, shapes, dtype, device)
        alive[id(self)] = sum(math.prod(shape) for shape in shapes) * dtype.itemsize
        weakref.finalize(self, alive.pop, id(self))
        most[0] = max(most[0], sum(alive.values()))

    model = tiny_llama()
    structure = trace_structure(model)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MappedStates, "__init__", counting)
        prune_and_reconstruct(model, structure, plan_for(structure), IDS, config)
    return most[0]


def test_the_size_is_that_of_what_is_kept(tmp_path: Path) -> None:
    """Sequential: three streams and one projection's inputs of 6 x 24 tokens in float32, the widest 48 channels, hidden size 32."""
    model = tiny_llama()
    structure = trace_structure(model)
    widest, hidden = max(g.channels for g in structure.groups), model.config.hidden_size
    tokens = IDS.numel()
    assert states_gib(model, structure, tokens, ReconstructionConfig()) == tokens * (3 * hidden + widest) * 4 / 2**30
    assert states_gib(model, structure, tokens, ReconstructionConfig(form="local")) == tokens * hidden * 4 / 2**30
    for form in ("sequential", "local"):
        most = most_mapped(tmp_path, ReconstructionConfig(batch_size=4, form=form, states_gib=0.0, states_folder=str(tmp_path)))
        assert most <= states_gib(model, structure, tokens, ReconstructionConfig(form=form)) * 2**30
    whole = reconstruction_gib(model, structure, 6, 24, ReconstructionConfig())
    in_files = reconstruction_gib(model, structure, 6, 24, ReconstructionConfig(states_gib=0.0))
    assert whole - in_files == pytest.approx(states_gib(model, structure, tokens, ReconstructionConfig()))


def test_states_come_out_as_they_went_in_and_apart_from_the_file(tmp_path: Path) -> None:
    own = tmp_path / "of-its-own"
    own.mkdir()
    states = MappedStates(own / "states", [(2, 3, 4), (1, 3, 4)], torch.bfloat16, CPU)
    assert not list(tmp_path.iterdir())  # as a killed process would leave it
    first, last = torch.randn(2, 3, 4).bfloat16(), torch.randn(1, 3, 4).bfloat16()
    states[0], states[1] = first, last
    taken = states[0]
    assert torch.equal(taken, first)
    states[0] = torch.zeros(2, 3, 4)
    assert torch.equal(taken, first)  # what was taken out is no view of the file
    assert torch.equal(torch.cat(states[1:]), last)
    assert len(states) == 2
    with pytest.raises(TypeError, match="has room for"):
        states.append(first)
    with pytest.raises(TypeError, match="cannot be taken out"):
        del states[0]


def test_a_copy_goes_its_own_way(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        store = StateStore([(1, 2)], folder)
        states = store.empty(3, torch.zeros(1))
        states[0] = torch.ones(1, 2, 3)
        copied = store.copy_of(states)
        copied[0] = torch.zeros(1, 2, 3)
        assert float(states[0].sum()) == 6.0


def test_a_disk_without_room_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    structure = trace_structure(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = ReconstructionConfig(states_gib=0.0, states_folder=str(tmp_path / "absent"))
    with pytest.raises(ConfigurationError, match=r"expected a folder, got .*absent, which is not there"):
        prune_and_reconstruct(model, structure, plan_for(structure), IDS, config)
    with pytest.raises(ConfigurationError, match=r"expected 1000000000\.0 GiB"):
        folder_with_room(str(tmp_path), 1e9)
    assert folder_with_room(None, 0.0) == Path(hidden_states.tempfile.gettempdir())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name

"""A refit that is killed goes on behind the last projection it had solved, and ends with the weights of one that was not."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.distributed import Ranks
from adapruner.models.tracing import trace_structure
from adapruner.recovery import sequential
from adapruner.recovery.reconstruction import ReconstructionConfig, prune_and_reconstruct
from adapruner.recovery.solve import RefitEquations
from adapruner.recovery.solved_projections import SolvedProjections
from tests.oracles.reconstruction import plan_for
from tests.ranks import on_two_ranks
from tests.tiny import random_windows, tiny_llama

IDS = random_windows(10, 24, seed=5).input_ids
FORMS = pytest.mark.parametrize("form", ["sequential", "local"])


class Killed(BaseException):
    pass


def refitted(
    config: ReconstructionConfig, folder: Path | None, key: str = "a", ranks: Ranks | None = None, dtype: str = "float32"
) -> dict[str, torch.Tensor]:
    model: Any = tiny_llama(attention_bias=True).to(getattr(torch, dtype))
    structure = trace_structure(model)
    solved = None if folder is None else SolvedProjections(folder, key)
    prune_and_reconstruct(model, structure, plan_for(structure), IDS, config, ranks=ranks, solved=solved)
    return dict(model.state_dict())


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], value) for name, value in expected.items())


def count_solves(monkeypatch: pytest.MonkeyPatch, kill_at: int = 0) -> list[int]:
    """A list that grows with every projection that is solved; the given one is never finished."""
    from adapruner.recovery import local

    inner, solves = sequential.solve_and_refit, list[int]()

    def counted(*arguments: Any) -> None:
        solves.append(1)
        if len(solves) == kill_at:
            raise Killed("power")
        inner(*arguments)

    for module in (sequential, local):
        monkeypatch.setattr(module, "solve_and_refit", counted)
    return solves


def killed(config: ReconstructionConfig, folder: Path, dtype: str) -> None:
    with pytest.raises(Killed, match="power"):
        refitted(config, folder, dtype=dtype)


@FORMS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_killed_refit_goes_on_behind_the_last_projection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, dtype: str) -> None:
    config = ReconstructionConfig(batch_size=4, form=form)
    expected = refitted(config, None, dtype=dtype)
    with monkeypatch.context() as killing:
        count_solves(killing, kill_at=4)
        killed(config, tmp_path / "refit", dtype)
    assert len(list((tmp_path / "refit").iterdir())) == 3
    solves = count_solves(monkeypatch)
    found = refitted(config, tmp_path / "refit", dtype=dtype)
    assert len(solves) == len(list((tmp_path / "refit").glob("model.*"))) - 3 > 0
    assert equal(found, expected)


@FORMS
def test_a_finished_refit_reads_no_text_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    config = ReconstructionConfig(batch_size=4, form=form)
    expected = refitted(config, tmp_path / "refit")
    monkeypatch.setattr(RefitEquations, "add", lambda *_: pytest.fail("a projection's sums are made again"))
    monkeypatch.setattr("adapruner.recovery.reconstruction.start", lambda *_: pytest.fail("the text is read again"))
    assert equal(refitted(config, tmp_path / "refit"), expected)


def test_another_refit_takes_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ReconstructionConfig(batch_size=4)
    refitted(config, tmp_path / "refit", "a")
    solves = count_solves(monkeypatch)
    other = ReconstructionConfig(batch_size=4, ridge=0.3)
    assert equal(refitted(other, tmp_path / "refit", "b"), refitted(other, None))
    assert len(solves) == 2 * len(list((tmp_path / "refit").glob("model.*")))
    assert equal(refitted(other, tmp_path / "refit", "b"), refitted(other, None))
    assert len(solves) == 3 * len(list((tmp_path / "refit").glob("model.*")))  # the one without a folder alone


@pytest.mark.parametrize("damage", ["one", "whole"])
def test_a_damaged_projection_is_solved_again(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = ReconstructionConfig(batch_size=4)
    expected = refitted(config, tmp_path / "refit")
    pattern = "*layers.1*down_proj*" if damage == "one" else "whole*"
    (file,) = (tmp_path / "refit").glob(pattern)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert equal(refitted(config, tmp_path / "refit"), expected)
    assert f"{file.name} cannot be read" in capsys.readouterr().out
    assert file.read_bytes() != bytes(content)


def killed_on_rank(rank: int, folder: Path, config: ReconstructionConfig) -> list[dict[str, torch.Tensor]]:
    """The first refit ends in the middle on both ranks; only rank 0 has the folder."""
    inner, solves = sequential.solve_and_refit, list[int]()

    def counted(*arguments: Any) -> None:
        solves.append(1)
        if len(solves) == 3:
            raise Killed("power")
        inner(*arguments)

    own, ranks = folder / f"rank-{rank}", Ranks()
    own.mkdir()
    sequential.solve_and_refit = counted
    with suppress(Killed):
        refitted(config, own / "refit", ranks=ranks)
    first = len(solves)
    again = refitted(config, own / "refit", ranks=ranks)
    third = refitted(config, own / "refit", ranks=ranks)
    return [again, third, {"files": torch.tensor(len(list(own.glob("refit/*")))), "solves": torch.tensor([first, len(solves)])}]


@pytest.mark.slow  # two processes are started
def test_ranks_go_on_together_though_only_the_first_has_the_files(tmp_path: Path) -> None:
    config = ReconstructionConfig(batch_size=2)
    expected = refitted(config, None)
    first, second = on_two_ranks(killed_on_rank, tmp_path, tmp_path, config)
    assert int(first[2]["files"]) > 0
    assert int(second[2]["files"]) == 0
    assert first[2]["solves"].tolist() == second[2]["solves"].tolist()
    # Each is solved once, the one that was never finished twice; and there is a file more, which says that all are there.
    assert int(first[2]["solves"][1]) == int(first[2]["files"])
    for again, third, _ in (first, second):
        for name, value in expected.items():
            torch.testing.assert_close(again[name], value, rtol=2e-3, atol=2e-4)
            assert torch.equal(again[name], third[name]), name
            assert torch.equal(again[name], first[0][name]), name

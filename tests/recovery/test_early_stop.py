"""Judged on held-out text: which weights stay, when it ends, and that a killed one decides alike."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import adapruner
from adapruner import stages
from adapruner.errors import ConfigurationError
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.recovery import training
from adapruner.recovery.early_stop import EarlyStop, EarlyStopConfig, held_out_nll, held_out_windows
from adapruner.recovery.lora import LoRAConfig
from adapruner.recovery.training import RecoveryConfig, train_recovery
from adapruner.report.answer import held_out_sentence
from adapruner.report.schema import validate_report
from tests.ranks import on_two_ranks
from tests.report.sample import sample_report
from tests.test_run import prune, texts
from tests.tiny import random_windows, tiny_llama

WINDOWS, HELD_OUT = random_windows(4, 12, seed=7), random_windows(6, 16, seed=8)


def config(steps: int = 12, form: Any = "lora", patience: int = 9, **options: Any) -> RecoveryConfig:
    """Four windows again and again at a high rate: good on them, soon worse on others."""
    looks = EarlyStopConfig(every_n_steps=2, patience=patience, samples=None)
    lora = LoRAConfig(r=4, alpha=8, dropout=0.1)
    return RecoveryConfig(steps=steps, form=form, lora=lora, batch_size=2, learning_rate=2e-2, early_stop=looks, **options)


@pytest.mark.parametrize("form", ["lora", "full"])
def test_the_result_is_the_training_that_ends_at_the_best_look(form: Any) -> None:
    """The oracle trains for every number of steps anew, and judges the merged model."""
    plain = {
        steps: evaluate_nll(trained, HELD_OUT).nll
        for steps in range(2, 13, 2)
        if (
            trained := train_recovery(
                tiny_llama(), WINDOWS, RecoveryConfig(**{**vars(config(steps, form)), "early_stop": EarlyStopConfig()})
            ).model
        )
    }
    plain[0] = evaluate_nll(tiny_llama(), HELD_OUT).nll
    found = train_recovery(tiny_llama(), WINDOWS, config(form=form), held_out=HELD_OUT)
    assert found.looks is not None
    assert dict(found.looks.looks) == pytest.approx(plain, rel=1e-5)
    best = min(plain, key=lambda step: plain[step])
    assert found.looks.best_step == best
    assert best < 12  # else nothing was restored
    assert evaluate_nll(found.model, HELD_OUT).nll == pytest.approx(plain[best], rel=1e-5)
    assert len(found.history) == 12


def test_patience_ends_it() -> None:
    found = train_recovery(tiny_llama(), WINDOWS, config(steps=60, patience=2), held_out=HELD_OUT)
    assert found.looks is not None
    assert found.ended_by == "early stop"
    assert len(found.history) == found.looks.best_step + 4 < 60  # type: ignore[operator]


def test_a_killed_one_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = train_recovery(tiny_llama(), WINDOWS, config(steps=60, patience=2, every_n_steps=1), held_out=HELD_OUT)
    last = len(unbroken.history)
    inner = training._step

    def killed(adapted: Any, batch: Any, state: Any, *rest: Any) -> float:
        if state.step == last - 1:
            raise KeyboardInterrupt("here")
        return inner(adapted, batch, state, *rest)

    options: dict[str, Any] = {"folder": tmp_path, "held_out": HELD_OUT}
    with monkeypatch.context() as patch:
        patch.setattr(training, "_step", killed)
        with pytest.raises(KeyboardInterrupt, match="here"):
            train_recovery(tiny_llama(), WINDOWS, config(steps=60, patience=2, every_n_steps=1), **options)
    for _ in range(2):  # the second time nothing is left to train
        resumed = train_recovery(tiny_llama(), WINDOWS, config(steps=60, patience=2, every_n_steps=1), **options)
        assert resumed.looks is not None
        assert unbroken.looks is not None
        assert (resumed.looks.looks, resumed.ended_by) == (unbroken.looks.looks, "early stop")
        assert resumed.history == unbroken.history
        for name, value in unbroken.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], value), name


def test_looks_move_nothing() -> None:
    """Dropout and the order of windows are those of a training without them."""
    judged = train_recovery(tiny_llama(), WINDOWS, config(), held_out=HELD_OUT)
    plain = train_recovery(tiny_llama(), WINDOWS, RecoveryConfig(**{**vars(config()), "early_stop": EarlyStopConfig()}))
    assert judged.history == plain.history


def looked(values: list[float], **options: Any) -> EarlyStop:
    stop = EarlyStop(EarlyStopConfig(every_n_steps=1, **options), windows=1)
    for step, value in enumerate(values):
        stop.look(step, value, lambda value=value: {"nll": torch.tensor(value)})  # type: ignore[misc]
    return stop


def test_small_gains_count_for_the_result_and_not_for_patience() -> None:
    stop = looked([3.0, 2.99, 2.98, 2.97], patience=3, least_gain=0.05)
    assert stop.is_over
    assert stop.best_step == 3
    assert float(stop.best["nll"]) == pytest.approx(2.97)
    assert not looked([3.0, 2.99, 2.98, 2.9], patience=3, least_gain=0.05).is_over  # together they are one


def test_what_is_no_number_is_never_the_best() -> None:
    stop = looked([math.nan, 3.0, math.nan, math.inf], patience=2)
    assert stop.best_step == 1
    assert stop.is_over
    assert stop.to_report()["looks"] == [[0, None], [1, 3.0], [2, None], [3, None]]


def test_text_that_is_trained_on_is_not_judged_on(capsys: pytest.CaptureFixture[str]) -> None:
    seen = random_windows(4, 12, seed=1)
    mixed = copy.deepcopy(HELD_OUT)
    mixed.document_hashes = [*seen.document_hashes[:2], *HELD_OUT.document_hashes[2:]]
    on = EarlyStopConfig(every_n_steps=1, samples=3)
    assert torch.equal(held_out_windows(mixed, seen, on).input_ids, HELD_OUT.input_ids[2:5])
    assert "recovery is judged on 4 of 6 held-out windows: it trains on text of the others" in capsys.readouterr().out
    with pytest.raises(
        ConfigurationError, match=r"recovery\.early_stop: expected held-out text that recovery does not train on, got .* all 4 "
    ):
        held_out_windows(seen, seen, on)
    with pytest.raises(ConfigurationError, match=r"recovery\.early_stop: expected held-out text to judge on, got none; give held_out"):
        train_recovery(tiny_llama(), WINDOWS, config())


def nll_of_rank(rank: int) -> tuple[float, int]:
    model, calls = tiny_llama(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    model.model.register_forward_hook(lambda *_: calls.append(1))
    return held_out_nll(model, HELD_OUT, 2), len(calls)


@pytest.mark.slow  # two processes are started
def test_ranks_share_out_the_windows_and_find_the_same(tmp_path: Path) -> None:
    (first, runs), (second, others) = on_two_ranks(nll_of_rank, tmp_path)
    assert first == second
    assert first == pytest.approx(evaluate_nll(tiny_llama(), HELD_OUT).nll, rel=1e-6)
    assert runs == others  # three batches: two each, one of them twice and counted once
    assert runs < nll_of_rank(0)[1]


def test_from_python_the_search_split_is_no_text_of_the_recovery() -> None:
    recovery = RecoveryConfig(steps=4, learning_rate=1e-3, early_stop=EarlyStopConfig(every_n_steps=2))
    result = prune(recovery=recovery, evaluation=texts(20, seed=5))
    looks = result.report["recovery"]["lora"]["early_stop"]
    assert [step for step, _ in looks["looks"]] == [0, 2, 4]
    with pytest.raises(ConfigurationError, match=r"recovery\.early_stop: expected held-out text that recovery does not train on"):
        prune(recovery=recovery, recovery_texts=texts(60))


def test_a_stage_takes_text_of_its_own() -> None:
    recovery = RecoveryConfig(steps=2, early_stop=EarlyStopConfig(every_n_steps=1))
    found = stages.recover(tiny_llama(), None, WINDOWS, recovery, held_out=HELD_OUT)
    assert found.looks is not None
    assert found.looks.windows == 6
    with pytest.raises(ConfigurationError, match=r"expected held-out text to judge on, got none"):
        stages.recover(tiny_llama(), None, WINDOWS, recovery)


def test_the_report_says_where_it_was_best() -> None:
    found = train_recovery(tiny_llama(), WINDOWS, config(steps=60, patience=2), held_out=HELD_OUT)
    record = sample_report()
    record["recovery"]["lora"] = found.to_report()
    lora = validate_report(record).recovery.lora  # type: ignore[union-attr]
    assert lora is not None
    assert lora.ended_by == "early stop"
    said = held_out_sentence(lora)
    assert said is not None
    assert said.startswith(f"On 6 held-out windows best behind step {found.looks.best_step}: ")  # type: ignore[union-attr]
    assert "its weights stay" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every_n_steps": -1}, "every_n_steps: expected 0 or more, got -1; give 20, or 0 for no looks"),
        ({"patience": 0}, "patience: expected 1 or more, got 0"),
        ({"samples": 0}, "samples: expected 1 or more, got 0"),
        ({"least_gain": -0.1}, "least_gain: expected a finite number of 0 or more, got -0.1"),
        ({"least_gain": math.inf}, "least_gain: expected a finite number of 0 or more, got inf"),
    ],
)
def test_numbers_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"early_stop\.{said}"):
        EarlyStopConfig(**options)


def test_it_is_off_by_default() -> None:
    assert not adapruner.RecoveryConfig().early_stop

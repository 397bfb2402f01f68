from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import nn

from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.errors import BudgetError, ConfigurationError, DataError, ModelError, PlanError, StudyError
from adapruner.files.folder_lock import FolderLock
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs.latency_table import LatencyTable
from adapruner.pruning.plan import read_plan
from adapruner.pruning.recipe import Recipe
from adapruner.search import prepare_problem
from adapruner.search.config import ObjectiveConfig
from adapruner.search.space import SearchSpace
from adapruner.search.study import SearchConfig
from tests.callbacks.conftest import FFN, ForeignData, ForeignModule, Run, foreign_trainer, search_callback


class Killed(BaseException):
    """As a signal would: nothing catches it."""


def fitted(folder: Path, *callbacks: Any, **options: Any) -> Run:
    return Run(folder, list(callbacks), **options)


def test_a_given_plan_is_applied_without_a_search(finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = fitted(tmp_path, search_callback(plan=str(finished.folder / "plan.json"), search=SearchConfig(n_trials=99)), max_steps=1)
    assert not list(tmp_path.rglob("statistics.safetensors"))  # nothing is scored for a plan that is given
    assert given.search.plan is not None
    assert given.search.plan.hash == finished.search.plan.hash  # type: ignore[union-attr]
    assert given.widths == finished.widths
    assert given.search.found.outcome is None
    assert not (tmp_path / "study.journal").exists()
    assert "no search" in capsys.readouterr().out


def test_a_plan_for_another_model_is_refused(finished: Run, tmp_path: Path) -> None:
    class Other(ForeignModule):
        def __init__(self) -> None:
            super().__init__()
            with torch.no_grad():
                self.language.lm_head.weight.add_(1.0)

    trainer = foreign_trainer(tmp_path, [search_callback(plan=str(finished.folder / "plan.json"))])
    with pytest.raises(PlanError, match="plan: expected a plan for the model with fingerprint"):
        trainer.fit(Other(), datamodule=ForeignData())
    with pytest.raises(PlanError, match=r"plan gone.json: expected a readable file, got No such file"):
        search_callback(plan="gone.json")


def test_without_reconstruction_the_weights_are_the_kept_ones(finished: Run, tmp_path: Path) -> None:
    plain = fitted(tmp_path, search_callback(plan=str(finished.folder / "plan.json"), reconstruction=None), max_steps=0)
    dense = ForeignModule().language
    plan = read_plan(finished.folder / "plan.json")
    for index, layer in enumerate(plain.module.language.model.layers):
        kept = plan.kept[f"{index}.ffn"]
        assert torch.equal(layer.mlp.down_proj.weight, dense.model.layers[index].mlp.down_proj.weight[:, kept])


@pytest.mark.parametrize("known", [True, False])
def test_a_resumed_run_has_the_same_widths(tmp_path: Path, known: bool) -> None:
    """From a checkpoint: by the plan in it, or by the journal in the run folder."""
    first = fitted(tmp_path / "run", search_callback(), max_steps=2)
    checkpoint = tmp_path / "step2.ckpt"
    first.trainer.save_checkpoint(checkpoint)
    callback = search_callback()
    if known:
        callback.checkpoint = str(checkpoint)  # as the command line sets it
    folder = tmp_path / ("elsewhere" if known else "run")
    second = fitted(folder, callback, ckpt_path=checkpoint, max_steps=3)
    assert second.trainer.global_step == 3
    assert second.widths == first.widths != [FFN] * 3
    assert callback.plan is not None
    assert callback.plan.hash == first.search.plan.hash  # type: ignore[union-attr]
    assert callback.scored is not None
    if known:
        assert not (folder / "study.journal").exists()


def test_a_killed_search_goes_on(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapruner.search.trial_value import Objective

    evaluate, calls = Objective.of_plan, iter(range(100))

    def dying(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 3:
            raise Killed("killed")
        return evaluate(*arguments, **options)

    monkeypatch.setattr(Objective, "of_plan", dying)
    with pytest.raises(Killed, match=r"^killed$"):
        foreign_trainer(tmp_path, [search_callback()]).fit(ForeignModule(), datamodule=ForeignData())
    resumed = fitted(tmp_path, search_callback(), max_steps=1)
    assert resumed.search.found.outcome is not None
    assert resumed.search.found.outcome.resumed == 3
    assert resumed.search.plan.hash == finished.search.plan.hash  # type: ignore[union-attr]


def test_another_question_in_the_same_folder_is_refused(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="to have the same budget"):
        fitted(finished.folder, search_callback(budget=Budget(0.4)))


def test_the_optimizer_must_hold_the_pruned_parameters(tmp_path: Path) -> None:
    class TooEarly(ForeignModule):
        def __init__(self) -> None:
            super().__init__()
            self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)

        def configure_optimizers(self) -> Any:
            return self.optimizer

    trainer = foreign_trainer(tmp_path, [search_callback()])
    with pytest.raises(ModelError, match="optimizer: expected only parameters of the pruned model, got some from before the surgery"):
        trainer.fit(TooEarly(), datamodule=ForeignData())


def test_spawning_launchers_are_refused_before_any_work(tmp_path: Path) -> None:
    trainer = Trainer(default_root_dir=tmp_path / "new", accelerator="cpu", strategy="ddp_spawn", devices=2, logger=False)
    with pytest.raises(
        ConfigurationError, match=r"trainer.strategy: expected a launcher that starts whole processes, got one that uses 'spawn'"
    ):
        search_callback().setup(trainer, ForeignModule(), "fit")
    assert not (tmp_path / "new").exists()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    class NoModel(ForeignModule):
        def __init__(self) -> None:
            super().__init__()
            self.language = nn.Linear(2, 2)  # type: ignore[assignment]

    data = ForeignData()
    del data.search_windows
    cases: list[tuple[Any, Any, Any, type[Exception], str]] = [
        (NoModel(), ForeignData(), {}, ModelError, r"expected a Hugging Face causal LM in NoModel.language, got Linear"),
        (ForeignModule(), ForeignData(), {"model_attribute": "net"}, ModelError, r"in ForeignModule.net, got NoneType; name the attribute"),
        (ForeignModule(), data, {}, DataError, "data: expected a data module with search_windows, got ForeignData"),
        (ForeignModule(), ForeignData(), {"budget": Budget(0.99)}, BudgetError, r"expected at most 0\.\d+ of block parameters"),
    ]
    for module, source, options, kind, message in cases:
        with pytest.raises(kind, match=message):
            foreign_trainer(tmp_path, [search_callback(**options)]).fit(module, datamodule=source)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"folder: expected a folder that can be written, got .*file"):
        fitted(tmp_path, search_callback(folder=str(tmp_path / "file")))
    with pytest.raises(ConfigurationError, match=r"pruning.statistics_batch_size: expected 1 or more, got 0"):
        search_callback(statistics_batch_size=0)


def test_damaged_statistics_are_collected_again(finished: Run, tmp_path: Path) -> None:
    (tmp_path / "statistics.safetensors").write_bytes(b"half a fi")
    run = fitted(tmp_path, search_callback(), max_steps=1)
    assert run.search.plan.hash == finished.search.plan.hash  # type: ignore[union-attr]
    assert (tmp_path / "statistics.safetensors").stat().st_size == (finished.folder / "statistics.safetensors").stat().st_size


def test_the_search_leaves_the_random_state_alone(tmp_path: Path) -> None:
    trainer, module, data = foreign_trainer(tmp_path, []), ForeignModule(), ForeignData()
    callback = search_callback()
    trainer.datamodule = data  # type: ignore[attr-defined]
    torch.manual_seed(5)
    state = copy.deepcopy(torch.get_rng_state())
    callback.setup(trainer, module, "fit")
    assert torch.equal(torch.get_rng_state(), state)
    assert callback.plan is not None
    plan = callback.plan
    callback.setup(trainer, module, "fit")  # once is enough
    assert callback.plan is plan


def test_a_fixed_recipe_is_applied_without_a_search(tmp_path: Path) -> None:
    recipe = Recipe({"flap_wifv": 1.0}, head_reduction="mean", normaliser="standardise", scope="layer", bias_compensation=True)
    run = fitted(tmp_path, search_callback(recipe=recipe), max_steps=1)
    assert run.search.found.outcome is None
    assert run.search.plan is not None
    assert run.search.plan.recipe["coefficients"] == {"flap_wifv": 1.0}
    assert run.search.plan.output_bias
    assert all(layer.mlp.down_proj.bias is not None for layer in run.module.language.model.layers)
    assert not (tmp_path / "study.journal").exists()
    assert read_plan(tmp_path / "plan.json").hash == run.search.plan.hash
    with pytest.raises(ConfigurationError, match=r"pruning\.recipe: expected a plan or a recipe, got both"):
        search_callback(recipe=recipe, plan=str(tmp_path / "plan.json"))


def test_a_latency_budget_is_measured_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is made up, as a model this small takes the same time at any width; the plans are timed."""
    table = LatencyTable({"attention": 0.2, "ffn": 0.002}, 5.0, 16, 1, "made up")
    monkeypatch.setattr(prepare_problem, "measure_table", lambda *_, **__: table)
    run = fitted(tmp_path, search_callback(budget=Budget(0.1, "latency", seq_len=16), recipe=Recipe({"l2": 1.0})), max_steps=1)
    assert run.search.plan is not None
    facts = run.search.plan.provenance["latency"]
    assert facts["measured_ms"] > 0
    assert 1 <= facts["rounds"] <= 3
    assert run.search.plan.budget["of"] == "latency"
    assert (tmp_path / "latency.json").exists()
    again = fitted(tmp_path, search_callback(budget=Budget(0.1, "latency", seq_len=16), recipe=Recipe({"l2": 1.0})), max_steps=1)
    assert again.search.plan is not None
    assert again.search.plan.provenance == run.search.plan.provenance  # not timed again: a checkpoint has this very plan


def test_trials_are_judged_after_the_refit_where_it_fits(tmp_path: Path) -> None:
    run = fitted(tmp_path, search_callback(), max_steps=1)
    assert (tmp_path / "grams.safetensors").exists()
    assert run.search.scored.identity["objective"]["refit"] == {"strength": 0.1, "relative_to": "channel"}
    small = SearchConfig(n_trials=4, space=SearchSpace(metrics=["l2"]), objective=ObjectiveConfig(refit_gib=0.0))
    other = fitted(tmp_path / "small", search_callback(search=small), max_steps=1)
    assert other.search.scored.identity["objective"]["refit"] is None
    assert not (tmp_path / "small" / "grams.safetensors").exists()


def test_a_run_is_refused_beside_another_and_changes_nothing(tmp_path: Path) -> None:
    other = FolderLock()
    other.take(tmp_path)
    with pytest.raises(ConfigurationError, match=r"^folder: expected no other run at work in .*, got one; wait for it"):
        fitted(tmp_path, search_callback(), max_steps=1)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]  # the other's
    other.release()
    assert fitted(tmp_path, search_callback(), max_steps=1).search.plan is not None
    other.take(tmp_path)  # a run that has ended gave it back
    other.release()


def test_a_budget_that_is_a_number_is_called_as_it_was_written() -> None:
    with pytest.raises(ConfigurationError, match=r"^budget: expected a number in \[0, 1\), got 1\.5"):
        PruningSearchCallback(1.5)  # type: ignore[arg-type]

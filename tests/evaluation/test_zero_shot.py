"""Scores against lm-eval's own command on the same folder, and against choices summed by hand."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.errors import ConfigurationError, DataError
from adapruner.evaluation import zero_shot
from adapruner.evaluation.zero_shot import SEVEN, check_harness, describe_zero_shot, load_tasks, score_tasks
from tests.local_tasks import COLOURS, QUESTIONS, write_tasks
from tests.ranks import on_two_ranks
from tests.tiny import save_tiny, tiny_llama, word_tokenizer

TASKS = (QUESTIONS, COLOURS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lm_eval")
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return load_tasks(TASKS, folder)


def own_results(model_folder: Path, tasks: Path, **options: Any) -> Any:
    """What the harness itself finds for a folder."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    arguments = {"model": "hf", "model_args": f"pretrained={model_folder}", "device": "cpu", "log_samples": False}
    return lm_eval.simple_evaluate(tasks=list(TASKS), task_manager=manager, **arguments, **options)


@pytest.mark.parametrize("options", [{"batch_size": 8}, {"batch_size": 3, "limit": 7}, {"batch_size": 8, "num_fewshot": 2}])
def test_a_model_in_memory_scores_to_the_last_digit_what_lm_eval_finds_for_its_folder(
    folder: Path, tmp_path: Path, options: dict[str, int]
) -> None:
    own, options, shots = own_results(save_tiny(tmp_path / "model"), folder, **options), dict(options), options.get("num_fewshot", 0)
    tasks = load_tasks(TASKS, folder, options.pop("num_fewshot", None))
    scores = score_tasks(tiny_llama(), word_tokenizer(), tasks, **options)
    assert [(s.task, s.metric) for s in scores] == [(QUESTIONS, "acc"), (QUESTIONS, "acc_norm"), (COLOURS, "acc")]
    for score in scores:
        assert score.value == own["results"][score.task][f"{score.metric},none"]
        assert score.stderr == own["results"][score.task][f"{score.metric}_stderr,none"]
        assert score.documents == own["n-samples"][score.task]["effective"] == options.get("limit", 23)
        assert score.shots == own["n-shot"][score.task] == shots


def test_accuracies_are_those_of_choices_summed_by_hand(folder: Path, loaded: Any) -> None:
    model, tokenizer = tiny_llama(), word_tokenizer()
    right, right_normed, documents = 0, 0, [json.loads(line) for line in (folder / f"{QUESTIONS}.jsonl").read_text().splitlines()]
    for document in documents:
        prompt = tokenizer(document["question"])["input_ids"]
        sums = []
        for choice in document["choices"]:
            ids = prompt + tokenizer(choice)["input_ids"]
            with torch.no_grad():
                likely = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(likely[place - 1, ids[place]].item() for place in range(len(prompt), len(ids))))
        right += max(range(4), key=lambda i: sums[i]) == document["label"]
        right_normed += max(range(4), key=lambda i: sums[i] / len(document["choices"][i])) == document["label"]
    scores = {s.metric: s.value for s in score_tasks(model, tokenizer, loaded) if s.task == QUESTIONS}
    assert scores == {"acc": right / len(documents), "acc_norm": right_normed / len(documents)}


def test_model_tokenizer_and_tasks_are_as_they_were(loaded: Any) -> None:
    model, tokenizer = tiny_llama(), word_tokenizer()
    tokenizer.pad_token = None
    model.train()
    model.model.layers[0].eval()
    state = torch.get_rng_state()
    first = score_tasks(model, tokenizer, loaded, limit=5)
    assert model.training
    assert not model.model.layers[0].training
    assert torch.is_grad_enabled()
    assert tokenizer.pad_token is None
    assert torch.equal(torch.get_rng_state(), state)
    assert score_tasks(model, tokenizer, loaded, limit=5) == first
    assert {s.documents for s in score_tasks(model, tokenizer, loaded)} == {23}


def test_pruned_layers_are_scored_in_memory_and_from_their_export_alike(loaded: Any, tmp_path: Path) -> None:
    """Layers of different widths, which lm-eval could load only by running the folder's code."""
    from adapruner.export.folder import export_model
    from adapruner.export.loading import load
    from adapruner.models.tracing import trace_structure
    from adapruner.pruning.budget import Budget
    from adapruner.pruning.problem import make_plan
    from adapruner.pruning.recipe import Recipe
    from adapruner.pruning.surgery import prune_model
    from tests.tiny import prepare_problem, random_windows

    model = tiny_llama()
    problem = prepare_problem(model, random_windows(6, 16, seed=1), Budget(0.4))
    plan = make_plan(problem, Recipe({"l2": 1.0}))
    structure = trace_structure(model)
    prune_model(model, structure, plan)
    export_model(model, word_tokenizer(), structure, plan, tmp_path / "out")
    scores = score_tasks(model, word_tokenizer(), loaded)
    assert score_tasks(load(tmp_path / "out"), word_tokenizer(), loaded) == scores
    assert scores != score_tasks(tiny_llama(), word_tokenizer(), loaded)


def score_and_count(loaded: Any) -> tuple[list[Any], int]:
    """Scores of the tiny model, and how many forwards they took."""
    model, seen = tiny_llama(), []
    model.register_forward_hook(lambda *_: seen.append(1))
    return score_tasks(model, word_tokenizer(), loaded, batch_size=1), len(seen)


def score_on_rank(rank: int, folder: Path) -> tuple[list[Any], int, str]:
    """The worker of the next test."""
    loaded = load_tasks(TASKS, folder)
    scores, forwards = score_and_count(loaded)
    with pytest.raises(DataError, match="expected a document for each of") as caught:
        score_tasks(tiny_llama(), word_tokenizer(), loaded, limit=1)
    return scores, forwards, str(caught.value)


@pytest.mark.slow  # two processes, each of which imports the harness
def test_two_ranks_share_the_documents_and_both_have_all_scores(folder: Path, loaded: Any, tmp_path: Path) -> None:
    alone, forwards = score_and_count(loaded)
    (first, of_first, refused), (second, of_second, _) = on_two_ranks(score_on_rank, tmp_path, folder)
    assert first == second
    exact = [(s.task, s.metric, s.value, s.documents, s.shots) for s in alone]
    assert [(s.task, s.metric, s.value, s.documents, s.shots) for s in first] == exact
    assert [s.stderr for s in first] == pytest.approx([s.stderr for s in alone], rel=1e-12)  # the documents' order is another
    assert max(of_first, of_second) < 0.7 * forwards
    assert "expected a document for each of 2 ranks, got 1; raise the limit or use fewer ranks" in refused


def test_a_group_has_its_means_and_the_documents_of_its_tasks(folder: Path, tmp_path: Path) -> None:
    own = write_tasks(tmp_path)
    metrics = "aggregate_metric_list: [{metric: acc, weight_by_size: true}]"
    (own / "both.yaml").write_text(f"group: tiny_both\ntask: [{QUESTIONS}, {COLOURS}]\n{metrics}\nmetadata: {{version: 1.0}}\n")
    scores = score_tasks(tiny_llama(), word_tokenizer(), load_tasks(["tiny_both"], own), limit=6)
    by_task = {(s.task, s.metric): s for s in scores}
    mean = (by_task[QUESTIONS, "acc"].value + by_task[COLOURS, "acc"].value) / 2
    assert by_task["tiny_both", "acc"].value == pytest.approx(mean)
    assert by_task["tiny_both", "acc"].documents == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": []}, "zero_shot.tasks: expected one or more names, each once, got none"),
        ({"tasks": [QUESTIONS, QUESTIONS]}, f"each once, got {QUESTIONS}, {QUESTIONS}"),
        ({"num_fewshot": -1}, "zero_shot.num_fewshot: expected 0 or more, got -1"),
        ({"task_folder": "nowhere"}, "zero_shot.task_folder: expected a folder with .yaml task files, got none in nowhere"),
    ],
)
def test_what_cannot_be_loaded_is_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_tasks(**{"tasks": TASKS, "task_folder": folder, **options})


def test_an_unknown_task_has_its_nearest_neighbours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks

    everything = lm_eval.tasks.TaskManager

    def own_only(include_path: Any = None, include_defaults: bool = True) -> Any:  # the harness's own folder takes long to read
        return everything(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", own_only)
    with pytest.raises(ConfigurationError, match=r"expected a task that lm-eval knows, got 'tiny_question'; did you mean 'tiny_questions'"):
        load_tasks(["tiny_question"], folder)
    with pytest.raises(ConfigurationError, match=r"got 'boolq'; lm-eval ls tasks lists them"):
        load_tasks(["seven"], folder)


def test_documents_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    own = write_tasks(tmp_path)
    (own / f"{QUESTIONS}.jsonl").unlink()
    with pytest.raises(DataError, match=f"zero_shot.tasks: expected the documents of {QUESTIONS}, got: ") as caught:
        load_tasks([QUESTIONS], own)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["limit", "batch_size"])
def test_numbers_must_be_positive(loaded: Any, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"zero_shot.{name}: expected a positive integer, got 0"):
        score_tasks(tiny_llama(), word_tokenizer(), loaded, **{name: 0})


def test_without_the_harness_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigurationError, match=r"expected the package lm_eval, got none installed; pip install adapruner\[eval\]"):
        check_harness()


def test_the_protocol_says_release_shots_and_documents() -> None:
    scores = [zero_shot.TaskScore("a", "acc", 0.5, None, 7, 0), zero_shot.TaskScore("b", "acc", 0.5, None, 7, 5)]
    pytest.importorskip("lm_eval")
    text = describe_zero_shot(scores, 7, 4)
    assert text.startswith(f"lm-eval {version('lm-eval')}, 0 to 5 examples before a question, the first 7 documents of each task at most")
    assert "all documents of each task, batches of 4" in describe_zero_shot(scores[:1], None, 4)


def test_the_seven_are_tasks_that_the_harness_ships() -> None:
    """Their files are read; their documents are on the hub."""
    package = Path(pytest.importorskip("lm_eval").__file__).parent / "tasks"
    folders = ("super_glue/boolq", "piqa", "hellaswag", "winogrande", "arc", "openbookqa")
    lines = [line for name in folders for file in (package / name).glob("*.yaml") for line in file.read_text().splitlines()]
    assert set(SEVEN) <= {line.split(":")[1].strip() for line in lines if line.startswith("task:")}

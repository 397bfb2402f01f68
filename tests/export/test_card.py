from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from adapruner.export.card import card_of_report, model_card, written_in
from adapruner.export.licence import base_licence, is_hub_name
from adapruner.pruning.fixed_recipe import IN_WORDS
from adapruner.pruning.plan import PruningPlan

REPORT: dict[str, Any] = {
    "seed": 4,
    "versions": {"torch": "2.13.0", "peft": "0.21.2"},
    "hardware": "a CPU",
    "perplexity": [
        {"stage": "dense", "method": "dense", "dataset": "wiki", "window": 128, "value": 12.345678},
        {"stage": "dense", "method": "dense", "dataset": "code | all", "window": 64, "value": 45_678.9},
        {"stage": "recovered", "method": "adapruner", "dataset": "wiki", "window": 128, "value": None},
    ],
    "protocol": "mean NLL",
    "search": {"trials": 48, "completed": 40, "dense_value": 3.25, "best_value": 3.5, "judged": "NLL after the refit"},
    "recovery": {
        "reconstruction": {"ridge": 0.01, "seconds": 3.0},
        "lora": {"r": 8, "alpha": 16, "steps": 30, "seconds": 1, "history": []},
    },
    "cost": {
        "dense": {"parameters": 4_000_000, "macs": 5_000, "latency_ms": 4.5, "weight_memory_gib": 0.25, "latency_iqr_ms": 1.0},
        "pruned": {"parameters": 3_000_000, "macs": None, "latency_ms": 3.5, "weight_memory_gib": 0.2},
        "protocol": "one forward",
    },
}


def plan(name: str = "org/base") -> PruningPlan:
    return PruningPlan(
        model={"name": name, "model_type": "llama", "fingerprint": "f00d"},
        kept={"0.attention": [0], "0.ffn": [0, 1], "1.attention": [1], "1.ffn": [2]},
        units={"0.attention": 2, "0.ffn": 4, "1.attention": 2, "1.ffn": 4},
        parameters={"dense": 2000, "pruned": 1500, "block_dense": 1000, "block_pruned": 500},
        budget={"pruned_fraction": 0.5, "of": "block"},
        recipe={"coefficients": {"l2": 1.0}},
        provenance={"seed": 11},
    )


def front_matter(text: str) -> dict[str, Any]:
    return ModelCard(text).data.to_dict()


def text_of(card: dict[str, Any], name: str = "org/base", stock: bool = True) -> str:
    return model_card(plan(name), class_name="LlamaForCausalLM", stock=stock, notes=["a note"], card=card)


def test_everything_that_a_reader_wants_to_know_is_there() -> None:
    text = text_of({"license": "other", "license_name": "llama-x", "license_link": "LICENSE", "revision": "main", **card_of_report(REPORT)})
    head = front_matter(text)
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pruning", "structured-pruning", "adapruner"],
        "base_model": "org/base",
        "license": "other",
        "license_name": "llama-x",
        "license_link": "LICENSE",
    }
    for part in (
        "# base, pruned by 50.0%",
        "Base model: org/base, revision main. Licence of the base model: other, llama-x, LICENSE.",
        "- a note",
        "Parameters: 2,000 -> 1,500 (25.0% removed).",
        "heads) kept, of 2: 1 in every layer.",
        "FFN channels kept, of 4: 2, 1.",
        f"- plan: `{plan().hash}` (plan.json), for the base model with fingerprint `f00d`",
        '- budget: `{"pruned_fraction": 0.5, "of": "block"}`',
        "- seed: 11",
        "- seeds: search 4",
        "- recovery: closed-form refit, ridge 0.01; LoRA of rank 8, alpha 16, 30 steps",
        "- made with torch 2.13.0, peft 0.21.2",
        '"l2": 1.0',
        "| method | stage | wiki, windows of 128 | code \\| all, windows of 64 |",
        "| dense | dense | 12.35 | 45,679 |",
        "| adapruner | recovered | not finite |  |",
        "Protocol of perplexity: mean NLL",
        "| model | parameters | MACs | weights, GiB | forward, ms |",
        "| dense | 4,000,000 | 5,000 | 0.25 | 4.5 |",
        "| pruned | 3,000,000 |  | 0.2 | 3.5 |",
        "Hardware: a CPU",
        "| trials | 48 |",
        "| chosen recipe | 3.5 |",
        "Values of the search: NLL after the refit, nats per token on the search split",
    ):
        assert part in text


def test_a_plain_recipe_and_what_best_fixed_is_are_said() -> None:
    assert "plain recipe" not in text_of(card_of_report(REPORT))
    plain = replace(plan(), provenance={"seed": 11, "fixed recipe": "l2 on code"})
    fixed = {**REPORT, "perplexity": [*REPORT["perplexity"], {**REPORT["perplexity"][0], "method": "best fixed", "stage": "pruned"}]}
    text = model_card(plain, class_name="LlamaForCausalLM", stock=True, notes=[], card=card_of_report(fixed))
    assert "- recipe: The chosen plan is a plain recipe, l2 on code, that the search began with: nothing" in text
    assert f"What *best fixed* is: {IN_WORDS}" in text
    assert IN_WORDS not in text_of(card_of_report(REPORT))


def test_the_last_perplexities_are_results_of_the_hub() -> None:
    entry = {"stage": "recovered", "method": "adapruner", "dataset": "wiki", "window": 64, "value": 14.5}
    earlier, other = {**entry, "stage": "pruned", "value": 40.0}, {**entry, "method": "random", "value": 90.0}
    card = card_of_report({**REPORT, "perplexity": [*REPORT["perplexity"], earlier, entry, other]})
    (result,) = ModelCard(text_of(card)).data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("wiki", "perplexity", 14.5)
    assert (result.metric_name, result.task_type) == ("perplexity, windows of 64", "text-generation")
    rounded = text_of({**card, **written_in("bfloat16", card)})  # these weights were not measured
    assert "model-index" not in rounded
    assert "| adapruner | recovered |" in rounded


def test_what_is_not_known_is_said_so() -> None:
    text = model_card(plan(), class_name="LlamaForCausalLM", stock=True, notes=[])
    assert "Licence of the base model: not known here; see the base model." in text
    assert "license" not in front_matter(text)
    assert "## Measured" not in text
    assert card_of_report({}) == {}
    assert card_of_report({"seed": 1, "cost": None, "search": None, "recovery": {"lora": None, "reconstruction": None}}) == {
        "seeds": {"search": 1}
    }


def test_a_path_stays_private_and_is_no_link(tmp_path: Path) -> None:
    text = text_of({}, name=str(tmp_path / "secret" / "llama"))
    assert "secret" not in text
    assert "base_model" not in front_matter(text)
    assert "Base model: llama." in text


def test_loading_is_shown_as_it_works() -> None:
    assert "from_pretrained(folder)  # LlamaForCausalLM" in text_of({})
    text = text_of({"adapter": "adapter"}, stock=False)
    assert "from_pretrained(folder, trust_remote_code=True)" in text
    assert 'model = PeftModel.from_pretrained(model, f"{folder}/adapter")' in text


def test_rounding_after_the_measurements_is_told() -> None:
    assert written_in("bfloat16", {"Perplexity": []}) == {"Weights": "written in bfloat16, after these measurements"}
    assert written_in("bfloat16", {"license": "mit", "seeds": {}}) == {}
    assert written_in(None, {"Perplexity": []}) == {}


def test_a_licence_cannot_break_out_of_the_front_matter() -> None:
    text = text_of({"license": "mit\n---\nowned: yes"})
    assert front_matter(text)["license"] == "mit --- owned: yes"


APACHE = "                                 Apache License\n                           Version 2.0, January 2004\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"README.md": "---\nlicense: apache-2.0\n---\n# Model"}, {"license": "apache-2.0"}),
        ({"README.md": "---\nlicense: [mit, bsd]\nlanguage: en\n---\n"}, {"license": "mit"}),
        (
            {"README.md": "---\nlicense: other\nlicense_name: x-1\nlicense_link: LICENSE\n---\n", "LICENSE": APACHE},
            {"license": "other", "license_name": "x-1", "license_link": "LICENSE"},
        ),
        ({"README.md": "# No front matter", "LICENSE": APACHE}, {"license": "apache-2.0"}),
        ({"LICENSE.txt": "MIT License\n\nCopyright"}, {"license": "mit"}),
        ({"LICENSE": "LLAMA 2 COMMUNITY LICENSE AGREEMENT"}, {"license": "llama2"}),
        ({"LICENCE.md": "Ours alone."}, {"license": "other", "license_name": "LICENCE.md"}),
        ({"README.md": "---\nlicense: [\n---\n"}, {}),
        ({"README.md": "---\nlicense: 3\n---\n"}, {}),
        ({"config.json": "{}"}, {}),
    ],
)
def test_the_licence_is_read_from_the_base_model_s_folder(tmp_path: Path, files: dict[str, str], expected: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert base_licence(str(tmp_path)) == expected


def test_the_licence_of_the_demo_model_is_known() -> None:
    from adapruner.demo import MODEL_FOLDER

    assert base_licence(str(MODEL_FOLDER)) == {"license": "apache-2.0"}


def test_a_hub_name_is_looked_up_in_the_cache_then_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []

    class Api:
        def model_info(self, name: str, revision: str | None, timeout: float) -> Any:
            asked.append((name, revision, timeout))
            if name == "org/gone":
                raise ConnectionError("no network")
            return SimpleNamespace(card_data=None if name == "org/bare" else {"license": "gemma"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    assert base_licence("org/model", "v1") == {"license": "gemma"}
    assert base_licence("org/bare") == {}
    assert base_licence("org/gone") == {}
    assert asked == [("org/model", "v1", 5.0), ("org/bare", None, 5.0), ("org/gone", None, 5.0)]
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "README.md"))
    assert base_licence("org/model") == {"license": "mit"}
    assert base_licence("LlamaForCausalLM") == {}  # not a hub name: nobody is asked
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [("org/model", True), ("org/model-1.5_b", True), ("demo", False), ("/a/b", False), ("./a", False), ("../b", False)],
)
def test_hub_names(name: str, expected: bool) -> None:
    assert is_hub_name(name) is expected


def test_a_folder_of_that_name_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert not is_hub_name("org/model")

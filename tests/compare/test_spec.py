from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapruner.compare.spec import BASE_METHOD, make_spec, read_options, read_spec
from adapruner.errors import ConfigurationError

from .fakes import fake_spec, find


def test_methods_are_named_after_their_files_and_lie_over_the_base(tmp_path: Path) -> None:
    spec = fake_spec(tmp_path, ["l2", BASE_METHOD])
    base = (tmp_path / "base.yaml").resolve()
    assert [(m.name, m.configs) for m in spec.methods] == [("l2", (base, (tmp_path / "l2.yaml").resolve())), ("adapruner", (base,))]
    assert (spec.budgets, spec.seeds, spec.jobs, spec.options, spec.keep_models) == ((0.2, 0.5), (0, 1, 2), 1, (), False)


def test_flags_come_as_text(tmp_path: Path) -> None:
    spec = fake_spec(tmp_path, budgets=["0.25"], seeds=["7"], jobs="2")
    assert (spec.budgets, spec.seeds, spec.jobs) == ((0.25,), (7,), 2)
    assert type(spec.seeds[0]) is int


def test_named_gpus_ask_for_a_cell_on_each(tmp_path: Path) -> None:
    assert (fake_spec(tmp_path, devices=[0, "GPU-8f2-a"]).jobs, fake_spec(tmp_path, devices=[0, 1], jobs=4).jobs) == (2, 4)
    assert fake_spec(tmp_path, devices=3).devices == ("3",)
    assert (fake_spec(tmp_path).devices, fake_spec(tmp_path, devices=[]).jobs) == ((), 1)


def test_options_of_a_file_become_arguments() -> None:
    given = {"data.batch_size": 4, "data.evaluation": [{"name": "a"}], "pruning.plan": None, "trainer.accelerator": "cpu", "a.b": True}
    expected = (
        "--data.batch_size=4",
        '--data.evaluation=[{"name": "a"}]',
        "--pruning.plan=null",
        "--trainer.accelerator=cpu",
        "--a.b=true",
    )
    assert read_options(given) == expected
    assert read_options(["--data.batch_size", 4]) == ("--data.batch_size", "4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"against": "l3"}, r"^against: expected a method of the comparison, got 'l3'; Known: adapruner, l2"),
        ({"base": None}, r"^base: expected at least one, got none; give --base"),
        ({"methods": []}, r"^methods: expected at least one"),
        ({"budgets": []}, r"^budgets: expected at least one"),
        ({"budgets": [0.2, 1.0]}, r"^budgets: expected fractions in \[0, 1\), got 1; give 0.2"),
        ({"budgets": [-0.1]}, r"got -0.1"),
        ({"budgets": ["half"]}, r"^budgets: expected a number, got 'half'"),
        ({"budgets": ["nan"]}, r"^budgets: expected a number, got 'nan'"),
        ({"budgets": [0.2, "0.20"]}, r"^budgets: expected each once, got 0.2 twice"),
        ({"seeds": [0, 1, 0]}, r"^seeds: expected each once, got 0 twice"),
        ({"seeds": [1.5]}, r"^seeds: expected a whole number, got 1.5"),
        ({"seeds": ["1.5"]}, r"^seeds: expected a whole number, got '1.5'"),
        ({"seeds": [True]}, r"^seeds: expected a whole number, got True"),
        ({"seeds": [-1]}, r"^seeds: expected whole numbers of 0 or more, got \[-1\]"),
        ({"seeds": []}, r"^seeds: expected whole numbers"),
        ({"jobs": 0}, r"^jobs: expected 1 or more, got 0"),
        ({"devices": ["0", "cpu"]}, r"^devices: expected numbers or identifiers of GPUs, got 'cpu'; give 0 1"),
        ({"devices": [0, "0"]}, r"^devices: expected each once, got '0' twice"),
        ({"keep_models": "no"}, r"^keep_models: expected true or false, got 'no'"),
        ({"methods": ["adapruner", "adapruner"]}, r"^methods: expected each once, got 'adapruner' twice"),
        ({"options": ["x"]}, r"^options: expected options of fit, got 'x'"),
        ({"options": "--a"}, r"^options: expected a mapping"),
        ({"options": {"data.seed": 3}}, r"^options: expected none that every cell sets for itself, got '--data.seed=3'; use seeds"),
        ({"options": ["--a=1", "--config", "more.yaml"]}, r"got '--config'; use methods"),
        ({"options": ["--trainer.default_root_dir=x"]}, r"use folder"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        fake_spec(tmp_path, **changes)
    assert len(str(caught.value).splitlines()) == 1


def test_configurations_are_read_before_anything_runs(tmp_path: Path) -> None:
    fake_spec(tmp_path)
    values = {"base": str(tmp_path / "base.yaml"), "budgets": [0.2]}
    with pytest.raises(ConfigurationError, match=r"^methods: expected a file, got '.*gone.yaml'"):
        make_spec({**values, "methods": [str(tmp_path / "gone.yaml")]}, find)
    (tmp_path / "torn.yaml").write_text("pruning: {recipe: [")
    with pytest.raises(ConfigurationError, match=r"^methods: expected YAML in .*torn.yaml"):
        make_spec({**values, "methods": [str(tmp_path / "torn.yaml")]}, find)
    (tmp_path / "absolute.yaml").write_text("pruning: {budget: {latency_ms: 3.0}}")
    with pytest.raises(ConfigurationError, match=r"budgets as fractions, got pruning.budget.latency_ms in absolute.yaml"):
        make_spec({**values, "methods": [str(tmp_path / "absolute.yaml")]}, find)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budget: [0.2]", r"expected known keys in .*, got 'budget'; did you mean 'budgets'\?"),
        ("model: {name_or_path: demo}", r"expected a comparison, got the configuration of a run in .*; give it as --base"),
        ("[", r"expected YAML"),
        ("just text", r"expected the keys of a comparison"),
    ],
)
def test_a_file_that_is_no_comparison(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "compare.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_spec(str(tmp_path / "compare.yaml"))
    with pytest.raises(ConfigurationError, match=r"--config: expected a readable file, got No such file"):
        read_spec(str(tmp_path / "gone.yaml"))

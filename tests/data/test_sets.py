"""Known evaluation sets: from the hub by name, or from the user's files with the same rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from adapruner.data.sets import EvaluationSet, known_source
from adapruner.data.text_source import TextSource, read_documents
from adapruner.errors import ConfigurationError


def test_a_known_name_is_enough() -> None:
    found = EvaluationSet("ptb", windows=[128, 2048])
    assert found.source == known_source("ptb")
    assert (found.source.hub, found.source.split, found.source.revision, found.source.column) == (
        "ptb-text-only/ptb_text_only",
        "validation",
        "refs/convert/parquet",
        "sentence",
    )
    assert (EvaluationSet("wikitext2").source.config, EvaluationSet("wikitext2").source.split) == ("wikitext-2-raw-v1", "test")
    assert EvaluationSet("c4").source.documents == 1100
    assert EvaluationSet("c4").source.streaming


def test_a_source_of_ones_own_goes_before_the_known_name() -> None:
    own = TextSource(name="mine", demo="all", split="test")
    assert EvaluationSet("ptb", own).source == own


def test_files_stand_in_for_the_hub(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"sentence": ["no it was n't", "black monday"]}), tmp_path / "ptb.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["", " = Robert = \n"]}), tmp_path / "wiki.parquet")
    with gzip.open(tmp_path / "c4.jsonl.gz", "wt") as file:
        file.write("\n".join(json.dumps({"text": f"page {i}", "url": "u"}) for i in range(1200)))
    (tmp_path / "wiki.txt").write_text("joined already\n\nin one file")

    def texts(name: str, file: str) -> list[str]:
        return [d.text for d in read_documents(EvaluationSet(name, path=str(tmp_path / file)).source)]

    assert texts("ptb", "ptb.parquet") == ["no it was n't", "black monday"]
    assert texts("wikitext2", "wiki.parquet") == ["", " = Robert = \n"]
    assert texts("c4", "c4.jsonl.gz") == [f"page {i}" for i in range(1100)]
    assert texts("ptb", "wiki.txt") == texts("wikitext2", "wiki.txt") == ["joined already\n\nin one file"]


def test_names_and_paths_that_say_nothing_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"data.evaluation.wikitext: expected a source, .* mean 'wikitext2'\? Known: c4, ptb"):
        EvaluationSet("wikitext")
    with pytest.raises(ConfigurationError, match=r"data.evaluation.ptb.path: expected none with a source, got 'x'; set source.path"):
        EvaluationSet("ptb", TextSource(name="mine", demo="all"), path="x")


def test_a_known_name_is_enough_in_yaml_and_survives_the_run_folder(tmp_path: Path) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--evaluation", type=list[EvaluationSet])
    own = {"name": "own", "source": {"name": "o", "demo": "all"}}
    given = [{"name": "ptb", "windows": [128]}, {"name": "c4", "path": "pages.jsonl"}, own]
    parsed = parser.parse_args([f"--evaluation={json.dumps(given)}"])
    again = parser.parse_string(parser.dump(parsed))
    for arguments in (parsed, again):
        made = parser.instantiate(arguments).evaluation
        assert made[0] == EvaluationSet("ptb")
        assert made[1] == EvaluationSet("c4", path="pages.jsonl")
        assert made[2].source == TextSource(name="o", demo="all")

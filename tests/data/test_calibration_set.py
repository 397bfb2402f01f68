"""The winning set as a file: what it holds, how it is refused when damaged, what another tokenizer makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.data.calibration_set import CalibrationSet, decode, effective_samples, fingerprint_tokenizer, make_set, read_set
from adapruner.data.documents import Document, hash_text
from adapruner.data.windows import IGNORED, TextWindows, pad_instructions, sample_windows
from adapruner.errors import ConfigurationError, DataError

BOS, EOS, PAD = 0, 1, 2


def documents(source: str, start: int, count: int = 6, words: int = 21) -> list[Document]:
    texts = [" ".join(f"w{start + i * words + j}" for j in range(words)) for i in range(count)]
    return [Document(source, str(i), text) for i, text in enumerate(texts)]


def instructions(count: int = 4) -> list[Document]:
    texts = [" ".join(f"w{900 + 10 * i + j}" for j in range(7 + i)) for i in range(count)]
    return [Document("alpaca", str(i), text, " ".join(text.split()[:4])) for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def pool(tokenizer: Any) -> TextWindows:
    """Twelve full windows of two sources and four instruction rows with padding."""
    plain = [sample_windows(documents(name, start), tokenizer, 20, 6, 0) for name, start in (("a", 0), ("b", 500))]
    return TextWindows.concatenate([*plain, pad_instructions(instructions(), tokenizer, 20, 4, 0)])


@pytest.fixture(scope="module")
def weights() -> torch.Tensor:
    raw = torch.rand(16, generator=torch.Generator().manual_seed(1))
    raw[[2, 7]] = 0
    raw[5] = 1e-8
    return raw


@pytest.fixture(scope="module")
def made(tokenizer: Any, pool: TextWindows, weights: torch.Tensor) -> CalibrationSet:
    return make_set(pool, tokenizer, weights, model_name="tiny", model_fingerprint="f00d")


def other_tokenizer(bos: bool = True) -> Any:
    """The same words under other ids, and two tokens for every word: ``w`` and its number."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<bos>", "<eos>", "w", *map(str, range(2000))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s+"), "removed"), pre_tokenizers.Split(Regex("w"), "isolated")]
    )
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


def without_padding(windows: TextWindows) -> torch.Tensor:
    return windows.attention_mask.bool().all(1)


def test_it_holds_the_samples_that_have_a_weight(tokenizer: Any, pool: TextWindows, weights: torch.Tensor, made: CalibrationSet) -> None:
    spoke = [i for i in range(16) if i not in (2, 5, 7)]
    assert [s.id for s in made.samples] == spoke
    shares = weights[spoke].double() / weights[spoke].double().sum()
    assert torch.allclose(made.weights, shares)
    assert made.effective_samples == pytest.approx(1 / sum(w * w for w in shares.tolist()))
    assert (made.seq_len, made.pool, made.model) == (20, pool.fingerprint, {"name": "tiny", "fingerprint": "f00d"})
    for sample in made.samples:
        assert sample.source == ("a", "b", "alpaca")[min(sample.id // 6, 2)]
        assert sample.documents == pool.document_hashes[sample.id].split()
        assert sample.tokens == pool.input_ids[sample.id][pool.attention_mask[sample.id].bool()].tolist()
        words = [t for t in tokenizer.convert_ids_to_tokens(sample.tokens) if t.startswith("w")]
        assert [w for w in sample.text.split() if w.startswith("w")] == words
        assert sample.text_hash == hash_text(sample.text) == Document("", "", sample.text).hash
        assert (sample.prompt != "") == (sample.source == "alpaca") == (sample.prompt_tokens > 0)


def test_the_file_gives_it_back(made: CalibrationSet, tmp_path: Path) -> None:
    made.write(tmp_path / "set.json")
    assert [p.name for p in tmp_path.iterdir()] == ["set.json"]
    again = read_set(tmp_path / "set.json")
    assert again == made
    assert again.fingerprint == made.fingerprint
    record = json.loads((tmp_path / "set.json").read_text())
    assert record["effective_samples"] == pytest.approx(made.effective_samples)
    assert len((tmp_path / "set.json").read_text().splitlines()) < 40, "one sample a line"


def test_the_same_vocabulary_gets_the_same_tokens(tokenizer: Any, pool: TextWindows, made: CalibrationSet) -> None:
    windows, weights = made.to_windows(tokenizer, 20)
    original = pool.select([s.id for s in made.samples])
    assert torch.equal(windows.input_ids, original.input_ids)
    assert torch.equal(windows.labels, original.labels)
    assert torch.equal(windows.attention_mask, original.attention_mask)
    assert windows.source_names == ["a", "b", "alpaca"]
    assert torch.equal(windows.source_index, original.source_index)
    assert windows.document_hashes == original.document_hashes
    assert weights.dtype == torch.float32
    assert torch.allclose(weights, made.weights.float())


def test_a_set_of_a_set_is_the_same_set(tokenizer: Any, made: CalibrationSet) -> None:
    again = make_set(*(made.to_windows(tokenizer, 20)[0], tokenizer, made.weights), model_name="tiny", model_fingerprint="f00d")
    assert [s.tokens for s in again.samples] == [s.tokens for s in made.samples]
    assert again.fingerprint == made.fingerprint


def test_another_length_cuts_or_pads(tokenizer: Any, made: CalibrationSet) -> None:
    full, _ = made.to_windows(tokenizer, 20)
    longer, weights = made.to_windows(tokenizer, 25)
    assert torch.equal(longer.input_ids[:, :20], full.input_ids)
    assert longer.attention_mask.sum(1).tolist() == full.attention_mask.sum(1).tolist()
    assert (longer.labels[:, 20:] == IGNORED).all()
    assert without_padding(longer).sum() == 0 < without_padding(full).sum()
    shorter, shorter_weights = made.to_windows(tokenizer, 4)
    plain = [i for i, s in enumerate(made.samples) if s.source != "alpaca"]
    assert torch.equal(shorter.input_ids, full.input_ids[plain, :4]), "a prompt alone leaves nothing to predict"
    assert torch.allclose(shorter_weights, weights[plain] / weights[plain].sum())
    assert without_padding(shorter).all()


@pytest.mark.parametrize("bos", [False, True])
def test_another_vocabulary_gets_the_text(tokenizer: Any, made: CalibrationSet, bos: bool) -> None:
    other = other_tokenizer(bos)
    windows, weights = made.to_windows(other, 50)
    assert len(windows) == len(made.samples) == len(weights)
    for row, sample in enumerate(made.samples):
        ids = windows.input_ids[row][windows.attention_mask[row].bool()].tolist()
        counted = windows.labels[row][windows.labels[row] != IGNORED].tolist()
        if sample.source == "alpaca":
            assert ids == [*other(sample.text)["input_ids"], 2]
            assert counted == [*other(sample.text.removeprefix(sample.prompt), add_special_tokens=False)["input_ids"], 2]
        else:
            assert ids == counted == other(sample.text, add_special_tokens=False)["input_ids"]
            assert [f"w{i - 4}" for i in ids if i > 3] == sample.text.split()
    cut, _ = made.to_windows(other, 12)
    assert without_padding(cut).any()
    assert tuple(cut.input_ids.shape)[1] == 12


def test_where_documents_meet_stands_a_blank_line(tokenizer: Any) -> None:
    ids = [5, 6, EOS, BOS, 7, EOS, PAD]
    assert decode(tokenizer, ids) == f"{tokenizer.decode([5, 6])}\n\n{tokenizer.decode([7])}"
    assert decode(tokenizer, [BOS, EOS]) == ""


def test_effective_samples_is_the_count_of_equal_weights() -> None:
    assert effective_samples(torch.tensor([3.0, 3.0, 0.0, 3.0])) == pytest.approx(3)
    assert 1 < effective_samples(torch.tensor([0.9, 0.1])) < 2


def test_a_vocabulary_has_a_fingerprint(tokenizer: Any) -> None:
    assert fingerprint_tokenizer(tokenizer) == fingerprint_tokenizer(tokenizer) != fingerprint_tokenizer(other_tokenizer())


@pytest.mark.parametrize("seed", range(4))
def test_any_weights_survive(tokenizer: Any, pool: TextWindows, tmp_path: Path, seed: int) -> None:
    raw = torch.rand(16, generator=torch.Generator().manual_seed(seed)) ** (1 + 6 * seed)
    chosen = make_set(pool, tokenizer, raw)
    chosen.write(tmp_path / "set.json")
    _, weights = read_set(tmp_path / "set.json").to_windows(tokenizer, 20)
    kept = [s.id for s in chosen.samples]
    assert all((raw[i] / raw.sum() >= 1e-6) == (i in kept) for i in range(16))
    assert torch.allclose(weights, raw[kept] / raw[kept].sum(), rtol=1e-5)


@pytest.mark.parametrize("weights", [[1.0] * 15, [0.0] * 16, [-1.0] + [1.0] * 15, [float("nan")] * 16])
def test_weights_must_be_those_of_the_pool(tokenizer: Any, pool: TextWindows, weights: list[float]) -> None:
    with pytest.raises(ConfigurationError, match="weights: expected 16 finite weights of 0 or more with a positive sum, got"):
        make_set(pool, tokenizer, torch.tensor(weights))


def _sample(**change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record["samples"][3].update(change)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: r.update(version=2), r"set\.json: expected version 1, got 2; make the set again"),
        (lambda r: r.update(version=True), "expected version 1, got True"),
        (lambda r: r.pop("version"), "expected version 1, got None"),
        (lambda r: r.update(seq_len=1), "expected seq_len to be a whole number >= 2, got 1"),
        (lambda r: r.update(tokenizer="llama"), "expected tokenizer to be name and fingerprint, got 'llama'"),
        (lambda r: r["model"].pop("name"), "expected model to be name and fingerprint"),
        (lambda r: r.pop("pool"), "expected pool to be text, got None"),
        (lambda r: r.update(samples=[]), r"expected samples to be a list of samples, got \[\]"),
        (lambda r: r.update(samples=[3]), r"samples\[0\]: expected an object, got int"),
        (lambda r: r["samples"].append(r["samples"][0]), "expected every id once, got 0 twice"),
        (_sample(weight=-0.1), r"samples\[3\]: expected weight to be a finite number above 0, got -0.1"),
        (_sample(weight=0), "expected weight to be a finite number above 0, got 0"),
        (_sample(weight=float("nan")), "expected weight to be a finite number above 0, got nan"),
        (_sample(weight=float("inf")), "expected weight to be a finite number above 0, got inf"),
        (_sample(weight=True), "expected weight to be a finite number above 0, got True"),
        (_sample(weight="0.5"), "expected weight to be a finite number above 0, got '0.5'"),
        (_sample(text="w1 w2"), r"samples\[3\]: expected text with the hash '[0-9a-f]{16}', got [0-9a-f]{16}: the text was changed"),
        (_sample(text=None), "expected text to be text, got None"),
        (_sample(prompt="elsewhere"), "expected prompt to be the start of the text, got 'elsewhere'"),
        (_sample(id=-1), "expected id to be a whole number >= 0, got -1"),
        (_sample(source=7), "expected source to be text, got 7"),
        (_sample(documents="abc"), "expected documents to be a list of hashes, got 'abc'"),
        (_sample(tokens=[]), r"expected tokens to be 1 to 20 token ids, got \[\]"),
        (_sample(tokens=[1] * 21), "expected tokens to be 1 to 20 token ids"),
        (_sample(tokens=[1.5]), "expected tokens to be 1 to 20 token ids"),
        (_sample(prompt_tokens=99), "expected prompt_tokens to be a count, got 99"),
    ],
)
def test_damage_is_refused_in_one_line(made: CalibrationSet, tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "set.json"
    made.write(path)
    record = json.loads(path.read_text())
    record.pop("digest")  # what a set of one's own has not
    damage(record)
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=message) as caught:
        read_set(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["source", "documents", "text_hash", "weight", "text", "prompt", "tokens", "prompt_tokens", "id"])
def test_every_field_of_a_sample_is_needed(made: CalibrationSet, tmp_path: Path, key: str) -> None:
    made.write(tmp_path / "set.json")
    record = json.loads((tmp_path / "set.json").read_text())
    record.pop("digest")
    del record["samples"][2][key]
    (tmp_path / "set.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=rf"samples\[2\]: expected {key} to be .*, got None"):
        read_set(tmp_path / "set.json")


def test_what_is_not_a_set_is_refused(made: CalibrationSet, tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    with pytest.raises(DataError, match=r"set\.json: expected a readable file, got No such file"):
        read_set(path)
    made.write(path)
    text = path.read_text()
    for part in (0.1, 0.5, 0.9):
        path.write_text(text[: int(len(text) * part)])
        with pytest.raises(DataError, match="expected JSON, got damage"):
            read_set(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="expected JSON, got damage"):
        read_set(path)
    path.write_text("[1]")
    with pytest.raises(DataError, match="expected a JSON object, got list"):
        read_set(path)


@pytest.mark.parametrize("tokens", [[9, 9], [10**30], [10**6]])
def test_tokens_must_be_the_text(tokenizer: Any, made: CalibrationSet, tmp_path: Path, tokens: list[int]) -> None:
    made.write(tmp_path / "set.json")
    record = json.loads((tmp_path / "set.json").read_text())
    record.pop("digest")
    record["samples"][3]["tokens"] = tokens
    (tmp_path / "set.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="expected the tokens of sample 4 to be its text, got another text"):
        read_set(tmp_path / "set.json").to_windows(tokenizer, 20)


def test_something_must_be_left_to_predict(tokenizer: Any, pool: TextWindows, made: CalibrationSet) -> None:
    only_rows = make_set(pool, tokenizer, torch.tensor([0.0] * 12 + [1.0] * 4))
    with pytest.raises(DataError, match="expected a sample with a token to predict, got none within 4; raise seq_len"):
        only_rows.to_windows(tokenizer, 4)
    with pytest.raises(ConfigurationError, match="seq_len: expected a whole number >= 2, got 1"):
        made.to_windows(tokenizer, 1)

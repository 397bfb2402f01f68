"""The calibration set that a search found, as a file: the samples with their weights, text and tokens.

A search ends with one weight per sample of its pool. :func:`make_set` keeps the samples with a weight in one JSON file that does not
need the pool any more; ``data.calibration.given_set`` makes it the pool of another run or of another model. A model with the same
vocabulary gets the same tokens, any other one the text, tokenised anew.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapruner.data.bos import BosRule
from adapruner.data.conversations import common_prefix
from adapruner.data.documents import hash_text
from adapruner.data.windows import IGNORED, TextWindows, ended, padded_rows
from adapruner.errors import ConfigurationError, DataError
from adapruner.files.atomic import write_atomically
from adapruner.files.digests import DamagedError, opened, sealed
from adapruner.progress import announce

CALIBRATION_SET_VERSION = 1

#: A sample with less of the whole weight is left out.
LEAST_WEIGHT = 1e-6

_REMEDY = "restore the file or make the set again"


@dataclass(frozen=True)
class CalibrationSample:
    """One sample of a set."""

    id: int
    """Its position in the pool that it was chosen from."""
    source: str
    """The name of its source."""
    documents: list[str]
    """Hashes of the documents it was cut from (:attr:`adapruner.data.documents.Document.hash`), for the check for leaks."""
    text_hash: str
    """First 16 hex digits of the text's SHA-256."""
    weight: float
    """Above 0; those of a set are taken relative to their sum."""
    text: str
    """Decoded, without special tokens; an end of a document inside the sample is a blank line."""
    prompt: str
    """The part of the text before the first token that counts; empty where all of it counts."""
    tokens: list[int]
    """Without padding, as the model saw them that the set was made with."""
    prompt_tokens: int
    """So many tokens at the start are not counted by the loss."""
    later_prompts: list[list[int]] = field(default_factory=list)
    """Of a conversation of several turns: spans ``[start, end)`` of further tokens that are not counted."""

    @property
    def uncounted(self) -> list[tuple[int, int]]:
        """All spans of tokens that are not counted."""
        return [(0, self.prompt_tokens), *((start, end) for start, end in self.later_prompts)]


@dataclass(frozen=True)
class CalibrationSet:
    """Weighted samples with where they come from; JSON types only."""

    seq_len: int
    """Tokens in a sample of the pool; samples of the set may have fewer."""
    tokenizer: dict[str, str]
    """``name``, and ``fingerprint`` of the vocabulary (:func:`fingerprint_tokenizer`)."""
    model: dict[str, str]
    """``name`` and ``fingerprint`` of the model that the set was found with."""
    pool: str
    """Fingerprint of the pool's windows, in which the samples' ids count."""
    samples: list[CalibrationSample]
    version: int = CALIBRATION_SET_VERSION

    @property
    def weights(self) -> Tensor:
        """``[samples]`` float64 with sum 1."""
        raw = torch.tensor([s.weight for s in self.samples], dtype=torch.float64)
        return raw / raw.sum()

    @property
    def effective_samples(self) -> float:
        """How many samples of equal weight would have the same variance; see :func:`effective_samples`."""
        return effective_samples(self.weights)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over text, prompts, source and relative weight of every sample."""
        pairs = zip(self.samples, self.weights.tolist(), strict=True)
        record = [(s.source, s.text, s.prompt, f"{w:.9f}", *s.later_prompts) for s, w in pairs]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()[:16]

    def write(self, path: str | Path) -> None:
        """Writes the JSON with its digest, one sample a line, to a temporary name and moves it into place."""
        record = sealed({**asdict(self), "effective_samples": self.effective_samples})
        lines = ",\n  ".join(json.dumps(sample, ensure_ascii=False) for sample in record.pop("samples"))
        write_atomically(Path(path), f'{json.dumps(record, indent=1, ensure_ascii=False)[:-2]},\n "samples": [\n  {lines}\n ]\n}}\n')

    def to_windows(self, tokenizer: Any, seq_len: int, bos: BosRule | None = None) -> tuple[TextWindows, Tensor]:
        """The samples as this tokenizer's windows, and their weights ``[n]`` (float32, sum 1).

        With the vocabulary that the set was made with, these are the set's own tokens; otherwise its text, tokenised anew
        (plain text without special tokens, since a sample is a cut; an instruction row with them and an end-of-text). Longer
        samples are cut to ``seq_len``, shorter ones padded on the right: none is dropped for its length, for each carries
        weight, and whatever honours ``attention_mask`` and labels of -100 is not misled. Only samples without any token to
        predict are left out.

        Args:
            tokenizer: of the model that is to be pruned.
            seq_len: tokens in a window.
            bos: what a plain text begins with where it is tokenised anew; the set's own tokens stay as they are.

        Raises:
            ConfigurationError: if ``seq_len`` is below 2.
            DataError: if tokens and text of a sample differ, or no sample has a token to predict.
        """
        if seq_len < 2:
            raise ConfigurationError(f"seq_len: expected a whole number >= 2, got {seq_len}; correct it")
        same = self.tokenizer["fingerprint"] == fingerprint_tokenizer(tokenizer)
        if not same and any(sample.later_prompts for sample in self.samples):
            announce("calibration set: its conversations are tokenised anew, and all after the first question counts")
        rows: list[tuple[list[int], list[tuple[int, int]]]] = []
        kept: list[int] = []
        for position, sample in enumerate(self.samples):
            ids, uncounted = _own_tokens(sample, tokenizer) if same else _new_tokens(sample, tokenizer, bos or BosRule())
            ids = ids[:seq_len]
            if max(uncounted[0][1], 1) < len(ids):
                rows.append((ids, uncounted))
                kept.append(position)
        if not rows:
            raise DataError(f"calibration set: expected a sample with a token to predict, got none within {seq_len}; raise seq_len")
        chosen = [self.samples[position] for position in kept]
        names = list(dict.fromkeys(s.source for s in chosen))
        index = torch.tensor([names.index(s.source) for s in chosen])
        hashes = [" ".join(s.documents or [s.text_hash]) for s in chosen]
        weights = self.weights[kept]
        return TextWindows(*padded_rows(rows, tokenizer, seq_len), names, index, hashes), (weights / weights.sum()).float()


def make_set(
    windows: TextWindows,
    tokenizer: Any,
    weights: Tensor,
    *,
    model_name: str = "",
    model_fingerprint: str = "",
) -> CalibrationSet:
    """The samples of a pool that have a weight, as a record that stands without the pool.

    Args:
        windows: the pool, ``n`` samples.
        tokenizer: the one that made it.
        weights: ``[n]``, 0 or more; relative to their sum. Samples below :data:`LEAST_WEIGHT` of it are left out.
        model_name: of the model that the weights were found with.
        model_fingerprint: of the same (:func:`adapruner.models.fingerprint.fingerprint_model`).

    Raises:
        ConfigurationError: if the weights do not fit the pool.
    """
    shares = weights.detach().double().cpu()
    total = float(shares.sum())
    if shares.shape != (len(windows),) or not (math.isfinite(total) and total > 0) or bool((shares < 0).any()):
        raise ConfigurationError(
            f"weights: expected {len(windows)} finite weights of 0 or more with a positive sum, got {tuple(shares.shape)} with "
            f"sum {total}; give those of this pool"
        )
    shares = shares / total
    shares = torch.where(shares < LEAST_WEIGHT, 0.0, shares)
    shares = shares / shares.sum()
    samples = [_sample(windows, row, tokenizer, float(shares[row])) for row in shares.nonzero().flatten().tolist()]
    name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
    return CalibrationSet(
        seq_len=windows.seq_len,
        tokenizer={"name": name, "fingerprint": fingerprint_tokenizer(tokenizer)},
        model={"name": model_name, "fingerprint": model_fingerprint},
        pool=windows.fingerprint,
        samples=samples,
    )


def read_set(path: str | Path) -> CalibrationSet:
    """A set from a JSON file, checked field by field.

    Raises:
        DataError: if the file is missing, is not JSON, lacks a field, is of another version, or a sample is not sound.
    """
    where = f"calibration set {path}"
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{where}: expected a readable file, got {error.strerror}; give the path of a calibration set") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected JSON, got damage ({error}); {_REMEDY}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(record).__name__}; give a file that adapruner wrote")
    try:
        record = opened(record, may_lack=True)
    except DamagedError as error:
        raise DataError(f"{where}: expected what was written, got {error}; {_REMEDY}, or take digest out of a set of your own") from None
    if record.get("version") != CALIBRATION_SET_VERSION or type(record["version"]) is not int:
        raise DataError(
            f"{where}: expected version {CALIBRATION_SET_VERSION}, got {record.get('version')!r}; make the set again with this release"
        )
    _expect(_whole(record.get("seq_len"), 2), where, "seq_len", "a whole number >= 2", record)
    for key in ("tokenizer", "model"):
        sound = isinstance(record.get(key), dict) and all(isinstance(record[key].get(part), str) for part in ("name", "fingerprint"))
        _expect(sound, where, key, "name and fingerprint", record)
    _expect(isinstance(record.get("pool"), str), where, "pool", "text", record)
    _expect(isinstance(record.get("samples"), list) and len(record["samples"]) > 0, where, "samples", "a list of samples", record)
    samples = [_checked_sample(item, f"{where}, samples[{i}]", record["seq_len"]) for i, item in enumerate(record["samples"])]
    ids = [sample.id for sample in samples]
    if len(set(ids)) < len(ids):
        raise DataError(f"{where}: expected every id once, got {next(i for i in ids if ids.count(i) > 1)} twice; {_REMEDY}")
    tokenizer, model = ({k: record[key][k] for k in ("name", "fingerprint")} for key in ("tokenizer", "model"))
    return CalibrationSet(record["seq_len"], tokenizer, model, record["pool"], samples)


def effective_samples(weights: Tensor) -> float:
    """Kish's effective sample size (sum w)^2 / sum w^2: so many samples of equal weight have the same variance.

    Source: L. Kish, Survey Sampling, 1965.

    >>> effective_samples(torch.tensor([0.5, 0.5, 0.0]))
    2.0
    """
    wide = weights.double()
    return float(wide.sum().square() / wide.square().sum())


def fingerprint_tokenizer(tokenizer: Any) -> str:
    """16 hex digits over the vocabulary: equal when a token id means the same text."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def decode(tokenizer: Any, tokens: list[int]) -> str:
    """Text without special tokens; where documents meet, a blank line."""
    marks = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    pieces: list[list[int]] = [[]]
    for token in tokens:
        if token in marks:
            pieces.append([])
        else:
            pieces[-1].append(token)
    texts = [tokenizer.decode(p, skip_special_tokens=True, clean_up_tokenization_spaces=False) for p in pieces if p]
    return "\n\n".join(str(text) for text in texts)


def _sample(windows: TextWindows, row: int, tokenizer: Any, weight: float) -> CalibrationSample:
    present = windows.attention_mask[row].bool()
    tokens = windows.input_ids[row][present].tolist()
    spans = _uncounted(windows.labels[row][present] == IGNORED)
    prompt_tokens = spans.pop(0)[1] if spans and spans[0][0] == 0 else 0
    text = decode(tokenizer, tokens)
    return CalibrationSample(
        id=row,
        source=windows.source_names[int(windows.source_index[row])],
        documents=windows.document_hashes[row].split(),
        text_hash=hash_text(text),
        weight=weight,
        text=text,
        # a token may end inside a character: what is certain is the part that both begin with
        prompt=text[: common_prefix(text, decode(tokenizer, tokens[:prompt_tokens]))],
        tokens=tokens,
        prompt_tokens=prompt_tokens,
        later_prompts=spans,
    )


def _uncounted(ignored: Tensor) -> list[list[int]]:
    """Spans ``[start, end)`` in which a flag ``[n]`` is set."""
    runs, start = [], 0
    for value, run in groupby(ignored.tolist()):
        end = start + len(list(run))
        runs += [[start, end]] if value else []
        start = end
    return runs


def _own_tokens(sample: CalibrationSample, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    try:
        text = decode(tokenizer, sample.tokens)
    except (IndexError, KeyError, OverflowError, TypeError):  # an id that the vocabulary does not have
        text = None
    if text != sample.text:
        raise DataError(f"calibration set: expected the tokens of sample {sample.id} to be its text, got another text; {_REMEDY}")
    return sample.tokens, sample.uncounted


def _new_tokens(sample: CalibrationSample, tokenizer: Any, bos: BosRule) -> tuple[list[int], list[tuple[int, int]]]:
    if not sample.prompt:
        begin = [] if bos.begins is None else [bos.begins]
        return [*begin, *tokenizer(sample.text, add_special_tokens=False)["input_ids"]], [(0, 0)]
    ids = ended(tokenizer(sample.text)["input_ids"], tokenizer)
    return ids, [(0, common_prefix(ids, tokenizer(sample.prompt)["input_ids"]))]


def _checked_sample(item: Any, where: str, seq_len: int) -> CalibrationSample:
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: expected an object, got {type(item).__name__}; {_REMEDY}")
    for key in ("source", "text_hash", "text", "prompt"):
        _expect(isinstance(item.get(key), str), where, key, "text", item)
    documents, tokens, weight = item.get("documents"), item.get("tokens"), item.get("weight")
    _expect(_whole(item.get("id"), 0), where, "id", "a whole number >= 0", item)
    _expect(isinstance(documents, list) and all(isinstance(d, str) for d in documents), where, "documents", "a list of hashes", item)
    positive = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight) and weight > 0
    _expect(positive, where, "weight", "a finite number above 0", item)
    sound = isinstance(tokens, list) and 0 < len(tokens) <= seq_len and all(_whole(t, 0) for t in tokens)
    _expect(sound, where, "tokens", f"1 to {seq_len} token ids", item)
    _expect(_whole(item.get("prompt_tokens"), 0) and item["prompt_tokens"] <= len(item["tokens"]), where, "prompt_tokens", "a count", item)
    _expect(item["text"].startswith(item["prompt"]), where, "prompt", "the start of the text", item)
    if hash_text(item["text"]) != item["text_hash"]:
        got = f"expected text with the hash {item['text_hash']!r}, got {hash_text(item['text'])}"
        raise DataError(f"{where}: {got}: the text was changed; {_REMEDY}")
    later, most = item.get("later_prompts", []), len(item["tokens"])
    spans = isinstance(later, list) and all(isinstance(s, list) and [type(edge) for edge in s] == [int, int] for s in later)
    _expect(spans and all(0 <= start < end <= most for start, end in later), where, "later_prompts", "spans of its tokens", item)
    return CalibrationSample(**{key: item[key] for key in CalibrationSample.__dataclass_fields__ if key in item})


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least  # a bool is an int to isinstance


def _expect(sound: bool, where: str, key: str, expected: str, record: Mapping[str, Any]) -> None:
    if not sound:
        raise DataError(f"{where}: expected {key} to be {expected}, got {record.get(key)!r:.60}; {_REMEDY}")

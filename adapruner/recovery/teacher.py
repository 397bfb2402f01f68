"""What the dense model says of the recovery's text, written down before it is pruned: teacher and student are never held at once.

The most likely tokens of every counted position and the mass of all others, in a few files in the run folder, each written whole
under what it depends on: the teacher's weights, the windows, ``top_k`` and the temperature. A run that was killed takes those that are
there. Of several ranks each writes its share; machines that do not share a folder write what they miss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapruner.distributed import Ranks, is_rank_zero
from adapruner.errors import ConfigurationError
from adapruner.files.atomic import check_room, writing
from adapruner.files.digests import DamagedError
from adapruner.files.tensor_file import read_tensors, write_tensors
from adapruner.models.fingerprint import digest_weights
from adapruner.models.forward import evaluation_mode, input_device
from adapruner.models.next_token_loss import IGNORED, logit_parts, next_labels
from adapruner.models.smaller_batches import with_smaller_batches
from adapruner.progress import announce, progress_bar
from adapruner.recovery.distillation import DistillationConfig, TopTokens, check_vocabulary

FOLDER = "teacher"
#: Bytes of one file, about.
PART_BYTES = 64 * 2**20
_NAMES = ("index", "log_probs", "log_rest")


@dataclass(frozen=True)
class _Part:
    """The targets of some windows one after the other: ``[counted, k]`` and ``[counted]``, in memory or in a file."""

    starts: list[int]
    """Where each window's begin, and the end of the last."""
    tensors: dict[str, Tensor] | None
    file: Path | None = None
    identity: str = ""
    """Of what the file has to hold."""

    def rows(self, window: int) -> tuple[Tensor, ...]:
        rows = slice(self.starts[window], self.starts[window + 1])
        if self.tensors is not None:
            return tuple(self.tensors[name][rows] for name in _NAMES)
        from safetensors import safe_open

        with safe_open(self.file, "pt") as opened:  # it maps the file: only these rows are read
            if (opened.metadata() or {}).get("key") != self.identity:
                raise ConfigurationError(
                    f"recovery.distillation: expected what the teacher said of this text in {self.file}, got it of another, written since; "
                    "teach again, in a folder of its own"
                )
            return tuple(opened.get_slice(name)[rows] for name in _NAMES)


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's distributions for every window of a training text, found by the window's tokens: whatever order it is read in."""

    parts: list[_Part]
    places: dict[bytes, tuple[int, int]]
    """Digest of a window -> its part, and its place in it."""
    identity: str
    """16 hex digits over everything that they depend on."""

    def of(self, batch: dict[str, Tensor]) -> TopTokens:
        """The distributions at the batch's counted positions, row after row, on the CPU.

        Args:
            batch: ``input_ids``, ``labels`` and, where there is padding, ``attention_mask``, each ``[batch, seq_len]``.

        Raises:
            ConfigurationError: if the teacher has not seen one of the rows.
        """
        found = []
        for digest in _digests(batch["input_ids"], batch["labels"], batch.get("attention_mask")):
            place = self.places.get(digest)
            if place is None:
                raise ConfigurationError(
                    "recovery.distillation: expected batches of the windows that the teacher has read, got another; leave the training "
                    "text as it is from epoch to epoch, or distil nothing (weight 0)"
                )
            found.append(self.parts[place[0]].rows(place[1]))
        index, log_probs, log_rest = (torch.cat(values) for values in zip(*found, strict=True))
        return TopTokens(index.long(), log_probs, log_rest)


def write_down(teacher: Any, windows: Any, config: DistillationConfig, folder: Path | None = None) -> TeacherTargets:
    """Runs the teacher over the training text and keeps its most likely tokens; all ranks must call it.

    Args:
        teacher: a causal LM on its device; it stays as it is.
        windows: training text with ``input_ids``, ``labels``, ``attention_mask``, each int64 ``[n, seq_len]``.
        config: how many tokens are kept, and at which temperature.
        folder: the run folder, in which they are kept and looked for; ``None`` keeps them in memory.

    Raises:
        ConfigurationError: if the model has fewer tokens than are to be kept, or the folder no room for them.
    """
    check_vocabulary(config, vocabulary_of(teacher))
    digests = list(_digests(windows.input_ids, windows.labels, windows.attention_mask))
    step = max(1, PART_BYTES // (windows.input_ids.shape[1] * _bytes_of_a_token(config)))
    work = _Work(teacher, windows, config, folder, _identity(teacher, digests, config), step)
    places = {digest: divmod(row, step) for row, digest in enumerate(digests)}
    return TeacherTargets(work.parts(), places, work.identity)


def vocabulary_of(model: Any) -> int:
    """Number of logits, as the configuration says."""
    return int(model.config.get_text_config().vocab_size)


def _bytes_of_a_token(config: DistillationConfig) -> int:
    return 8 * config.top_k + 4  # int32 and float32 of each, float32 of the rest


def _digests(input_ids: Tensor, labels: Tensor, mask: Tensor | None) -> Iterator[bytes]:
    mask = torch.ones_like(input_ids) if mask is None else mask
    for row in torch.stack([input_ids, labels, mask.to(labels.dtype)], 1).long().cpu():
        yield hashlib.sha256(row.contiguous().numpy().tobytes()).digest()[:16]


def _identity(teacher: Any, digests: list[bytes], config: DistillationConfig) -> str:
    digest = hashlib.sha256(f"1:{digest_weights(teacher)}:{config.top_k}:{config.temperature}:{PART_BYTES}:".encode())
    digest.update(b"".join(digests))
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class _Work:
    """What there is to write down, and who writes it."""

    teacher: Any
    windows: Any
    config: DistillationConfig
    folder: Path | None
    identity: str
    step: int
    """Windows of one part."""

    def parts(self) -> list[_Part]:
        """All of them: from their files, or made now."""
        numbers, ranks = range(-(-len(self.windows.input_ids) // self.step)), Ranks()
        self._prepare_folder(len(numbers))
        found = {number: part for number in numbers if (part := self._read(number)) is not None}
        self._announce(numbers, found)
        rows = len(self.windows.input_ids)
        with progress_bar("teacher", rows) as advance:
            for number in numbers:  # its share first
                if number not in found and (self.folder is None or number % ranks.size == ranks.rank):
                    found[number] = self._make(number)
                    advance(min(rows, (number + 1) * self.step))
            ranks.gather(None)  # the others' are written by now
            return [found.get(number) or self._read(number) or self._make(number) for number in numbers]

    def _prepare_folder(self, parts: int) -> None:
        if self.folder is None:
            return
        where = self.folder / FOLDER
        with writing(where):
            where.mkdir(parents=True, exist_ok=True)
            for left in where.glob("*.safetensors") if is_rank_zero() else ():  # of a longer text
                if not left.stem.isdigit() or int(left.stem) >= parts:
                    left.unlink(missing_ok=True)

    def _announce(self, numbers: range, found: dict[int, _Part]) -> None:
        counted = int((self.windows.labels[:, 1:] != IGNORED).sum())
        size = counted * _bytes_of_a_token(self.config)
        if len(found) == len(numbers):
            announce(f"takes what the teacher says of {counted:,} tokens from {self._folder()}")
            return
        place = "in memory" if self.folder is None else f"in {self._folder()}"
        vocabulary = vocabulary_of(self.teacher)
        announce(
            f"the teacher writes down the {self.config.top_k} most likely of {vocabulary:,} tokens at {counted:,} positions: "
            f"{size / 2**20:,.1f} MiB {place}"
        )
        if self.folder is not None and not found:
            check_room(self._folder(), size)

    def _folder(self) -> Path:
        assert self.folder is not None
        return self.folder / FOLDER

    def _file(self, number: int) -> Path:
        return self._folder() / f"{number:05d}.safetensors"

    def _read(self, number: int) -> _Part | None:
        if self.folder is None:
            return None
        file = self._file(number)
        try:
            found = read_tensors(file, self.identity)
        except DamagedError as error:
            announce(f"{file} is damaged ({error}): the teacher writes it again")
            return None
        return None if found is None else _Part(self._starts(number), None, file, self.identity)

    def _starts(self, number: int) -> list[int]:
        labels = self.windows.labels[number * self.step : (number + 1) * self.step]
        return [0, *(labels[:, 1:] != IGNORED).sum(1).cumsum(0).tolist()]

    def _make(self, number: int) -> _Part:
        rows = range(len(self.windows.input_ids))[number * self.step : (number + 1) * self.step]
        tensors = with_smaller_batches(lambda size: self._of_windows(rows, size), self.config.batch_size, "teacher")
        if self.folder is None:
            return _Part(self._starts(number), tensors)
        write_tensors(self._file(number), self.identity, tensors)
        return _Part(self._starts(number), None, self._file(number), self.identity)

    def _of_windows(self, rows: range, batch_size: int) -> dict[str, Tensor]:
        found, device = list[TopTokens](), input_device(self.teacher)
        with evaluation_mode(self.teacher):
            for start in range(rows.start, rows.stop, batch_size):
                batch = slice(start, min(start + batch_size, rows.stop))
                counted = (next_labels(self.windows.labels[batch]) != IGNORED).flatten().to(device)
                ids, mask = (value[batch].to(device) for value in (self.windows.input_ids, self.windows.attention_mask))
                position = 0
                for logits in logit_parts(self.teacher, input_ids=ids, attention_mask=mask):
                    here = counted[position : position + len(logits)].to(logits.device)
                    position += len(logits)
                    found.append(TopTokens.of_logits(logits[here], self.config.top_k, self.config.temperature))
        return {
            "index": torch.cat([part.index.int().cpu() for part in found]),
            "log_probs": torch.cat([part.log_probs.float().cpu() for part in found]),
            "log_rest": torch.cat([part.log_rest.float().cpu() for part in found]),
        }

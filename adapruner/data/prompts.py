"""Prompts for ``predict``: a text file with one a line, or JSONL with a ``prompt`` in each row."""

from __future__ import annotations

from pathlib import Path

from torch.utils.data import DataLoader

from adapruner.data.documents import check_characters
from adapruner.data.files import read_rows, suffix_of
from adapruner.errors import DataError


def read_prompts(file: str | Path) -> list[str]:
    """Every prompt of a file, in its order; blank lines are left out.

    Args:
        file: ``.jsonl`` (or ``.jsonl.gz``): the key ``prompt`` of each row, line breaks included. Any other: its lines.

    Raises:
        DataError: if the file cannot be read, a row has no ``prompt``, or there is none at all.
    """
    path = Path(file)
    if not path.is_file():
        raise DataError(f"data.prompts: expected a file, got {str(file)!r}, which is none; give a file with one prompt a line")
    if suffix_of(path).removesuffix(".gz") == ".jsonl":
        prompts = [_prompt_of(row, number, path) for number, row in enumerate(read_rows(path), start=1)]
    else:
        try:
            prompts = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"data.prompts: expected readable UTF-8 text, got {error} in {path.name!r}; convert the file") from None
    if not prompts:
        raise DataError(f"data.prompts: expected one prompt or more, got none in {path.name!r}; write one a line")
    return prompts


def prompt_loader(prompts: list[str]) -> DataLoader[str]:
    """One prompt at a time: ``["text"]``."""
    return DataLoader(prompts, batch_size=1, collate_fn=list)  # type: ignore[arg-type]


def _prompt_of(row: dict[str, object], number: int, path: Path) -> str:
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise DataError(
            f"data.prompts: expected the key 'prompt' with text in every row, got {prompt!r} in row {number} of {path.name!r}; mend the row"
        )
    check_characters(prompt, f"data.prompts: row {number} of {path.name!r}")
    return prompt

"""Text that every installation carries: documentation of Python and of adapruner's dependencies.

Six named sources: the language reference shipped as :mod:`pydoc_data.topics`, and the docstrings of the standard
library, NumPy, pandas, NetworkX and a part of PyTorch. Docstrings are read from the source files with :mod:`ast`;
no module is imported.

One document is one topic or one source file. A document belongs to exactly one split, chosen by a hash of its
source and name, so that the splits survive an update of a package. A paragraph that stands in several documents
is kept only once, in the first split of :data:`SPLITS` that has it: nothing the model was trained on comes back
in the held-out text.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from adapruner.errors import ConfigurationError, DataError, nearest
from adapruner.files.atomic import replacing

#: Source name -> the package it is read from, and the parts of it (all of it when empty).
PACKAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "numpy": ("numpy", ()),
    "pandas": ("pandas", ()),
    "networkx": ("networkx", ()),
    "torch": ("torch", ("nn", "optim", "distributions", "utils", "_torch_docs.py", "_tensor_docs.py", "functional.py")),
}
SOURCES: tuple[str, ...] = ("topics", "stdlib", *PACKAGES)

#: Split -> percent of the documents. The order matters: a repeated paragraph stays with the first split.
SPLITS: dict[str, int] = {"train": 74, "recovery": 8, "calibration": 7, "search": 5, "test": 6}

_SKIPPED_FOLDERS = {"test", "tests", "testing", "idlelib", "site-packages", "lib2to3", "encodings", "__pycache__"}
_MINIMUM_CHARACTERS = 200


@dataclass(frozen=True)
class Document:
    """One piece of text with its origin."""

    source: str
    """One of :data:`SOURCES`."""
    name: str
    """Topic name, or the file's path inside its package."""
    split: str
    """One of :data:`SPLITS`."""
    text: str


def load_demo_corpus(split: str, source: str | None = None, cache: Path | None = None) -> list[Document]:
    """Documents of one split, of one source or of all, in a fixed order.

    The first call parses some 3000 files (about 20 s) and keeps the result, compressed, in a cache folder
    (``ADAPRUNER_CACHE``, else ``~/.cache/adapruner``) under the versions of everything that was read.

    Raises:
        ConfigurationError: if ``split`` or ``source`` is unknown.
        DataError: if this installation lacks a package the corpus is read from.
    """
    if split not in SPLITS:
        raise ConfigurationError(f"split: expected a split of the demo corpus, got {split!r}; {nearest(split, SPLITS)}")
    if source is not None and source not in SOURCES:
        raise ConfigurationError(f"source: expected a source of the demo corpus, got {source!r}; {nearest(source, SOURCES)}")
    documents = _read_cache(cache or _cache_file())
    return [d for d in documents if d.split == split and source in (None, d.source)]


def build_corpus() -> list[Document]:
    """Reads every source and assigns splits; see the module's text for the rules."""
    raw = [(source, name, text) for source in SOURCES for name, text in _read_source(source)]
    order = list(SPLITS)
    keyed = sorted(((order.index(split_of(s, n)), s, n, t) for s, n, t in raw), key=lambda row: row[:3])
    seen: set[bytes] = set()
    documents = []
    for rank, source, name, text in keyed:
        unique = _drop_repeated_paragraphs(text, seen)
        if len(unique) >= _MINIMUM_CHARACTERS:
            documents.append(Document(source, name, order[rank], unique))
    return documents


def split_of(source: str, name: str) -> str:
    """The split a document belongs to: a hash of its origin, so it never depends on the other documents."""
    draw = int.from_bytes(hashlib.sha256(f"{source}/{name}".encode()).digest()[:4], "big") % 100
    for split, percent in SPLITS.items():
        if draw < percent:
            return split
        draw -= percent
    raise AssertionError("SPLITS must add up to 100")


def _drop_repeated_paragraphs(text: str, seen: set[bytes]) -> str:
    kept = []
    for paragraph in text.split("\n\n"):
        key = hashlib.sha1(" ".join(paragraph.lower().split()).encode()).digest()
        if key not in seen and paragraph.strip():
            seen.add(key)
            kept.append(paragraph.rstrip())
    return "\n\n".join(kept)


def _read_source(source: str) -> Iterator[tuple[str, str]]:
    if source == "topics":
        from pydoc_data.topics import topics

        yield from sorted(topics.items())
        return
    parts: tuple[str, ...] = ()
    if source == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
    else:
        package, parts = PACKAGES[source]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise DataError(f"demo corpus: expected the package {package!r} to be installed, got none; pip install {package}")
        root = Path(spec.origin).parent
    for file in _python_files(root, parts):
        text = "\n\n".join(_docstrings(file))
        if text:
            yield file.relative_to(root).as_posix(), text


def _python_files(root: Path, parts: tuple[str, ...]) -> list[Path]:
    starts = [root / part for part in parts] or [root]
    files = [f for start in starts for f in ([start] if start.is_file() else start.rglob("*.py"))]
    return sorted(f for f in files if not _SKIPPED_FOLDERS.intersection(f.relative_to(root).parts))


def _docstrings(file: Path) -> Iterator[str]:
    """``name`` and docstring of every module, class and function; for ``add_docstr`` files the literals themselves."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text if isinstance(node, ast.Module) else f"{node.name}: {text}"
        elif isinstance(node, ast.Call) and file.name.endswith("_docs.py"):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str) and len(a.value) > 80)


def _cache_file() -> Path:
    versions = [platform.python_version(), *(importlib.metadata.version(package) for package, _ in PACKAGES.values())]
    recipe = json.dumps([versions, PACKAGES, SPLITS, sorted(_SKIPPED_FOLDERS), _MINIMUM_CHARACTERS])
    given = os.environ.get("ADAPRUNER_CACHE")
    try:
        folder = Path(given) if given else Path.home() / ".cache" / "adapruner"
    except RuntimeError:  # a user without a home
        folder = Path(os.devnull)
    return folder / f"demo-corpus-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.jsonl.gz"


_IN_MEMORY: dict[Path, list[Document]] = {}
"""What no file could keep."""


def _read_cache(file: Path) -> list[Document]:
    if file in _IN_MEMORY:
        return _IN_MEMORY[file]
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            return [Document(**json.loads(line)) for line in lines]
    except (OSError, EOFError, ValueError, TypeError, zlib.error):
        documents = build_corpus()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary, gzip.open(temporary, "wt", encoding="utf-8") as out:
            out.writelines(json.dumps(asdict(d)) + "\n" for d in documents)
    except (OSError, ConfigurationError):  # the home folder cannot be written: 20 s next time, but once in this process
        _IN_MEMORY[file] = documents
    return documents

"""The embedded demo: a small Llama trained for real, and the text it was trained on.

Nothing is downloaded. The text is the documentation that comes with every Python installation and with
adapruner's own dependencies (:mod:`adapruner.demo.corpus`); the model lies beside this file and was made
by ``benchmarks/train_demo.py``.
"""

from pathlib import Path

#: The folder of the demo model: loads with plain ``AutoModelForCausalLM.from_pretrained``.
MODEL_FOLDER = Path(__file__).parent / "model"


def texts(split: str = "calibration") -> dict[str, list[str]]:
    """Source -> its texts in one split of the demo corpus: ``calibration``, ``search``, ``recovery``, ``test`` or ``train``.

    >>> sorted(texts("test"))
    ['networkx', 'numpy', 'pandas', 'stdlib', 'topics', 'torch']
    """
    from adapruner.demo.corpus import load_demo_corpus

    found: dict[str, list[str]] = {}
    for piece in load_demo_corpus(split, None):
        found.setdefault(piece.source, []).append(piece.text)
    return found

"""What ``validate`` and ``test`` say: perplexity of each set, and how it was measured."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from lightning import Callback, LightningModule, Trainer

from adapruner.evaluation.perplexity import IGNORED, NLLResult, describe_protocol
from adapruner.progress import terminal
from adapruner.report.answer import listed, text_lines
from adapruner.report.formats import MISSING, nll_text, perplexity_text
from adapruner.report.run_sections import command_line, hardware_in_words, package_versions
from adapruner.report.sections import DataCard
from adapruner.report.tables import TextTable, make_table

#: Of each command, the middle of the Trainer's option that leaves batches out.
_LIMITED = {"validate": "val", "test": "test"}


@dataclass(frozen=True)
class Measured:
    """One set at one window."""

    name: str
    window: int
    """Tokens."""
    result: NLLResult
    protocol: str


class EvaluationTableCallback(Callback):
    """Logs ``test/perplexity/SET/WINDOW`` (or ``validate/...``) and prints a table at the end of ``validate`` and ``test``.

    The module must keep ``measured``, loader -> :class:`NLLResult` (:class:`adapruner.PrunableCausalLM` does), the data module
    ``evaluation_windows`` and ``search_windows``. In a ``fit`` it does nothing.

    Args:
        model: what is measured, in words, for the title.
    """

    def __init__(self, model: str = "the model") -> None:
        super().__init__()
        self.model = model
        self.rows: list[Measured] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the results of ``validate``; what ``fit`` validates is its own matter."""
        if trainer.state.fn == "validate":
            self._take("validate", trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the results of ``test``."""
        self._take("test", trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The table: after the progress bar, which would be drawn over it."""
        if stage in ("validate", "test") and self.rows and trainer.is_global_zero:
            card = protocol_card(trainer, "evaluation" if stage == "test" else "search")
            measured_table(self.rows, self.model, card).print(terminal(soft_wrap=True))

    def _take(self, command: str, trainer: Trainer, pl_module: LightningModule) -> None:
        measured: dict[int, NLLResult] = getattr(pl_module, "measured", {})
        names = _sets(getattr(trainer, "datamodule", None), command)
        self.rows = [
            _measured(*names[loader], result, command) if loader < len(names) else Measured(f"set {loader}", 0, result, "")
            for loader, result in sorted(measured.items())
        ]
        values = {f"{command}/perplexity/{row.name}/{row.window}": row.result.perplexity for row in self.rows}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)


def measured_table(rows: list[Measured], model: str, card: list[str]) -> TextTable:
    """One line a set, its protocol and what else is needed to measure it again below."""
    bytes_known = any(row.result.bits_per_byte is not None for row in rows)
    columns = ("set", "window", "perplexity", "NLL per token", *(["bits per byte"] if bytes_known else []), "tokens")
    cells = []
    for row in rows:
        bits = row.result.bits_per_byte
        per_byte = [MISSING if bits is None else f"{bits:.4f}"] if bytes_known else []
        window = f"{row.window:,}" if row.window else MISSING
        nll = nll_text(row.result.nll)
        cells.append((row.name, window, perplexity_text(row.result.perplexity), nll, *per_byte, f"{row.result.tokens:,}"))
    return make_table(f"Perplexity of {model} (lower is better)", columns, cells, *(row.protocol for row in rows), *card)


def protocol_card(trainer: Trainer, role: str) -> list[str]:
    """Lines on the text of the measured sets, the leak check, seed, hardware, versions and command."""
    data: Any = getattr(trainer, "datamodule", None)
    record = data.card() if hasattr(data, "card") else None
    lines = [] if record is None else [*text_lines(DataCard.model_validate(record), role), f"data seed: {record['seed']}"]
    return [
        *lines,
        f"hardware: {hardware_in_words(trainer.strategy.root_device, trainer.world_size)}",
        f"versions: {listed(package_versions())}",
        f"command: {command_line(sys.argv)}",
    ]


def _sets(data: Any, command: str) -> list[tuple[str, int, Any]]:
    """Name, window and windows of each loader."""
    if command == "test":
        return [(name, window, windows) for (name, window), windows in getattr(data, "evaluation_windows", {}).items()]
    windows = getattr(data, "search_windows", None)
    return [] if windows is None else [("search split", int(windows.input_ids.shape[1]), windows)]


def _measured(name: str, window: int, windows: Any, result: NLLResult, command: str) -> Measured:
    count, text_bytes = len(windows.input_ids), getattr(windows, "text_bytes", None)
    whole, part = int((windows.labels[:, 1:] != IGNORED).sum()), ""
    if result.tokens < whole:  # bytes are known of all windows together
        part = f"; only part of the set was measured, {result.tokens} of {whole} predictions (trainer.limit_{_LIMITED[command]}_batches)"
        count = count * result.tokens // whole
    elif text_bytes is not None:
        result = NLLResult(result.nll_sum, result.tokens, int(text_bytes.sum()))
    if command == "test":
        return Measured(name, window, result, describe_protocol(name, window, count, result.tokens) + part)
    protocol = (
        f"{name}: {count} windows of {window} tokens drawn from its sources, mean NLL over {result.tokens} predictions in all, log-softmax "
        f"in fp32; recipes are chosen on this text: what is reported is measured by test, on text held out{part}"
    )
    return Measured(name, window, result, protocol)

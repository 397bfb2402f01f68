"""Rows that count nothing, so that several ranks measure every window once and take equally many steps.

Lightning's own way, a sampler that repeats windows where the ranks do not divide them, counts these twice.
"""

from __future__ import annotations

from torch.utils.data import DistributedSampler

from adapruner.data.windows import IGNORED, TextWindows


def with_padding_rows(windows: TextWindows, ranks: int) -> TextWindows:
    """The windows, and behind them as many silent rows as make their number a multiple of ``ranks``.

    A silent row holds the tokens of the first window, all its labels -100: nothing is predicted, no byte of text stands for it.
    """
    missing = -len(windows) % ranks
    if missing == 0:
        return windows
    padded = windows.select([*range(len(windows)), *[0] * missing])
    padded.labels[-missing:] = IGNORED
    if padded.text_bytes is not None:
        padded.text_bytes[-missing:] = 0
    return padded


def share_out(windows: TextWindows, ranks: int, rank: int) -> tuple[TextWindows, DistributedSampler[TextWindows] | None]:
    """What a loader of this rank serves, and in which order: every ``ranks``-th window, in order; of one process all, without a sampler.

    Every rank has equally many rows, hence batches: under FSDP a forward is a step of all ranks.
    """
    if ranks == 1:
        return windows, None
    padded = with_padding_rows(windows, ranks)
    return padded, DistributedSampler(padded, num_replicas=ranks, rank=rank, shuffle=False)  # type: ignore[arg-type]

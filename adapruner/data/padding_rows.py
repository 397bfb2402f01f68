"""Padding rows, so that several ranks evaluate every window once and take equally many steps.

Why our own: Lightning's sampler repeats windows where the ranks do not divide them, and counts these twice.
"""

from __future__ import annotations

from torch.utils.data import DistributedSampler

from adapruner.data.windows import IGNORED, TextWindows


def with_padding_rows(windows: TextWindows, ranks: int) -> TextWindows:
    """The windows, followed by as many padding rows as make their number a multiple of ``ranks``.

    A padding row has the tokens of the first window, labels of -100 and no bytes of text: it adds nothing to any sum.
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
    """The rows of a rank's loader, and the sampler that picks every ``ranks``-th of them; one process has all, and no sampler.

    Every rank has equally many rows, hence batches: under FSDP a forward pass is a step of all ranks.
    """
    if ranks == 1:
        return windows, None
    padded = with_padding_rows(windows, ranks)
    return padded, DistributedSampler(padded, num_replicas=ranks, rank=rank, shuffle=False)  # type: ignore[arg-type]

"""The histogram of token lengths, for the status and the model card."""

from __future__ import annotations

import numpy as np

from finetune_api.outcome import LengthBin
from finetune_trainer.data.masking import Array

MAX_BARS = 12
_LARGEST = 31
"""Edges up to 2 to this power: more tokens than any example has."""

_FINE = sorted({1, 2, 3} | {m << p for p in range(1, _LARGEST) for m in (2, 3)})
_COARSE = [1 << p for p in range(_LARGEST + 1)]


def histogram(lengths: Array) -> list[LengthBin]:
    """Bars whose upper edges are 64, 96, 128, 192, 256 and so on, at most 12.

    Wide data get every second edge (powers of two). Where that is still too much, the first bar
    takes all that is shorter.

    Args:
        lengths: Tokens of each example, int [examples].
    """
    if not len(lengths):
        return []
    bars = next((b for b in (_bars(lengths, _FINE), _bars(lengths, _COARSE)) if len(b) <= 12), None)
    if bars is None:
        bars = _bars(lengths, _COARSE)
        cut = len(bars) - MAX_BARS
        shorter = sum(bar.examples for bar in bars[: cut + 1])
        bars = [LengthBin(up_to=bars[cut].up_to, examples=shorter), *bars[cut + 1 :]]
    return bars


def _bars(lengths: Array, edges: list[int]) -> list[LengthBin]:
    """One bar for each edge from the shortest example to the longest."""
    places = np.searchsorted(edges, lengths)  # the first edge that is not smaller
    counts = np.bincount(places, minlength=len(edges))
    first, last = int(places.min()), int(places.max())
    return [LengthBin(up_to=edges[i], examples=int(counts[i])) for i in range(first, last + 1)]

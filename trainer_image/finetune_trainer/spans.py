"""The examples within packed sequences, one by one; no torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from finetune_api.artefact import Span
from finetune_trainer.batches import IGNORED, Sequences

OPERATIONS = 5e11
"""Floating-point operations that proving a result may take on a CPU: some seconds on two cores."""
MOST = 64
"""Examples that a result is proven by at most."""
_LOOKED_AT = 256


def spans(data: Sequences) -> Iterator[Span]:
    """Every example that has something to learn, in order; padding is none."""
    for row in range(len(data)):
        starts = np.flatnonzero(data.position_ids[row] == 0).tolist()
        for start, end in zip(starts, [*starts[1:], data.input_ids.shape[1]], strict=True):
            learned = np.flatnonzero(data.labels[row, start + 1 : end] != IGNORED)
            if learned.size:
                # What follows the last learned token is no longer looked at.
                yield Span(row=row, start=start, end=start + 2 + int(learned[-1]))


def choose(data: Sequences, parameters: int) -> list[Span]:
    """Examples to prove a result by: in order, as many as fit, and at least the shortest.

    Args:
        parameters: Of the whole model; a token takes two operations for each.
    """
    found = [span for span, _ in zip(spans(data), range(_LOOKED_AT), strict=False)]
    left = OPERATIONS / (2 * max(1, parameters))
    chosen: list[Span] = []
    for span in found:
        length = span.end - span.start
        if length <= left and len(chosen) < MOST:
            chosen.append(span)
            left -= length
    return chosen or [min(found, key=lambda span: span.end - span.start)]


def as_rows(data: Sequences, chosen: list[Span]) -> Sequences:
    """Every example in a row of its own, [examples, longest]."""
    width = max(span.end - span.start for span in chosen)
    ids = np.zeros((len(chosen), width), dtype=np.int32)
    labels = np.full((len(chosen), width), IGNORED, dtype=np.int32)
    positions = np.zeros((len(chosen), width), dtype=np.int32)
    for row, span in enumerate(chosen):
        length = span.end - span.start
        ids[row, :length] = data.input_ids[span.row, span.start : span.end]
        labels[row, :length] = data.labels[span.row, span.start : span.end]
        positions[row, :length] = np.arange(length)
        positions[row, length:] = np.arange(width - length)  # padding: a segment of its own
    return Sequences(ids, labels, positions)

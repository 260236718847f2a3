"""Examples that a result is proven by: one by one, whatever they were packed into; no torch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from finetune_api.artefact import ProofExample
from finetune_trainer.batches import IGNORED, MicroBatch, Sequences, micro_batch

OPERATIONS = 5e11
"""Floating-point operations that proving a result may take on a CPU: some seconds on two cores."""
LEAST, MOST = 3, 32
"""Examples, however large or small the model is."""
_LOOKED_AT = 256


def examples_of(data: Sequences) -> Iterator[ProofExample]:
    """Every example that has something to learn, in order, its loss not yet known."""
    for row in range(len(data)):
        batch = micro_batch(data, np.array([row]))
        ids, positions = batch.input_ids[0], batch.position_ids[0]
        following = np.full(len(ids), IGNORED, dtype=np.int64)
        following[batch.keep] = batch.targets[0]
        starts = np.flatnonzero(positions == 0).tolist()
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            learned = np.flatnonzero(following[start:end] != IGNORED) + 1
            if learned.size:
                last = start + int(learned[-1])
                # What is learned last may be the first token that the batch has cut off.
                whole = [*ids[start:last].tolist(), int(following[last - 1])]
                yield ProofExample(ids=whole, learned=learned.tolist(), loss=0.0)


def choose(examples: Iterator[ProofExample], parameters: int) -> list[ProofExample]:
    """Examples to prove a result by: the first ones that fit; at least the three shortest.

    Args:
        parameters: Of the whole model; a token takes two operations for each.
    """
    found = list(islice(examples, _LOOKED_AT))
    left = OPERATIONS / (2 * max(1, parameters))
    chosen: list[ProofExample] = []
    for example in found:
        if len(example.ids) <= left and len(chosen) < MOST:
            chosen.append(example)
            left -= len(example.ids)
    if len(chosen) >= LEAST:
        return chosen
    return sorted(found, key=lambda example: len(example.ids))[:LEAST]


def batch_of(example: ProofExample, counted: bool) -> MicroBatch:
    """One forward pass over an example.

    Args:
        counted: False for a filler that keeps a process in step with the others.
    """
    ids = np.array([example.ids], dtype=np.int64)
    keep = np.array(example.learned, dtype=np.int64) - 1
    targets = ids[:, keep + 1] if counted else np.full((1, len(keep)), IGNORED, dtype=np.int64)
    return MicroBatch(
        input_ids=ids,
        position_ids=np.arange(ids.shape[1], dtype=np.int64)[None],
        keep=keep,
        targets=targets,
    )

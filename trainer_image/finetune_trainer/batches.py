"""Which sequences every process learns from at every step: one order, whatever the gang's shape.

The data are arrays of 32-bit integers [sequences, length], mapped into memory, as prepare wrote
them: `input_ids`, `labels` (-100: not learned) and `position_ids` (start again with every example).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune_trainer.errors import InternalError

IGNORED = -100
"""A target that is not learned; also what torch's cross entropy leaves out."""

LENGTH_MULTIPLE = 64
"""Batches are cut to a multiple of this: few different shapes, and whole tiles on a GPU."""


@dataclass(frozen=True)
class Sequences:
    """Tokenised sequences, all arrays [sequences, length]."""

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray

    @classmethod
    def open(cls, directory: Path) -> Sequences:
        """Map the arrays of one split into memory.

        Raises:
            InternalError: prepare has not written them, or not completely.
        """
        try:
            found = cls(
                *(
                    np.load(directory / f"{name}.npy", mmap_mode="r")
                    for name in ("input_ids", "labels", "position_ids")
                )
            )
        except (OSError, ValueError) as exc:
            raise InternalError(f"the prepared data cannot be read: {exc}") from exc
        shapes = {a.shape for a in (found.input_ids, found.labels, found.position_ids)}
        if len(shapes) != 1 or found.input_ids.ndim != 2:
            raise InternalError(f"the prepared data in {directory} are inconsistent: {shapes}")
        return found

    def __len__(self) -> int:
        return len(self.input_ids)

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """The token to be predicted at every position: [rows, length], -100 where none is.

        The first token of an example is never a target: what stands before it in a packed
        sequence is another example, which it must not be learned from.
        """
        labels, positions = self.labels[rows], self.position_ids[rows]
        targets = np.full(labels.shape, IGNORED, dtype=np.int64)
        targets[:, :-1] = np.where(positions[:, 1:] == 0, IGNORED, labels[:, 1:])
        return targets


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass."""

    input_ids: np.ndarray
    """[rows, length]"""

    position_ids: np.ndarray
    """[rows, length]"""

    keep: np.ndarray
    """[kept], ascending: positions at which any row has a target; at least one."""

    targets: np.ndarray
    """[rows, kept], -100 where that row has none."""


def step_rows(step: int, batch: int, count: int, seed: int) -> np.ndarray:
    """The sequences of one step's global batch, [batch].

    Every epoch is another shuffle of all `count` sequences. A batch that reaches over the end of
    an epoch is completed from the next one, so that every step has the same size.
    """
    places = np.arange(step * batch, (step + 1) * batch)
    epochs, offsets = np.divmod(places, count)
    rows = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = np.random.Generator(np.random.PCG64([seed, int(epoch)])).permutation(count)
        here = np.equal(epochs, epoch)
        rows[here] = order[offsets[here]]
    return rows


def share(rows: np.ndarray, rank: int, world_size: int, micro: int) -> np.ndarray:
    """One process's part of a global batch, [accumulation, micro].

    The batch is dealt out by micro-batches: first one to every process, then the next to each.
    """
    return rows.reshape(-1, world_size, micro)[:, rank]


def micro_batch(
    data: Sequences, rows: np.ndarray, learned: bool = True, flat: bool = False
) -> MicroBatch:
    """Put sequences together for one forward pass.

    What comes after the last target is cut off: with causal attention it cannot change anything.

    Args:
        rows: Sequences to take.
        learned: False for a filler that keeps a process in step with the others: no targets.
        flat: Put all rows into one, one after the other, for attention that takes segments from
            the position ids of a single row (flash attention).
    """
    targets = data.targets(rows)
    if not learned:
        targets[:] = IGNORED
    places = np.flatnonzero(np.any(targets != IGNORED, axis=0))
    last = int(places[-1]) + 1 if places.size else 1
    length = min(-(-last // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, targets.shape[1])
    shape = (1, len(rows) * length) if flat else (len(rows), length)
    targets = targets[:, :length].reshape(shape)
    keep = np.flatnonzero(np.any(targets != IGNORED, axis=0))
    if not keep.size:
        keep = np.zeros(1, dtype=np.int64)  # an empty tensor has no gradient to send round
    return MicroBatch(
        input_ids=data.input_ids[rows, :length].astype(np.int64).reshape(shape),
        position_ids=data.position_ids[rows, :length].astype(np.int64).reshape(shape),
        keep=keep,
        targets=targets[:, keep],
    )


def learned_tokens(data: Sequences, rows: np.ndarray) -> int:
    """Targets in a global batch: what the loss of a step is divided by."""
    return int(np.count_nonzero(data.targets(rows) != IGNORED))


def evaluation_parts(count: int, rank: int, world_size: int, micro: int) -> list[np.ndarray]:
    """One process's part of `count` held-out items, by micro-batches.

    Every process gets the same number of them, the last ones empty: under ZeRO-3 each forward pass
    is one of all processes, and one too few would wait for ever.
    """
    rounds = -(-count // (world_size * micro))
    firsts = [(number * world_size + rank) * micro for number in range(rounds)]
    return [np.arange(first, max(first, min(first + micro, count))) for first in firsts]

"""Which sequences every process learns from at every step: one order, whatever the gang's shape.

The data are what prepare wrote (`data.store`), mapped into memory: all processes of a machine share
one copy, and only the sequences of a micro-batch are ever copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from finetune_trainer.data.examples import LEARNED
from finetune_trainer.data.store import EXAMPLES, SEQUENCES, TOKENS
from finetune_trainer.errors import InternalError

IGNORED = -100
"""A target that is not learned; also what torch's cross entropy leaves out."""

LENGTH_MULTIPLE = 64
"""Batches are cut to a multiple of this: few different shapes, and whole tiles on a GPU."""

WIDTH_MULTIPLE = 8
"""The longest sequence counts as a multiple of this."""

PADDING = 0
"""Token id of padding: any that the model knows, since nothing is learned from or about it."""


@dataclass(frozen=True)
class Sequences:
    """Tokenised sequences, each of one or more whole examples."""

    tokens: np.ndarray
    """uint32 [tokens]: the id, and in the highest bit whether it is learned."""

    examples: np.ndarray
    """int64 [examples + 1]: where each example starts, and the end."""

    sequences: np.ndarray
    """int64 [sequences + 1]: the first example of each sequence, and the end."""

    @classmethod
    def open(cls, directory: Path) -> Sequences:
        """Map one split into memory.

        Raises:
            InternalError: prepare has not written it, or not completely.
        """
        try:
            found = cls(
                np.memmap(directory / TOKENS, dtype="<u4", mode="r"),
                *(np.load(directory / name, allow_pickle=False) for name in (EXAMPLES, SEQUENCES)),
            )
        except (OSError, ValueError) as exc:
            raise InternalError(f"the prepared data cannot be read: {exc}") from exc
        ends = len(found.tokens), len(found.examples) - 1
        if (int(found.examples[-1]), int(found.sequences[-1])) != ends:
            raise InternalError(
                f"the prepared data in {directory} are inconsistent: {TOKENS} has {ends[0]} tokens "
                f"and {EXAMPLES} {ends[1]} examples, but they should have {found.examples[-1]} "
                f"and {found.sequences[-1]}"
            )
        return found

    def __len__(self) -> int:
        return len(self.sequences) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every sequence, int64 [sequences]."""
        return np.diff(self.examples[self.sequences])

    @cached_property
    def width(self) -> int:
        """Tokens of the longest sequence, rounded up to a multiple of 8."""
        return -(-int(self.lengths.max()) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stored tokens (uint32) and positions (int64), [rows, longest of them].

        Positions start again with every example. Shorter rows end in padding, which is a segment
        of its own.
        """
        longest = int(self.lengths[rows].max())
        longest = min(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, self.width)
        stored = np.full((len(rows), longest), PADDING, dtype=np.uint32)
        positions = np.empty((len(rows), longest), dtype=np.int64)
        for place, row in enumerate(rows):
            starts = self.examples[self.sequences[row] : self.sequences[row + 1] + 1]
            count = int(starts[-1] - starts[0])
            stored[place, :count] = self.tokens[starts[0] : starts[-1]]
            segments = np.append(starts - starts[0], longest)  # the last one is padding
            positions[place] = np.arange(longest) - np.repeat(segments[:-1], np.diff(segments))
        return stored, positions

    def ids(self, row: int) -> np.ndarray:
        """Token ids of one sequence without padding, int64 [tokens]."""
        first, end = self.examples[self.sequences[row : row + 2]]
        return _ids(self.tokens[first:end])

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """The token to be predicted at every position: [rows, longest], -100 where none is.

        The first token of an example is never a target: what stands before it in a packed
        sequence is another example, which it must not be learned from.
        """
        return _targets(self.read(rows)[0])

    def learned(self, rows: np.ndarray) -> int:
        """Targets of some sequences."""
        ends = self.examples[self.sequences]
        return sum(
            int(np.count_nonzero(self.tokens[ends[row] : ends[row + 1]] >= LEARNED)) for row in rows
        )


def _targets(stored: np.ndarray) -> np.ndarray:
    targets = np.full(stored.shape, IGNORED, dtype=np.int64)
    following = stored[:, 1:]
    targets[:, :-1] = np.where(following >= LEARNED, _ids(following), IGNORED)
    return targets


def _ids(stored: np.ndarray) -> np.ndarray:
    return (stored & np.uint32(LEARNED - 1)).astype(np.int64)


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
    stored, positions = data.read(rows)
    targets = _targets(stored)
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
        input_ids=_ids(stored[:, :length]).reshape(shape),
        position_ids=positions[:, :length].reshape(shape),
        keep=keep,
        targets=targets[:, keep],
    )


def learned_tokens(data: Sequences, rows: np.ndarray) -> int:
    """Targets in a global batch: what the loss of a step is divided by."""
    return data.learned(rows)


def evaluation_parts(count: int, rank: int, world_size: int, micro: int) -> list[np.ndarray]:
    """One process's part of `count` held-out items, by micro-batches.

    Every process gets the same number of them, the last ones empty: under ZeRO-3 each forward pass
    is one of all processes, and one too few would wait for ever.
    """
    rounds = -(-count // (world_size * micro))
    firsts = [(number * world_size + rank) * micro for number in range(rounds)]
    return [np.arange(first, max(first, min(first + micro, count))) for first in firsts]

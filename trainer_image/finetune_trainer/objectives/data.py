"""Preference data as training reads them: pairs of sequences, mapped into memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune_trainer.batches import IGNORED, LENGTH_MULTIPLE
from finetune_trainer.data.examples import LEARNED
from finetune_trainer.data.pairs import DESIRABLE
from finetune_trainer.data.store import EXAMPLES, TOKENS
from finetune_trainer.errors import InternalError

REFERENCE = "reference.npy"


@dataclass(frozen=True)
class Pairs:
    """What prepare wrote, see `data.pairs`."""

    tokens: np.ndarray
    """uint32 [tokens]"""
    starts: np.ndarray
    """int64 [2 * pairs + 1]"""
    desirable: np.ndarray | None
    """bool [pairs], of KTO."""
    reference: np.ndarray | None
    """float32 [2 * pairs]: log-probability of each answer by the base model, in nats."""

    @classmethod
    def open(cls, directory: Path, judged: bool = False, reference: bool = False) -> Pairs:
        """Map one part of the data into memory.

        Args:
            judged: There must be what KTO needs.
            reference: There must be what the base model says.

        Raises:
            InternalError: prepare has not written it, or not completely.
        """
        try:
            tokens = np.memmap(directory / TOKENS, dtype="<u4", mode="r")
            starts = np.load(directory / EXAMPLES, allow_pickle=False)
            desirable = _load(directory / DESIRABLE) if judged else None
            said = _load(directory / REFERENCE) if reference else None
        except (OSError, ValueError) as exc:
            raise InternalError(f"the prepared data cannot be read: {exc}") from exc
        count = len(starts) - 1
        sizes = [len(tokens) == starts[-1], desirable is None or 2 * len(desirable) == count]
        if not all(sizes) or (said is not None and len(said) != count):
            raise InternalError(f"the prepared data in {directory} are inconsistent")
        return cls(tokens, starts, desirable, said)

    def __len__(self) -> int:
        return (len(self.starts) - 1) // 2

    def rows(self, numbers: np.ndarray) -> Rows:
        """Sequences side by side, by their numbers (0 to 2 * pairs)."""
        found = [self.tokens[self.starts[n] : self.starts[n + 1]] for n in numbers]
        longest = max(len(row) for row in found)
        stored = np.zeros((len(found), -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE), "<u4")
        real = np.zeros(stored.shape, dtype=bool)
        for place, row in enumerate(found):
            stored[place, : len(row)] = row
            real[place, : len(row)] = True
        ids = (stored & (LEARNED - 1)).astype(np.int64)
        targets = np.full(ids.shape, IGNORED, dtype=np.int64)
        targets[:, :-1] = np.where(real[:, 1:], ids[:, 1:], IGNORED)
        answers = np.zeros(ids.shape, dtype=bool)
        answers[:, :-1] = stored[:, 1:] >= LEARNED
        return Rows(ids, targets, answers)


@dataclass(frozen=True)
class Rows:
    """Sequences with padding at their ends, all [rows, length]."""

    input_ids: np.ndarray
    targets: np.ndarray
    """The token that follows; -100 at the end and in the padding."""
    answers: np.ndarray
    """Whether that token belongs to the answer."""

    def of_answers(self) -> np.ndarray:
        """The targets of the answers only."""
        return np.where(self.answers, self.targets, IGNORED)


def kept(targets: np.ndarray) -> np.ndarray:
    """Positions at which any row has a target, ascending; at least one."""
    places = np.flatnonzero(np.any(targets != IGNORED, axis=0))
    return places if places.size else np.zeros(1, dtype=np.int64)


def _load(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))

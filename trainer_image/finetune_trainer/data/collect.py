"""Sees to examples that are too long, and counts what happens to them."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune_api.outcome import LengthBin
from finetune_trainer.data.examples import Examples, LongExamples, copies, digest, pieces
from finetune_trainer.data.formats import FormatName
from finetune_trainer.data.lengths import histogram
from finetune_trainer.data.masking import Tokens
from finetune_trainer.errors import DataError


@dataclass(frozen=True)
class Tokenized:
    """All examples that have something to learn."""

    examples: Examples
    """Ready for packing: none is longer than a sequence. `examples.documents` tells which ones
    are pieces of the same example."""
    format: FormatName
    count: int
    """Examples before any was split."""
    truncated: int
    """Examples that were cut at the sequence length."""
    dropped: int
    """Examples left out: too long, by choice, or with nothing left to learn."""
    split: int
    """Examples that go on in another sequence."""
    duplicates: int
    """Examples with the same tokens as an earlier one."""
    lengths: list[LengthBin]
    """Histogram of the lengths before anything was cut."""
    largest_id: int
    """Largest token id."""


class Collector:
    """Takes whole examples one by one; keeps what can be learned and counts the rest."""

    def __init__(self, length: int, long_examples: LongExamples, scratch: Path | None) -> None:
        self._length, self._choice = length, long_examples
        self._examples = Examples(scratch)
        self._lengths, self._digests = array("q"), array("Q")
        self._truncated = self._split = self._too_long = self._empty = self._largest = 0

    def add(self, tokens: Tokens) -> None:
        """One example, as long as it is."""
        self._lengths.append(len(tokens.ids))
        long = len(tokens.ids) > self._length
        if long and self._choice == "Drop":
            self._too_long += 1
            return
        cut = list(pieces(tokens, self._length))
        if self._choice != "Split":
            cut = cut[:1]
        kept = [piece for piece in cut if piece.learned[1:].any()]
        self._truncated += long and self._choice == "Truncate"
        if not kept:
            self._empty += 1
            return
        self._split += long and self._choice == "Split"
        self._largest = max(self._largest, *(int(piece.ids.max()) for piece in kept))
        for piece in kept:
            self._examples.add(piece, len(self._digests))
        self._digests.append(digest(tokens))

    def result(self, name: FormatName) -> Tokenized:
        """Everything, after the last example; raises DataError if nothing is left."""
        dropped = self._too_long + self._empty
        if not self._digests:
            raise DataError(
                f"none of the {dropped} examples has anything to learn within "
                f"{self._length} tokens; raise spec.training.sequenceLength or shorten the prompts"
            )
        return Tokenized(
            examples=self._examples,
            format=name,
            count=len(self._digests),
            truncated=self._truncated,
            dropped=dropped,
            split=self._split,
            duplicates=copies(self._digests),
            lengths=histogram(np.array(self._lengths, dtype=np.int64)),
            largest_id=self._largest,
        )

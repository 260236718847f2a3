"""Tokenised examples on disk: a dataset may be larger than memory.

What stays in memory is about 40 bytes per example: lengths, places and a hash. Tokens and names
go into temporary files without a name, so nothing is left behind, whatever happens.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from finetune_trainer.data.masking import Array, Tokens

LongExamples = Literal["Truncate", "Drop", "Split"]
"""What becomes of an example that is longer than a sequence."""

LEARNED = 1 << 31
"""This bit of a stored token says that its prediction is learned; the others are its id."""

_BUFFER = 1 << 20


def encode(tokens: Tokens) -> Array:
    """An example as it is stored, uint32 [length].

    The first token is never learned: nothing that belongs to it stands before it.
    """
    learned = tokens.learned.copy()
    learned[:1] = False
    return tokens.ids.astype(np.uint32) | (learned.astype(np.uint32) << np.uint32(31))


class Spill:
    """Byte strings in a temporary file: written once, then read by their number."""

    def __init__(self, directory: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, buffering=_BUFFER)  # noqa: SIM115
        self.ends = array("q", [0])
        self._flushed = True

    def append(self, data: bytes) -> None:
        """Write one more."""
        self._file.write(data)
        self.ends.append(self.ends[-1] + len(data))
        self._flushed = False

    def __getitem__(self, index: int) -> bytes:
        if not self._flushed:
            self._file.flush()
            self._flushed = True
        start, end = self.ends[index], self.ends[index + 1]
        return os.pread(self._file.fileno(), end - start, start)


class Examples(Sequence[Tokens]):
    """Examples in the order in which they were added; each is read from disk when asked for.

    Args:
        directory: Where the temporary files are; None: where the system keeps such files.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._tokens, self._names = Spill(directory), Spill(directory)
        self._documents = array("q")

    def add(self, tokens: Tokens, document: int) -> None:
        """Add an example, or one piece of it.

        Args:
            document: Number of the example as it stands in the file; the same for all its pieces.
        """
        self._tokens.append(encode(tokens).tobytes())
        self._names.append(tokens.where.encode("utf-8", "replace"))
        self._documents.append(document)

    @property
    def lengths(self) -> Array:
        """Tokens of each, int64 [examples]."""
        return np.diff(np.array(self._tokens.ends, dtype=np.int64)) // 4

    @property
    def documents(self) -> Array:
        """Number of the example that each belongs to, int64 [examples], ascending."""
        return np.array(self._documents, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Tokens:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        stored = np.frombuffer(self._tokens[index], dtype=np.uint32)
        ids = (stored & np.uint32(LEARNED - 1)).astype(np.int32)
        return Tokens(self._names[index].decode(), ids, stored >= LEARNED)


def pieces(tokens: Tokens, length: int) -> Iterator[Tokens]:
    """Cut a long example so that every token but the very first is learned exactly once.

    Neighbours share one token: the last of a piece is the first of the next one, where it is only
    read, because the first token of a sequence is never learned. Without it one token per piece
    would be lost.

    Args:
        length: Tokens of a piece, at least 2; the last one may be shorter.
    """
    count = len(tokens.ids)
    for start in range(0, max(1, count - 1), length - 1):
        part = slice(start, start + length)
        yield Tokens(tokens.where, tokens.ids[part], tokens.learned[part])


def digest(tokens: Tokens) -> int:
    """64 bits that stand for the token ids: the same for the same text."""
    return int.from_bytes(hashlib.blake2b(tokens.ids.tobytes(), digest_size=8).digest(), "little")


def copies(digests: array[int]) -> int:
    """How many examples are the same as an earlier one."""
    return len(digests) - len(np.unique(np.array(digests, dtype=np.uint64)))

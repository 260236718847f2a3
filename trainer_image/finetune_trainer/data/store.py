"""The prepared data on disk: what training maps into memory, and its description.

`work_dir/data/{train,eval}` hold, without any padding:
- `tokens.bin`: uint32 [tokens], little endian; the highest bit says that the token is learned
- `examples.npy`: int64 [examples + 1], where each example starts in `tokens.bin`, and the end
- `sequences.npy`: int64 [sequences + 1], the first example of each sequence, and the end

4 bytes a token in all, packed or not. There is no `eval` where nothing is held out.
`work_dir/data/meta.json` describes them (`DataMeta`). `batches.Sequences` reads them.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune_api.base import ApiModel
from finetune_trainer.data.examples import LEARNED, encode
from finetune_trainer.data.masking import Tokens

TRAIN = "train"
EVAL = "eval"
META = "meta.json"

TOKENS, EXAMPLES, SEQUENCES = "tokens.bin", "examples.npy", "sequences.npy"


class SplitMeta(ApiModel):
    """One part of the data."""

    examples: int
    """Pieces of a split example counted one by one."""
    sequences: int
    tokens: int
    trained_tokens: int
    """Tokens whose prediction is learned."""
    rows_per_sequence: int = 1
    """2 for preferences: a sequence is then a pair (`data.pairs`)."""


class DataMeta(ApiModel):
    """What `data/meta.json` says."""

    run_hash: str
    """Of the `run.json` that the data were made for."""
    width: int
    """Tokens of the longest sequence, rounded up to a multiple of 8."""
    vocabulary_size: int
    """Rows of the model's embedding; every token id is smaller."""
    train: SplitMeta
    eval: SplitMeta | None


def write_split(
    directory: Path, examples: Sequence[Tokens], rows: Sequence[Sequence[int]]
) -> SplitMeta:
    """Write one part of the data, an example at a time.

    Args:
        directory: New.
        rows: Examples of each sequence, as indices.
    """
    directory.mkdir(parents=True)
    starts, firsts = array("q", [0]), array("q", [0])
    trained = 0
    with (directory / TOKENS).open("wb", buffering=1 << 20) as file:
        for row in rows:
            for index in row:
                stored = encode(examples[index])
                file.write(stored.astype("<u4", copy=False).tobytes())
                starts.append(starts[-1] + len(stored))
                trained += int(np.count_nonzero(stored >= LEARNED))
            firsts.append(len(starts) - 1)
        file.flush()
        os.fsync(file.fileno())
    np.save(directory / EXAMPLES, np.array(starts, dtype=np.int64))
    np.save(directory / SEQUENCES, np.array(firsts, dtype=np.int64))
    return SplitMeta(
        examples=len(starts) - 1,
        sequences=len(firsts) - 1,
        tokens=starts[-1],
        trained_tokens=trained,
    )

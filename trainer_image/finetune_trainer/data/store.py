"""The prepared data on disk: arrays that training maps into memory, and their description.

`work_dir/data/{train,eval}/{input_ids,labels,position_ids}.npy`, int32 [sequences, width]; there
is no `eval` where nothing is held out. `work_dir/data/meta.json` describes them (`DataMeta`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune_api.base import ApiModel
from finetune_trainer.data.masking import Tokens

NOT_LEARNED = -100
"""Label of a token whose prediction is not learned."""

TRAIN = "train"
EVAL = "eval"
META = "meta.json"

Array = Any


class SplitMeta(ApiModel):
    """One part of the data."""

    examples: int
    sequences: int
    tokens: int
    """Padding not counted."""
    trained_tokens: int
    """Labels other than -100."""
    rows_per_sequence: int = 1
    """2 for preferences: a sequence is then a pair (`data.pairs`)."""


class DataMeta(ApiModel):
    """What `data/meta.json` says."""

    run_hash: str
    """Of the `run.json` that the data were made for."""
    width: int
    """Tokens of a sequence, padding counted; the same in both parts."""
    pad_token_id: int
    vocabulary_size: int
    """Rows of the model's embedding; every token id is smaller."""
    train: SplitMeta
    eval: SplitMeta | None


def write_split(
    directory: Path, examples: Sequence[Tokens], rows: list[list[int]], width: int, pad: int
) -> SplitMeta:
    """Write one part of the data.

    Args:
        rows: Examples of each sequence, as indices.
        width: Tokens of a sequence.
        pad: Token id of the padding, which follows the examples as a segment of its own.
    """
    directory.mkdir(parents=True)
    shape = (len(rows), width)
    arrays = {
        name: np.lib.format.open_memmap(
            directory / f"{name}.npy", mode="w+", dtype=np.int32, shape=shape
        )
        for name in ("input_ids", "labels", "position_ids")
    }
    tokens = trained = 0
    for index, row in enumerate(rows):
        ids, labels, positions = _row([examples[i] for i in row], width, pad)
        arrays["input_ids"][index] = ids
        arrays["labels"][index] = labels
        arrays["position_ids"][index] = positions
        tokens += sum(len(examples[i].ids) for i in row)
        trained += int((labels != NOT_LEARNED).sum())
    for array in arrays.values():
        array.flush()
    return SplitMeta(
        examples=sum(len(row) for row in rows),
        sequences=len(rows),
        tokens=tokens,
        trained_tokens=trained,
    )


def _row(examples: list[Tokens], width: int, pad: int) -> tuple[Array, Array, Array]:
    ids = np.full(width, pad, dtype=np.int32)
    labels = np.full(width, NOT_LEARNED, dtype=np.int32)
    positions = np.zeros(width, dtype=np.int32)
    at = 0
    for example in examples:
        end = at + len(example.ids)
        ids[at:end] = example.ids
        labels[at:end] = np.where(example.learned, example.ids, NOT_LEARNED)
        # Its prediction would come from the last token of the example before it.
        labels[at] = NOT_LEARNED
        positions[at:end] = np.arange(end - at)
        at = end
    positions[at:] = np.arange(width - at)
    return ids, labels, positions


def read_split(work_data: Path, split: str) -> dict[str, Array]:
    """The three arrays of a part, mapped into memory, by name."""
    return {
        name: np.load(work_data / split / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in ("input_ids", "labels", "position_ids")
    }

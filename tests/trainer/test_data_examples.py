"""Tokenised examples on disk: as they were put in, and not in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np

from finetune_trainer.data.examples import Examples
from finetune_trainer.data.masking import Tokens
from finetune_trainer.data.store import write_split


def example(number: int, count: int) -> Tokens:
    ids = (np.arange(count) + number).astype(np.int32)
    return Tokens(f"ä line {number}", ids, np.arange(count) % 2 == 1)


def test_examples_come_back_as_they_were_put_in(tmp_path: Path) -> None:
    found = Examples(tmp_path)
    for number, count in enumerate([3, 1, 7]):
        found.add(example(number, count), document=number // 2)
        assert found[number].where == f"ä line {number}"  # reading and writing take turns
    assert (len(found), found.lengths.tolist(), found.documents.tolist()) == (
        3,
        [3, 1, 7],
        [0, 0, 1],
    )
    for number, tokens in enumerate(found):
        expected = example(number, len(tokens.ids))
        assert tokens.ids.tolist() == expected.ids.tolist()
        assert tokens.learned.tolist() == expected.learned.tolist()
    assert (found[2].ids.dtype, found[2].learned.dtype) == (np.int32, bool)


def test_nothing_is_left_of_the_temporary_files(tmp_path: Path) -> None:
    found = Examples(tmp_path)
    found.add(example(0, 3), document=0)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_may_be_larger_than_the_memory_that_it_takes(tmp_path: Path) -> None:
    tracemalloc.start()
    found = Examples(tmp_path)
    for number in range(1000):
        found.add(example(number, 10_000), document=number)
    written = write_split(tmp_path / "train", found, [[i] for i in range(1000)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "train/tokens.bin").stat().st_size == 4 * written.tokens == 40_000_000
    assert peak < 8_000_000

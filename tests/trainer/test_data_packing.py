"""Packing: nothing lost, nothing split, little wasted."""

from __future__ import annotations

import random

import pytest

from finetune_trainer.data.packing import one_each, pack


def usual_lengths(count: int, seed: int) -> list[int]:
    """Log-normal, as instruction data are."""
    generator = random.Random(seed)
    return [min(2048, max(4, int(generator.lognormvariate(5, 0.9)))) for _ in range(count)]


def test_the_fullest_row_with_room_gets_the_next_example() -> None:
    assert pack([3, 5, 4, 6, 2], capacity=10) == [[3, 2], [1, 0, 4]]


def test_every_example_is_in_exactly_one_row_and_no_row_overflows() -> None:
    for seed in range(20):
        lengths = usual_lengths(200, seed)
        rows = pack(lengths, 2048)
        assert sorted(index for row in rows for index in row) == list(range(200))
        assert max(sum(lengths[index] for index in row) for row in rows) <= 2048


@pytest.mark.parametrize(
    ("name", "mu", "sigma", "capacity"),
    [("short", 5.2, 0.75, 2048), ("instruct", 5.9, 0.9, 2048), ("long", 6.8, 0.9, 4096)],
)
def test_995_of_1000_tokens_are_real(name: str, mu: float, sigma: float, capacity: int) -> None:
    generator = random.Random(name)
    lengths = [
        min(capacity, max(4, int(generator.lognormvariate(mu, sigma)))) for _ in range(20_000)
    ]
    rows = pack(lengths, capacity)
    assert sum(lengths) / (len(rows) * capacity) >= 0.995


def test_packing_twice_gives_the_same() -> None:
    lengths = usual_lengths(500, seed=2)
    assert pack(lengths, 2048) == pack(lengths, 2048)


@pytest.mark.parametrize("length", [0, 11])
def test_an_example_that_no_row_can_hold_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"^example 1 has {length} tokens, the row 10$"):
        pack([10, length], capacity=10)


def test_without_packing_every_example_has_its_own_row() -> None:
    assert one_each([3, 5]) == [[0], [1]]

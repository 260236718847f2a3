"""Which sequences every process learns from, and how they are put together."""

from pathlib import Path

import numpy as np
import pytest
from training_builders import arrays, save_sequences, sequences

from finetune_trainer.batches import (
    IGNORED,
    Sequences,
    evaluation_parts,
    learned_tokens,
    micro_batch,
    share,
    step_rows,
)
from finetune_trainer.data.examples import LEARNED
from finetune_trainer.errors import InternalError


def one(labels: list[int], positions: list[int]) -> Sequences:
    ids = np.arange(len(labels), dtype=np.int32) + 50
    return sequences(
        {
            "input_ids": ids[None],
            "labels": np.array([labels]),
            "position_ids": np.array([positions]),
        }
    )


def test_every_epoch_is_another_shuffle_of_all_sequences() -> None:
    taken = np.concatenate([step_rows(step, 4, 12, seed=3) for step in range(6)])
    assert sorted(taken[:12]) == list(range(12))
    assert sorted(taken[12:]) == list(range(12))
    assert taken[:12].tolist() != taken[12:].tolist()


def test_a_batch_over_the_end_of_an_epoch_is_completed_from_the_next() -> None:
    steps = [step_rows(step, 4, 10, seed=3) for step in range(5)]
    assert sorted(np.concatenate(steps)[:10]) == list(range(10))
    assert [len(rows) for rows in steps] == [4, 4, 4, 4, 4]


def test_a_batch_may_be_larger_than_the_data() -> None:
    rows = step_rows(0, 8, 3, seed=3)
    assert sorted(rows[:3]) == sorted(rows[3:6]) == [0, 1, 2]


def test_the_same_seed_gives_the_same_order_and_another_another() -> None:
    assert step_rows(2, 6, 100, seed=1).tolist() == step_rows(2, 6, 100, seed=1).tolist()
    assert step_rows(2, 6, 100, seed=1).tolist() != step_rows(2, 6, 100, seed=2).tolist()


def test_a_global_batch_is_dealt_out_by_micro_batches_without_rest() -> None:
    rows = np.arange(12)
    shares = [share(rows, rank, world_size=2, micro=3).tolist() for rank in (0, 1)]
    assert shares == [[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9, 10, 11]]]


def test_targets_are_the_next_tokens_and_never_the_first_of_an_example() -> None:
    data = one([1, 2, 3, 4, IGNORED, 6], [0, 1, 2, 0, 1, 2])
    targets = data.targets(np.array([0]))[:, :6]
    assert targets.tolist() == [[51, 52, IGNORED, IGNORED, 55, IGNORED]]
    assert learned_tokens(data, np.array([0, 0])) == 6


def test_what_comes_after_the_last_target_is_cut_off() -> None:
    labels = [IGNORED] * 200
    labels[5], labels[70] = 7, 8
    batch = micro_batch(one(labels, list(range(200))), np.array([0]))
    assert batch.input_ids.shape == batch.position_ids.shape == (1, 128)
    assert batch.keep.tolist() == [4, 69]
    assert batch.targets.tolist() == [[55, 120]]


def test_a_flat_batch_is_one_row_with_the_same_targets() -> None:
    data = sequences(arrays(3, seed=5))
    rows = np.array([2, 0])
    flat, square = micro_batch(data, rows, flat=True), micro_batch(data, rows)
    assert flat.input_ids.shape == (1, 64)
    assert flat.input_ids.reshape(2, 32).tolist() == square.input_ids.tolist()
    assert flat.targets.min() >= 0  # nothing is kept that is not learned
    wanted = data.targets(rows)
    assert flat.targets.tolist() == [wanted[wanted != IGNORED].tolist()]


def test_a_batch_without_targets_keeps_one_position_for_the_gradient() -> None:
    batch = micro_batch(sequences(arrays(3, seed=5)), np.array([1]), learned=False)
    assert batch.keep.tolist() == [0]
    assert batch.targets.tolist() == [[IGNORED]]


@pytest.mark.parametrize(("count", "rounds"), [(1, 1), (5, 2), (6, 2), (7, 2), (12, 3)])
def test_every_process_evaluates_as_often_and_every_sequence_once(count: int, rounds: int) -> None:
    found = [evaluation_parts(count, rank, 2, 2) for rank in (0, 1)]
    assert [len(parts) for parts in found] == [rounds, rounds]
    assert sorted(int(item) for parts in found for part in parts for item in part) == [
        *range(count)
    ]


def test_reading_gives_back_every_row_with_padding_as_a_segment_of_its_own() -> None:
    data = Sequences(
        tokens=np.array([11, 12 | LEARNED, 21, 31, 32, 33 | LEARNED], dtype=np.uint32),
        examples=np.array([0, 2, 3, 6]),
        sequences=np.array([0, 2, 3]),
    )
    stored, positions = data.read(np.array([1, 0]))
    assert (len(data), data.width, data.lengths.tolist()) == (2, 8, [3, 3])
    assert (stored & (LEARNED - 1)).tolist() == [
        [31, 32, 33, 0, 0, 0, 0, 0],
        [11, 12, 21, 0, 0, 0, 0, 0],
    ]
    assert positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 0, 0, 1, 2, 3, 4]]
    assert data.targets(np.array([1, 0])).tolist() == [
        [-100, 33, *[-100] * 6],
        [12, -100, *[-100] * 6],
    ]
    assert data.ids(0).tolist() == [11, 12, 21]
    assert learned_tokens(data, np.array([0, 1, 1])) == 3


def test_short_rows_are_read_without_the_padding_that_long_ones_need() -> None:
    lengths = [10, 500, 70]
    data = Sequences(
        tokens=np.arange(580, dtype=np.uint32),
        examples=np.cumsum([0, *lengths]),
        sequences=np.arange(4),
    )
    assert data.width == 504
    assert data.read(np.array([0]))[0].shape == (1, 64)
    assert data.read(np.array([0, 2]))[0].shape == (2, 128)
    assert data.read(np.array([1]))[0].shape == (1, 504)


@pytest.mark.parametrize("done", [0, 3, 7])
@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 2), (2, 8)])
def test_after_k_steps_the_order_goes_on_the_same_at_any_world_size(
    done: int, before: int, after: int
) -> None:
    def steps(first: int, last: int, world: int) -> list[list[int]]:
        """The global batch of every step, put together from what each process takes."""
        found = []
        for step in range(first, last):
            rows = step_rows(step, batch=16, count=37, seed=5)
            dealt = [share(rows, rank, world, micro=2) for rank in range(world)]
            assert {part.shape for part in dealt} == {(16 // world // 2, 2)}
            found.append(sorted(int(row) for part in dealt for row in part.reshape(-1)))
        return found

    whole = steps(0, 10, before)
    assert steps(0, done, before) + steps(done, 10, after) == whole


def test_data_that_prepare_left_incomplete_are_refused(tmp_path: Path) -> None:
    save_sequences(tmp_path, arrays(4, seed=1))
    assert len(Sequences.open(tmp_path)) == 4
    whole = (tmp_path / "tokens.bin").read_bytes()
    (tmp_path / "tokens.bin").write_bytes(whole[:-8])
    with pytest.raises(InternalError, match="inconsistent"):
        Sequences.open(tmp_path)
    (tmp_path / "tokens.bin").write_bytes(whole)
    np.save(tmp_path / "sequences.npy", np.array([0, 1]))
    with pytest.raises(InternalError, match="inconsistent"):
        Sequences.open(tmp_path)
    (tmp_path / "examples.npy").write_bytes(b"half")
    with pytest.raises(InternalError, match="cannot be read"):
        Sequences.open(tmp_path)
    (tmp_path / "tokens.bin").unlink()
    with pytest.raises(InternalError, match="cannot be read"):
        Sequences.open(tmp_path)

"""Which sequences every process learns from, and how they are put together."""

from pathlib import Path

import numpy as np
import pytest
from training_builders import arrays

from finetune_trainer.batches import (
    IGNORED,
    Sequences,
    evaluation_parts,
    learned_tokens,
    micro_batch,
    share,
    step_rows,
)
from finetune_trainer.errors import InternalError

pytestmark = pytest.mark.trainer


def one(labels: list[int], positions: list[int]) -> Sequences:
    ids = np.arange(len(labels), dtype=np.int32) + 50
    return Sequences(ids[None], np.array([labels]), np.array([positions]))


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
    assert data.targets(np.array([0])).tolist() == [[2, 3, IGNORED, IGNORED, 6, IGNORED]]
    assert learned_tokens(data, np.array([0, 0])) == 6


def test_what_comes_after_the_last_target_is_cut_off() -> None:
    labels = [IGNORED] * 200
    labels[5], labels[70] = 7, 8
    batch = micro_batch(one(labels, list(range(200))), np.array([0]))
    assert batch.input_ids.shape == batch.position_ids.shape == (1, 128)
    assert batch.keep.tolist() == [4, 69]
    assert batch.targets.tolist() == [[7, 8]]


def test_a_flat_batch_is_one_row_with_the_same_targets() -> None:
    data = Sequences(**arrays(3, seed=5))
    rows = np.array([2, 0])
    flat, square = micro_batch(data, rows, flat=True), micro_batch(data, rows)
    assert flat.input_ids.shape == (1, 64)
    assert flat.input_ids.reshape(2, 32).tolist() == square.input_ids.tolist()
    assert flat.targets.min() >= 0  # nothing is kept that is not learned
    wanted = data.targets(rows)
    assert flat.targets.tolist() == [wanted[wanted != IGNORED].tolist()]


def test_a_batch_without_targets_keeps_one_position_for_the_gradient() -> None:
    batch = micro_batch(Sequences(**arrays(3, seed=5)), np.array([1]), learned=False)
    assert batch.keep.tolist() == [0]
    assert batch.targets.tolist() == [[IGNORED]]


@pytest.mark.parametrize(("count", "rounds"), [(1, 1), (5, 2), (6, 2), (7, 2), (12, 3)])
def test_every_process_evaluates_as_often_and_every_sequence_once(count: int, rounds: int) -> None:
    found = [evaluation_parts(count, rank, 2, 2) for rank in (0, 1)]
    assert [len(parts) for parts in found] == [rounds, rounds]
    assert sorted(int(item) for parts in found for part in parts for item in part) == [
        *range(count)
    ]


def test_data_that_prepare_left_incomplete_are_refused(tmp_path: Path) -> None:
    for name, array in arrays(4, seed=1).items():
        np.save(tmp_path / f"{name}.npy", array)
    assert len(Sequences.open(tmp_path)) == 4
    np.save(tmp_path / "labels.npy", np.zeros((3, 32), np.int32))
    with pytest.raises(InternalError, match="inconsistent"):
        Sequences.open(tmp_path)
    (tmp_path / "labels.npy").unlink()
    with pytest.raises(InternalError, match="cannot be read"):
        Sequences.open(tmp_path)

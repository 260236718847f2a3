"""Which reports are worth a write, and what becomes of nonsense."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.progress import TrainerStatus
from finetune_api.status import HistoryPoint, Progress
from finetune_operator.progress import Rejected, merge

T0, T1, T40 = "2026-11-22T06:00:00Z", "2026-11-22T06:00:01Z", "2026-11-22T06:00:40Z"


def report(percent: int | None = None, eta: int | None = None, **metrics: object) -> TrainerStatus:
    found: dict[str, Any] = {
        "metrics": [{"name": name, "value": str(value)} for name, value in metrics.items()]
    }
    if percent is not None:
        found["progressPercentage"] = percent
    if eta is not None:
        found["estimatedRemainingSeconds"] = eta
    return TrainerStatus.parse(found)


FIRST = Progress(
    attempt=0,
    step=10,
    total_steps=100,
    percent=10,
    eta_seconds=90,
    loss=2.5,
    step_time=T0,
    activity="Training",
    last_update_time=T0,
    history=[HistoryPoint(step=10, loss=2.5)],
)


def test_the_first_report_is_written_whole() -> None:
    found = merge(
        None,
        report(10, 90, current_step=10, total_steps=100, loss=2.5, activity="Training"),
        0,
        T0,
    )
    assert found == FIRST


def test_a_change_of_one_percent_is_written_but_not_twice_a_second() -> None:
    new = report(11, 89, current_step=11, loss=2.4)
    assert merge(FIRST, new, 0, T1) is None
    later = merge(FIRST, new, 0, "2026-11-22T06:00:02Z")
    assert isinstance(later, Progress)
    assert (later.percent, later.step, later.loss, later.total_steps) == (11, 11, 2.4, 100)


def test_a_change_of_activity_is_written_at_once() -> None:
    found = merge(FIRST, report(10, activity="Evaluating"), 0, T1)
    assert isinstance(found, Progress)
    assert (found.activity, found.loss) == ("Evaluating", 2.5)


def test_the_same_percent_is_written_every_thirty_seconds() -> None:
    assert merge(FIRST, report(10, current_step=10), 0, "2026-11-22T06:00:20Z") is None
    assert isinstance(merge(FIRST, report(10, current_step=10), 0, T40), Progress)


def test_a_new_attempt_starts_anew() -> None:
    found = merge(FIRST, report(1, current_step=1, loss=3.0), 1, T1)
    assert found == Progress(
        attempt=1,
        step=1,
        percent=1,
        loss=3.0,
        step_time=T1,
        last_update_time=T1,
        history=[HistoryPoint(step=1, loss=3.0)],
    )


def test_steps_do_not_go_backwards() -> None:
    assert merge(FIRST, report(9, current_step=9), 0, T40) == Rejected(
        422, "current_step went back from 10 to 9"
    )


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "many", ""])
def test_what_is_no_finite_number_is_left_out(value: str) -> None:
    found = merge(FIRST, report(12, loss=value), 0, T40)
    assert isinstance(found, Progress)
    assert found.loss == 2.5


@pytest.mark.parametrize(("said", "taken"), [(12.5, 12.5), (-1.0, None), (1e9, None)])
def test_how_long_saving_takes_is_taken_where_it_can_be_true(
    said: float, taken: float | None
) -> None:
    found = merge(None, report(12, save_seconds=said), 0, T40)
    assert isinstance(found, Progress)
    assert found.save_seconds == taken


def test_an_unknown_activity_is_left_out() -> None:
    found = merge(FIRST, report(12, activity="<script>"), 0, T40)
    assert isinstance(found, Progress)
    assert found.activity == "Training"


def test_the_history_is_thinned_evenly_and_keeps_the_newest() -> None:
    progress: Progress | None = None
    for step in range(1, 501):
        minutes, seconds = divmod(step * 5, 60)
        now = f"2026-11-22T{6 + minutes // 60:02}:{minutes % 60:02}:{seconds:02}Z"
        found = merge(progress, report(step // 5, current_step=step, loss=1.0), 0, now)
        assert not isinstance(found, Rejected)
        progress = found or progress
    assert progress is not None
    steps = [point.step for point in progress.history]
    assert len(steps) <= 50
    assert steps == sorted(set(steps))
    assert steps[-1] == 500


def test_a_hang_that_is_only_reported_is_written_at_once_and_its_end_too() -> None:
    found = merge(FIRST, report(10, stalled_seconds=77.4), 0, T1)
    assert isinstance(found, Progress)
    assert found.stalled_seconds == 77
    again = merge(found, report(10), 0, T1)
    assert isinstance(again, Progress)
    assert again.stalled_seconds is None


def test_the_time_of_a_step_and_of_a_checkpoint_is_that_of_its_first_report() -> None:
    saved = {"checkpoint_step": 8, "checkpoint_seconds": 3.25, "checkpoint_stalled_seconds": 0.5}
    first = merge(FIRST, report(12, current_step=12, **saved), 0, T40)
    assert isinstance(first, Progress)
    later = merge(first, report(12, current_step=12, checkpoint_step=8), 0, "2026-11-22T06:01:30Z")
    assert isinstance(later, Progress)
    for found in (first, later):
        assert (found.step, found.step_time) == (12, T40)
        assert (found.checkpoint_step, found.checkpoint_time) == (8, T40)
        assert (found.checkpoint_seconds, found.checkpoint_stalled_seconds) == (3.25, 0.5)

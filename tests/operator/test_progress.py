"""What becomes of a report, what is nonsense, and which numbers are worth a write."""

from __future__ import annotations

from typing import Any

import pytest
from fuzz import fuzz
from hypothesis import strategies as st

from finetune_api import progress as wire
from finetune_api.progress import TrainerStatus
from finetune_api.status import HistoryPoint, Progress
from finetune_operator.progress import OVERDUE_SECONDS, Rejected, merge, newer, pause, worth

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
    first_step=10,
    first_step_time=T0,
    loss=2.5,
    step_time=T0,
    activity="Training",
    last_update_time=T0,
    history=[HistoryPoint(step=10, loss=2.5)],
)


def merged(old: Progress | None, new: TrainerStatus, attempt: int, now: str) -> Progress:
    found = merge(old, new, attempt, now)
    assert isinstance(found, Progress), found
    return found


def test_the_first_report_is_taken_whole() -> None:
    first = report(10, 90, current_step=10, total_steps=100, loss=2.5, activity="Training")
    assert merge(None, first, 0, T0) == FIRST


def test_what_a_report_does_not_say_stays_as_it_was() -> None:
    assert merge(FIRST, report(11, 89, current_step=11, activity="Training"), 0, T40) == (
        FIRST.model_copy(
            update={
                "step": 11,
                "percent": 11,
                "eta_seconds": 89,
                "seconds_per_step": 40.0,
                "step_time": T40,
                "last_update_time": T40,
            }
        )
    )


def test_a_new_attempt_starts_anew() -> None:
    assert merge(FIRST, report(1, current_step=1, loss=3.0), 1, T1) == Progress(
        attempt=1,
        step=1,
        percent=1,
        first_step=1,
        first_step_time=T1,
        loss=3.0,
        step_time=T1,
        last_update_time=T1,
        history=[HistoryPoint(step=1, loss=3.0)],
    )


def test_steps_do_not_go_backwards() -> None:
    assert merge(FIRST, report(9, current_step=9), 0, T40) == Rejected(
        422, "current_step went back from 10 to 9"
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("loss", "nan", "loss is not finite"),
        ("loss", "-inf", "loss is not finite"),
        ("loss", "1e400", "loss is not finite"),
        ("grad_norm", "inf", "grad_norm is not finite"),
        ("loss", "many", "loss is not a number"),
        ("loss", "", "loss is not a number"),
        ("current_step", "-1", "current_step is not between 0 and 9.0072e+15"),
        ("current_step", "1.5", "current_step is not a whole number"),
        ("total_steps", "1e300", "total_steps is not between 0 and 9.0072e+15"),
        ("current_epoch", "1e9", "current_epoch is not between 0 and 1e+06"),
        ("save_seconds", "-1", "save_seconds is not between 0 and 1e+06"),
        ("tokens_per_second", "-1", "tokens_per_second is not between 0 and 1e+15"),
        (
            "activity",
            "<script>",
            "activity is none of Loading, Training, Evaluating, Checkpointing, Saving, Done",
        ),
    ],
)
def test_nonsense_under_our_names_is_refused(name: str, value: str, said: str) -> None:
    assert merge(FIRST, report(12, **{name: value}), 0, T40) == Rejected(422, said)


def test_a_name_that_is_there_twice_is_refused() -> None:
    twice = [{"name": "loss", "value": "1"}, {"name": "loss", "value": "2"}]
    assert merge(FIRST, TrainerStatus.parse({"metrics": twice}), 0, T40) == Rejected(
        422, "loss is there twice"
    )


def test_names_that_are_not_ours_leave_no_trace() -> None:
    plain = report(12, current_step=12)
    more = report(12, current_step=12, entropy="nan", **{"rewards/chosen": 1.5, "x" * 200: "y"})
    assert merge(FIRST, more, 0, T40) == merge(FIRST, plain, 0, T40)


def test_the_history_is_thinned_evenly_and_keeps_the_newest() -> None:
    progress: Progress | None = None
    for step in range(1, 501):
        minutes, seconds = divmod(step * 5, 60)
        now = f"2026-11-22T{6 + minutes // 60:02}:{minutes % 60:02}:{seconds:02}Z"
        progress = merged(progress, report(step // 5, current_step=step, loss=1.0), 0, now)
    assert progress is not None
    steps = [point.step for point in progress.history]
    assert len(steps) <= 50
    assert steps == sorted(set(steps))
    assert steps[-1] == 500


def test_the_time_of_a_step_and_of_a_checkpoint_is_that_of_its_first_report() -> None:
    saved = {"checkpoint_step": 8, "checkpoint_seconds": 3.25, "checkpoint_stalled_seconds": 0.5}
    first = merged(FIRST, report(12, current_step=12, **saved), 0, T40)
    later = merged(first, report(12, current_step=12, checkpoint_step=8), 0, "2026-11-22T06:01:30Z")
    for found in (first, later):
        assert (found.step, found.step_time) == (12, T40)
        assert (found.checkpoint_step, found.checkpoint_time) == (8, T40)
        assert (found.checkpoint_seconds, found.checkpoint_stalled_seconds) == (3.25, 0.5)


def callback(step: int, total: int, eta: int | None) -> TrainerStatus:
    """As `KubeflowCallback` reports: no activity."""
    return report(100 * step // total, eta, current_step=step, total_steps=total)


def test_after_a_resume_the_estimate_of_others_is_replaced_by_what_was_measured() -> None:
    """transformers divides the seconds since its own start by all steps, also those before it."""
    old = FIRST.model_copy(update={"step": 500, "total_steps": 1000, "seconds_per_step": 4.0})
    begun = merged(old, TrainerStatus.parse({"progressPercentage": 0}), 1, T0)
    first = merged(begun, callback(501, 1000, eta=5), 1, T0)
    later = merged(first, callback(521, 1000, eta=45), 1, T40)
    assert [(p.eta_seconds, p.seconds_per_step) for p in (begun, first, later)] == [
        (None, 4.0),  # where it goes on is not known yet
        (4 * 499, 4.0),  # by the pace of the attempt before
        (2 * 479, 2.0),  # 20 steps in 40 s
    ]


def test_without_anything_measured_the_sender_is_believed() -> None:
    assert merged(None, callback(1, 100, eta=99), 0, T0).eta_seconds == 99


def test_the_estimate_for_steps_without_end_is_a_number_that_a_status_can_have() -> None:
    found = merged(FIRST, callback(11, wire.MAX_WHOLE, eta=1), 0, T40)
    assert found.eta_seconds == wire.MAX_WHOLE
    assert Progress.parse(found.to_json_dict()) == found


def test_our_own_trainer_is_believed_always() -> None:
    """It counts evaluations and saving too."""
    ours = report(11, 500, current_step=11, total_steps=100, activity="Training")
    assert merged(FIRST, ours, 0, T40).eta_seconds == 500


def test_the_last_word_of_the_callback_ends_the_estimate() -> None:
    old = merged(FIRST, callback(99, 100, eta=1), 0, T40)
    assert merged(old, report(100, 0), 0, T40).eta_seconds == 0


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"step": 11, "percent": 11, "last_update_time": "2026-11-22T06:00:29Z"}, "Nothing"),
        ({"step": 11, "percent": 11, "last_update_time": "2026-11-22T06:00:30Z"}, "Numbers"),
        ({"step": 11, "percent": 11, "last_update_time": "2026-11-22T06:03:20Z"}, "Overdue"),
        ({"activity": "Evaluating"}, "Transition"),
        ({"stalled_seconds": 77}, "Transition"),
        ({"percent": 100}, "Transition"),
        ({"attempt": 1}, "Transition"),
    ],
)
def test_numbers_are_written_every_thirty_seconds_and_transitions_at_once(
    change: dict[str, Any], wanted: str
) -> None:
    assert worth(FIRST, FIRST.model_copy(update=change), jobs=300) == wanted


@pytest.mark.parametrize(
    ("jobs", "seconds"), [(1, 30), (300, 30), (1000, 90), (2000, 180), (10_000, OVERDUE_SECONDS)]
)
def test_of_many_jobs_each_is_written_less_often(jobs: int, seconds: float) -> None:
    assert pause(jobs) == seconds


def test_the_first_report_is_written_at_once() -> None:
    assert worth(None, FIRST, jobs=1) == "Transition"


def test_the_end_of_a_hang_that_was_only_reported_is_written_at_once() -> None:
    hung = merged(FIRST, report(10, stalled_seconds=77.4), 0, T1)
    again = merged(hung, report(10), 0, T1)
    assert (hung.stalled_seconds, again.stalled_seconds) == (77, None)
    assert worth(hung, again, jobs=1) == "Transition"


def test_of_two_the_further_one_counts_with_the_curve_of_both() -> None:
    """Two replicas have taken reports of one job."""
    one = FIRST.model_copy(update={"history": [HistoryPoint(step=s, loss=1.0) for s in (2, 10)]})
    other = FIRST.model_copy(
        update={"step": 12, "history": [HistoryPoint(step=s, loss=1.0) for s in (5, 12)]}
    )
    wanted = [HistoryPoint(step=s, loss=1.0) for s in (2, 5, 10, 12)]
    assert newer(one, other) == newer(other, one) == other.model_copy(update={"history": wanted})


def test_of_two_attempts_the_later_one_counts_alone() -> None:
    later = Progress(attempt=1, last_update_time=T1)
    assert newer(FIRST, later) == newer(later, FIRST) == later


def values(name: str) -> st.SearchStrategy[float | int]:
    low, high = wire.BOUNDS[name]
    if name in wire.WHOLE:
        return st.integers(int(low), int(high))
    return st.floats(low, high)


METRICS = st.fixed_dictionaries({}, optional={name: values(name) for name in wire.BOUNDS})
PERCENT, ETA = st.none() | st.integers(0, 100), st.none() | st.integers(0, 10**9)
REPORTS = st.builds(lambda percent, eta, more: report(percent, eta, **more), PERCENT, ETA, METRICS)
ATTEMPTS = st.tuples(st.integers(0, 2), st.sampled_from([T0, T1, T40, "2036-11-22T06:00:40Z"]))


def test_whatever_is_taken_is_a_progress_that_the_api_server_takes() -> None:
    """Merging does not validate once more; this does."""

    def check(sent: list[tuple[tuple[int, str], TrainerStatus]]) -> None:
        known: Progress | None = None
        for (attempt, now), reported in sorted(sent, key=lambda one: one[0]):
            found = merge(known, reported, attempt, now)
            if isinstance(found, Progress):
                assert Progress.parse(found.to_json_dict()) == found
                known = found

    fuzz(st.lists(st.tuples(ATTEMPTS, REPORTS), max_size=6), check, 150)

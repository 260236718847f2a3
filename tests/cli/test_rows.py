"""What `watch` shows of a job."""

from __future__ import annotations

from dataclasses import replace

import pytest
from job_builders import FAILURE, NOW, PROGRESS, failed, job, running, succeeded, waiting

from finetune_cli.rows import Row, changed, line, row, sparkline

GPUS = {"standard": 8, "cpu": 0}
RUNNING = Row(
    namespace="team-a",
    name="docs",
    phase="Running",
    attempt=0,
    percent=62,
    step=62,
    total_steps=100,
    loss=1.02674,
    losses=(3.5, 3.0, 2.5, 2.0, 1.5, 1.0),
    eta_seconds=190,
    gpus=16,
    workers="2x8",
    says="training",
    over=False,
)


def test_a_training_shows_how_far_it_is_and_its_eta_counts_down_from_the_report() -> None:
    assert row(job(running()), GPUS, NOW) == RUNNING


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param(None, "the operator has not looked at it yet", id="new"),
        pytest.param(
            waiting("Starting", "Unschedulable", "pod x waits: Unschedulable: 0/1 nodes"),
            "Unschedulable: 0/1 nodes",
            id="unschedulable",
        ),
        pytest.param(
            waiting("Pending", "ExceedsProfile", "spec.x is 9"),
            "ExceedsProfile: spec.x is 9",
            id="own",
        ),
        pytest.param(waiting("Preparing", "Starting", "pods start"), "pods start", id="starting"),
        pytest.param(failed("Data", message="line 3"), "Data: line 3", id="failed"),
        pytest.param(succeeded(), "pvc://team-models/docs", id="succeeded"),
        pytest.param(
            running(progress=PROGRESS | {"stalledSeconds": 300}),
            "does not get on for 5m00s",
            id="stalled",
        ),
        pytest.param(
            waiting("Suspended", "Suspended", "suspended; go on"),
            "suspended; go on",
            id="suspended",
        ),
    ],
)
def test_a_row_says_what_the_job_waits_for_or_does(
    status: dict[str, object] | None, expected: str
) -> None:
    assert row(job(status), GPUS, NOW).says == expected


@pytest.mark.parametrize(
    ("status", "gpus_of", "expected"),
    [
        pytest.param(running(), None, None, id="profiles cannot be read"),
        pytest.param(running(), {"other": 8}, None, id="the profile is gone"),
        pytest.param(running(), {"standard": 0}, 0, id="a profile without GPUs"),
        pytest.param(succeeded(), GPUS, 0, id="a job that is over holds none"),
        pytest.param(waiting("Preparing", "Starting", ""), GPUS, 0, id="prepare holds none"),
    ],
)
def test_gpus_are_those_that_are_held_now(
    status: dict[str, object], gpus_of: dict[str, int] | None, expected: int | None
) -> None:
    assert row(job(status), gpus_of, NOW).gpus == expected


def test_a_job_that_is_trained_is_at_100_percent_without_an_eta() -> None:
    found = row(job(succeeded()), GPUS, NOW)
    assert (found.percent, found.eta_seconds, found.over) == (100, None, True)


def test_a_late_report_does_not_give_a_negative_eta() -> None:
    assert row(job(running()), GPUS, NOW + 10_000).eta_seconds == 0


def test_before_a_job_is_resolved_its_workers_are_those_of_the_spec() -> None:
    assert row(job(None), GPUS, NOW).workers == "2xAuto"


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ((), 8, ""),
        ((2.0, 2.0), 8, "▁▁"),
        ((4.0, 3.0, 2.0, 1.0), 8, "█▆▃▁"),
        (tuple(range(50)), 5, "▁▃▄▆█"),
    ],
)
def test_a_sparkline_keeps_the_first_and_the_last_value(
    values: tuple[float, ...], width: int, expected: str
) -> None:
    assert sparkline(values, width) == expected


def test_a_line_is_readable_without_a_terminal() -> None:
    assert line(RUNNING) == (
        "team-a/docs  Running  62 %  step 62/100  loss 1.027  ETA 3m10s  16 GPUs  training"
    )
    assert line(row(job(failed("Data", message="line 3")), GPUS, NOW)) == (
        "team-a/docs  Failed  Data: line 3"
    )


def test_only_the_ticking_of_an_eta_is_nothing_new() -> None:
    assert changed(None, RUNNING)
    assert not changed(RUNNING, replace(RUNNING, eta_seconds=3, loss=1.0))
    assert changed(RUNNING, replace(RUNNING, step=63))
    assert changed(RUNNING, replace(RUNNING, says="evaluating"))


def test_the_failure_of_an_earlier_attempt_does_not_hide_what_a_job_does_now() -> None:
    assert row(job(running(lastFailure=FAILURE)), GPUS, NOW).says == "training"

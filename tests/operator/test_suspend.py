"""`spec.suspend`: everything stops, nothing is lost, nothing is counted."""

from __future__ import annotations

import builders
import pytest
from simulation import SimulatedCluster


def training() -> SimulatedCluster:
    """A job whose workers run."""
    cluster = SimulatedCluster(builders.job_body(), builders.world())
    cluster.settle()
    cluster.finish("docs-prepare", builders.OUTCOMES["prepare"])
    cluster.settle()
    cluster.run("docs-train-0")
    cluster.settle()
    return cluster


def test_a_job_that_is_suspended_from_the_start_makes_nothing_until_it_is_let_go() -> None:
    cluster = SimulatedCluster(builders.job_body(spec={"suspend": True}), builders.world())
    cluster.settle()
    status = cluster.status
    assert (cluster.objects, status.phase, status.start_time) == ({}, "Suspended", None)
    cluster.suspend(False)
    cluster.settle()
    assert cluster.status.phase == "Preparing"


def test_training_stops_and_goes_on_as_another_attempt_that_is_no_restart() -> None:
    cluster = training()
    before, said = len(cluster.writes), len(cluster.events)
    cluster.suspend(True)
    cluster.settle()
    cluster.stopped("docs-train-0")
    cluster.settle()
    cluster.suspend(False)
    cluster.settle()
    assert cluster.writes[before:] == [
        "suspend Job docs-train-0",
        "status Suspended",
        "status Suspended",
        "apply Service docs",
        "apply Job docs-train-1",
        "status Starting",
        "status Starting",
    ]
    assert cluster.events[said:] == [
        "Normal Suspended: attempt 0: the workers save a checkpoint and end",
        "Normal Starting: after 4 s suspended, attempt 1, 2 x 8 processes: the workers are being "
        "started",
    ]
    assert (cluster.status.attempt, cluster.status.restarts) == (1, None)


def test_it_goes_on_only_when_the_pods_of_the_last_attempt_are_gone() -> None:
    cluster = training()
    cluster.suspend(True)
    cluster.settle()
    cluster.suspend(False)
    cluster.settle()
    assert ("Job", "docs-train-1") not in cluster.objects
    cluster.stopped("docs-train-0")
    cluster.settle()
    assert ("Job", "docs-train-1") in cluster.objects


def test_a_job_controller_that_calls_the_stopped_pods_a_failure_changes_nothing() -> None:
    cluster = training()
    cluster.suspend(True)
    cluster.settle()
    cluster.fail("docs-train-0", {})
    cluster.settle()
    assert cluster.status.phase == "Suspended"
    cluster.suspend(False)
    cluster.settle()
    assert (cluster.status.attempt, cluster.status.restarts) == (1, None)


def test_training_that_ended_just_before_is_not_done_again() -> None:
    cluster = training()
    cluster.suspend(True)
    cluster.settle()
    cluster.finish("docs-train-0", builders.OUTCOMES["train"])
    cluster.settle()
    assert cluster.status.phase == "Suspended"
    cluster.suspend(False)
    cluster.settle()
    assert (cluster.status.phase, cluster.status.attempt) == ("Exporting", 0)


def test_a_cpu_stage_is_stopped_and_let_go_on() -> None:
    cluster = SimulatedCluster(builders.job_body(), builders.world())
    cluster.settle()
    before = len(cluster.writes)
    cluster.suspend(True)
    cluster.settle()
    cluster.suspend(False)
    cluster.settle()
    assert [w for w in cluster.writes[before:] if "Job" in w] == [
        "suspend Job docs-prepare",
        "resume Job docs-prepare",
    ]


def test_a_finished_job_cannot_be_suspended() -> None:
    cluster = training()
    cluster.finish("docs-train-0", builders.OUTCOMES["train"])
    cluster.settle()
    cluster.finish("docs-export", builders.OUTCOMES["export"])
    cluster.settle()
    cluster.suspend(True)
    assert not cluster.operator_pass()


@pytest.mark.parametrize("k", range(3), ids=lambda k: f"after {k} writes")
def test_an_operator_that_dies_while_it_suspends_reaches_the_same_end(k: int) -> None:
    cluster = training()
    cluster.suspend(True)
    cluster.operator_pass(crash_after=k)
    cluster.settle()
    cluster.stopped("docs-train-0")
    cluster.settle()
    assert cluster.status.phase == "Suspended"
    assert cluster.objects[("Job", "docs-train-0")]["spec"]["suspend"] is True
    cluster.suspend(False)
    cluster.operator_pass(crash_after=k)
    cluster.settle()
    assert (cluster.status.attempt, cluster.status.restarts) == (1, None)

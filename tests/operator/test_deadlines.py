"""Deadlines: of the job, and of workers that do not start; exact, and still while suspended."""

from __future__ import annotations

from typing import Any

import builders
from simulation import SimulatedCluster

LIMIT = "the job was active for 600 s (spec.activeDeadlineSeconds)"


def training(**spec: Any) -> SimulatedCluster:
    """A job whose workers run."""
    cluster = SimulatedCluster(builders.job_body(spec=spec), builders.world())
    cluster.settle()
    cluster.finish("docs-prepare", builders.OUTCOMES["prepare"])
    cluster.settle()
    cluster.run("docs-train-0")
    cluster.settle()
    return cluster


def at(cluster: SimulatedCluster, second: int) -> None:
    """The operator looks once, at this second of the simulation."""
    cluster.clock = second - 1
    cluster.operator_pass()


def ended(cluster: SimulatedCluster) -> tuple[str | None, str | None]:
    """Phase, and why."""
    failure = cluster.status.last_failure
    return cluster.status.phase, failure.message if failure else None


def test_a_job_ends_to_the_second_when_its_time_is_over() -> None:
    cluster = training(activeDeadlineSeconds=600)
    assert cluster.status.start_time == "2026-11-22T06:00:01Z"
    at(cluster, 600)
    assert ended(cluster) == ("Running", None)
    at(cluster, 601)
    assert ended(cluster) == ("Failed", LIMIT)
    assert cluster.objects[("Job", "docs-train-0")]["spec"]["suspend"] is True


def test_the_operator_looks_again_when_the_time_is_over() -> None:
    cluster = training(activeDeadlineSeconds=300)
    cluster.clock = 100
    assert cluster.look().requeue_after == 200.0


def test_the_clock_stands_still_while_suspended() -> None:
    cluster = training(activeDeadlineSeconds=600)
    cluster.suspend(True)
    at(cluster, 100)
    cluster.stopped("docs-train-0")
    at(cluster, 5000)
    assert ended(cluster) == ("Suspended", None)
    cluster.suspend(False)
    at(cluster, 5100)
    assert (cluster.status.suspend_time, cluster.status.suspended_seconds) == (None, 5000)
    assert ended(cluster) == ("Starting", None)
    at(cluster, 5600)
    assert ended(cluster) == ("Starting", None)
    at(cluster, 5601)
    assert ended(cluster) == ("Failed", LIMIT)


def test_a_longer_deadline_may_be_given_later() -> None:
    cluster = training(activeDeadlineSeconds=600)
    cluster.body["spec"] = cluster.body["spec"] | {"activeDeadlineSeconds": 900}
    at(cluster, 700)
    assert ended(cluster) == ("Running", None)


def test_workers_that_do_not_start_free_what_they_hold_and_say_what_they_waited_for() -> None:
    cluster = SimulatedCluster(
        builders.job_body(spec={"startupDeadlineSeconds": 300}), builders.world()
    )
    cluster.settle()
    cluster.finish("docs-prepare", builders.OUTCOMES["prepare"])
    cluster.settle()
    waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    for pod in cluster.pods:
        if "train" in pod["metadata"]["name"]:
            pod["status"]["conditions"] = [waits | {"message": "0/4 nodes have 8 GPUs"}]
    at(cluster, 299)
    assert ended(cluster)[0] == "Starting"
    at(cluster, 300)
    assert ended(cluster) == (
        "Failed",
        "the workers did not all start within 300 s (spec.startupDeadlineSeconds): pod "
        "docs-train-0-0-abcde waits: Unschedulable: 0/4 nodes have 8 GPUs",
    )
    assert cluster.objects[("Job", "docs-train-0")]["spec"]["suspend"] is True


def test_workers_that_have_started_have_no_deadline_to_start() -> None:
    cluster = training(startupDeadlineSeconds=300)
    at(cluster, 4000)
    assert ended(cluster) == ("Running", None)

"""`spec.ttlSecondsAfterFinished`: finished jobs go by themselves, to the second."""

from __future__ import annotations

from typing import Any

import builders
import pytest
from simulation import SimulatedCluster

from finetune_operator.reconcile import Event, Step

OUTPUT = {"uri": "pvc://team-models/docs"}


def succeeded(**spec: Any) -> SimulatedCluster:
    """A job that ended at 06:00:12."""
    body = builders.job_body(spec={"output": OUTPUT} | spec)
    cluster = SimulatedCluster(body, builders.world())
    for job, stage in (("docs-prepare", "prepare"), ("docs-train-0", "train")):
        cluster.settle()
        cluster.finish(job, builders.OUTCOMES[stage])
    cluster.settle()
    cluster.clock = 11
    cluster.finish("docs-export", builders.OUTCOMES["export"])
    cluster.settle()
    assert cluster.status.completion_time == "2026-11-22T06:00:12Z"
    return cluster


def failed(**spec: Any) -> SimulatedCluster:
    """A job whose data were wrong."""
    cluster = SimulatedCluster(builders.job_body(spec=spec), builders.world())
    cluster.settle()
    outcome = builders.failure("Data", "docs.jsonl, line 3: not JSON", 1.0)
    cluster.fail("docs-prepare", {0: outcome})
    cluster.settle()
    assert cluster.status.phase == "Failed"
    return cluster


def look_at(cluster: SimulatedCluster, second: int) -> Step:
    cluster.clock = second - 1
    return cluster.look()


def test_a_job_that_succeeded_is_deleted_to_the_second_and_its_result_is_told_to_stay() -> None:
    cluster = succeeded(ttlSecondsAfterFinished={"succeeded": 3600})
    assert look_at(cluster, 3611) == Step(requeue_after=1.0)
    said = (
        "deleted: it succeeded at 2026-11-22T06:00:12Z, and "
        "spec.ttlSecondsAfterFinished.succeeded is 3600; pvc://team-models/docs stays"
    )
    assert look_at(cluster, 3612) == Step(
        delete=True, events=(Event("Normal", "TTLExpired", said),)
    )


def test_a_job_that_failed_has_a_time_of_its_own() -> None:
    cluster = failed(ttlSecondsAfterFinished={"failed": 60})
    ended = cluster.status.completion_time
    cluster.clock = 500
    cluster.operator_pass()
    assert cluster.deleted
    assert cluster.events[-1] == (
        f"Normal TTLExpired: deleted: it failed at {ended}, and "
        "spec.ttlSecondsAfterFinished.failed is 60"
    )


@pytest.mark.parametrize("ttl", [None, {"failed": 1}, {}])
def test_without_a_ttl_for_how_it_ended_a_job_is_kept(ttl: Any) -> None:
    cluster = succeeded(**({"ttlSecondsAfterFinished": ttl} if ttl is not None else {}))
    assert look_at(cluster, 10**6) == Step()


def test_a_ttl_may_be_changed_and_taken_away_when_the_job_has_finished() -> None:
    cluster = succeeded(ttlSecondsAfterFinished={"succeeded": 60})
    cluster.edit(ttlSecondsAfterFinished={"succeeded": 600})
    assert look_at(cluster, 72) == Step(requeue_after=540.0)
    cluster.edit(ttlSecondsAfterFinished={})
    assert look_at(cluster, 10**6) == Step()


def test_a_ttl_of_zero_deletes_at_once() -> None:
    cluster = succeeded(ttlSecondsAfterFinished={"succeeded": 0})
    assert cluster.deleted


def test_a_job_that_has_not_finished_has_no_ttl() -> None:
    ttl = {"ttlSecondsAfterFinished": {"succeeded": 0, "failed": 0}}
    cluster = SimulatedCluster(builders.job_body(spec=ttl | {"output": OUTPUT}), builders.world())
    cluster.settle()
    cluster.suspend(True)
    cluster.settle()
    cluster.clock = 10**6
    cluster.settle()
    assert (cluster.status.phase, cluster.deleted) == ("Suspended", False)

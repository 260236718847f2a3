"""What a profile sets for every job, whatever the job says: how long, how much, how long kept."""

from __future__ import annotations

from typing import Any

import builders
import pytest
from simulation import SimulatedCluster

from finetune_api.price import Price
from finetune_api.profile_limits import ProfileLimits
from finetune_api.usage import Usage
from finetune_operator.allowance import Allowance, used_up
from finetune_operator.observe import seconds
from finetune_operator.reconcile import Event, Step

Json = dict[str, Any]
OUTPUT = {"uri": "pvc://team-models/docs"}


def cluster_with(profile: Json, **spec: Any) -> SimulatedCluster:
    world = builders.world(standard=builders.PROFILE | profile)
    found = SimulatedCluster(builders.job_body(spec=spec), world)
    found.settle()
    return found


def training(profile: Json, **spec: Any) -> SimulatedCluster:
    """A job whose two workers of 8 GPUs run, and are counted from 06:00:06, when their Kubernetes
    Job was first seen."""
    found = cluster_with(profile, **spec)
    found.finish("docs-prepare", builders.OUTCOMES["prepare"])
    found.settle()
    found.run("docs-train-0")
    bound = {"type": "PodScheduled", "status": "True", "lastTransitionTime": builders.NOW}
    for pod in found.pods:
        pod["status"]["conditions"] = [bound]
    found.settle()
    return found


def at(cluster: SimulatedCluster, second: int) -> Step:
    cluster.clock = second - 1
    return cluster.look()


def ended(cluster: SimulatedCluster, second: int) -> tuple[Any, ...]:
    """Phase, class and message after the passes of this second."""
    cluster.clock = second - 1
    cluster.operator_pass()
    failure = cluster.status.last_failure
    said = (failure.failure_class, failure.message) if failure else (None, None)
    return cluster.status.phase, *said


RUNNING = ("Running", None, None)


@pytest.mark.parametrize("wish", [{}, {"activeDeadlineSeconds": 900}])
def test_a_job_ends_with_the_longest_time_of_its_profile_also_if_it_names_none(
    wish: Json,
) -> None:
    cluster = training({"limits": {"maxDurationSeconds": 900}})
    cluster.edit(**wish)
    own = "spec.activeDeadlineSeconds"
    limit = own if wish else "limits.maxDurationSeconds of profile 'standard'"
    assert ended(cluster, 900) == RUNNING
    said = f"the job was active for 900 s ({limit})"
    assert ended(cluster, 901) == ("Failed", "DeadlineExceeded", said)


def test_a_deadline_that_is_raised_later_does_not_go_beyond_the_profile() -> None:
    cluster = training({"limits": {"maxDurationSeconds": 900}}, activeDeadlineSeconds=600)
    cluster.edit(activeDeadlineSeconds=86_400)
    said = "the job was active for 900 s (limits.maxDurationSeconds of profile 'standard')"
    assert ended(cluster, 901) == ("Failed", "DeadlineExceeded", said)


def test_the_default_deadline_of_the_profile_is_one_like_the_jobs_own() -> None:
    cluster = training({"defaults": {"activeDeadlineSeconds": 600}})
    assert ended(cluster, 600) == RUNNING
    said = "the job was active for 600 s (spec.activeDeadlineSeconds)"
    assert ended(cluster, 601) == ("Failed", "DeadlineExceeded", said)


def test_a_job_ends_when_it_has_held_its_gpu_hours() -> None:
    """16 GPUs hold one GPU-hour in 225 s, four in 900 s."""
    cluster = training({"limits": {"maxGpuHours": 4}})
    assert at(cluster, 600).requeue_after == 306.0
    assert ended(cluster, 905) == RUNNING
    said = "the job has held 4 GPU-hours (limits.maxGpuHours of profile 'standard')"
    assert ended(cluster, 906) == ("Failed", "AllowanceUsedUp", said)
    assert cluster.objects[("Job", "docs-train-0")]["spec"]["suspend"] is True


def test_a_job_ends_when_it_has_cost_what_it_may() -> None:
    """16 GPUs at 3.60 an hour cost 16 in 1000 s."""
    price = {"perGpuHour": "3.60", "currency": "USD"}
    cluster = training({"limits": {"maxCost": "16"}, "price": price})
    assert ended(cluster, 1005) == RUNNING
    said = "the job has cost 16 USD (limits.maxCost of profile 'standard')"
    assert ended(cluster, 1006) == ("Failed", "AllowanceUsedUp", said)


def allowance(**limits: Any) -> Allowance:
    price = Price(per_gpu_hour="2.00")
    return Allowance("p", ProfileLimits.parse(limits), price)


def test_what_is_not_held_now_comes_no_nearer_to_its_limit() -> None:
    idle = Usage(unit="GPU", held_seconds=1800, holding=0, time=builders.NOW)
    both = allowance(maxGpuHours=1, maxCost="3")
    assert used_up(idle, both) == []
    over = idle.model_copy(update={"held_seconds": 3600})
    now = seconds(builders.NOW)
    assert used_up(over, both) == [
        (now, "the job has held 1 GPU-hours (limits.maxGpuHours of profile 'p')")
    ]
    held = over.model_copy(update={"holding": 4})
    assert used_up(held, both)[1] == (
        now + 450,
        "the job has cost 3 EUR (limits.maxCost of profile 'p')",
    )


def test_workers_without_gpus_use_up_nothing() -> None:
    usage = Usage(unit="Worker", held_seconds=10**9, holding=4, time=builders.NOW)
    assert used_up(usage, allowance(maxGpuHours=1)) == []


def failed(profile: Json, **spec: Any) -> SimulatedCluster:
    """A job that failed at 06:00:06."""
    found = cluster_with(profile, **spec)
    outcome = builders.failure("Data", "docs.jsonl, line 3: not JSON", 1.0)
    found.clock = 5
    found.fail("docs-prepare", {0: outcome})
    found.settle()
    assert found.status.completion_time == "2026-11-22T06:00:06Z"
    return found


def succeeded(profile: Json, **spec: Any) -> SimulatedCluster:
    """A job that succeeded at 06:00:30."""
    found = cluster_with(profile, **spec)
    found.finish("docs-prepare", builders.OUTCOMES["prepare"])
    found.settle()
    found.finish("docs-train-0", builders.OUTCOMES["train"])
    found.settle()
    found.clock = 29
    found.finish("docs-export", builders.OUTCOMES["export"])
    found.settle()
    assert found.status.completion_time == "2026-11-22T06:00:30Z"
    return found


def deleted(said: str) -> Step:
    return Step(delete=True, events=(Event("Normal", "TTLExpired", f"deleted: {said}"),))


FAILED = "it failed at 2026-11-22T06:00:06Z, and "


@pytest.mark.parametrize(
    ("profile", "spec", "after", "why"),
    [
        (
            {"retention": {"failed": 60}},
            {},
            60,
            "profile 'standard' keeps it for 60 s (retention.failed)",
        ),
        (
            {"retention": {"failed": 60}},
            {"ttlSecondsAfterFinished": {"failed": 3600}},
            60,
            "profile 'standard' keeps it for 60 s (retention.failed)",
        ),
        (
            {"retention": {"failed": 60}},
            {"ttlSecondsAfterFinished": {"failed": 30}},
            30,
            "spec.ttlSecondsAfterFinished.failed is 30",
        ),
        (
            {"defaults": {"ttlSecondsAfterFinished": {"failed": 45}}},
            {},
            45,
            "spec.ttlSecondsAfterFinished.failed is 45",
        ),
    ],
)
def test_a_failed_job_is_kept_as_long_as_the_shorter_of_both_says(
    profile: Json, spec: Json, after: int, why: str
) -> None:
    cluster = failed(profile, **spec)
    assert at(cluster, 6 + after - 1) == Step(requeue_after=1.0)
    assert at(cluster, 6 + after) == deleted(FAILED + why)


def test_a_job_that_succeeded_goes_only_if_its_result_stays() -> None:
    profile = {"retention": {"succeeded": 60}}
    assert at(succeeded(profile), 10**6) == Step()
    said = (
        "it succeeded at 2026-11-22T06:00:30Z, and profile 'standard' keeps it for 60 s "
        "(retention.succeeded); pvc://team-models/docs stays"
    )
    assert at(succeeded(profile, output=OUTPUT), 90) == deleted(said)


def test_a_result_on_a_shared_claim_stays_too() -> None:
    storage = {"workClaim": "team-work"}
    cluster = succeeded({"retention": {"succeeded": 60}, "storage": storage})
    assert at(cluster, 90).delete


def test_a_profile_that_is_edited_does_not_change_how_long_a_finished_job_is_kept() -> None:
    cluster = failed({"retention": {"failed": 60}})
    cluster.world = builders.world(standard=builders.PROFILE | {"retention": {"failed": 1}})
    assert at(cluster, 65) == Step(requeue_after=1.0)

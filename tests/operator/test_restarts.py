"""Which ends of an attempt are worth another one, and how often."""

from __future__ import annotations

from typing import Any

import builders
import pytest
from simulation import SimulatedCluster

from finetune_api.lifecycle import RestartPolicy
from finetune_api.status import (
    FineTuneJobStatus,
    LastFailure,
    Progress,
    RestartEntry,
    Restarts,
)
from finetune_operator.explain import explain
from finetune_operator.observe import Observed, StageFacts, observe, seconds
from finetune_operator.restarts import Again, Enough, add, cause_of, entry, judge

NOW = "2026-11-22T06:10:00Z"
DISRUPTION = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]


def stage(*pods: dict[str, Any], state: str = "Failed") -> StageFacts:
    """Attempt 0 of training, with these pods."""
    job = builders.k8s_job("docs-train-0", "train", state=state)
    found: Observed = observe(None, [job], list(pods), builders.UID)
    (facts,) = found.stages
    return facts


def ended(index: int = 0, code: int = 137, **more: Any) -> dict[str, Any]:
    """A pod that failed without a word of ours."""
    phase = more.pop("phase", "Failed")
    found = builders.pod("docs-train-0", index, phase, exit_code=code, **more)
    if "pod_reason" in more:
        found["status"]["reason"] = more["pod_reason"]
    return found


@pytest.mark.parametrize(
    ("pod", "cause"),
    [
        pytest.param(ended(conditions=DISRUPTION), "Disruption", id="preemption"),
        pytest.param(ended(conditions=DISRUPTION), "Disruption", id="taint eviction"),
        pytest.param(ended(conditions=DISRUPTION), "Disruption", id="drain"),
        pytest.param(
            ended(conditions=DISRUPTION, pod_reason="Evicted"), "Disruption", id="memory pressure"
        ),
        pytest.param(
            ended(conditions=DISRUPTION, pod_reason="Evicted"), "Disruption", id="disk pressure"
        ),
        pytest.param(ended(reason="OOMKilled"), "User", id="out of memory"),
        pytest.param(ended(pod_reason="Evicted"), "User", id="too much local storage"),
        pytest.param(
            ended(conditions=DISRUPTION, pod_reason="Terminated"), "Disruption", id="shutdown"
        ),
        pytest.param(
            ended(code=0, phase="Succeeded", conditions=DISRUPTION),
            "Disruption",
            id="shutdown handled, exit 0",
        ),
    ],
)
def test_the_nine_rows_of_kubernetes_table_of_pod_failures(pod: dict[str, Any], cause: str) -> None:
    found = stage(pod)
    assert cause_of(found, explain(found, NOW)) == cause


@pytest.mark.parametrize(
    ("code", "name", "cause"),
    [
        (10, "Configuration", "User"),
        (11, "Data", "User"),
        (12, "Model", "User"),
        (13, "OutOfMemory", "User"),
        (14, "Diverged", "User"),
        (143, "Stopped", "Platform"),
        (203, "Internal", "Platform"),
        (204, "Hang", "Platform"),
        (205, "PeerLost", "Platform"),
    ],
)
def test_every_exit_code_of_the_trainer_has_a_cause(code: int, name: str, cause: str) -> None:
    outcome = builders.failure(name, "words", 1.0)
    found = stage(builders.pod("docs-train-0", 0, "Failed", outcome, code))
    assert cause_of(found, explain(found, NOW)) == cause


@pytest.mark.parametrize(("code", "cause"), [(1, "User"), (127, "User"), (128, "Platform")])
def test_an_image_that_is_not_ours_is_judged_by_its_exit_code(code: int, cause: str) -> None:
    found = stage(ended(code=code))
    assert cause_of(found, explain(found, NOW)) == cause


def test_a_disruption_of_one_pod_explains_the_failures_of_its_peers() -> None:
    lost = builders.failure("PeerLost", "connection lost", 1.0)
    peer = builders.pod("docs-train-0", 0, "Failed", lost, 205)
    found = stage(peer, ended(1, conditions=DISRUPTION))
    assert cause_of(found, explain(found, NOW)) == "Disruption"


def entries(*found: tuple[str, int | None]) -> Restarts:
    """Attempts a minute apart: cause, and the last step."""
    restarts = Restarts()
    for attempt, (cause, step) in enumerate(found):
        new = RestartEntry.parse(
            {
                "attempt": attempt,
                "cause": cause,
                "class": "Killed",
                "step": step,
                "time": f"2026-11-22T06:{attempt:02}:00Z",
            }
        )
        restarts = add(restarts, new)
    return restarts


def verdict(policy: dict[str, Any], *found: tuple[str, int | None]) -> float | str:
    """Seconds to wait, or why not."""
    restarts = entries(*found)
    judged = judge(RestartPolicy.parse(policy), restarts)
    if isinstance(judged, Enough):
        return judged.why
    assert isinstance(judged, Again)
    return judged.at - seconds(restarts.history[-1].time)


def test_the_pause_doubles_while_attempts_get_no_further() -> None:
    rows = [("Platform", None)] * 7
    pauses = [verdict({"maxRestarts": 99}, *rows[:count]) for count in range(1, 8)]
    assert pauses == [10, 20, 40, 80, 160, 300, 300]


def test_the_pause_is_short_again_after_progress() -> None:
    assert verdict({}, ("Platform", 5), ("Platform", 5), ("Platform", 9)) == 10


def test_the_budget_of_failures_ends_the_job() -> None:
    rows = [("Platform", step) for step in (5, 9, 14, 20)]
    why = "4 attempts failed (spec.restartPolicy.maxRestarts is 3)"
    assert [verdict({}, *rows[:3]), verdict({}, *rows)] == [10, why]


def test_disruptions_do_not_spend_the_budget_of_failures() -> None:
    rows = [("Disruption", 5)] * 10 + [("Platform", 5)]
    assert [verdict({}, *rows[:10]), verdict({}, *rows)] == [1, 10]


def test_disruptions_have_a_budget_of_their_own() -> None:
    why = "it was disrupted 3 times (spec.restartPolicy.maxDisruptions is 2)"
    rows = [("Disruption", 5)] * 3
    assert [verdict({"maxDisruptions": 2}, *rows[:2]), verdict({"maxDisruptions": 2}, *rows)] == [
        1,
        why,
    ]


def test_failures_outside_the_window_are_forgotten() -> None:
    rows = [("Platform", step) for step in (5, 9, 14, 20)]
    policy = {"maxRestarts": 1, "windowSeconds": 60}
    why = "2 attempts failed within 60 s (spec.restartPolicy.maxRestarts is 1)"
    policy_of_90 = {"maxRestarts": 2, "windowSeconds": 90}
    assert [verdict(policy, *rows), verdict(policy_of_90, *rows)] == [why, 10]


def test_a_job_that_never_took_a_step_is_not_restarted_for_ever() -> None:
    rows = [("Platform", None)] * 3
    policy = {"maxRestarts": 2, "windowSeconds": 60}
    why = "3 attempts in a row got no further (spec.restartPolicy.maxRestarts is 2)"
    assert [verdict(policy, *rows[:2]), verdict(policy, *rows)] == [20, why]


def test_the_same_attempt_is_counted_once() -> None:
    once = entries(("Platform", 5))
    assert add(once, once.history[0]) == once


def test_a_step_of_an_earlier_attempt_is_not_taken_for_this_ones() -> None:
    found = stage(ended())
    progress = Progress(attempt=4, step=7, last_update_time=NOW)
    status = FineTuneJobStatus(progress=progress)
    assert entry(found, explain(found, NOW), status, NOW).step is None


def training(spec: dict[str, Any] | None = None) -> SimulatedCluster:
    """A job whose workers run."""
    cluster = SimulatedCluster(builders.job_body(spec=spec or {}), builders.world())
    cluster.settle()
    cluster.finish("docs-prepare", builders.OUTCOMES["prepare"])
    cluster.settle()
    cluster.run("docs-train-0")
    cluster.settle()
    return cluster


KILLED = builders.failure("Killed", "the process was killed by signal 9 (SIGKILL)", 50.0, rank=9)


def recover(cluster: SimulatedCluster) -> None:
    """One worker dies, the next attempt does all."""
    cluster.fail("docs-train-0", {1: KILLED})
    cluster.settle()
    cluster.clock += 30
    cluster.settle()
    cluster.run("docs-train-1")
    cluster.settle()
    cluster.finish("docs-train-1", builders.OUTCOMES["train"])
    cluster.settle()
    cluster.finish("docs-export", builders.OUTCOMES["export"])
    cluster.settle()


def test_a_killed_rank_costs_an_attempt_and_not_the_job() -> None:
    cluster = training()
    done, writes = len(cluster.events), len(cluster.writes)
    recover(cluster)
    assert cluster.writes[writes:] == [
        "status Restarting",
        "apply Service docs",
        "apply Job docs-train-1",
        "status Starting",
        "status Starting",
        "status Running",
        "apply Job docs-export",
        "progress",
        "status Exporting",
        "status Exporting",
        "status Succeeded",
    ]
    assert cluster.events[done:][0] == (
        "Warning Restarting: attempt 0 ended on rank 9 (node-1), Killed: the process was killed by "
        "signal 9 (SIGKILL); restart 1, attempt 1 from 06:00:20Z"
    )
    assert cluster.status.restarts == Restarts.parse(
        {
            "counted": 1,
            "disruptions": 0,
            "history": [
                {
                    "attempt": 0,
                    "cause": "Platform",
                    "class": "Killed",
                    "node": "node-1",
                    "time": "2026-11-22T06:00:10Z",
                }
            ],
        }
    )
    assert (cluster.status.phase, cluster.status.attempt) == ("Succeeded", 1)


def test_a_worker_deleted_without_time_to_end_is_named_although_only_its_peer_stays() -> None:
    """Its pod is gone in a second, and the peer knows only that it lost somebody."""
    cluster = training()
    (victim,) = (p for p in cluster.pods if p["metadata"]["name"].startswith("docs-train-0-1"))
    victim["metadata"] |= {"deletionTimestamp": builders.LATER, "deletionGracePeriodSeconds": 0}
    cluster.settle()
    first = cluster.status.last_failure
    assert (cluster.status.phase, first) == (
        "Restarting",
        LastFailure.parse(
            {
                "class": "Killed",
                "stage": "train",
                "message": f"pod {victim['metadata']['name']} was deleted",
                "rank": 8,
                "node": "node-1",
                "pod": victim["metadata"]["name"],
                "time": "2026-11-22T06:00:10Z",
            }
        ),
    )
    cluster.fail("docs-train-0", {0: builders.failure("PeerLost", "lost rank 8", 60.0)})
    cluster.pods.remove(next(p for p in cluster.pods if p["metadata"]["name"] == first.pod))
    cluster.settle()
    cluster.clock += 30
    cluster.settle()
    restarts = cluster.status.restarts
    assert restarts is not None
    assert [(e.cause, e.failure_class) for e in restarts.history] == [("Platform", "Killed")]
    assert (cluster.status.attempt, cluster.status.last_failure) == (1, first)


def test_the_next_attempt_waits_until_no_pod_of_the_last_one_runs() -> None:
    cluster = training()
    cluster.fail("docs-train-0", {1: KILLED})
    cluster.pods[-2]["status"]["phase"] = "Running"
    cluster.settle()
    cluster.clock += 300
    cluster.settle()
    assert ("Job", "docs-train-1") not in cluster.objects
    assert cluster.status.phase == "Restarting"


def test_what_the_user_has_to_mend_is_not_tried_again() -> None:
    cluster = training()
    cluster.fail("docs-train-0", {0: builders.failure("Diverged", "the loss is nan", 50.0)})
    cluster.settle()
    status = cluster.status
    assert status.last_failure is not None
    assert (status.phase, status.last_failure.message) == ("Failed", "the loss is nan")


def test_without_restarts_left_the_reason_says_so() -> None:
    cluster = training({"restartPolicy": {"maxRestarts": 0}})
    cluster.fail("docs-train-0", {1: KILLED})
    cluster.settle()
    status = cluster.status
    assert status.last_failure is not None
    assert (status.phase, status.last_failure.message) == (
        "Failed",
        "the process was killed by signal 9 (SIGKILL); not started again: 1 attempts failed "
        "(spec.restartPolicy.maxRestarts is 0)",
    )


@pytest.mark.parametrize("k", range(4), ids=lambda k: f"after {k} writes")
def test_an_operator_that_dies_while_it_restarts_reaches_the_same_end(k: int) -> None:
    reference = training()
    recover(reference)
    cluster = training()
    cluster.fail("docs-train-0", {1: KILLED})
    cluster.operator_pass(crash_after=k)
    cluster.settle()
    cluster.clock += 30
    cluster.operator_pass(crash_after=k)
    cluster.settle()
    cluster.run("docs-train-1")
    cluster.settle()
    cluster.finish("docs-train-1", builders.OUTCOMES["train"])
    cluster.settle()
    cluster.finish("docs-export", builders.OUTCOMES["export"])
    cluster.settle()
    assert set(cluster.objects) == set(reference.objects)
    restarts, expected = cluster.status.restarts, reference.status.restarts
    assert restarts is not None
    assert expected is not None
    assert (restarts.counted, restarts.disruptions) == (expected.counted, expected.disruptions)
    assert (cluster.status.phase, cluster.status.attempt) == ("Succeeded", 1)

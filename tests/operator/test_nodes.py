"""Nodes that fail a job again and again are kept off; pods on dead ones are removed by force."""

from __future__ import annotations

from typing import Any

import builders
import pytest
from simulation import SimulatedCluster

from finetune_api.status import ExcludedNode, RestartEntry, Restarts
from finetune_operator.nodes import excluded
from finetune_operator.reconcile import Event


def restarts(*found: tuple[str, str, str, str]) -> Restarts:
    """Attempts: time of day, node, failure class, cause."""
    history = [
        RestartEntry.parse(
            {
                "attempt": number,
                "cause": cause,
                "class": name,
                "node": node,
                "time": f"2026-11-22T{time}:00Z",
            }
        )
        for number, (time, node, name, cause) in enumerate(found)
    ]
    return Restarts(history=history)


KILLED_TWICE = (("06:00", "a", "Killed", "Platform"), ("06:10", "a", "Hang", "Platform"))


def at(time: str, *found: tuple[str, str, str, str]) -> list[tuple[str, str]]:
    now = f"2026-11-22T{time}:00Z"
    return [(node.node, node.until) for node in excluded(restarts(*found), now)]


def test_two_failures_on_a_node_keep_the_job_off_it_for_an_hour() -> None:
    assert excluded(restarts(*KILLED_TWICE), "2026-11-22T06:11:00Z") == [
        ExcludedNode(
            node="a",
            reason="2 attempts failed on it: 0 (Killed), 1 (Hang); excluded for 1 h",
            until="2026-11-22T07:10:00Z",
        )
    ]


def test_one_failure_may_be_chance() -> None:
    assert at("06:11", *KILLED_TWICE[:1], ("06:10", "b", "Killed", "Platform")) == []


def test_an_exclusion_ends() -> None:
    assert at("07:09", *KILLED_TWICE) == [("a", "2026-11-22T07:10:00Z")]
    assert at("07:10", *KILLED_TWICE) == []


def test_every_failure_more_doubles_it_up_to_a_day() -> None:
    third = (*KILLED_TWICE, ("07:30", "a", "Killed", "Platform"))
    assert at("07:31", *third) == [("a", "2026-11-22T09:30:00Z")]
    many = [(f"06:{minute:02}", "a", "Killed", "Platform") for minute in range(12)]
    assert at("07:00", *many) == [("a", "2026-11-23T06:11:00Z")]


@pytest.mark.parametrize(
    ("name", "cause"),
    [("Killed", "Disruption"), ("PeerLost", "Platform"), ("Stopped", "Platform")],
)
def test_what_does_not_speak_against_a_node_does_not_count(name: str, cause: str) -> None:
    assert at("06:20", KILLED_TWICE[0], ("06:10", "a", name, cause)) == []


KILLED = builders.failure("Killed", "the process was killed by signal 9 (SIGKILL)", 50.0, rank=9)


def training(**spec: Any) -> SimulatedCluster:
    """A job whose workers run."""
    cluster = SimulatedCluster(builders.job_body(spec=spec), builders.world())
    cluster.settle()
    cluster.finish("docs-prepare", builders.OUTCOMES["prepare"])
    cluster.settle()
    cluster.run("docs-train-0")
    cluster.settle()
    return cluster


def fail_twice(cluster: SimulatedCluster) -> None:
    """Two attempts fail on node-1; the third is there."""
    for attempt in range(2):
        cluster.run(f"docs-train-{attempt}")
        cluster.settle()
        cluster.fail(f"docs-train-{attempt}", {1: KILLED})
        cluster.settle()
        cluster.clock += 60
        cluster.settle()


def affinity(cluster: SimulatedCluster, job: str) -> Any:
    return cluster.objects["Job", job]["spec"]["template"]["spec"].get("affinity")


def test_the_next_attempt_keeps_off_the_node_and_an_event_says_why() -> None:
    cluster = training()
    fail_twice(cluster)
    until = "2026-11-22T07:01:18Z"
    reason = "2 attempts failed on it: 0 (Killed), 1 (Killed); excluded for 1 h"
    assert [affinity(cluster, f"docs-train-{n}") for n in range(3)] == [
        None,
        None,
        {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {
                            "matchFields": [
                                {
                                    "key": "metadata.name",
                                    "operator": "NotIn",
                                    "values": ["node-1"],
                                }
                            ]
                        }
                    ]
                }
            }
        },
    ]
    assert cluster.status.excluded_nodes == [
        ExcludedNode(node="node-1", reason=reason, until=until)
    ]
    assert [e for e in cluster.events if "NodeExcluded" in e] == [
        f"Warning NodeExcluded: node node-1, until {until}: {reason}"
    ]


def no_node(cluster: SimulatedCluster, job: str) -> None:
    """The scheduler finds a node for no pod of this Job."""
    reason = {"reason": "Unschedulable", "message": "0/2 nodes are available: 1 didn't match"}
    condition = {"type": "PodScheduled", "status": "False"} | reason
    for pod in [p for p in cluster.pods if p["metadata"]["ownerReferences"][0]["name"] == job]:
        pod["spec"]["nodeName"] = None
        pod["status"]["conditions"] = [condition]


def test_workers_without_a_node_say_what_they_keep_off_and_start_anew_when_that_is_over() -> None:
    cluster = training()
    fail_twice(cluster)
    no_node(cluster, "docs-train-2")
    cluster.settle()
    assert cluster.status.message == (
        "pod docs-train-2-0-abcde waits: Unschedulable: 0/2 nodes are available: 1 didn't match; "
        "this job keeps off node-1 until 2026-11-22T07:01:18Z"
    )
    cluster.clock = 3676
    assert cluster.look().requeue_after == 1.0
    writes = len(cluster.writes)
    cluster.operator_pass()
    assert cluster.status.message == (
        "started anew: node-1 may be used again, and workers had no node"
    )
    cluster.pods = [p for p in cluster.pods if "train-2" not in p["metadata"]["name"]]
    cluster.settle()
    assert cluster.writes[writes:][:2] == ["suspend Job docs-train-2", "status Starting"]
    assert affinity(cluster, "docs-train-3") is None
    status, before = cluster.status, cluster.status.restarts
    assert before is not None
    assert (status.attempt, status.excluded_nodes, before.counted) == (3, [], 2)


def test_workers_that_have_their_nodes_are_left_alone_when_an_exclusion_ends() -> None:
    cluster = training()
    fail_twice(cluster)
    cluster.run("docs-train-2")
    cluster.settle()
    cluster.clock = 10**5
    cluster.settle()
    assert (cluster.status.phase, cluster.status.attempt) == ("Running", 2)


@pytest.mark.parametrize("k", range(4), ids=lambda k: f"after {k} writes")
def test_an_operator_that_dies_while_it_excludes_reaches_the_same_end(k: int) -> None:
    cluster = training()
    for attempt in range(2):
        cluster.run(f"docs-train-{attempt}")
        cluster.settle()
        cluster.fail(f"docs-train-{attempt}", {1: KILLED})
        cluster.operator_pass(crash_after=k)
        cluster.settle()
        cluster.clock += 60
        cluster.operator_pass(crash_after=k)
        cluster.settle()
    assert [node.node for node in cluster.status.excluded_nodes] == ["node-1"]
    assert affinity(cluster, "docs-train-2") is not None


GONE_BY = "2026-11-22T06:15:00Z"
SECOND_15 = 15 * 60


def dead(**spec: Any) -> SimulatedCluster:
    """A job whose second worker is on a node that does not answer; it should be gone at 06:15."""
    cluster = training(**spec)
    cluster.pods[-1] = builders.pod("docs-train-0", 1, deleted=True, gone_by=GONE_BY)
    cluster.settle()
    return cluster


def test_a_pod_that_outlasts_its_time_to_end_is_given_up() -> None:
    cluster = dead()
    cluster.clock = SECOND_15 + 118
    assert cluster.look().requeue_after == 1.0
    done = cluster.look()
    assert [pod.name for pod in done.give_up] == ["docs-train-0-1-abcde"]
    said = (
        "pod docs-train-0-1-abcde on node node-1 was still there 120 s after its time to end was "
        f"over at {GONE_BY} (spec.restartPolicy.forceDeleteSeconds is 120): its node does not "
        "answer, or cannot end it"
    )
    assert Event("Warning", "PodForceDeleted", said) in done.events


def test_the_patience_with_a_dead_node_can_be_chosen() -> None:
    cluster = dead(restartPolicy={"forceDeleteSeconds": 600})
    cluster.clock = SECOND_15 + 598
    assert (cluster.look().give_up, len(cluster.look().give_up)) == ((), 1)


def test_a_lost_node_is_a_disruption_and_the_pod_goes_when_that_is_written() -> None:
    cluster = dead()
    cluster.clock = SECOND_15 + 120
    cluster.settle()
    name, writes = "docs-train-0-1-abcde", len(cluster.writes)
    assert f"give up Pod {name}" in cluster.writes
    # The Job controller takes note, and ends the other worker.
    failed = builders.k8s_job("docs-train-0", "train", state="Failed")["status"]
    cluster.objects["Job", "docs-train-0"]["status"] = failed
    peer = builders.failure("PeerLost", "a peer is gone", 60.0, rank=0)
    cluster.pods[-2] = builders.pod("docs-train-0", 0, "Failed", peer, 205)
    cluster.operator_pass()
    assert cluster.writes[writes:] == [
        "apply Service docs",
        "apply Job docs-train-1",
        "status Starting",
        f"force delete Pod {name}",
    ]
    restarts = cluster.status.restarts
    assert restarts is not None
    assert (restarts.counted, restarts.disruptions) == (0, 1)


def test_a_pod_of_a_suspended_job_is_removed_too_and_the_job_goes_on_after() -> None:
    cluster = dead()
    cluster.suspend(True)
    cluster.settle()
    cluster.pods = [p for p in cluster.pods if p["metadata"]["name"] != "docs-train-0-0-abcde"]
    cluster.suspend(False)
    cluster.settle()
    assert ("Job", "docs-train-1") not in cluster.objects
    assert cluster.look().requeue_after is not None
    cluster.clock = SECOND_15 + 120
    cluster.settle()
    name = "docs-train-0-1-abcde"
    assert [w for w in cluster.writes if name in w] == [
        f"give up Pod {name}",
        f"force delete Pod {name}",
    ]
    assert ("Job", "docs-train-1") in cluster.objects


def test_a_pod_that_has_ended_is_never_called_failed() -> None:
    cluster = dead()
    cluster.pods[-1] = builders.pod("docs-train-0", 1, "Succeeded", deleted=True, gone_by=GONE_BY)
    cluster.clock = 10**5
    assert cluster.look().give_up == ()


def test_a_pod_that_was_removed_by_force_already_is_left_to_the_job_controller() -> None:
    cluster = dead()
    cluster.pods[-1]["metadata"]["deletionGracePeriodSeconds"] = 0
    cluster.clock = 10**5
    done = cluster.look()
    assert (done.give_up, done.force_delete) == ((), ())

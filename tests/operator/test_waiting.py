"""While a job does not run, a condition says why, with whose words, and since when."""

from __future__ import annotations

from typing import Any

import builders
import pytest
from builders import event, pod
from simulation import SimulatedCluster

Json = dict[str, Any]
TRAIN = "docs-train-0"
QUOTA = (
    'Error creating: pods "docs-train-0-1-x7k2p" is forbidden: exceeded quota: gpus, requested: '
    "requests.nvidia.com/gpu=8, used: requests.nvidia.com/gpu=8, limited: "
    "requests.nvidia.com/gpu=12"
)


def at_training(**spec: Any) -> SimulatedCluster:
    """A job whose workers are to start; none of their pods is there yet."""
    cluster = SimulatedCluster(builders.job_body(spec=spec), builders.world())
    cluster.settle()
    cluster.finish("docs-prepare", builders.OUTCOMES["prepare"])
    cluster.settle()
    cluster.pods = [p for p in cluster.pods if "train" not in p["metadata"]["name"]]
    return cluster


def at(cluster: SimulatedCluster, second: int) -> None:
    """The operator looks once, at this second of the simulation."""
    cluster.clock = second - 1
    cluster.operator_pass()


def waiting(cluster: SimulatedCluster) -> tuple[str, str, str, str]:
    """Status, reason, message and time of day of the condition."""
    found = next(c for c in cluster.status.conditions if c.type == "Waiting")
    return found.status, found.reason, found.message, found.last_transition_time[11:19]


def unscheduled(index: int, message: str) -> Json:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return pod(TRAIN, index, "Pending", conditions=[condition | {"message": message}], node=None)


SCHEDULER = "0/4 nodes are available: 4 Insufficient nvidia.com/gpu."


@pytest.mark.parametrize(
    ("pods", "events", "reason", "message"),
    [
        pytest.param(
            [pod(TRAIN, 0)],
            [event(f"uid-{TRAIN}", "FailedCreate", QUOTA)],
            "QuotaExceeded",
            "1 of 2 pods of Job docs-train-0 cannot be created: exceeded quota: gpus, requested: "
            "requests.nvidia.com/gpu=8, used: requests.nvidia.com/gpu=8, limited: "
            "requests.nvidia.com/gpu=12",
            id="quota",
        ),
        pytest.param(
            [],
            [
                event(
                    f"uid-{TRAIN}",
                    "FailedCreate",
                    '(combined from similar events): Error creating: pods "docs-train-0-0-a" is '
                    'forbidden: violates PodSecurity "restricted:latest": seccompProfile',
                )
            ],
            "PodsRefused",
            "2 of 2 pods of Job docs-train-0 cannot be created: violates PodSecurity "
            '"restricted:latest": seccompProfile',
            id="refused",
        ),
        pytest.param(
            [unscheduled(0, SCHEDULER)],
            [event(f"uid-{TRAIN}", "FailedCreate", QUOTA)],
            "QuotaExceeded",
            "1 of 2 pods of Job docs-train-0 cannot be created: exceeded quota: gpus, requested: "
            "requests.nvidia.com/gpu=8, used: requests.nvidia.com/gpu=8, limited: "
            "requests.nvidia.com/gpu=12",
            id="quota, and the other has no node",
        ),
        pytest.param(
            [pod(TRAIN, 0), unscheduled(1, SCHEDULER)],
            [],
            "Unschedulable",
            f"pod docs-train-0-1-abcde waits: Unschedulable: {SCHEDULER}",
            id="the scheduler",
        ),
        pytest.param(
            [pod(TRAIN, 0), unscheduled(1, 'persistentvolumeclaim "docs-work" not found')],
            [],
            "Volume",
            "pod docs-train-0-1-abcde waits: Unschedulable: persistentvolumeclaim "
            '"docs-work" not found',
            id="a claim",
        ),
        pytest.param(
            [pod(TRAIN, 0, "Pending", waiting={"reason": "ContainerCreating"}), pod(TRAIN, 1)],
            [
                event(f"uid-{TRAIN}-0", "Scheduled", "on node-0", "2026-11-22T06:00:10Z"),
                event(f"uid-{TRAIN}-0", "FailedMount", "nfs: timed out", "2026-11-22T06:00:20Z"),
            ],
            "Volume",
            "pod docs-train-0-0-abcde waits: Volume: nfs: timed out",
            id="a volume",
        ),
        pytest.param(
            [pod(TRAIN, 0, "Pending", waiting={"reason": "ContainerCreating"}), pod(TRAIN, 1)],
            [
                event(f"uid-{TRAIN}-0", "FailedMount", "nfs: timed out", "2026-11-22T06:00:20Z"),
                event(f"uid-{TRAIN}-0", "Pulling", "the image", "2026-11-22T06:00:30Z"),
            ],
            "Starting",
            "pod docs-train-0-0-abcde is being started",
            id="a volume that came",
        ),
        pytest.param(
            [
                pod(TRAIN, 0),
                pod(TRAIN, 1, "Pending", waiting={"reason": "ErrImagePull", "message": "no"}),
            ],
            [],
            "ImagePull",
            "pod docs-train-0-1-abcde waits: ErrImagePull: no",
            id="an image",
        ),
        pytest.param(
            [
                pod(TRAIN, 0, "Pending", waiting={"reason": "CreateContainerConfigError"}),
                pod(TRAIN, 1),
            ],
            [],
            "CreateContainerConfigError",
            "pod docs-train-0-0-abcde waits: CreateContainerConfigError",
            id="the kubelet's own word",
        ),
        pytest.param(
            [pod(TRAIN, 0)], [], "Starting", "waiting for pods to be created", id="one is missing"
        ),
    ],
)
def test_a_job_that_waits_says_why_in_a_condition_and_never_that_it_runs(
    pods: list[Json], events: list[Json], reason: str, message: str
) -> None:
    cluster = at_training()
    cluster.pods += pods
    cluster.kube_events = events
    at(cluster, 50)
    assert waiting(cluster)[:3] == ("True", reason, message)
    assert (cluster.status.phase, cluster.status.message) == ("Starting", message)


def test_since_when_stays_while_the_reason_is_the_same_and_moves_when_it_changes() -> None:
    cluster = at_training()
    cluster.pods = [*cluster.pods, pod(TRAIN, 0), unscheduled(1, SCHEDULER)]
    at(cluster, 50)
    assert waiting(cluster)[3] == "06:00:50"
    cluster.pods[-1] = unscheduled(1, "0/5 nodes are available: 5 Insufficient nvidia.com/gpu.")
    at(cluster, 80)
    assert (waiting(cluster)[1], waiting(cluster)[3]) == ("Unschedulable", "06:00:50")
    cluster.pods[-1] = pod(TRAIN, 1, "Pending", waiting={"reason": "ErrImagePull"})
    at(cluster, 90)
    assert (waiting(cluster)[1], waiting(cluster)[3]) == ("ImagePull", "06:01:30")
    cluster.pods[-1] = pod(TRAIN, 1)
    at(cluster, 95)
    assert waiting(cluster) == ("False", "Running", "all pods of the stage run", "06:01:35")


def test_every_new_trouble_is_one_event_and_starting_is_none() -> None:
    cluster = at_training()
    before = len(cluster.events)
    cluster.pods.append(pod(TRAIN, 0))
    cluster.kube_events = [event(f"uid-{TRAIN}", "FailedCreate", QUOTA)]
    for second in (50, 60, 70):
        at(cluster, second)
    cluster.pods.append(unscheduled(1, SCHEDULER))
    for second in (80, 90):
        at(cluster, second)
    cluster.pods[-1] = pod(TRAIN, 1)
    at(cluster, 100)
    assert [said.split(":")[0] for said in cluster.events[before:]] == [
        "Warning QuotaExceeded",
        "Warning Unschedulable",
        "Normal Running",
    ]


def test_events_are_read_when_they_may_tell_something_and_looked_at_again() -> None:
    cluster = at_training()
    cluster.kube_events = [event(f"uid-{TRAIN}", "FailedCreate", QUOTA)]
    cluster.clock = 1  # the Job started at second 0
    step = cluster.look()
    assert step.requeue_after == 3.0
    assert step.status is None or step.status.message == "waiting for pods to be created"
    cluster.clock = 9
    assert cluster.look().requeue_after == 60.0
    cluster.pods += [pod(TRAIN, 0), unscheduled(1, SCHEDULER)]
    assert cluster.look().requeue_after is None  # the scheduler's words come by the watch


def test_a_pod_that_is_being_removed_before_it_ran_is_waited_for_anew() -> None:
    cluster = at_training()
    cluster.pods += [pod(TRAIN, 0), pod(TRAIN, 1, "Pending", deleted=True)]
    at(cluster, 50)
    assert cluster.status.phase == "Starting"


def test_a_cpu_stage_whose_next_pod_is_refused_says_so() -> None:
    cluster = SimulatedCluster(builders.job_body(), builders.world())
    cluster.settle()
    cluster.pods = [pod("docs-prepare", 0, "Failed", exit_code=137)]
    at(cluster, 50)
    assert waiting(cluster)[1:3] == (
        "Starting",
        "pod docs-prepare-0-abcde has failed; waiting for pods to be created",
    )
    cluster.kube_events = [event("uid-docs-prepare", "FailedCreate", QUOTA)]
    at(cluster, 60)
    assert waiting(cluster)[1] == "QuotaExceeded"


def test_the_whole_life_of_a_job_in_one_condition() -> None:
    cluster = SimulatedCluster(builders.job_body(spec={"profile": "big"}), builders.world())
    seen: list[tuple[str, str]] = []

    def look() -> None:
        cluster.settle()
        if (now := waiting(cluster)[:2]) not in seen[-1:]:
            seen.append(now)

    look()
    cluster.world = builders.world(big=builders.PROFILE)
    look()
    cluster.run("docs-prepare")
    look()
    cluster.finish("docs-prepare", builders.OUTCOMES["prepare"])
    look()
    cluster.run(TRAIN)
    look()
    cluster.suspend(True)
    look()
    cluster.stopped(TRAIN)
    look()
    cluster.suspend(False)
    look()
    cluster.run("docs-train-1")
    look()
    cluster.fail("docs-train-1", {1: builders.failure("Hang", "no step", 5.0, rank=8)})
    look()
    cluster.clock += 60
    look()
    cluster.run("docs-train-2")
    look()
    cluster.finish("docs-train-2", builders.OUTCOMES["train"])
    look()
    cluster.run("docs-export")
    look()
    cluster.finish("docs-export", builders.OUTCOMES["export"])
    look()
    assert seen == [
        ("True", "ProfileNotFound"),
        ("True", "Starting"),
        ("False", "Running"),
        ("True", "Starting"),
        ("False", "Running"),
        ("True", "Suspended"),
        ("True", "Starting"),
        ("False", "Running"),
        ("True", "Restarting"),
        ("True", "Starting"),
        ("False", "Running"),
        ("True", "Starting"),
        ("False", "Running"),
        ("False", "Finished"),
    ]

"""Whom to blame when a gang fails, and what a waiting job says."""

from __future__ import annotations

from typing import Any

import builders
import pytest
from builders import failure, k8s_job, pod

from finetune_operator.explain import explain
from finetune_operator.observe import observe
from finetune_operator.reconcile import Step, World, parse_job, step

TRAIN = "docs-train-0"


def lost(pods: list[dict[str, Any]], state: str = "Failed") -> dict[str, Any]:
    observed = observe(None, [k8s_job(TRAIN, "train", state=state)], pods, builders.UID)
    stage = observed.stage("train")
    assert stage is not None
    return explain(stage, builders.LATER, processes_per_pod=2).to_json_dict()


def test_the_rank_that_failed_first_is_blamed_and_its_peers_are_not() -> None:
    pods = [
        pod(TRAIN, 0, "Failed", failure("PeerLost", "peer lost", 5.0, rank=0), 205),
        pod(
            TRAIN,
            1,
            "Failed",
            failure("Diverged", "loss is not finite", 10.0, rank=3, logTail="a\nb"),
            14,
        ),
    ]
    assert lost(pods) == {
        "class": "Diverged",
        "stage": "train",
        "message": "loss is not finite",
        "rank": 3,
        "node": "node-1",
        "pod": "docs-train-0-1-abcde",
        "exitCode": 14,
        "logTail": "a\nb",
        "time": builders.LATER,
    }


def test_a_worker_that_was_killed_without_a_word_is_named_with_the_end_of_its_log() -> None:
    pods = [
        pod(TRAIN, 0, "Failed", failure("PeerLost", "peer lost", 5.0, rank=0), 205),
        pod(TRAIN, 1, "Failed", "step 1\nstep 2\n", 137),
    ]
    assert lost(pods) == {
        "class": "Killed",
        "stage": "train",
        "message": "pod docs-train-0-1-abcde was killed by signal 9",
        "rank": 2,
        "node": "node-1",
        "pod": "docs-train-0-1-abcde",
        "exitCode": 137,
        "logTail": "step 1\nstep 2",
        "time": builders.LATER,
    }


@pytest.mark.parametrize("code", [137, 139])
def test_a_trainer_that_does_not_say_what_it_died_of_has_lost_a_peer_that_was_killed(
    code: int,
) -> None:
    pods = [pod(TRAIN, 0, "Failed", "error", 1), pod(TRAIN, 1, "Failed", "", code)]
    found = lost(pods)
    assert (found["class"], found["rank"], found["exitCode"]) == ("Killed", 2, code)


def test_a_trainer_that_fails_is_blamed_and_not_the_peers_that_its_job_then_stops() -> None:
    pods = [pod(TRAIN, 0, "Failed", "", 143, deleted=True), pod(TRAIN, 1, "Failed", "error", 1)]
    found = lost(pods)
    assert (found["rank"], found["exitCode"], found["logTail"]) == (2, 1, "error")


def test_a_worker_out_of_host_memory_is_told_what_to_lower() -> None:
    pods = [pod(TRAIN, 0, "Failed", "", 137, reason="OOMKilled")]
    found = lost(pods)
    assert (found["class"], found["message"]) == (
        "OutOfMemory",
        "pod docs-train-0-0-abcde used more memory than its limit; lower "
        "spec.training.microBatchSize or sequenceLength, or ask for a profile with more memory",
    )


def test_a_rank_killed_for_memory_beside_its_launch_is_out_of_memory() -> None:
    """The kernel may kill one process of a container only: launch then sees signal 9."""
    killed = failure("Killed", "the process was killed by signal 9", 5.0, rank=2)
    pods = [
        pod(TRAIN, 0, "Failed", failure("PeerLost", "peer lost", 4.0, rank=0), 205),
        pod(TRAIN, 1, "Failed", killed, 137, reason="OOMKilled"),
    ]
    found = lost(pods)
    assert (found["class"], found["rank"], found["message"]) == (
        "OutOfMemory",
        2,
        "pod docs-train-0-1-abcde used more memory than its limit; lower "
        "spec.training.microBatchSize or sequenceLength, or ask for a profile with more memory",
    )


def test_a_deleted_worker_is_named() -> None:
    pods = [
        pod(TRAIN, 0, "Failed", failure("PeerLost", "peer lost", 5.0, rank=0), 205),
        pod(TRAIN, 1, "Running", deleted=True),
    ]
    found = lost(pods)
    assert (found["class"], found["message"], found["rank"]) == (
        "Killed",
        "pod docs-train-0-1-abcde was deleted",
        2,
    )


def test_a_gang_of_which_nothing_is_left_was_deleted_at_once() -> None:
    found = lost([])
    assert (found["class"], found["message"]) == (
        "Killed",
        "no train pod is left that could tell what happened: one was deleted without time to end "
        "(by hand, or with its node); Job has reached the specified backoff limit",
    )


def test_pods_that_end_without_proof_are_not_a_success() -> None:
    found = lost([pod(TRAIN, 0, "Succeeded")], state="Complete")
    assert (found["class"], found["message"]) == (
        "Internal",
        "the train pods ended without an error but left no proof of their work; the trainer "
        "image does not match this operator, or the pods were removed at once",
    )


def begun() -> tuple[dict[str, Any], World, dict[str, Any]]:
    """A job whose prepare has just been made, the world, and its ConfigMap."""
    body, world, first = builders.job_body(), builders.world(), Step()
    for _ in ("it begins", "its objects are made"):
        first = step(parse_job(body), observe(None, [], [], builders.UID), world, builders.NOW)
        if first.status is not None:
            body["status"] = first.status.to_json_dict()
    return body, world, first.apply[0]


def started(pods: list[dict[str, Any]], job: str = "docs-prepare", stage: str = "prepare") -> Step:
    body, world, config = begun()
    observed = observe(config, [k8s_job(job, stage)], pods, builders.UID)
    return step(parse_job(body), observed, world, builders.LATER)


@pytest.mark.parametrize(
    ("waiting", "message"),
    [
        pytest.param(
            pod(
                "docs-prepare",
                0,
                "Pending",
                conditions=[
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
                    }
                ],
            ),
            "pod docs-prepare-0-abcde waits: Unschedulable: 0/1 nodes are available: "
            "1 Insufficient nvidia.com/gpu.",
            id="the scheduler's words",
        ),
        pytest.param(
            pod(
                "docs-prepare",
                0,
                "Pending",
                waiting={"reason": "ImagePullBackOff", "message": "no such image"},
            ),
            "pod docs-prepare-0-abcde waits: ImagePullBackOff: no such image",
            id="the image",
        ),
        pytest.param(
            pod("docs-prepare", 0, "Pending", waiting={"reason": "ContainerCreating"}),
            "pod docs-prepare-0-abcde is being started",
            id="just starting",
        ),
    ],
)
def test_a_job_that_waits_says_what_for(waiting: dict[str, Any], message: str) -> None:
    found = started([waiting])
    assert found.status is not None
    assert (found.status.phase, found.status.message) == ("Preparing", message)


@pytest.mark.parametrize(
    ("pods", "shown"),
    [
        pytest.param([], ("Starting", "waiting for pods to be created"), id="no pod yet"),
        pytest.param(
            [pod(TRAIN, 0), pod(TRAIN, 1, "Pending")],
            ("Starting", "pod docs-train-0-1-abcde is being started"),
            id="one runs, one does not",
        ),
        pytest.param([pod(TRAIN, 0), pod(TRAIN, 1)], ("Running", "training"), id="all run"),
        pytest.param(
            [pod(TRAIN, 0, "Succeeded"), pod(TRAIN, 1, "Succeeded")],
            ("Running", "2 of 2 pods are done"),
            id="all have ended, the Job does not say so yet",
        ),
        pytest.param(
            [pod(TRAIN, 0), pod(TRAIN, 1, "Failed")],
            ("Running", "pod docs-train-0-1-abcde has failed"),
            id="one has failed, the Job does not say so yet",
        ),
    ],
)
def test_training_is_running_from_when_all_pods_run(
    pods: list[dict[str, Any]], shown: tuple[str, str]
) -> None:
    body, world, config = begun()
    prepare = [
        k8s_job("docs-prepare", "prepare", state="Complete"),
        pod("docs-prepare", 0, "Succeeded", builders.OUTCOMES["prepare"]),
    ]
    observed = observe(
        config,
        [prepare[0], k8s_job(TRAIN, "train")],
        [prepare[1], *pods],
        builders.UID,
    )
    done = step(parse_job(body), observed, world, builders.LATER)
    assert done.status is not None
    assert (done.status.phase, done.status.message) == shown


def test_a_failed_stage_ends_the_job_with_its_reason() -> None:
    body, world, config = begun()
    bad = failure("Data", "docs.jsonl line 3: not JSON", 1.0)
    observed = observe(
        config,
        [k8s_job("docs-prepare", "prepare", state="Failed")],
        [pod("docs-prepare", 0, "Failed", bad, 11)],
        builders.UID,
    )
    done = step(parse_job(body), observed, world, builders.LATER)
    assert done.status is not None
    found = done.status.to_json_dict()
    conditions = {c["type"]: (c["status"], c["reason"]) for c in found["conditions"]}
    assert (found["phase"], found["message"], conditions, done.apply) == (
        "Failed",
        "docs.jsonl line 3: not JSON",
        {
            "Validated": ("True", "Accepted"),
            "Prepared": ("False", "Data"),
            "Trained": ("False", "NotReached"),
            "Exported": ("False", "NotReached"),
            "Complete": ("False", "HasFailed"),
            "Failed": ("True", "Data"),
            "Waiting": ("False", "Finished"),
            "ProgressReported": ("Unknown", "NotTraining"),
        },
        (),
    )
    assert [(e.type, e.reason, e.message) for e in done.events] == [
        ("Warning", "Failed", "Data: docs.jsonl line 3: not JSON (pod docs-prepare-0-abcde)")
    ]


def test_objects_of_an_earlier_job_of_the_same_name_are_not_ours() -> None:
    old = k8s_job("docs-prepare", "prepare", state="Complete", owner="another-uid")
    assert observe(None, [old], [], builders.UID).stages == ()

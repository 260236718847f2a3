"""Whose log is meant."""

from __future__ import annotations

from typing import Any

import pytest
from job_builders import FAILURE, failed, job, running

from finetune_cli.exits import CliError, Exit
from finetune_cli.pods import Pod, Wish, choose, container_state, parse_pod

Json = dict[str, Any]


def pod(stage: str, attempt: int = 0, worker: int = 0, name: str = "") -> Pod:
    found = name or f"docs-{stage}-{attempt}-{worker}"
    return Pod(found, stage, attempt, worker, "Running", "2026-11-22T06:00:00Z")


PREPARE = pod("prepare")
OLD = [pod("train", 0, 0), pod("train", 0, 1, FAILURE["pod"])]
NEW = [pod("train", 1, 1), pod("train", 1, 0)]
PODS = [*NEW, PREPARE, *OLD]


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        pytest.param(Wish(), [NEW[1]], id="rank 0 of the newest attempt"),
        pytest.param(Wish(worker=1), [NEW[0]], id="a worker"),
        pytest.param(Wish(rank=9), [NEW[0]], id="the worker of a rank, of 8 per worker"),
        pytest.param(Wish(all=True), [NEW[1], NEW[0]], id="all of the newest attempt"),
        pytest.param(Wish(attempt=0), [OLD[0]], id="an older attempt"),
        pytest.param(Wish(stage="prepare"), [PREPARE], id="a stage"),
        pytest.param(Wish(failed=True), [OLD[1]], id="the one that failed first"),
    ],
)
def test_the_pods_that_are_meant(wish: Wish, expected: list[Pod]) -> None:
    assert choose(job(running(lastFailure=FAILURE)), PODS, wish) == expected


def test_of_a_cpu_stage_the_last_try_counts() -> None:
    early = Pod("x", "export", 0, 0, "Failed", "2026-11-22T06:00:00Z")
    late = Pod("a", "export", 0, 0, "Running", "2026-11-22T06:01:00Z")
    assert choose(job(running()), [late, early, *PODS], Wish()) == [late]


@pytest.mark.parametrize(
    ("status", "pods", "wish", "expected"),
    [
        pytest.param(
            None, [], Wish(), "docs has no pods; its phase is New: nothing is known", id="no pods"
        ),
        pytest.param(
            running(),
            [PREPARE],
            Wish(worker=3),
            "no pod of docs is that one; there are prepare (docs-prepare-0-0)",
            id="no such worker",
        ),
        pytest.param(running(), PODS, Wish(failed=True), "nothing of docs has failed", id="none"),
        pytest.param(
            failed("Data"),
            [PREPARE],
            Wish(failed=True),
            "pod docs-train-0-0-abcde is gone; its last lines were:\nTraceback\nValueError: no",
            id="the pod is gone, its last lines are not",
        ),
    ],
)
def test_what_is_not_there_is_said(
    status: Json | None, pods: list[Pod], wish: Wish, expected: str
) -> None:
    with pytest.raises(CliError) as error:
        choose(job(status), pods, wish)
    assert (str(error.value), error.value.code) == (expected, Exit.NOT_FOUND)


def test_a_pod_is_read_by_its_labels() -> None:
    labels = {
        "finetune-operator.io/stage": "train",
        "finetune-operator.io/attempt": "2",
        "batch.kubernetes.io/job-completion-index": "1",
    }
    metadata = {"name": "x", "labels": labels, "creationTimestamp": "2026-11-22T06:00:00Z"}
    found = parse_pod({"metadata": metadata, "status": {"phase": "Running"}})
    assert (found, found.short) == (
        Pod("x", "train", 2, 1, "Running", "2026-11-22T06:00:00Z"),
        "train-2/1",
    )


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"phase": "Pending"}, "Pending"),
        ({"phase": "Failed"}, None),
        (
            {
                "phase": "Pending",
                "containerStatuses": [
                    {"name": "trainer", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
                ],
            },
            "ImagePullBackOff",
        ),
        (
            {"containerStatuses": [{"name": "trainer", "state": {"running": {}}}]},
            None,
        ),
    ],
)
def test_a_log_can_be_read_when_the_container_has_started(
    status: Json, expected: str | None
) -> None:
    assert container_state({"status": status}) == expected

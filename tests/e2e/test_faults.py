"""What real faults cost a real job: seconds to the next step, steps, and the loss at the end.

`build/bench/faults.json` gets a row of each. The faults come after step 5 of 16; a checkpoint is
written after every second step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e_jobs import (
    EXAMPLE,
    JOBS,
    failed,
    fill_memory,
    gone,
    kubectl,
    logged_until,
    run,
    signal_rank,
    steps_of,
    succeeded,
    worker,
)
from kube import GROUP, Kube, eventually
from operator_process import LEASE

from localcluster import containers
from localcluster.layout import Layout

ROOT = Path(__file__).parents[2]
FILE = ROOT / "build" / "bench" / "faults.json"
Json = dict[str, Any]
TRAINING = EXAMPLE["spec"]["training"] | {"maxSteps": 16, "sequenceLength": 128}
EVERY = 2
FAULT_AFTER = 5


@pytest.fixture(scope="module")
def undisturbed(kube: Kube) -> float:
    """The loss on the held-out examples after a run that nothing happened to."""
    status = succeeded(kube, start(kube, "undisturbed"))
    loss: float = status["output"]["evalLossAfter"]
    FILE.parent.mkdir(parents=True, exist_ok=True)
    if not FILE.exists():
        FILE.write_text("[]\n")
    return loss


def start(kube: Kube, name: str, **spec: Any) -> str:
    return run(kube, name, training=TRAINING, checkpoints={"everySteps": EVERY}, **spec)


def note(row: Json) -> None:
    rows = [r for r in json.loads(FILE.read_text()) if r["fault"] != row["fault"]]
    FILE.write_text(json.dumps([*rows, row], indent=1) + "\n")


def survives(
    kube: Kube,
    fault: str,
    undisturbed: float,
    disturb: Callable[[str], Any],
    may_lose: int,
    attempts: int = 1,
    **spec: Any,
) -> Json:
    """A job that something happens to, and that succeeds all the same; its status."""
    name = start(kube, fault.replace(" ", "-"), **spec)
    logged_until(kube, name, FAULT_AFTER)
    before = steps_of(name, 0)[-1][0]
    began = time.time()
    disturb(name)
    status = succeeded(kube, name, 900)
    steps = steps_of(name, attempts)
    if attempts:
        first, when = steps[0]
    else:
        first, when = next((s, t) for s, t in steps if t >= began)
    difference = status["output"]["evalLossAfter"] / undisturbed - 1
    row = {
        "fault": fault,
        "outcome": "Succeeded",
        "seconds_to_next_step": round(when - began),
        "steps_lost": max(0, before - first + 1),
        "loss_difference": round(difference, 4),
    }
    wrong = status["attempt"] != attempts or abs(difference) > 0.01 or row["steps_lost"] > may_lose
    note(row | {"outcome": "Wrong"} if wrong else row)
    assert not wrong, (row, status)
    assert status["progress"]["step"] == TRAINING["maxSteps"]
    return status


def causes(status: Json) -> list[tuple[str, str]]:
    return [(e["cause"], e["class"]) for e in status.get("restarts", {}).get("history", [])]


def test_a_rank_is_killed(kube: Kube, undisturbed: float) -> None:
    status = survives(
        kube, "rank killed", undisturbed, lambda n: signal_rank(kube, n, 1, "SIGKILL"), EVERY
    )
    assert causes(status) == [("Platform", "Killed")]
    assert status["lastFailure"]["rank"] == 1


def test_a_pod_is_deleted_at_once(kube: Kube, undisturbed: float) -> None:
    def delete(name: str) -> None:
        pod = worker(kube, name, 1)["metadata"]["name"]
        kube.delete(f"/api/v1/namespaces/demo/pods/{pod}?gracePeriodSeconds=0")

    status = survives(kube, "pod deleted", undisturbed, delete, EVERY)
    assert causes(status) == [("Platform", "Killed")]


def test_a_container_is_killed_under_the_kubelet(kube: Kube, undisturbed: float) -> None:
    layout = Layout.of(ROOT / ".cluster")
    if not layout.containerd_socket(1).exists():
        pytest.skip("needs the containerd of the local cluster")

    def kill(name: str) -> None:
        state = worker(kube, name, 1)["status"]["containerStatuses"][0]
        containers.kill(layout, 1, state["containerID"].removeprefix("containerd://"))

    status = survives(kube, "container killed", undisturbed, kill, EVERY)
    assert causes(status) == [("Platform", "Killed")]


def test_a_node_is_drained(kube: Kube, undisturbed: float) -> None:
    def drain(name: str) -> None:
        node = worker(kube, name, 0)["spec"]["nodeName"]
        kube.patch(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": True}})
        try:
            for pod in kube.pods("demo", f"{name}-train-0"):
                metadata = {"name": pod["metadata"]["name"], "namespace": "demo"}
                path = f"/api/v1/namespaces/demo/pods/{metadata['name']}/eviction"
                kube.create(
                    path, {"apiVersion": "policy/v1", "kind": "Eviction"} | {"metadata": metadata}
                )
            eventually("the workers to be gone", lambda: gone(kube, name), 120)
        finally:
            kube.patch(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": None}})

    status = survives(kube, "node drained", undisturbed, drain, 1)
    assert [cause for cause, _ in causes(status)] == ["Disruption"]
    assert status["restarts"]["counted"] == 0


def test_a_rank_is_stopped(kube: Kube, undisturbed: float) -> None:
    """Its launch notices after half a minute, before its peer gives up, and says which it was."""
    status = survives(
        kube, "rank stopped", undisturbed, lambda n: signal_rank(kube, n, 1, "SIGSTOP"), EVERY
    )
    assert causes(status) == [("Platform", "Hang")]
    found = status["lastFailure"]
    assert (found["class"], found["rank"]) == ("Hang", 1)
    assert "stopped by a signal (SIGSTOP)" in found["message"]
    assert "stacks/attempt-0/rank-1.txt" in found["message"]


def test_the_operator_is_killed(kube: Kube, undisturbed: float) -> None:
    """Training does not need the one that leads; the other one finds all in the status."""

    def kill(name: str) -> None:
        lease = kube.get(LEASE)
        assert lease is not None
        leader = lease["spec"]["holderIdentity"]
        path = f"/api/v1/namespaces/finetune-system/pods/{leader}"
        kube.delete(f"{path}?gracePeriodSeconds=0")

    status = survives(kube, "operator killed", undisturbed, kill, 0, attempts=0)
    assert causes(status) == []


def test_suspended_and_resumed_at_half_the_size(kube: Kube, undisturbed: float) -> None:
    def pause(name: str) -> None:
        path = f"{JOBS}/{name}"
        kube.patch(path, {"spec": {"suspend": True}})
        eventually("the workers to be gone", lambda: gone(kube, name), 120)
        eventually(
            "Suspended", lambda: kube.job("demo", name)["status"]["phase"] == "Suspended", 30
        )
        kube.patch(path, {"spec": {"suspend": False, "workers": {"numNodes": 1}}})

    status = survives(kube, "suspended and halved", undisturbed, pause, 0)
    assert causes(status) == []
    assert status["resolved"]["numNodes"] == 1
    assert len(kube.pods("demo", "suspended-and-halved-train-1")) == 1


def test_out_of_memory_ends_the_job_and_says_what_to_lower(kube: Kube, undisturbed: float) -> None:
    """The kernel kills the rank for the container's limit; the same run would meet it again."""
    # More steps than the others: on a busy machine the memory takes a while to fill.
    long = TRAINING | {"maxSteps": 200}
    name = run(kube, "out-of-memory", training=long, checkpoints={"everySteps": EVERY})
    logged_until(kube, name, FAULT_AFTER)
    fill_memory(kube, name, 1)
    failure = failed(kube, name, 300)
    row = {"fault": "out of memory", "outcome": "FailedAsItShould"}
    row |= dict.fromkeys(("seconds_to_next_step", "steps_lost", "loss_difference"))
    right = (failure["class"], failure["stage"], failure["rank"]) == ("OutOfMemory", "train", 1)
    note(row if right else row | {"outcome": "Wrong"})
    assert right, failure
    assert "microBatchSize" in failure["message"]


def test_a_run_that_does_not_fit_is_refused_before_a_worker_starts(kube: Kube) -> None:
    profile = json.loads(kubectl("get", "finetuneprofile", "demo-cpu", "-o", "json"))["spec"]
    profile["node"]["memory"] = "700Mi"
    path = f"{GROUP}/finetuneprofiles"
    if kube.get(f"{path}/tight") is None:
        body = {
            "apiVersion": "finetune-operator.io/v1alpha1",
            "kind": "FineTuneProfile",
            "metadata": {"name": "tight"},
            "spec": profile,
        }
        kube.create(path, body)
    failure = failed(kube, start(kube, "too-large", profile="tight"), 300)
    assert (failure["class"], failure["stage"]) == ("OutOfMemory", "prepare")
    assert "set spec.zero.stage: 3 (now 2)" in failure["message"]
    assert kube.pods("demo", "too-large-train-0") == []

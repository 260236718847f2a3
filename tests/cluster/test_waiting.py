"""Why a job waits, in the words of the real quota, scheduler and Job controller; and a worker that
its kubelet killed (which the test plays)."""

from __future__ import annotations

import time
from typing import Any

import builders
import pytest
from kube import GROUP, Kube, eventually
from operator_process import Operator

Json = dict[str, Any]
COUNT = iter(range(1000))


@pytest.fixture
def namespace(kube: Kube) -> str:
    """A namespace of its own."""
    return kube.namespace(f"waiting-{next(COUNT)}")


def apply(kube: Kube, namespace: str) -> None:
    spec = {
        "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
        "dataset": {"uri": "pvc://team-data/docs.jsonl"},
        "workers": {"numNodes": 2},
    }
    body = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": "FineTuneJob"}
    body |= {"metadata": {"name": "docs"}, "spec": spec}
    kube.create(f"{GROUP}/namespaces/{namespace}/finetunejobs", body)


def pods(kube: Kube, namespace: str, job: str, count: int, seconds: float = 30) -> list[Json]:
    made: list[Json] = eventually(
        f"{count} pods of {job}",
        lambda: found if len(found := kube.pods(namespace, job)) == count else None,
        seconds,
    )
    return made


def prepared(kube: Kube, namespace: str) -> None:
    (prepare,) = pods(kube, namespace, "docs-prepare", 1)
    kube.run(prepare)
    kube.end(prepare, 0, builders.OUTCOMES["prepare"].to_message())


def condition(kube: Kube, namespace: str, reason: str, seconds: float = 60) -> Json:
    """The condition Waiting, once it has a reason; with the phase of that moment."""
    seen: list[Any] = [None]

    def reached() -> Json | None:
        status = kube.job(namespace, "docs").get("status", {})
        found = {c["type"]: c for c in status.get("conditions", [])}.get("Waiting")
        seen[0] = found
        right = found is not None and found["reason"] == reason
        return found | {"phase": status["phase"]} if found and right else None

    try:
        found: Json = eventually(f"Waiting for {reason}", reached, seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}; it was {seen[0]}") from None
    return found


def said(kube: Kube, namespace: str) -> list[str]:
    """Reasons of the Events about the job, without those of its phases."""
    events = kube.items(f"/api/v1/namespaces/{namespace}/events")
    mine = [e["reason"] for e in events if e["involvedObject"]["kind"] == "FineTuneJob"]
    return [reason for reason in mine if reason not in ("Preparing", "Starting", "Running")]


def test_a_quota_that_is_full_is_named_until_there_is_room(
    kube: Kube, operator: Operator, namespace: str
) -> None:
    apply(kube, namespace)
    (prepare,) = pods(kube, namespace, "docs-prepare", 1)
    path = f"/api/v1/namespaces/{namespace}/resourcequotas"
    kube.create(path, {"metadata": {"name": "small"}, "spec": {"hard": {"pods": "1"}}})

    def used() -> bool:
        found = kube.get(f"{path}/small")
        return found is not None and found.get("status", {}).get("used") == {"pods": "1"}

    eventually("the quota to count the pod", used)
    kube.run(prepare)
    kube.end(prepare, 0, builders.OUTCOMES["prepare"].to_message())
    found = condition(kube, namespace, "QuotaExceeded")
    assert (found["status"], found["phase"]) == ("True", "Starting")
    assert found["message"].endswith(
        " of 2 pods of Job docs-train-0 cannot be created: exceeded quota: small, requested: "
        "pods=1, used: pods=1, limited: pods=1"
    )
    # The first of the two may come when prepare's pod is no longer counted. It runs: the job does
    # not, and since when it waits stays as it was.
    for worker in kube.pods(namespace, "docs-train-0"):
        kube.run(worker)
    eventually("the Event", lambda: "QuotaExceeded" in said(kube, namespace))
    kube.patch(f"{path}/small", {"spec": {"hard": {"pods": "4"}}})
    for worker in pods(kube, namespace, "docs-train-0", 2, 120):
        kube.run(worker)
    now = condition(kube, namespace, "Running")
    assert (now["status"], now["phase"]) == ("False", "Running")
    assert now["lastTransitionTime"] >= found["lastTransitionTime"]


def test_a_pod_without_a_node_is_told_with_the_schedulers_words_and_since_when(
    kube: Kube, operator: Operator, namespace: str
) -> None:
    apply(kube, namespace)
    found = condition(kube, namespace, "Unschedulable")
    (prepare,) = pods(kube, namespace, "docs-prepare", 1)
    assert (found["status"], found["phase"], found["message"]) == (
        "True",
        "Preparing",
        f"pod {prepare['metadata']['name']} waits: Unschedulable: no nodes available to schedule "
        "pods",
    )
    eventually("the Event", lambda: said(kube, namespace) == ["Unschedulable"])
    kube.run(prepare)
    assert condition(kube, namespace, "Running")["status"] == "False"


def test_a_worker_whose_liveness_probe_failed_has_hung_and_costs_a_restart(
    kube: Kube, operator: Operator, namespace: str
) -> None:
    apply(kube, namespace)
    prepared(kube, namespace)
    workers = pods(kube, namespace, "docs-train-0", 2)
    for worker in workers:
        kube.run(worker)
    condition(kube, namespace, "Running")
    dead = workers[1]["metadata"]
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    about = {"kind": "Pod", "apiVersion": "v1", "namespace": namespace}
    about |= {"name": dead["name"], "uid": dead["uid"]}
    kube.create(
        f"/api/v1/namespaces/{namespace}/events",
        {
            "metadata": {"name": "unhealthy"},
            "involvedObject": about,
            "type": "Warning",
            "reason": "Unhealthy",
            "message": "Liveness probe failed: ",
            "count": 5,
            "firstTimestamp": moment,
            "lastTimestamp": moment,
            "source": {"component": "kubelet"},
        },
    )
    kube.end(workers[1], 137)
    condition(kube, namespace, "Restarting")
    status = kube.job(namespace, "docs")["status"]
    assert (status["lastFailure"]["class"], status["lastFailure"]["pod"]) == ("Hang", dead["name"])
    assert status["restarts"]["counted"] == 1

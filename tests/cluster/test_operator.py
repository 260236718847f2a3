"""The operator against a real API server and Job controller. The test plays the kubelet (there is
no node here): it says which pods run and with what their containers end; `make e2e` has a real one.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import builders
import pytest
from kube import GROUP, Kube, eventually
from operator_process import Operator
from played import Reporter, apply, phase, pods, report, running, to_training

from finetune_api.outcome import Outcome
from finetune_api.run_config import RunConfig
from finetune_operator.cluster import connect

Json = dict[str, Any]
COUNT = iter(range(1000))


@pytest.fixture
def namespace(kube: Kube) -> str:
    """A namespace of its own, where only restricted pods are let in."""
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    return kube.namespace(f"team-{next(COUNT)}", **restricted)


def event_reasons(kube: Kube, namespace: str) -> list[str]:
    """Of the Events about the job, but for the scheduler's words: there is no node here."""
    events = kube.items(f"/api/v1/namespaces/{namespace}/events")
    mine = [e["reason"] for e in events if e["involvedObject"]["kind"] == "FineTuneJob"]
    return [reason for reason in mine if reason != "Unschedulable"]


def test_a_job_goes_from_apply_to_succeeded(kube: Kube, operator: Operator, namespace: str) -> None:
    apply(kube, namespace)
    workers = to_training(kube, namespace)
    assert phase(kube, namespace, "Starting")["status"]["resolved"] == {
        "profile": "cpu",
        "image": "example/trainer:1",
        "objective": "SFT",
        "tuning": "LoRA",
        "numNodes": 2,
        "numProcPerNode": 1,
        "zeroStage": 1,
        "microBatchSize": 8,
        "gradientAccumulationSteps": 2,
        "offload": "None",
        "gradientCheckpointing": False,
        "totalSteps": 40,
        "modelRevision": "abc123",
        "longExamples": "Truncate",
        "checkpointMinutes": 15,
        "outputUri": "pvc://docs-work/output",
        "parameters": 134_515_008,
        "gracePeriodSeconds": 600,
        "maxRestarts": 3,
        "attention": "Masked",
    }
    kube.run(workers[0])
    assert phase(kube, namespace, "Starting")["status"]["phase"] == "Starting"
    kube.run(workers[1])
    phase(kube, namespace, "Running")
    kube.end(workers[0], 0, builders.OUTCOMES["train"].to_message())
    kube.end(workers[1], 0)
    (export,) = pods(kube, namespace, "docs-export")
    phase(kube, namespace, "Exporting")
    kube.run(export)
    kube.end(export, 0, builders.OUTCOMES["export"].to_message())
    status = phase(kube, namespace, "Succeeded")["status"]
    conditions = {c["type"]: c["status"] for c in status["conditions"]}
    assert conditions == {
        "Validated": "True",
        "Prepared": "True",
        "Trained": "True",
        "Exported": "True",
        "Complete": "True",
        "Failed": "False",
        "Waiting": "False",
        "ProgressReported": "Unknown",
    }
    assert status["output"] == {
        "uri": "pvc://docs-work/output",
        "digest": "sha256:" + "0" * 64,
        "bytes": 1_000_000,
        "evalLossBefore": 4.0,
        "evalLossAfter": 2.0,
    }
    assert (status["progress"]["percent"], status["progress"]["activity"]) == (100, "Done")
    phases = ["Preparing", "Starting", "Running", "Exporting", "Succeeded"]
    # An Event is written after the status that it tells of: the last one may be under way.
    last = "the Event of the end"
    eventually(last, lambda: "Succeeded" in event_reasons(kube, namespace))
    assert sorted(event_reasons(kube, namespace)) == sorted(phases)


def test_both_worker_pods_are_made_within_two_seconds_of_the_end_of_prepare(
    kube: Kube, operator: Operator, namespace: str
) -> None:
    apply(kube, namespace)
    workers = to_training(kube, namespace)
    assert [w["metadata"]["labels"]["finetune-operator.io/attempt"] for w in workers] == ["0", "0"]


def test_a_killed_worker_costs_an_attempt_and_the_next_one_is_the_whole_gang(
    kube: Kube, operator: Operator, namespace: str
) -> None:
    apply(kube, namespace)
    workers = to_training(kube, namespace)
    for worker in workers:
        kube.run(worker)
    phase(kube, namespace, "Running")
    kube.end(workers[1], 137)
    kube.end(
        workers[0], 205, builders.failure("PeerLost", "a peer is gone", 9e9, rank=0).to_message()
    )
    status = phase(kube, namespace, "Restarting")["status"]
    assert status["message"].startswith(
        f"attempt 0 ended on rank 1, Killed: pod {workers[1]['metadata']['name']} was killed by "
        "signal 9; restart 1, attempt 1 from "
    )
    again = pods(kube, namespace, "docs-train-1", 2)
    for worker in again:
        kube.run(worker)
    status = phase(kube, namespace, "Running")["status"]
    (entry,) = status["restarts"]["history"]
    assert entry.pop("time")
    assert (status["attempt"], status["restarts"]) == (
        1,
        {
            "counted": 1,
            "disruptions": 0,
            "hangs": 0,
            "history": [{"attempt": 0, "cause": "Platform", "class": "Killed"}],
        },
    )


def test_a_killed_worker_without_restarts_left_is_told_with_rank_node_and_last_lines(
    kube: Kube, operator: Operator, namespace: str
) -> None:
    apply(kube, namespace, restartPolicy={"maxRestarts": 0})
    workers = to_training(kube, namespace)
    for worker in workers:
        kube.run(worker)
    phase(kube, namespace, "Running")
    kube.end(workers[1], 137, "step 1\nstep 2")
    kube.end(
        workers[0], 205, builders.failure("PeerLost", "a peer is gone", 9e9, rank=0).to_message()
    )
    status = phase(kube, namespace, "Failed")["status"]
    found = status["lastFailure"]
    assert found.pop("time")
    assert found == {
        "class": "Killed",
        "stage": "train",
        "message": f"pod {workers[1]['metadata']['name']} was killed by signal 9; not started "
        "again: 1 attempts failed (spec.restartPolicy.maxRestarts is 0)",
        "rank": 1,
        "pod": workers[1]["metadata"]["name"],
        "exitCode": 137,
        "logTail": "step 1\nstep 2",
    }


def test_a_job_is_suspended_and_goes_on_as_another_attempt(
    kube: Kube, operator: Operator, namespace: str
) -> None:
    apply(kube, namespace)
    for worker in to_training(kube, namespace):
        kube.run(worker)
    phase(kube, namespace, "Running")
    path = f"{GROUP}/namespaces/{namespace}/finetunejobs/docs"
    kube.patch(path, {"spec": {"suspend": True}})
    phase(kube, namespace, "Suspended")
    eventually("the pods to be gone", lambda: not kube.pods(namespace, "docs-train-0"))
    kube.patch(path, {"spec": {"suspend": False}})
    for worker in pods(kube, namespace, "docs-train-1", 2):
        kube.run(worker)
    status = phase(kube, namespace, "Running")["status"]
    assert (status["attempt"], status.get("restarts")) == (1, None)


def test_a_suspended_job_goes_on_at_another_size(
    kube: Kube, operator: Operator, namespace: str
) -> None:
    apply(kube, namespace)
    (prepare,) = pods(kube, namespace, "docs-prepare")
    kube.run(prepare)
    facts = builders.PREPARED.model_copy(update={"shape": builders.SHAPE})
    kube.end(prepare, 0, Outcome(prepare=facts).to_message())
    for worker in pods(kube, namespace, "docs-train-0", 2):
        kube.run(worker)
    phase(kube, namespace, "Running")
    path = f"{GROUP}/namespaces/{namespace}/finetunejobs/docs"
    kube.patch(path, {"spec": {"suspend": True}})
    phase(kube, namespace, "Suspended")
    kube.patch(path, {"spec": {"workers": {"numNodes": 3}}})

    def told() -> bool:
        message: str = kube.job(namespace, "docs")["status"]["message"]
        return message == (
            "suspended, and cannot go on: spec.training.globalBatchSize is 32, which 3 x 1 "
            "processes cannot share evenly; use 30 or 33"
        )

    eventually("the refusal of 3 workers", told)
    kube.patch(path, {"spec": {"workers": {"numNodes": 1}, "suspend": False}})
    (worker,) = pods(kube, namespace, "docs-train-1")
    volumes = {volume["name"]: volume for volume in worker["spec"]["volumes"]}
    assert volumes["run"]["configMap"]["name"] == "docs-run-1"
    found = kube.get(f"/api/v1/namespaces/{namespace}/configmaps/docs-run-1")
    assert found is not None
    run = RunConfig.model_validate_json(found["data"]["run.json"])
    training = run.training
    assert (run.num_nodes, training.micro_batch_size, training.gradient_accumulation_steps) == (
        1,
        8,
        4,
    )
    kube.run(worker)
    assert phase(kube, namespace, "Running")["status"]["resolved"]["numNodes"] == 1


def test_a_finished_job_goes_by_itself_also_after_a_restart_and_leaves_its_result(
    kube: Kube, operator: Operator, namespace: str
) -> None:
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    size = {"resources": {"requests": {"storage": "1Gi"}}, "accessModes": ["ReadWriteMany"]}
    kube.create(claims, {"metadata": {"name": "models"}, "spec": size})
    output = {"output": {"uri": "pvc://models/docs"}}
    apply(kube, namespace, ttlSecondsAfterFinished={"succeeded": 30, "failed": 0}, **output)
    for worker in to_training(kube, namespace):
        kube.run(worker)
        kube.end(worker, 0, builders.OUTCOMES["train"].to_message())
    (export,) = pods(kube, namespace, "docs-export")
    kube.run(export)
    kube.end(export, 0, builders.OUTCOMES["export"].to_message())
    ended = phase(kube, namespace, "Succeeded")["status"]["completionTime"]
    operator.stop(signal.SIGKILL)
    operator.start()
    path = f"{GROUP}/namespaces/{namespace}/finetunejobs/docs"
    eventually("the job to go", lambda: kube.get(path) is None, 60)
    after = time.time() - datetime.fromisoformat(ended).timestamp()
    # The killed leader's lease takes 10 to 12 s of the 30; a clock that starts anew with the
    # operator would end after 43.
    assert 30 <= after < 36, "it went too early or too late"
    assert "TTLExpired" in event_reasons(kube, namespace)
    selector = "?labelSelector=finetune-operator.io/job=docs"

    def left() -> list[str]:
        found = kube.items(f"/apis/batch/v1/namespaces/{namespace}/jobs{selector}")
        return [item["metadata"]["name"] for item in (*found, *kube.items(claims))]

    eventually("all but the result's claim to go", lambda: left() == ["models"], 60)


@pytest.fixture
def node(kube: Kube, namespace: str) -> Iterator[str]:
    """A node without a kubelet."""
    name = f"node-of-{namespace}"
    kube.create("/api/v1/nodes", {"metadata": {"name": name}})
    yield name
    kube.delete(f"/api/v1/nodes/{name}")


def run_on(kube: Kube, node: str, workers: list[Json]) -> None:
    """Play scheduler and kubelet."""
    for worker in workers:
        namespace, name = (worker["metadata"][key] for key in ("namespace", "name"))
        target = {"target": {"kind": "Node", "name": node}, "metadata": {"name": name}}
        kube.create(f"/api/v1/namespaces/{namespace}/pods/{name}/binding", target)
        kube.run(worker)


PEER_LOST = builders.failure("PeerLost", "a peer is gone", 9e9).to_message()


def test_a_node_that_kills_two_attempts_is_kept_off_by_the_third(
    kube: Kube, operator: Operator, namespace: str, node: str
) -> None:
    apply(kube, namespace)
    to_training(kube, namespace)
    for attempt in range(2):
        workers = pods(kube, namespace, f"docs-train-{attempt}", 2)
        run_on(kube, node, workers)
        phase(kube, namespace, "Running")
        kube.end(workers[1], 137)
        kube.end(workers[0], 205, PEER_LOST)
        phase(kube, namespace, "Restarting")
    (first, _) = pods(kube, namespace, "docs-train-2", 2)
    assert first["spec"]["affinity"] == {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {
                        "matchFields": [
                            {"key": "metadata.name", "operator": "NotIn", "values": [node]}
                        ]
                    }
                ]
            }
        }
    }
    (excluded,) = kube.job(namespace, "docs")["status"]["excludedNodes"]
    assert (excluded["node"], excluded["reason"]) == (
        node,
        "2 attempts failed on it: 0 (Killed), 1 (Killed); excluded for 1 h",
    )
    eventually("the Event", lambda: "NodeExcluded" in event_reasons(kube, namespace))


def test_a_pod_on_a_dead_node_is_removed_by_force_and_the_next_attempt_starts(
    kube: Kube, operator: Operator, namespace: str, node: str
) -> None:
    apply(kube, namespace, restartPolicy={"forceDeleteSeconds": 2})
    workers = to_training(kube, namespace)
    run_on(kube, node, workers)
    phase(kube, namespace, "Running")
    # No kubelet removes it: as on a node without power.
    dead = f"/api/v1/namespaces/{namespace}/pods/{workers[1]['metadata']['name']}"
    kube.call("DELETE", dead, {"gracePeriodSeconds": 1})
    eventually(
        "the pod to be given up",
        lambda: (kube.get(dead) or {}).get("status", {}).get("reason") == "NodeLost",
    )
    kube.end(workers[0], 205, PEER_LOST)
    assert len(pods(kube, namespace, "docs-train-1", 2)) == 2
    eventually("the pod to be gone", lambda: kube.get(dead) is None)
    assert "PodForceDeleted" in event_reasons(kube, namespace)
    status = kube.job(namespace, "docs")["status"]
    assert (status["restarts"]["disruptions"], status["restarts"]["counted"]) == (1, 0)


def test_a_data_error_fails_the_job_at_once_with_the_line(
    kube: Kube, operator: Operator, namespace: str
) -> None:
    apply(kube, namespace)
    (prepare,) = pods(kube, namespace, "docs-prepare")
    kube.run(prepare)
    said = builders.failure("Data", "docs.jsonl, line 3: not JSON", 1.0)
    kube.end(prepare, 11, said.to_message())
    status = phase(kube, namespace, "Failed")["status"]
    assert (status["message"], status["lastFailure"]["class"]) == (
        "docs.jsonl, line 3: not JSON",
        "Data",
    )
    assert len(kube.pods(namespace, "docs-prepare")) == 1


def test_an_operator_that_was_away_catches_up(
    kube: Kube, operator: Operator, namespace: str
) -> None:
    apply(kube, namespace)
    (prepare,) = pods(kube, namespace, "docs-prepare")
    operator.stop(signal.SIGKILL)
    kube.run(prepare)
    kube.end(prepare, 0, builders.OUTCOMES["prepare"].to_message())
    operator.start()
    assert len(pods(kube, namespace, "docs-train-0", 2)) == 2


def test_a_job_is_deleted_with_all_it_made_while_the_operator_is_down(
    kube: Kube, operator: Operator, namespace: str
) -> None:
    apply(kube, namespace)
    to_training(kube, namespace)
    operator.stop(signal.SIGKILL)
    kube.delete(f"{GROUP}/namespaces/{namespace}/finetunejobs/docs")
    selector = "?labelSelector=finetune-operator.io/job=docs"
    paths = [
        f"/apis/batch/v1/namespaces/{namespace}/jobs",
        f"/api/v1/namespaces/{namespace}/pods",
        f"/api/v1/namespaces/{namespace}/services",
        f"/api/v1/namespaces/{namespace}/configmaps",
        f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
    ]

    def left() -> list[str]:
        return [i["metadata"]["name"] for path in paths for i in kube.items(path + selector)]

    eventually("everything to be gone", lambda: not left(), 60)
    # A claim is kept by Kubernetes while a pod that ran with it is still known; then it goes too.
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    eventually("the claim to go", lambda: not kube.items(claims + selector), 60)


def test_an_object_that_is_not_ours_is_never_touched(
    kube: Kube, operator: Operator, namespace: str
) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    kube.create(path, {"metadata": {"name": "docs-run"}, "data": {"mine": "yes"}})
    apply(kube, namespace)
    status = phase(kube, namespace, "Pending")["status"]
    assert status["message"] == (
        "ConfigMap docs-run exists and does not belong to this job; delete it, or use another "
        "job name"
    )
    found = kube.get(f"{path}/docs-run")
    assert found is not None
    assert found["data"] == {"mine": "yes"}


def test_an_immutable_object_stays_as_it_was_made(
    kube: Kube, kubeconfig: Path, namespace: str
) -> None:
    """A newer operator may write it otherwise, and would be refused for ever."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    made = kube.create(path, {"metadata": {"name": "owner"}})["metadata"]
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": made["uid"]}
    metadata = {"name": "docs-run-1", "namespace": namespace, "ownerReferences": [owner]}
    first = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": True,
        "data": {"run.json": "1"},
    }

    async def twice() -> None:
        cluster = await connect(str(kubeconfig))
        try:
            await cluster.apply(first)
            await cluster.apply(first | {"data": {"run.json": "2"}})
        finally:
            await cluster.close()

    asyncio.run(twice())
    found = kube.get(f"{path}/docs-run-1")
    assert found is not None
    assert found["data"] == {"run.json": "1"}


@pytest.fixture
def reporter(kube: Kube, operator: Operator, namespace: str) -> Reporter:
    apply(kube, namespace)
    return Reporter(kube, operator, namespace, running(kube, namespace)[0])


def test_a_report_moves_the_status_the_columns_and_the_metrics(
    kube: Kube, operator: Operator, namespace: str, reporter: Reporter
) -> None:
    assert reporter.post(report(25, 10)) == (200, "")
    progress = kube.job(namespace, "docs")["status"]["progress"]
    told = progress.pop("lastUpdateTime")
    assert [progress.pop(name) for name in ("firstStepTime", "stepTime")] == [told, told]
    assert progress == {
        "attempt": 0,
        "step": 10,
        "totalSteps": 40,
        "percent": 25,
        "etaSeconds": 60,
        "loss": 2.5,
        "firstStep": 10,
        "tokensPerSecond": 500,
        "history": [{"step": 10, "loss": 2.5}],
    }
    labels = f'{{job="docs",namespace="{namespace}"}}'
    found = operator.metrics()
    shown = {
        name: found[f"finetune_job_{name}{labels}"]
        for name in ("step", "loss", "progress_percent", "eta_seconds", "tokens_per_second")
    }
    assert shown == {
        "step": 10,
        "loss": 2.5,
        "progress_percent": 25,
        "eta_seconds": 60,
        "tokens_per_second": 500,
    }


def test_progress_survives_a_restart_of_the_operator(
    kube: Kube, operator: Operator, namespace: str, reporter: Reporter
) -> None:
    assert reporter.post(report(50, 20)) == (200, "")
    operator.stop(signal.SIGKILL)
    operator.start()
    name = f'finetune_job_step{{job="docs",namespace="{namespace}"}}'
    eventually("the step in the metrics", lambda: operator.metrics().get(name) == 20)
    assert kube.job(namespace, "docs")["status"]["progress"]["step"] == 20

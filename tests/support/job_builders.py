"""Jobs of every phase, as the API server returns them."""

from __future__ import annotations

from typing import Any

from finetune_cli.jobs import Job, parse_job

Json = dict[str, Any]
NOW = 1_795_327_500.0
"""2026-11-22T06:05:00Z."""
MADE = "2026-11-22T06:00:00Z"
SINCE = "2026-11-22T06:03:00Z"
"""Two minutes before NOW."""

SPEC: Json = {
    "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
    "dataset": {"uri": "pvc://team-data/docs.jsonl"},
    "workers": {"numNodes": 2},
}
RESOLVED: Json = {
    "profile": "standard",
    "image": "example/trainer:1",
    "numNodes": 2,
    "numProcPerNode": 8,
    "microBatchSize": 4,
    "totalSteps": 100,
}
PROGRESS: Json = {
    "attempt": 0,
    "step": 62,
    "totalSteps": 100,
    "percent": 62,
    "etaSeconds": 200,
    "loss": 1.02674,
    "tokensPerSecond": 500.0,
    "activity": "Training",
    "lastUpdateTime": "2026-11-22T06:04:50Z",
    "history": [{"step": step, "loss": 4.0 - step / 20} for step in range(10, 61, 10)],
}
FAILURE: Json = {
    "class": "Internal",
    "stage": "train",
    "message": "something broke",
    "rank": 3,
    "node": "node-1",
    "pod": "docs-train-0-0-abcde",
    "exitCode": 203,
    "logTail": "Traceback\nValueError: no",
    "time": SINCE,
}
OUTPUT: Json = {
    "uri": "pvc://team-models/docs",
    "digest": "sha256:" + "0" * 64,
    "bytes": 12_500_000,
    "evalLossBefore": 2.336,
    "evalLossAfter": 1.06,
}


def condition(type_: str, status: str, reason: str, message: str, since: str = SINCE) -> Json:
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": since,
        "observedGeneration": 1,
    }


def body(status: Json | None = None, name: str = "docs", **spec: Any) -> Json:
    """A FineTuneJob; entries of the spec replace those of the default."""
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {
            "namespace": "team-a",
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": MADE,
            "generation": 1,
        },
        "spec": SPEC | spec,
        **({"status": status} if status is not None else {}),
    }


def job(status: Json | None = None, name: str = "docs", **spec: Any) -> Job:
    return parse_job(body(status, name, **spec))


def waiting(phase: str, reason: str, message: str, **more: Any) -> Json:
    """A status that waits."""
    conditions = [condition("Waiting", "True", reason, message)]
    return {"phase": phase, "message": message, "conditions": conditions, "startTime": MADE} | more


def running(**more: Any) -> Json:
    """A status of a training."""
    conditions = [condition("Waiting", "False", "Running", "all pods of the stage run")]
    found = {"phase": "Running", "message": "training", "conditions": conditions, "attempt": 0}
    return found | {"startTime": MADE, "resolved": RESOLVED, "progress": PROGRESS} | more


def failed(class_: str, **more: Any) -> Json:
    """The status of a job that has failed."""
    failure = FAILURE | {"class": class_} | more
    return {"phase": "Failed", "message": failure["message"], "lastFailure": failure}


def succeeded(**more: Any) -> Json:
    """The status of a job that is done."""
    found = {"phase": "Succeeded", "message": "the result is written and checked", "attempt": 0}
    conditions = [condition("Trained", "True", "Trained", "train is done")]
    found |= {"startTime": MADE, "completionTime": "2026-11-22T06:04:00Z", "conditions": conditions}
    return found | {"resolved": RESOLVED, "progress": PROGRESS, "output": OUTPUT} | more

"""Objects as the API server returns them, with sensible defaults."""

from __future__ import annotations

from typing import Any

from finetune_api.outcome import ExportFacts, Failure, Outcome, PrepareFacts, TrainFacts
from finetune_api.profile import FineTuneProfileSpec
from finetune_api.sizes import LinearShape, ModelShape
from finetune_operator.reconcile import World
from finetune_operator.settings import Settings

UID = "11111111-2222-3333-4444-555555555555"
NOW = "2026-11-22T06:00:00Z"
LATER = "2026-11-22T06:05:00Z"

SETTINGS = Settings(
    namespace="finetune-system",
    trainer_image="example/finetune-trainer:1",
    progress_url="https://finetune-operator.finetune-system.svc:8443",
)

SPEC: dict[str, Any] = {
    "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
    "dataset": {"uri": "pvc://team-data/docs.jsonl"},
    "workers": {"numNodes": 2, "numProcPerNode": 8},
}

PROFILE: dict[str, Any] = {"default": True, "node": {"gpusPerNode": 8}}


def job_body(name: str = "docs", **overrides: Any) -> dict[str, Any]:
    """A FineTuneJob; `spec` entries replace those of the default, `status` is taken as given."""
    body: dict[str, Any] = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {
            "name": name,
            "namespace": "team-a",
            "uid": UID,
            "generation": 1,
            "resourceVersion": "1",
        },
        "spec": {**SPEC, **overrides.get("spec", {})},
    }
    if "status" in overrides:
        body["status"] = overrides["status"]
    return body


def world(**profiles: dict[str, Any]) -> World:
    """Settings and profiles; by default one default profile `standard`."""
    found = profiles or {"standard": PROFILE}
    return World(
        settings=SETTINGS,
        profiles={name: FineTuneProfileSpec.parse(spec) for name, spec in found.items()},
        ca_cert="CA",
    )


SHAPE = ModelShape(
    parameters=134_515_008,
    largest_module=28_311_552,
    small_parameters=35_136,
    hidden_size=576,
    intermediate_size=1536,
    layers=30,
    heads=9,
    kv_heads=3,
    head_size=64,
    vocabulary_size=49_152,
    linears=[LinearShape(name="q_proj", in_features=576, out_features=576, count=30)],
)
"""Of SmolLM2-135M, with one of its linear layers."""
PREPARED = PrepareFacts(
    parameters=134_515_008,
    architecture="LlamaForCausalLM",
    model_revision="abc123",
    format="Chat",
    examples=1900,
    eval_examples=100,
    tokens=200_000,
    trained_tokens=120_000,
    sequences=100,
    truncated_examples=20,
    packing_efficiency=0.9961,
    total_steps=40,
)
TRAINED = TrainFacts(
    step=40,
    total_steps=40,
    loss=1.9,
    eval_loss_before=4.0,
    eval_loss_after=2.0,
    tokens=200_000,
    tokens_per_second=500.0,
    duration_seconds=400.0,
)
EXPORTED = ExportFacts(
    digest="sha256:" + "0" * 64,
    bytes=1_000_000,
    files=8,
    tensors=420,
    eval_loss_before=4.0,
    eval_loss_after=2.0,
)
OUTCOMES = {
    "prepare": Outcome(prepare=PREPARED),
    "train": Outcome(train=TRAINED),
    "export": Outcome(export=EXPORTED),
}


def failure(cls: str, message: str, time: float, **more: Any) -> Outcome:
    """The termination message of a container that failed."""
    return Outcome(failure=Failure(**{"class": cls}, message=message, time=time, **more))


def k8s_job(
    name: str,
    stage: str,
    attempt: int = 0,
    state: str = "Active",
    owner: str = UID,
    message: str = "Job has reached the specified backoff limit",
) -> dict[str, Any]:
    """A Kubernetes Job of a stage."""
    status: dict[str, Any] = {"startTime": NOW}
    if state == "Complete":
        status |= {
            "completionTime": LATER,
            "conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": LATER}],
        }
    if state == "Failed":
        condition = {"type": "Failed", "status": "True", "lastTransitionTime": LATER}
        status["conditions"] = [condition | {"message": message}]
    return {
        "metadata": {
            "name": name,
            "namespace": "team-a",
            "uid": f"uid-{name}",
            "labels": {
                "finetune-operator.io/stage": stage,
                "finetune-operator.io/attempt": str(attempt),
            },
            "ownerReferences": [{"uid": owner}],
        },
        "status": status,
    }


def pod(
    job: str,
    index: int = 0,
    phase: str = "Running",
    message: str | Outcome | None = None,
    exit_code: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A pod of a stage's Job."""
    state: dict[str, Any] = {"running": {}} if phase == "Running" else {}
    if phase in ("Succeeded", "Failed"):
        text = message.to_message() if isinstance(message, Outcome) else message
        code = exit_code if exit_code is not None else (0 if phase == "Succeeded" else 1)
        ended = {"exitCode": code, "finishedAt": LATER, "message": text or ""}
        state = {"terminated": ended | ({"reason": more["reason"]} if "reason" in more else {})}
    if "waiting" in more:
        state = {"waiting": more["waiting"]}
    metadata: dict[str, Any] = {
        "name": f"{job}-{index}-abcde",
        "uid": f"uid-{job}-{index}",
        "labels": {"batch.kubernetes.io/job-completion-index": str(index)},
        "ownerReferences": [{"uid": f"uid-{job}", "kind": "Job", "name": job}],
    }
    if more.get("deleted"):
        metadata["deletionTimestamp"] = more.get("gone_by", LATER)
        metadata["deletionGracePeriodSeconds"] = 600
    return {
        "metadata": metadata,
        "spec": {"nodeName": more.get("node", f"node-{index}")},
        "status": {
            "phase": phase,
            "conditions": more.get("conditions", []),
            "containerStatuses": [{"name": "trainer", "state": state}],
        },
    }


def event(uid: str, reason: str, message: str, time: str = LATER, count: int = 1) -> dict[str, Any]:
    """An Event that Kubernetes has left about a child."""
    about = {"involvedObject": {"uid": uid}, "reason": reason, "message": message}
    return about | {"lastTimestamp": time, "count": count}

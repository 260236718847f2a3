"""From raw Kubernetes objects to named facts: nothing after this reads a pod's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from finetune_api.outcome import Outcome
from finetune_operator import names
from finetune_operator.names import Stage
from finetune_operator.plan import Snapshot

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """One pod of a stage."""

    name: str
    index: int
    node: str | None
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]
    waiting: str | None
    """Why it does not run yet, in the words of the scheduler or the kubelet."""
    deleted: bool
    disrupted: bool
    """The platform took it away: preempted, drained, evicted, its node shut down or lost."""
    exit_code: int | None
    finished: str | None
    """When its container ended."""
    outcome: Outcome | None
    message: str | None
    """The termination message where it is not ours (the kubelet then puts the log's end there)."""
    reason: str | None
    """The reason of the pod's or its container's end: `OOMKilled`, `Evicted` ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """The Kubernetes Job of a stage, with its pods."""

    stage: Stage
    attempt: int
    state: Literal["Active", "Complete", "Failed"]
    suspended: bool
    """It was told to stop: its pods go, and none is made."""
    start_time: str | None
    completion_time: str | None
    message: str
    """What the Job controller says about a failure."""
    pods: tuple[PodFacts, ...]

    @property
    def alive(self) -> bool:
        """Whether a pod of it still runs or may come to."""
        return any(pod.phase in ("Pending", "Running") for pod in self.pods)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Everything of a job that exists in the cluster now."""

    snapshot: Snapshot | None = None
    stages: tuple[StageFacts, ...] = ()
    taken: str | None = None
    """An object that has a name we need and is not ours: `Service docs-assistant`."""

    def stage(self, stage: Stage) -> StageFacts | None:
        """The newest attempt of a stage."""
        found = [s for s in self.stages if s.stage == stage]
        return max(found, key=lambda s: s.attempt, default=None)


def observe(config_map: Raw | None, jobs: Sequence[Raw], pods: Sequence[Raw], uid: str) -> Observed:
    """Sort what the API server returned; objects of another job of the same name are left out."""
    mine = [job for job in jobs if _owned(job, uid)]
    return Observed(
        snapshot=_snapshot(config_map, uid),
        stages=tuple(sorted((_stage(j, pods) for j in mine), key=lambda s: (s.stage, s.attempt))),
    )


def trim(raw: Raw) -> dict[str, Any]:
    """A Kubernetes Job or pod without its bulk, which `observe` never reads: nine tenths of it."""
    spec = {k: v for k, v in (raw.get("spec") or {}).items() if k not in BULK}
    metadata = {k: v for k, v in raw["metadata"].items() if k != "managedFields"}
    return {**raw, "metadata": metadata, "spec": spec}


BULK = ("template", "containers", "initContainers", "volumes", "tolerations", "podFailurePolicy")


def _owned(raw: Raw, uid: str) -> bool:
    owners = raw["metadata"].get("ownerReferences") or []
    return any(owner.get("uid") == uid for owner in owners)


def _snapshot(config_map: Raw | None, uid: str) -> Snapshot | None:
    if config_map is None or not _owned(config_map, uid):
        return None
    return Snapshot.model_validate_json(config_map["data"]["snapshot.json"])


def _stage(job: Raw, pods: Sequence[Raw]) -> StageFacts:
    labels = job["metadata"]["labels"]
    status = job.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or [] if c["status"] == "True"}
    state: Literal["Active", "Complete", "Failed"] = "Active"
    if "Complete" in conditions:
        state = "Complete"
    elif "Failed" in conditions:
        state = "Failed"
    failed = conditions.get("Failed", {})
    mine = [pod_facts(pod) for pod in pods if _owned(pod, job["metadata"].get("uid", ""))]
    return StageFacts(
        stage=labels[names.LABEL_STAGE],
        attempt=int(labels.get(names.LABEL_ATTEMPT, "0")),
        state=state,
        suspended=bool((job.get("spec") or {}).get("suspend")),
        start_time=status.get("startTime"),
        completion_time=status.get("completionTime") or failed.get("lastTransitionTime"),
        message=failed.get("message", ""),
        pods=tuple(sorted(mine, key=lambda p: (p.index, p.name))),
    )


def pod_facts(pod: Raw) -> PodFacts:
    """The few facts of a pod that matter."""
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    container: Raw = next(iter(status.get("containerStatuses") or []), {})
    ended = (container.get("state") or {}).get("terminated") or {}
    message = ended.get("message")
    outcome = Outcome.from_message(message)
    return PodFacts(
        name=metadata["name"],
        index=int((metadata.get("labels") or {}).get(names.LABEL_INDEX, "0")),
        node=spec.get("nodeName"),
        phase=status.get("phase", "Pending"),
        waiting=_waiting(status, container),
        deleted="deletionTimestamp" in metadata,
        disrupted=_disrupted(status),
        exit_code=ended.get("exitCode"),
        finished=ended.get("finishedAt"),
        outcome=outcome,
        message=None if outcome else message,
        reason=status.get("reason") or ended.get("reason"),
    )


NODE_REASONS = ("NodeLost", "Terminated", "Shutdown", "NodeShutdown", "Preempting")
"""Reasons that a kubelet or the node controller gives a pod whose node goes or is lost."""


def _disrupted(status: Raw) -> bool:
    """Eviction for using too much local storage is the pod's own doing and has no such condition;
    neither has a pod that its Job removes because a peer has failed."""
    conditions = status.get("conditions") or []
    if any(c["type"] == "DisruptionTarget" and c["status"] == "True" for c in conditions):
        return True
    return status.get("reason") in NODE_REASONS


def _waiting(status: Raw, container: Raw) -> str | None:
    waiting = (container.get("state") or {}).get("waiting") or {}
    if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
        return f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
    if status.get("phase", "Pending") != "Pending":
        return None
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason')}: {condition.get('message', '')}".rstrip(": ")
    return None


def seconds(time: str) -> float:
    """Seconds since the epoch of a Kubernetes timestamp."""
    return datetime.fromisoformat(time).timestamp()

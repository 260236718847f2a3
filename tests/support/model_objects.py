"""Pods and Jobs of the modelled cluster: frozen values, shown as the API server would show them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetune_api.outcome import Outcome

Json = dict[str, Any]
GRACE_SECONDS = 60
START = datetime(2026, 11, 22, 6, tzinfo=UTC).timestamp()


def stamp(moment: float) -> str:
    """A moment (seconds since the epoch) as Kubernetes writes it."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPod:
    """One pod."""

    name: str
    job: str
    job_uid: str
    index: int
    labels: Json
    not_on: tuple[str, ...] = ()
    phase: str = "Pending"
    node: str | None = None
    bound: float | None = None
    """When it got its node."""
    leaves: float | None = None
    """Told to go: when its grace period is over."""
    waiting: str | None = None
    exit_code: int | None = None
    reason: str | None = None
    status_reason: str | None = None
    said: Outcome | None = None
    ended: float | None = None
    disrupted: bool = False
    counted: bool = False
    """Its Job has taken it into account."""

    @property
    def deleted(self) -> bool:
        return self.leaves is not None

    @property
    def alive(self) -> bool:
        return self.phase in ("Pending", "Running")

    def raw(self) -> Json:
        metadata: Json = {
            "name": self.name,
            "uid": f"uid-{self.name}",
            "labels": {**self.labels, "batch.kubernetes.io/job-completion-index": str(self.index)},
            "ownerReferences": [{"uid": self.job_uid, "kind": "Job", "name": self.job}],
        }
        if self.leaves is not None:
            metadata["deletionTimestamp"] = stamp(self.leaves)
            metadata["deletionGracePeriodSeconds"] = GRACE_SECONDS if self.node else 0
        state: Json = {}
        if self.phase == "Running":
            state = {"running": {}}
        elif self.exit_code is not None and self.ended is not None:
            text = self.said.to_message() if self.said else ""
            ended = {"exitCode": self.exit_code, "finishedAt": stamp(self.ended), "message": text}
            state = {"terminated": ended | ({"reason": self.reason} if self.reason else {})}
        elif self.waiting and self.node:
            state = {"waiting": {"reason": "ImagePullBackOff", "message": self.waiting}}
        conditions = []
        if self.waiting and not self.node:
            conditions.append(_true("PodScheduled", "Unschedulable", self.waiting, "False"))
        if self.bound is not None:
            at = {"lastTransitionTime": stamp(self.bound)}
            conditions.append(_true("PodScheduled", "Scheduled", "") | at)
        if self.disrupted:
            conditions.append(_true("DisruptionTarget", "EvictionByEvictionAPI", "drained"))
        return {
            "metadata": metadata,
            "spec": {"nodeName": self.node} if self.node else {},
            "status": {
                "phase": self.phase,
                **({"reason": self.status_reason} if self.status_reason else {}),
                "conditions": conditions,
                "containerStatuses": [{"name": "trainer", "state": state}],
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelJob:
    """One Kubernetes Job."""

    manifest: Json
    uid: str
    suspend: bool = False
    acknowledged: bool = False
    """Its controller has seen that it is suspended."""
    started: float | None = None
    ended: float | None = None
    state: str = "Active"
    failures: int = 0
    """Pods that have failed, as far as they count."""
    failing: str = ""
    """Why it fails, once it does: the condition follows when no pod is left."""

    @property
    def name(self) -> str:
        name: str = self.manifest["metadata"]["name"]
        return name

    @property
    def stage(self) -> str:
        return str(self.manifest["metadata"]["labels"]["finetune-operator.io/stage"])

    @property
    def attempt(self) -> int:
        return int(self.manifest["metadata"]["labels"]["finetune-operator.io/attempt"])

    @property
    def size(self) -> int:
        return int(self.manifest["spec"].get("completions", 1))

    def raw(self) -> Json:
        metadata = self.manifest["metadata"] | {"uid": self.uid}
        conditions = []
        if self.acknowledged:
            conditions.append(_true("Suspended", "JobSuspended", "Job suspended"))
        if self.state != "Active":
            at = stamp(self.ended or START)
            found = _true(self.state, "Ended", self.failing)
            conditions.append(found | {"lastTransitionTime": at})
        status: Json = {"conditions": conditions}
        if self.started is not None:
            status["startTime"] = stamp(self.started)
        if self.state == "Complete":
            status["completionTime"] = stamp(self.ended or START)
        spec = {**self.manifest["spec"], "suspend": self.suspend}
        return {"metadata": metadata, "spec": spec, "status": status}


def _true(type_: str, reason: str, message: str, status: str = "True") -> Json:
    return {"type": type_, "status": status, "reason": reason, "message": message}

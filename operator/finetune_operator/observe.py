"""From raw Kubernetes objects to named facts: nothing after this reads a pod's JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from finetune_api.outcome import Outcome
from finetune_api.snapshot import Snapshot
from finetune_operator import names
from finetune_operator.names import Stage

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """One pod of a stage."""

    name: str
    uid: str
    index: int
    node: str | None
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]
    waiting: str | None
    """Why it does not run yet, in the words of the scheduler or the kubelet."""
    deleted: bool
    gone_by: str | None
    """Being removed: when its grace period is over. None: it stays, or was removed by force."""
    disruption: str | None
    """The platform took it away (preempted, drained, evicted, its node shut down or lost), and how
    it says so."""
    exit_code: int | None
    finished: str | None
    """When its container ended."""
    outcome: Outcome | None
    message: str | None
    """The termination message where it is not ours (the kubelet then puts the log's end there)."""
    reason: str | None
    """The reason of the pod's or its container's end: `OOMKilled`, `Evicted` ..."""
    creating: bool = False
    """It has a node, and its container is not made yet: volumes are mounted, the image pulled."""
    unhealthy: bool = False
    """Its kubelet killed it because its liveness probe failed."""
    bound: str | None = None
    """When it got its node, and all that it asks for there."""

    @property
    def disrupted(self) -> bool:
        """Whether the platform took it away."""
        return self.disruption is not None

    @property
    def forced(self) -> bool:
        """Whether it ran and is removed without time to end: in a second nothing is left of it."""
        return self.deleted and self.gone_by is None and self.phase == "Running"

    @property
    def alive(self) -> bool:
        """Whether it runs or may come to, also if it was told to stop."""
        return self.phase in ("Pending", "Running")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """The Kubernetes Job of a stage, with its pods."""

    stage: Stage
    attempt: int
    state: Literal["Active", "Complete", "Failed"]
    suspended: bool
    """It was told to stop: its pods go, and none is made."""
    queued: str | None = None
    """The queue (Kueue's) that has not let it go on yet."""
    stopped: bool = False
    """The Job controller has seen that it was told to stop, and makes no more pods."""
    start_time: str | None
    completion_time: str | None
    message: str
    """What the Job controller says about a failure."""
    pods: tuple[PodFacts, ...]
    name: str = ""
    uid: str = ""
    wanted: int = 1
    """Pods that it is to have."""
    refused: str | None = None
    """Why a pod of it could not be created, in the words of the API server."""

    @property
    def there(self) -> list[PodFacts]:
        """Its pods, without those that are removed and do not run any more."""
        return [pod for pod in self.pods if not pod.deleted or pod.phase == "Running"]

    @property
    def missing(self) -> int:
        """Pods that it is to have and that are not there. Training has no other pod for one that
        has failed, the CPU stages have."""
        gang = self.stage == "train"
        counted = [pod for pod in self.there if gang or pod.phase != "Failed"]
        return max(0, self.wanted - len(counted))

    @property
    def alive(self) -> bool:
        """Whether a pod of it still runs or may come to."""
        may_come = self.state == "Active" and not self.stopped
        return may_come or any(pod.alive for pod in self.pods)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Everything of a job that exists in the cluster now."""

    snapshot: Snapshot | None = None
    stages: tuple[StageFacts, ...] = ()
    strays: tuple[PodFacts, ...] = ()
    """Pods of this job that live although their Kubernetes Job is gone: somebody deleted it."""
    taken: str | None = None
    """An object that has a name we need and is not ours: `Service docs-assistant`."""
    refused: str | None = None
    """An object that the API server does not take, and why: `Job docs-prepare: exceeded quota`."""

    def stage(self, stage: Stage) -> StageFacts | None:
        """The newest attempt of a stage."""
        found = [s for s in self.stages if s.stage == stage]
        return max(found, key=lambda s: s.attempt, default=None)


def observe(
    config_map: Raw | None,
    jobs: Sequence[Raw],
    pods: Sequence[Raw],
    uid: str,
    events: Sequence[Raw] = (),
) -> Observed:
    """Sort what the API server returned; objects of another job of the same name are left out.

    Args:
        events: About children, where they were read; see `waiting.questions`.
    """
    mine = [job for job in jobs if _owned(job, uid)]
    stages = [_stage(job, pods, events) for job in mine]
    return Observed(
        snapshot=_snapshot(config_map, uid),
        stages=tuple(sorted(stages, key=lambda s: (s.stage, s.attempt))),
        strays=_strays({job["metadata"].get("uid", "") for job in mine}, pods),
    )


def trim(raw: Raw) -> dict[str, Any]:
    """A Kubernetes Job or pod without its bulk, which `observe` never reads: nine tenths of it."""
    spec = {k: v for k, v in (raw.get("spec") or {}).items() if k not in BULK}
    metadata = {k: v for k, v in raw["metadata"].items() if k != "managedFields"}
    return {**raw, "metadata": metadata, "spec": spec}


BULK = ("template", "containers", "initContainers", "volumes", "tolerations", "podFailurePolicy")


def _strays(jobs: set[str], pods: Sequence[Raw]) -> tuple[PodFacts, ...]:
    labelled = [p for p in pods if names.LABEL_STAGE in (p["metadata"].get("labels") or {})]
    found = [pod_facts(p) for p in labelled if not any(_owned(p, uid) for uid in jobs)]
    return tuple(sorted((p for p in found if p.alive), key=lambda p: p.name))


def _owned(raw: Raw, uid: str) -> bool:
    owners = raw["metadata"].get("ownerReferences") or []
    return any(owner.get("uid") == uid for owner in owners)


def _snapshot(config_map: Raw | None, uid: str) -> Snapshot | None:
    if config_map is None or not _owned(config_map, uid):
        return None
    return Snapshot.model_validate_json(config_map["data"]["snapshot.json"])


def _stage(job: Raw, pods: Sequence[Raw], events: Sequence[Raw]) -> StageFacts:
    labels, uid = job["metadata"]["labels"], job["metadata"].get("uid", "")
    status = job.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or [] if c["status"] == "True"}
    state: Literal["Active", "Complete", "Failed"] = "Active"
    if "Complete" in conditions:
        state = "Complete"
    elif "Failed" in conditions:
        state = "Failed"
    failed = conditions.get("Failed", {})
    # Kueue holds what is in its queue; what the operator stops, it takes out of the queue.
    spec, queue = job.get("spec") or {}, labels.get(names.LABEL_QUEUE)
    mine = [pod_facts(pod, events) for pod in pods if _owned(pod, uid)]
    return StageFacts(
        stage=labels[names.LABEL_STAGE],
        attempt=int(labels.get(names.LABEL_ATTEMPT, "0")),
        state=state,
        suspended=bool(spec.get("suspend")) and queue is None,
        queued=queue if spec.get("suspend") else None,
        stopped="Suspended" in conditions,
        start_time=status.get("startTime"),
        completion_time=status.get("completionTime") or failed.get("lastTransitionTime"),
        message=failed.get("message", ""),
        pods=tuple(sorted(mine, key=lambda p: (p.index, p.name))),
        name=job["metadata"]["name"],
        uid=uid,
        wanted=spec.get("completions", 1),
        refused=_refused(uid, events),
    )


def _refused(uid: str, events: Sequence[Raw]) -> str | None:
    """Without what differs from one try to the next: the pod's name, and "combined from"."""
    last = _newest(uid, events, ("FailedCreate",))
    if last is None:
        return None
    text = re.sub(r"^.*?Error creating: ", "", last["message"], flags=re.DOTALL)
    return re.sub(r'^pods "[^"]*" is forbidden: ', "", text)


def _newest(uid: str, events: Sequence[Raw], reasons: Sequence[str]) -> Raw | None:
    """The last Event about an object, of those with such a reason."""
    mine = (event for event in events if event["involvedObject"].get("uid") == uid)
    return max(
        (event for event in mine if event.get("reason") in reasons),
        key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "",
        default=None,
    )


def pod_facts(pod: Raw, events: Sequence[Raw] = ()) -> PodFacts:
    """The few facts of a pod that matter."""
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    container: Raw = next(iter(status.get("containerStatuses") or []), {})
    ended = (container.get("state") or {}).get("terminated") or {}
    message = ended.get("message")
    outcome = Outcome.from_message(message)
    uid, phase = metadata.get("uid", ""), status.get("phase", "Pending")
    waiting = _waiting(status, container)
    creating = phase == "Pending" and bool(spec.get("nodeName")) and waiting is None
    if creating:
        last = _newest(uid, events, (*VOLUME_REASONS, *BEYOND_VOLUMES))
        if last is not None and last["reason"] in VOLUME_REASONS:
            waiting = f"Volume: {last['message']}"
    return PodFacts(
        name=metadata["name"],
        index=int((metadata.get("labels") or {}).get(names.LABEL_INDEX, "0")),
        node=spec.get("nodeName"),
        phase=phase,
        waiting=waiting,
        deleted="deletionTimestamp" in metadata,
        gone_by=_gone_by(metadata),
        disruption=_disruption(status),
        exit_code=ended.get("exitCode"),
        finished=ended.get("finishedAt"),
        outcome=outcome,
        message=None if outcome else message,
        reason=status.get("reason") or ended.get("reason"),
        uid=uid,
        creating=creating,
        unhealthy=_probe_failures(uid, events) >= PROBE_FAILURES,
        bound=_bound(status),
    )


def _bound(status: Raw) -> str | None:
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "True":
            found: str | None = condition.get("lastTransitionTime")
            return found
    return None


def _probe_failures(uid: str, events: Sequence[Raw]) -> int:
    """Where a pod has one container that is not started again, its kubelet stops the pod with the
    words that it has for every stop ("Stopping container"): only the failures before tell why."""
    return sum(
        event.get("count") or 1
        for event in events
        if event["involvedObject"].get("uid") == uid
        and event.get("reason") == "Unhealthy"
        and (event.get("message") or "").startswith("Liveness probe failed")
    )


PROBE_FAILURES = 5
"""Of the liveness probe in a row, after which the kubelet kills a worker."""
VOLUME_REASONS = ("FailedMount", "FailedAttachVolume", "FailedMapVolume")
"""Events of a pod whose volumes are not there yet."""
BEYOND_VOLUMES = ("SuccessfulAttachVolume", "Pulling", "Pulled")
"""Events of a pod for which that is over."""


def _gone_by(metadata: Raw) -> str | None:
    """Kubernetes' deletion timestamp is the moment of the request plus the grace period."""
    if metadata.get("deletionGracePeriodSeconds") == 0:
        return None  # by force, or never on a node: what is left waits for the Job controller only
    found: str | None = metadata.get("deletionTimestamp")
    return found


NODE_REASONS = ("NodeLost", "Terminated", "Shutdown", "NodeShutdown", "Preempting")
"""Reasons that a kubelet or the node controller gives a pod whose node goes or is lost."""


def _disruption(status: Raw) -> str | None:
    """Eviction for using too much local storage is the pod's own doing and has no such condition;
    neither has a pod that its Job removes because a peer has failed."""
    for found in status.get("conditions") or []:
        if found["type"] == "DisruptionTarget" and found["status"] == "True":
            return f"{found.get('reason')}: {found.get('message', '')}".rstrip(": ")
    return status["reason"] if status.get("reason") in NODE_REASONS else None


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


@lru_cache(maxsize=4096)  # the same few moments are asked for again and again
def seconds(time: str) -> float:
    """Seconds since the epoch of a Kubernetes timestamp."""
    return datetime.fromisoformat(time).timestamp()

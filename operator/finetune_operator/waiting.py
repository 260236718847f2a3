"""Why a stage does not run yet, and whose Events have to be read to know it.

A pod that the API server refuses (quota, policy) does not exist, and a volume that cannot be
mounted leaves no trace in its pod: both are told by Events only. So is a container that was killed
because its liveness probe failed. They are read where nothing else explains what is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.status import FineTuneJobStatus
from finetune_operator.observe import Observed, PodFacts, StageFacts, seconds

PATIENCE = 5.0
"""Seconds in which pods are made, and their volumes mounted, where nothing is wrong."""
LOOK_SECONDS = 60.0
"""How often Events are read again while a stage waits for what only they tell."""

IMAGE_REASONS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
)
HARMLESS = ("Starting", "Suspended", "Restarting")
"""Reasons to wait that belong to the life of a job and need nobody's help."""


@dataclass(frozen=True, slots=True)
class Why:
    """A reason to wait: one word, and a sentence."""

    reason: str
    message: str


def why(stage: StageFacts) -> Why | None:
    """What a stage that is under way waits for; None: all its pods run or have run."""
    if stage.queued is not None:
        return Why("Queued", f"Job {stage.name} waits in queue {stage.queued}")
    pods = stage.there
    waiting = next((pod for pod in pods if pod.waiting), None)
    pending = next((pod for pod in pods if pod.phase == "Pending"), None)
    if stage.refused is not None and stage.missing:  # first: a gang is nothing without all its pods
        reason = "QuotaExceeded" if "exceeded quota" in stage.refused else "PodsRefused"
        count = f"{stage.missing} of {stage.wanted} pods of Job {stage.name} cannot be created"
        return Why(reason, f"{count}: {stage.refused}")
    if waiting is not None and waiting.waiting is not None:
        message = f"pod {waiting.name} waits: {waiting.waiting}"
        return Why(_reason(waiting.waiting), message)
    if stage.missing or not pods:
        failed = next((pod for pod in pods if pod.phase == "Failed"), None)
        before = f"pod {failed.name} has failed; " if failed is not None else ""
        return Why("Starting", f"{before}waiting for pods to be created")
    if pending is not None:
        return Why("Starting", f"pod {pending.name} is being started")
    return None


def _reason(waiting: str) -> str:
    """One word for the words of the scheduler or the kubelet; theirs, where it is a rare one."""
    word, _, words = waiting.partition(":")
    if word in IMAGE_REASONS:
        return "ImagePull"
    if word == "Volume" or "persistentvolumeclaim" in words.lower():
        return "Volume"
    return word if word.isalnum() else "Starting"


def questions(observed: Observed, status: FineTuneJobStatus, now: str) -> tuple[str, ...]:
    """UIDs of the objects whose Events tell what nothing else does."""
    found: list[str] = []
    for stage in observed.stages:
        active = stage.state == "Active" and not stage.suspended
        late = active and _late(stage.start_time, now)
        if late and stage.missing:
            found.append(stage.uid)
        known = status.restarts.history if status.restarts else []
        told = any(entry.attempt == stage.attempt for entry in known)
        for pod in stage.pods:
            if (late and pod.creating) or (stage.stage == "train" and not told and _mute(pod)):
                found.append(pod.uid)
    return tuple(found)


def look_again(stage: StageFacts, now: str) -> float | None:
    """When Events may tell more, in seconds since the epoch; None: what changes is watched."""
    if not stage.missing and not any(pod.creating for pod in stage.pods):
        return None
    if stage.start_time is None or _late(stage.start_time, now):
        return seconds(now) + LOOK_SECONDS
    return seconds(stage.start_time) + PATIENCE


def _late(since: str | None, now: str) -> bool:
    return since is not None and seconds(now) >= seconds(since) + PATIENCE


def _mute(pod: PodFacts) -> bool:
    """It was killed, and neither it nor its status says why."""
    failure = pod.outcome.failure if pod.outcome else None
    word = failure is not None and failure.failure_class != "Stopped"
    return pod.exit_code in (137, 143) and not (word or pod.disrupted or pod.reason == "OOMKilled")

"""Who failed first, where and why: from the pods of a stage to one failure that people read."""

from __future__ import annotations

import re

from finetune_api.outcome import Failure, FailureClass
from finetune_api.status import LastFailure
from finetune_operator.observe import PodFacts, StageFacts, seconds

KILLED_CODES = range(129, 160)
"""Exit codes of a process that died of a signal."""
TERM = 143
LOG_TAIL_LINES = 20
EFFECTS = ("PeerLost", "Stopped")
"""Failure classes that follow from what happened elsewhere."""


def explain(stage: StageFacts, now: str, processes_per_pod: int = 1) -> LastFailure:
    """Who failed first, where, and why.

    When one rank dies, its peers fail in cascade: a lost peer is blamed only when nobody else is,
    and among the others the earliest counts.
    """
    failed = [pod for pod in stage.pods if pod.phase == "Failed" or pod.deleted]
    if not failed:
        return _nothing_left(stage, now)
    killed = min((_failed_at(p, now) for p in failed if _was_killed(p)), default=float("inf"))

    def order(pod: PodFacts) -> tuple[bool, float, bool, bool]:
        first = _failed_at(pod, now)
        return _is_cascade(pod, killed, now), first, not pod.unhealthy, pod.deleted

    pod = min(failed, key=order)
    failure = pod.outcome.failure if pod.outcome else None
    if failure is not None and failure.failure_class in EFFECTS and _was_ended(pod):
        failure = None  # of being killed: its last words are no reason, and may name another rank
    rank = None
    if stage.stage == "train":
        rank = pod.index * processes_per_pod
    if failure is not None and failure.rank is not None:
        rank = failure.rank
    if failure is not None and failure.failure_class == "Killed" and _was_ended(pod):
        failure = None  # launch knows which rank it was, and the kubelet why
    return LastFailure(
        failure_class=failure.failure_class if failure else _class(pod),
        stage=stage.stage,
        message=failure.message if failure else _message(pod),
        rank=rank,
        node=pod.node,
        pod=pod.name,
        exit_code=pod.exit_code,
        log_tail=_log_tail(pod, failure),
        time=now,
    )


def _was_ended(pod: PodFacts) -> bool:
    """Whether the kubelet says why: the container's memory was full (where only the rank is killed,
    launch sees a signal and no more), or its liveness probe failed."""
    return pod.unhealthy or pod.reason == "OOMKilled"


def _was_killed(pod: PodFacts) -> bool:
    """It did not end by itself, nor by the request that a Job's other pods get after a failure."""
    return pod.reason == "OOMKilled" or (pod.exit_code in KILLED_CODES and pod.exit_code != TERM)


def _is_cascade(pod: PodFacts, killed: float, now: str) -> bool:
    """Whether it fell over another one.

    Args:
        killed: When the first of its stage was. Trainers other than ours do not say what they died
            of: those that end in error then or later have lost a peer.
    """
    failure = pod.outcome.failure if pod.outcome else None
    if _was_ended(pod):
        return False
    if failure is not None:
        return failure.failure_class in EFFECTS
    if not _was_killed(pod) and pod.exit_code not in (None, 0, TERM):
        return killed <= _failed_at(pod, now)
    return pod.exit_code is None and not pod.deleted


def _failed_at(pod: PodFacts, now: str) -> float:
    if pod.outcome is not None and pod.outcome.failure is not None:
        return pod.outcome.failure.time
    return seconds(pod.finished or now)


def _class(pod: PodFacts) -> FailureClass:
    if pod.unhealthy:
        return "Hang"
    if pod.reason == "OOMKilled":
        return "OutOfMemory"
    if pod.reason == "Evicted" and not pod.disrupted:
        return "Configuration"
    if pod.deleted or pod.exit_code is None or pod.exit_code in KILLED_CODES:
        return "Killed"
    return "Internal"


def _message(pod: PodFacts) -> str:
    if pod.unhealthy:
        return (
            f"pod {pod.name} was killed by its kubelet, as its liveness probe failed: its first "
            "process was stopped, or nothing in it ran"
        )
    if pod.reason == "OOMKilled":
        return (
            f"pod {pod.name} used more memory than its limit; lower spec.training.microBatchSize "
            "or sequenceLength, or ask for a profile with more memory"
        )
    if pod.reason == "Evicted" and not pod.disrupted:
        return (
            f"pod {pod.name} was evicted: it used more local storage (/tmp and its log) than it "
            "may; ask for a profile whose nodes have more"
        )
    if pod.disrupted:
        return f"pod {pod.name} was taken away by the platform ({pod.disruption})"
    if pod.deleted and pod.exit_code is None:
        return f"pod {pod.name} was deleted"
    if pod.exit_code is not None and pod.exit_code in KILLED_CODES:
        return f"pod {pod.name} was killed by signal {pod.exit_code - 128}"
    why = f" ({pod.reason})" if pod.reason and pod.reason != "Error" else ""
    return f"pod {pod.name} failed with exit code {pod.exit_code}{why}"


def _log_tail(pod: PodFacts, failure: Failure | None) -> str | None:
    text = failure.log_tail if failure else pod.message
    if not text:
        return None
    return "\n".join(re.split(r"\r?\n", text.strip())[-LOG_TAIL_LINES:])


def _nothing_left(stage: StageFacts, now: str) -> LastFailure:
    """A pod that fails by itself stays and can be asked; one that is deleted at once does not."""
    failure_class: FailureClass = "Killed"
    if stage.state == "Complete":
        failure_class = "Internal"
        message = (
            f"the {stage.stage} pods ended without an error but left no proof of their work; "
            "the trainer image does not match this operator, or the pods were removed at once"
        )
    else:
        message = (
            f"no {stage.stage} pod is left that could tell what happened: one was deleted without "
            "time to end (by hand, or with its node)"
        )
        message += f"; {stage.message}" if stage.message else ""
    return LastFailure(failure_class=failure_class, stage=stage.stage, message=message, time=now)

"""Whether an attempt that failed is worth another: by whose fault it was, within budgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_api.lifecycle import RestartPolicy
from finetune_api.status import FineTuneJobStatus, LastFailure, RestartEntry, Restarts
from finetune_operator.observe import StageFacts, seconds

Cause = Literal["User", "Platform", "Disruption"]

USERS: frozenset[str] = frozenset({"Configuration", "Data", "Model", "OutOfMemory", "Diverged"})
"""Failure classes that the same run would meet again."""

FIRST_BACKOFF = 10.0
LAST_BACKOFF = 300.0
"""Seconds between the end of an attempt and the next: doubled for every attempt in a row that did
not get further than the one before. A node or a registry that is ill gets time to recover."""
DISRUPTION_BACKOFF = 1.0
"""Seconds after a disruption: the platform took the pod away on purpose, and nothing is ill."""
MAX_ENTRIES = 50
"""Restarts that the status remembers."""


@dataclass(frozen=True, slots=True)
class Again:
    """Another attempt, no sooner than at a moment (seconds since the epoch)."""

    at: float


@dataclass(frozen=True, slots=True)
class Enough:
    """No more attempts, and why."""

    why: str


def cause_of(stage: StageFacts, failure: LastFailure) -> Cause:
    """Whose fault the end of an attempt was.

    A disruption of any pod explains the failures of its peers: they lose it and fail in cascade.
    Exit codes 1 to 127 are the user's also where the image is not ours.
    """
    if any(pod.disrupted for pod in stage.pods) or "DisruptionTarget" in stage.message:
        return "Disruption"
    if failure.failure_class in USERS:
        return "User"
    if failure.exit_code is not None and 0 < failure.exit_code < 128:
        return "User"
    return "Platform"


def entry(
    stage: StageFacts, failure: LastFailure, status: FineTuneJobStatus, now: str
) -> RestartEntry:
    """What the status remembers of an attempt that failed."""
    progress = status.progress
    mine = progress is not None and progress.attempt == stage.attempt
    return RestartEntry(
        attempt=stage.attempt,
        cause=cause_of(stage, failure),
        failure_class=failure.failure_class,
        node=failure.node,
        step=progress.step if progress is not None and mine else None,
        time=now,
    )


def add(before: Restarts, new: RestartEntry) -> Restarts:
    """The counters and the list after one more; the same attempt is never counted twice."""
    if any(known.attempt == new.attempt for known in before.history):
        return before
    return Restarts(
        counted=before.counted + (new.cause == "Platform"),
        disruptions=before.disruptions + (new.cause == "Disruption"),
        hangs=before.hangs + (new.failure_class == "Hang"),
        history=[*before.history, new][-MAX_ENTRIES:],
    )


def judge(policy: RestartPolicy, restarts: Restarts) -> Again | Enough:
    """Whether the last attempt of the list is followed by another.

    Args:
        restarts: With the attempt that has just failed as its last entry.
    """
    last = restarts.history[-1]
    if last.cause == "User":
        return Enough("the same run would fail again")
    if last.cause == "Disruption":
        if restarts.disruptions > policy.max_disruptions:
            return Enough(
                f"it was disrupted {restarts.disruptions} times "
                f"(spec.restartPolicy.maxDisruptions is {policy.max_disruptions})"
            )
        return Again(seconds(last.time) + DISRUPTION_BACKOFF)
    recent = _within(restarts, policy, last)
    stuck = _without_progress(restarts)
    if max(recent, stuck) > policy.max_restarts:
        since = f" within {policy.window_seconds} s" if policy.window_seconds else ""
        what = (
            f"{recent} attempts failed{since}"
            if recent >= stuck
            else (f"{stuck} attempts in a row got no further")
        )
        return Enough(f"{what} (spec.restartPolicy.maxRestarts is {policy.max_restarts})")
    pause = min(LAST_BACKOFF, FIRST_BACKOFF * 2 ** (stuck - 1))
    return Again(seconds(last.time) + pause)


def _within(restarts: Restarts, policy: RestartPolicy, last: RestartEntry) -> int:
    """Platform failures that count: all, or those of the window that ends now."""
    if policy.window_seconds is None:
        return restarts.counted
    since = seconds(last.time) - policy.window_seconds
    return sum(e.cause == "Platform" and seconds(e.time) >= since for e in restarts.history)


def _without_progress(restarts: Restarts) -> int:
    """Platform failures at the end of the list since an attempt last got further than all before.

    At least 1, the failure itself. Disruptions in between neither count nor help.
    """
    best, stuck = -1, 0
    for known in restarts.history:
        step = -1 if known.step is None else known.step
        if step > max(best, 0):
            best, stuck = step, 0
        stuck += known.cause == "Platform"
    return max(1, stuck)

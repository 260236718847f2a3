"""Nodes that fail a job again and again, and pods that a dead node does not let go."""

from __future__ import annotations

from datetime import UTC, datetime

from finetune_api.status import ExcludedNode, RestartEntry, Restarts
from finetune_operator.observe import Observed, PodFacts, StageFacts, seconds

STRIKES = 2
"""Failures on one node after which this job keeps off it: one may be chance."""
FIRST_EXCLUSION = 3600.0
LAST_EXCLUSION = 86_400.0
"""Seconds that a node is kept off after its last failure: doubled for every failure more. It ends,
so that a node that was mended is used again, and a small cluster is not used up for ever."""
BLAMED = frozenset({"Killed", "Hang", "Internal"})
"""Failure classes that speak against the node of the rank that failed first. A lost peer may be
anybody's fault, and who was asked to stop did what it should."""
MAX_EXCLUDED = 50
ENDED = ("Succeeded", "Failed")


def excluded(restarts: Restarts | None, now: str) -> list[ExcludedNode]:
    """The nodes that an attempt which starts now keeps off, by name."""
    strikes: dict[str, list[RestartEntry]] = {}
    for entry in restarts.history if restarts else []:
        if entry.node and entry.cause == "Platform" and entry.failure_class in BLAMED:
            strikes.setdefault(entry.node, []).append(entry)
    found = [_exclusion(node, entries) for node, entries in sorted(strikes.items())]
    return [node for node in found if node and seconds(node.until) > seconds(now)][:MAX_EXCLUDED]


def _exclusion(node: str, entries: list[RestartEntry]) -> ExcludedNode | None:
    if len(entries) < STRIKES:
        return None
    length = min(LAST_EXCLUSION, FIRST_EXCLUSION * 2 ** (len(entries) - STRIKES))
    until = datetime.fromtimestamp(seconds(entries[-1].time) + length, UTC)
    what = ", ".join(f"{entry.attempt} ({entry.failure_class})" for entry in entries[-10:])
    return ExcludedNode(
        node=node,
        reason=f"{len(entries)} attempts failed on it: {what}; excluded for {length / 3600:g} h",
        until=until.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def given_up(observed: Observed, patience: int, now: str) -> tuple[PodFacts, ...]:
    """Pods that run, as far as is known, and should be gone since `patience` seconds.

    A kubelet that lives kills what outlasts its grace period, so this one does not.
    """
    return tuple(p for _, p in _late(observed, patience, now) if p.phase not in ENDED)


def removable(observed: Observed, patience: int, now: str) -> tuple[PodFacts, ...]:
    """Pods that have ended, or were given up, and are still there; no sooner than their Job has
    taken note of it: why an attempt ended is seen in its pods."""
    late = _late(observed, patience, now)
    return tuple(
        p for job, p in late if p.phase in ENDED and (job.state != "Active" or job.suspended)
    )


def next_late(observed: Observed, patience: int, now: str) -> float | None:
    """When (seconds since the epoch) the next pod will be late; None: none is on its way out."""
    moments = [_late_at(pod, patience) for stage in observed.stages for pod in stage.pods]
    return min((at for at in moments if at is not None and at > seconds(now)), default=None)


def _late(observed: Observed, patience: int, now: str) -> list[tuple[StageFacts, PodFacts]]:
    every = [(stage, pod) for stage in observed.stages for pod in stage.pods]
    return [(s, p) for s, p in every if (at := _late_at(p, patience)) and at <= seconds(now)]


def _late_at(pod: PodFacts, patience: int) -> float | None:
    return None if pod.gone_by is None else seconds(pod.gone_by) + patience

"""What pods that are gone have said last.

When a worker fails, the Job controller removes its peers at once, also one that has failed in the
same second and whose status it has not read yet: the one that was first, perhaps, and the only one
that knows why. When the Job is over, a list does not have it any more. Drains remove what has
ended, too. So every pod that was seen ended is kept, in memory and as long as its stage matters; an
operator that did not look in between has only the lists.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from finetune_operator import names

Key = tuple[str, str]
Raw = dict[str, Any]

METADATA = (
    "name",
    "uid",
    "labels",
    "ownerReferences",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
STATUS = ("reason", "conditions", "containerStatuses")
PHASES = ("Succeeded", "Failed")


class Ended:
    """The pods of each job that have ended, of its newest stage and attempt."""

    def __init__(self) -> None:
        self._jobs: dict[Key, tuple[str, dict[str, Raw]]] = {}

    def __len__(self) -> int:
        return sum(len(pods) for _, pods in self._jobs.values())

    def with_gone(self, key: Key, uid: str, listed: Sequence[Raw]) -> list[Raw]:
        """A list of a job's pods, with those that have ended and are not in it any more.

        Args:
            uid: Of the job: another one may have got the name since.
        """
        known, before = self._jobs.get(key, (uid, {}))
        there = {pod["metadata"]["uid"] for pod in listed}
        gone = [pod for name, pod in before.items() if name not in there and known == uid]
        ended = [*gone, *(pod for pod in map(_ended, listed) if pod is not None)]
        newest = max(map(_attempt, ended), default=None)
        kept = {pod["metadata"]["uid"]: pod for pod in ended if _attempt(pod) == newest}
        self._jobs[key] = uid, kept
        return [*listed, *gone]

    def keep_only(self, keys: Collection[Key]) -> None:
        """All other jobs are gone."""
        self._jobs = {key: found for key, found in self._jobs.items() if key in keys}

    def forget(self, key: Key) -> None:
        """The job is over, or gone."""
        self._jobs.pop(key, None)


def _ended(pod: Raw) -> Raw | None:
    """Without its bulk; None: it has not ended. A kubelet may tell of the container's end first,
    and of the phase never."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    phase = status.get("phase")
    for container in status.get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated")
        if ended is not None and phase not in PHASES:
            phase = "Failed" if ended["exitCode"] else "Succeeded"
    if phase not in PHASES:
        return None
    return {
        "metadata": {name: metadata[name] for name in METADATA if name in metadata},
        "spec": {"nodeName": (pod.get("spec") or {}).get("nodeName")},
        "status": {name: status[name] for name in STATUS if name in status} | {"phase": phase},
    }


def _attempt(pod: Raw) -> tuple[int, int]:
    """The later in a job's life, the larger."""
    labels = pod["metadata"].get("labels") or {}
    stage, attempt = labels.get(names.LABEL_STAGE), labels.get(names.LABEL_ATTEMPT, "0")
    return names.STAGES.index(stage) if stage in names.STAGES else -1, int(attempt)

"""What the events about a job have told: one that brings only numbers of its progress is no news.

A thousand running jobs write their progress ten to thirty times a second, and a pass over one of
them costs five requests. A pass decides by the spec and by the status without those numbers, so an
event in which nothing else has changed since the one before needs no pass. The account of what
workers hold (`status.usage`) goes with the progress: it says until when it is counted, and comes to
the same at any later moment. (Kopf may leave out events that are overtaken, so it is the content
that is compared, not who wrote it.)
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

Key = tuple[str, str]

METADATA = ("uid", "generation", "deletionTimestamp", "ownerReferences")
PROGRESS = ("attempt", "activity", "stalledSeconds")
"""Of a job's progress, what a pass looks at, or makes known."""
DECISIVE = ("Loading", "Done")
"""Activities that a pass takes for something else than the rest: a job that evaluates or saves
every few minutes is not looked at for it."""
USAGE = ("unit", "price", "attempt", "holding")
"""Of its account, what it is not only counted on by."""


class Told:
    """What was last seen of each job, as a number."""

    def __init__(self) -> None:
        self._seen: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self._seen.pop(key, None)

    def keep_only(self, keys: Collection[Key]) -> None:
        """All other jobs are gone."""
        self._seen = {key: found for key, found in self._seen.items() if key in keys}

    def note(self, key: Key, body: Mapping[str, Any]) -> None:
        """A pass or a round has looked at this: an event that tells the same needs no other."""
        self._seen[key] = _number(body)

    def news(self, key: Key, event: str | None, body: Mapping[str, Any]) -> bool:
        """Whether a pass may decide otherwise after this event than after what was seen before."""
        if event is None:  # of a list, which carries metadata alone
            return True
        if event == "DELETED":
            self.forget(key)
            return True
        found, before = _number(body), self._seen.get(key)
        self._seen[key] = found
        return before != found or not _is_heard(body)


def _number(body: Mapping[str, Any]) -> int:
    return hash(json.dumps(_told(body), sort_keys=True, default=str))


def _told(body: Mapping[str, Any]) -> list[Any]:
    status = body.get("status") or {}
    progress = status.get("progress") or {}
    rest = {name: value for name, value in status.items() if name not in ("progress", "usage")}
    usage = status.get("usage") or {}
    numbers = {name: progress.get(name) for name in PROGRESS} if progress else None
    if numbers is not None and numbers["stalledSeconds"] is not None:
        numbers["stalledSeconds"] = True
    if numbers is not None and numbers["activity"] not in (None, *DECISIVE):
        numbers["activity"] = "Training"
    metadata = {name: body["metadata"].get(name) for name in METADATA}
    return [metadata, rest, [usage.get(name) for name in USAGE], numbers]


def _is_heard(body: Mapping[str, Any]) -> bool:
    """Whether the status says that the job reports: if not, a report is news."""
    conditions = (body.get("status") or {}).get("conditions") or []
    return any(c["type"] == "ProgressReported" and c["status"] == "True" for c in conditions)

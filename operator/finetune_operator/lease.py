"""Who leads, and for how long a leader may write: pure rules over a Lease and the time.

Two clocks are read. The monotonic one cannot be set, but stands still while a machine sleeps; the
wall clock goes on then, but can be set. Where they differ, the one that ran further counts: a
leader then stops too early, never too late. Times of other machines are never compared with ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

MARGIN = 0.2
"""Part of the lease's duration in which a leader does not write any more: other clocks may run
faster than ours, and a write that the API server has begun takes time."""
SHORTEST_WRITE = 0.5
"""Seconds. What could not be answered in less is not begun."""
LONGEST_WRITE = 30.0
"""Seconds that a request may take where no lease limits it."""


class LeaseLostError(Exception):
    """This process must not write (any more): it does not hold the Lease, or not long enough."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant on both clocks, in seconds."""

    monotonic: float
    wall: float

    def seconds_to(self, later: Moment) -> float:
        """What has passed at most."""
        return max(later.monotonic - self.monotonic, later.wall - self.wall)


Clock = Callable[[], Moment]


class Fence:
    """Whether this process may write, and for how many seconds.

    A lease counts from the moment at which its renewal was *sent*: whoever waits for it to expire
    cannot have seen the renewal before. Once lost, it is lost for the rest of the process."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._seconds = seconds
        self._clock = clock
        self._since: Moment | None = None
        self._lost = False

    def renewed(self, sent: Moment) -> None:
        """The API server has taken a renewal that was sent then."""
        self._since = sent

    def remaining(self) -> float:
        """Seconds in which we may write; 0 without a lease."""
        if self._since is None or self._lost:
            return 0.0
        usable = self._seconds * (1 - MARGIN)
        return max(0.0, usable - self._since.seconds_to(self._clock()))

    @property
    def leading(self) -> bool:
        """Whether the lease is ours; notices when it no longer is."""
        if self._since is not None and self.remaining() < SHORTEST_WRITE:
            self._lost = True
        return self._since is not None and not self._lost

    @property
    def lost(self) -> bool:
        """Whether it was ours and no longer is."""
        return self._since is not None and not self.leading

    def give_up(self) -> None:
        """Write no more: another one leads, or the lease is about to be released."""
        self._lost = True

    def for_the_leader(self) -> float:
        """Seconds that a write of the leader may take; raises `LeaseLostError`."""
        if not self.leading:
            raise LeaseLostError("not the leader (any more): nothing is written")
        return min(self.remaining(), LONGEST_WRITE)

    def for_anybody(self) -> float:
        """Seconds that a write may take which a standby may do as well, but never one who has lost
        the lease; raises `LeaseLostError`."""
        if self._since is None and not self._lost:
            return LONGEST_WRITE
        return self.for_the_leader()


@dataclass(frozen=True, slots=True)
class Seen:
    """A Lease as it was read, and when we first saw it so."""

    version: str
    holder: str
    seconds: float
    transitions: int
    acquired: str | None
    first_seen: Moment


def see(body: Mapping[str, Any], before: Seen | None, now: Moment) -> Seen:
    """What was read; its time is that of `before` where nothing has changed since."""
    spec = body.get("spec") or {}
    version = body["metadata"]["resourceVersion"]
    if before is not None and before.version == version:
        return before
    return Seen(
        version=version,
        holder=spec.get("holderIdentity") or "",
        seconds=float(spec.get("leaseDurationSeconds") or 0),
        transitions=int(spec.get("leaseTransitions") or 0),
        acquired=spec.get("acquireTime"),
        first_seen=now,
    )


def seconds_until_free(seen: Seen | None, identity: str, now: Moment) -> float:
    """How long the Lease is still somebody else's; 0: it may be taken. Ours it is also when an
    earlier process of our name held it: that one has ended, or we would not run."""
    if seen is None or seen.holder in ("", identity):
        return 0.0
    # Here the slower clock counts: a wall clock that was set forward must not free the Lease.
    passed = now.monotonic - seen.first_seen.monotonic
    return max(0.0, seen.seconds - passed)


def lease(
    name: str, namespace: str, identity: str, seconds: float, seen: Seen | None, wall: float
) -> dict[str, Any]:
    """The Lease to write: ours from now on. Conditional on what was seen, if anything."""
    mine = seen is not None and seen.holder == identity
    time = _micro_time(wall)
    transitions = 0 if seen is None else seen.transitions + (0 if mine else 1)
    return _body(
        name,
        namespace,
        seen,
        {
            "holderIdentity": identity,
            "leaseDurationSeconds": math.ceil(seconds),
            "acquireTime": seen.acquired if seen is not None and mine and seen.acquired else time,
            "renewTime": time,
            "leaseTransitions": transitions,
        },
    )


def released(name: str, namespace: str, seen: Seen, wall: float) -> dict[str, Any]:
    """The Lease to write when we go: nobody's."""
    time = _micro_time(wall)
    return _body(
        name,
        namespace,
        seen,
        {
            "holderIdentity": "",
            "leaseDurationSeconds": 1,
            "acquireTime": time,
            "renewTime": time,
            "leaseTransitions": seen.transitions,
        },
    )


def _body(name: str, namespace: str, seen: Seen | None, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    if seen is not None:
        metadata["resourceVersion"] = seen.version
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": metadata,
        "spec": spec,
    }


def _micro_time(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

"""Token buckets: how much of something is let through, by whose clock, without one of its own."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """So many at once, and so many a second from then on."""

    burst: float
    per_second: float


class Bucket:
    """One, full at first."""

    __slots__ = ("_at", "_level", "_rate")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate, self._level, self._at = rate, rate.burst, now

    def take(self, now: float) -> float:
        """Take one; 0 where there was one, else the seconds until there is."""
        self._fill(now)
        if self._level < 1:
            return (1 - self._level) / self._rate.per_second
        self._level -= 1
        return 0.0

    def wait(self, now: float) -> float:
        """Seconds until there is one; none is taken."""
        self._fill(now)
        return max(0.0, (1 - self._level) / self._rate.per_second)

    def _fill(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._level = min(self._rate.burst, self._level + passed * self._rate.per_second)
        self._at = now


class Buckets:
    """One for each of many; the ones not used for longest are forgotten, which fills them."""

    def __init__(self, rate: Rate, most: int) -> None:
        self._rate, self._most = rate, most
        self._found: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def of(self, key: str, now: float) -> Bucket:
        """The bucket of a key."""
        found = self._found.pop(key, None) or Bucket(self._rate, now)
        self._found[key] = found
        if len(self._found) > self._most:
            self._found.popitem(last=False)
        return found

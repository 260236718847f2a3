"""How many workers of an attempt held a node, and for how long: from the times of its pods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from finetune_operator.observe import PodFacts, seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """The number of workers on nodes over some time; moments are seconds since the epoch."""

    start: float
    held: int
    """At `start`."""
    changes: tuple[tuple[float, int], ...]
    """Later moments, each with how many more (or fewer) there were from then on."""

    def at(self, moment: float) -> int:
        """How many there were."""
        return self.held + sum(change for when, change in self.changes if when <= moment)

    def between(self, start: float, end: float) -> float:
        """Seconds, summed over the workers."""
        moments = [start, *sorted(when for when, _ in self.changes if start < when < end), end]
        return sum(self.at(begin) * (until - begin) for begin, until in pairwise(moments))


def holding(pods: Sequence[PodFacts], known: int, since: str, now: str) -> Holding:
    """The workers from `since` to `now`.

    A pod is held from the moment that it has a node until its container has ended. One that has
    gone without a trace is held until `now`, when that was found out; one on a node that does not
    answer, until it is given up. One that had a node before `since` and was not seen then (a list
    was late, or old) is held from `since`: what is counted once is never counted again.

    Args:
        pods: All of the attempt that are there, those that have ended included.
        known: How many of them were held at `since`, as far as was seen then.
    """
    start, end = seconds(since), seconds(now)
    spans = [_span(pod, start if known else end, end) for pod in pods if pod.node is not None]
    before = [span for span in spans if span[0] <= start]
    lasting = [span for span in before if span[1] > start]
    vanished = max(0, known - len(before))
    begun = [(begin, 1) for begin, _ in spans if begin > start]
    ended = [(until, -1) for _, until in spans if start < until < math.inf]
    return Holding(
        start=start,
        held=len(lasting) + vanished,
        changes=tuple(sorted([*begun, *ended, *[(end, -1)] * vanished])),
    )


def _span(pod: PodFacts, unknown: float, now: float) -> tuple[float, float]:
    """When it got its node (`unknown`: where that is not known) and when it ended."""
    begin = min(now, seconds(pod.bound)) if pod.bound is not None else unknown
    if pod.alive:
        return begin, math.inf
    end = min(now, seconds(pod.finished)) if pod.finished is not None else now
    return min(begin, end), end

"""What is written of the reports of many jobs; over HTTP, of one: `test_progress_server`."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, cast

import builders

from finetune_api.progress import TrainerStatus
from finetune_operator.callers import Callers
from finetune_operator.cluster import Caller, Cluster
from finetune_operator.intake import Intake
from finetune_operator.metrics import Metrics
from finetune_operator.progress import NUMBERS, OVERDUE_SECONDS, WRITE_SECONDS

Json = dict[str, Any]
START = datetime(2026, 11, 22, 6, tzinfo=UTC)


class Many:
    """A cluster of running jobs, in which time passes by hand; notes when each is written."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.written: dict[str, list[float]] = {}
        callers = Callers(cast("Cluster", self), self._clock, self._clock)
        self._intake = Intake(cast("Cluster", self), callers, Metrics(), self._moment, self._clock)

    def _clock(self) -> float:
        return self.passed

    def _moment(self) -> str:
        return (START + timedelta(seconds=self.passed)).isoformat(timespec="seconds")

    async def job(self, namespace: str, name: str) -> Json:
        body = builders.job_body(status={"phase": "Running", "attempt": 0})
        own = {"name": name, "uid": f"uid-{name}", "resourceVersion": "1"}
        return body | {"metadata": body["metadata"] | own}

    async def pod(self, namespace: str, name: str) -> Json:
        labels = {"job": name, "stage": "train", "attempt": "0"}
        of_ours = {f"finetune-operator.io/{label}": value for label, value in labels.items()}
        return {"metadata": {"uid": f"pod-{name}", "labels": of_ours}}

    async def owns(self, namespace: str, pod: Json, uid: str) -> bool:
        return True

    async def report_progress(
        self, namespace: str, name: str, part: Json, version: int, uid: str
    ) -> int:
        times = self.written.setdefault(name, [])
        assert version == 1 + len(times)
        times.append(self.passed)
        return version + 1

    async def report(self, name: str, step: int) -> None:
        """A step of a training that goes on."""
        metrics = [{"name": "current_step", "value": str(step)}]
        report = TrainerStatus.parse({"progressPercentage": 1, "metrics": metrics})
        caller = Caller("team-a", name, f"pod-{name}")
        assert await self._intake.take(caller, ("team-a", name), report) is None

    def pauses(self) -> list[float]:
        """Between two writes of one job, of all jobs."""
        return [b - a for times in self.written.values() for a, b in pairwise(times)]


def play(jobs: int, every: float, seconds: float) -> Many:
    """Jobs that report one after the other, all anew after so many seconds."""
    cluster = Many()

    async def scene() -> None:
        for step in range(1, int(seconds / every) + 1):
            for number in range(jobs):
                await cluster.report(f"job-{number}", step)
                cluster.passed += every / jobs

    asyncio.run(scene())
    return cluster


def test_the_numbers_of_a_few_jobs_are_written_every_thirty_seconds() -> None:
    pauses = play(jobs=20, every=5, seconds=100).pauses()
    assert {round(pause) for pause in pauses} == {WRITE_SECONDS}


def test_a_thousand_jobs_that_began_at_once_are_spread_and_take_turns() -> None:
    cluster = play(jobs=1000, every=20, seconds=300)
    later = [time for times in cluster.written.values() for time in times[1:]]
    assert max(Counter(map(int, later)).values()) <= NUMBERS.burst + NUMBERS.per_second
    # Once they are due: as many as may be written, and nobody waits too long.
    share = sum(time >= 100 for time in later) / (300 - 100) / NUMBERS.per_second
    assert 0.95 <= share <= 1.01
    assert max(cluster.pauses()) < OVERDUE_SECONDS


def test_a_job_that_seldom_reports_is_not_kept_waiting_by_the_others() -> None:
    cluster = Many()

    async def scene() -> None:
        for second in range(500):
            if second % 60 == 30:
                await cluster.report("seldom", second + 1)
            for number in range(second % 20, 3000, 100):  # more than may be written
                await cluster.report(f"job-{number}", second + 1)
            cluster.passed += 1

    asyncio.run(scene())
    gaps = [b - a for a, b in pairwise(cluster.written["seldom"])]
    assert len(gaps) > 1
    assert max(gaps) < OVERDUE_SECONDS + 60

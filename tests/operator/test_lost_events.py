"""Events only say that a job should be looked at. So the end is the same when they are lost (the
resync finds what they would have told), come twice, late or in another order."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import builders
import invariants
import pytest
from model_api import ModelApi
from model_world import ModelWorld

from finetune_operator.controller import Controller
from finetune_operator.metrics import Metrics
from finetune_operator.queue import WorkQueue

KEY = ("team-a", "docs")
TICK = 20.0
"""Seconds between two steps of the world."""
RESYNC = 300.0
SLOW = 17
"""Ticks that every state lasts: longer than a resync, so that it is seen at last."""


class Life:
    """A job that loses a worker, is suspended, goes on and ends; with the operator's own queue."""

    def __init__(self) -> None:
        self.api = ModelApi(builders.job_body(), {"standard": builders.PROFILE})
        self.world = ModelWorld(self.api)
        self.begun = self.api.clock
        self.ticks = 0
        invariants.watch(self.api)

    async def play(self, delays: Any) -> None:
        """Args: delays: of the events that tell of a step; none: it is lost."""
        queue: WorkQueue[tuple[str, str]] = WorkQueue(lambda: self.api.clock - self.begun)
        controller = Controller(self.api, builders.SETTINGS, "CA", Metrics(), clock=self.api.now)  # type: ignore[arg-type]
        worker = asyncio.create_task(queue.work(controller.reconcile))
        while self.api.status.get("phase") not in invariants.FINAL:
            assert self.ticks < 4000, f"no end: {self.api.writes[-5:]}"
            self.ticks += 1
            before = self._seen()
            if self.ticks % SLOW == 0:
                self._world()
            if self._seen() != before or self.ticks == 1:
                for delay in delays():
                    queue.add(KEY, delay)
            if self.ticks % int(RESYNC / TICK) == 0:
                queue.add(KEY)
            self.api.clock += TICK
            queue.add(("team-a", "another"), 0)  # wakes the queue: its clock has moved
            for _ in range(12):
                await asyncio.sleep(0)
            invariants.one_attempt_lives(self.api)
        worker.cancel()

    def _seen(self) -> Any:
        return self.api.body, dict(self.api.jobs), dict(self.api.pods)

    def _world(self) -> None:
        """One step; what a person or bad luck does follows from how far the job is."""
        status, spec = self.api.status, self.api.body["spec"]
        at = status.get("phase"), status.get("attempt")
        if at == ("Running", 0):
            self.world.kill(1)
        elif at == ("Running", 1) and not spec.get("suspend"):
            self.world.suspend()
        elif at == ("Suspended", 1) and not any(p.alive for p in self.api.pods.values()):
            self.world.resume()
        elif at == ("Running", 2):
            self.world.finish()
        else:
            self.world.work(1)
        self.world.controllers()
        self.world.kubelets()

    def end(self) -> dict[str, Any]:
        """Without times and progress."""
        status = dict(self.api.status)
        said = ("phase", "message", "attempt", "resolved", "dataset", "output")
        causes = [(e["attempt"], e["cause"]) for e in status["restarts"]["history"]]
        conditions = {c["type"]: c["status"] for c in status["conditions"]}
        found = {name: status.get(name) for name in said}
        return found | {
            "causes": causes,
            "conditions": conditions,
            "others": self.api.others,
            "jobs": {n: (j.manifest, j.state, j.suspend) for n, j in self.api.jobs.items()},
            "made": self.api.made,
        }


def live(delays: Any) -> dict[str, Any]:
    life = Life()
    asyncio.run(life.play(delays))
    return life.end()


@pytest.fixture(scope="module")
def wanted() -> dict[str, Any]:
    found = live(lambda: [0.0])
    assert (found["phase"], found["attempt"]) == ("Succeeded", 2)
    assert found["causes"] == [(0, "Platform")]
    return found


def test_without_a_single_event_the_end_is_the_same(wanted: dict[str, Any]) -> None:
    assert live(lambda: []) == wanted


@pytest.mark.parametrize("seed", range(12))
def test_events_lost_repeated_late_and_reordered_give_the_same_end(
    seed: int, wanted: dict[str, Any]
) -> None:
    source = random.Random(seed)

    def delays() -> list[float]:
        return [source.uniform(0, 200) for _ in range(source.choice((0, 0, 1, 2, 5)))]

    assert live(delays) == wanted

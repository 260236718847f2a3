"""A look at all jobs together: at the start, now and then, and after a watch was away.

One pass reads four or five times; a thousand of them are too many for a start. A round lists
everything once, decides as a pass would, and does nothing: a job for which something is to be done
gets a pass of its own, which reads live. So decision 0001 holds: nothing is written by what a list
or a cache said.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from finetune_operator.cluster import Json
from finetune_operator.controller import Controller, Key, is_over, now
from finetune_operator.logs import about
from finetune_operator.names import LABEL_JOB
from finetune_operator.observe import observe, trim
from finetune_operator.reconcile import Step, World, finished_step, parse_job, step

logger = logging.getLogger(__name__)

READERS = 8
"""Requests under way at once; one for each job that is not over."""
GATHER_SECONDS = 1.0
"""Several watches are made anew together: one round is enough for all of them."""
FIRST_RETRY = 1.0
LAST_RETRY = 60.0

Children = Mapping[Key, list[Json]]


class Rounds:
    """The rounds of one operator that leads."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._wanted = asyncio.Event()
        self._listed: dict[str, int] = {}
        self.tried = asyncio.Event()
        """The first round is over, with or without success: now it is worth while to watch."""

    def want(self) -> None:
        """A watch was away; what it missed (a deletion, above all) is found by another round."""
        self._wanted.set()

    def covers(self, plural: str, version: str | None) -> bool:
        """Whether the last round has seen an object of this resource version, or a newer one."""
        return version is not None and int(version) <= self._listed.get(plural, -1)

    async def run(self) -> None:
        """Rounds for ever, a failed one is tried again soon."""
        retry = FIRST_RETRY
        while True:
            self._wanted.clear()
            try:
                await self.go()
                pause, retry = self._controller.settings.resync_seconds, FIRST_RETRY
            except Exception:
                text = "round over all jobs failed, will be tried again"
                logger.exception(text, extra={"reason": "RoundFailed"})
                pause, retry = retry, min(2 * retry, LAST_RETRY)
            self.tried.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), pause)
                await asyncio.sleep(GATHER_SECONDS)

    async def go(self) -> None:
        """One round."""
        controller, started = self._controller, time.monotonic()
        namespaces = controller.settings.watch_namespaces
        # Jobs first: a child that is made in between is in the later list, and is an event as well.
        bodies = await controller.cluster.all_jobs(namespaces)
        jobs, pods = await controller.cluster.all_children(namespaces, trim)
        world = await controller.world()
        of_job, of_pod = _by_owner(jobs.items), _by_owner(pods.items)
        controller.keep_only({_key(body) for body in bodies.items})
        todo = iter(bodies.items)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(READERS):
                tasks.create_task(self._read(todo, of_job, of_pod, world))
        took = time.monotonic() - started
        text, reason = "looked at %d jobs in %.1f s", {"reason": "RoundDone"}
        logger.info(text, len(bodies.items), took, extra=reason)
        self._listed = {
            "finetunejobs": bodies.version,
            "jobs": jobs.version,
            "pods": pods.version,
        }

    async def _read(
        self, todo: Iterator[Json], jobs: Children, pods: Children, world: World
    ) -> None:
        for body in todo:
            key = _key(body)
            try:
                await self._look(key, body, jobs.get(key, []), pods.get(key, []), world)
            except Exception:  # a pass of its own says what is wrong, and is tried again
                with about(key):
                    logger.exception("left to a pass of its own", extra={"reason": "RoundFailed"})
                self._controller.queue.add(key)

    async def _look(
        self, key: Key, body: Json, jobs: list[Json], pods: list[Json], world: World
    ) -> None:
        controller = self._controller
        if "deletionTimestamp" in body["metadata"]:
            controller.queue.add(key)
            return
        job = parse_job(body)
        controller.metrics.see(key, job.status, job.version)
        controller.told.note(key, body)
        if is_over(job):
            done = finished_step(job, now())
        else:
            config_map = await controller.cluster.run_config_map(*key)
            done = step(job, observe(config_map, jobs, pods, job.uid), world, now())
        if dataclasses.replace(done, requeue_after=None) != Step():
            controller.queue.add(key)
        elif done.requeue_after is not None:
            controller.queue.add(key, done.requeue_after)


def _key(body: Json) -> Key:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _by_owner(items: Iterable[Json]) -> Children:
    found: dict[Key, list[Json]] = defaultdict(list)
    for item in items:
        metadata = item["metadata"]
        found[(metadata["namespace"], metadata["labels"][LABEL_JOB])].append(item)
    return found

"""The one place that acts: gather what is known, take a `step`, perform it."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from finetune_api.base import API_VERSION
from finetune_api.profile import FineTuneProfileSpec
from finetune_api.status import TERMINAL_PHASES, FineTuneJobStatus
from finetune_operator import logs, names, objects
from finetune_operator.cluster import ApiError, Cluster, Json, NotOursError, RefusedError
from finetune_operator.conditions import is_done, is_older
from finetune_operator.ended import Ended
from finetune_operator.events import Event
from finetune_operator.lease import LeaseLostError
from finetune_operator.metrics import Metrics
from finetune_operator.observe import Observed, observe
from finetune_operator.queue import WorkQueue
from finetune_operator.reconcile import Job, Step, World, finished_step, parse_job, step
from finetune_operator.settings import Settings
from finetune_operator.told import Told
from finetune_operator.waiting import questions

Key = tuple[str, str]
"""Namespace and name of a FineTuneJob."""

STALE_SECONDS = 0.5
"""Until children are listed again, when what was listed is older than the status."""

logger = logging.getLogger(__name__)


class Controller:
    """Every trigger ends in `reconcile` of one key."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        ca_cert: str,
        metrics: Metrics,
        clock: Callable[[], str] | None = None,
    ) -> None:
        self.cluster = cluster
        self._now = clock or now
        self.settings = settings
        self.metrics = metrics
        self.queue: WorkQueue[Key] = WorkQueue(time.monotonic)
        self.ca_cert = ca_cert
        """What jobs that start now are told to trust; it may change."""
        self.listening_since = self._now()
        self.told = Told()
        self.ended = Ended()

    async def reconcile(self, key: Key) -> float | None:
        """One pass; returns the seconds after which to look again."""
        with logs.about(key):
            return await self._reconcile(key)

    async def _reconcile(self, key: Key) -> float | None:
        started = time.monotonic()
        try:
            return await self._pass(key)
        except LeaseLostError as error:
            logger.warning("%s", error, extra={"reason": "LeaseLost"})
            return None  # this process ends
        except ApiError as error:
            if error.code == 409:
                logger.info("changed meanwhile, to be read again", extra={"reason": "Conflict"})
                raise
            again = "pass failed, will be tried again: %s"
            logger.warning(again, error, extra={"reason": "PassFailed"})
            self.metrics.reconcile_errors.inc()
            if error.retry_after is not None:
                return error.retry_after
            raise
        except Exception:
            logger.exception("pass failed, will be tried again", extra={"reason": "PassFailed"})
            self.metrics.reconcile_errors.inc()
            raise
        finally:
            self.metrics.reconcile_seconds.observe(time.monotonic() - started)

    async def _pass(self, key: Key) -> float | None:
        body = await self.cluster.job(*key)
        if body is not None and "deletionTimestamp" in body["metadata"]:
            await self._stop_children(key, body["metadata"]["uid"])
        if body is None or "deletionTimestamp" in body["metadata"]:
            # Kubernetes removes the children by their owner references; nothing is left to do.
            self.metrics.forget(key)
            self.queue.forget(key)
            self.told.forget(key)
            self.ended.forget(key)
            return None
        job = parse_job(body)
        logs.of_attempt(job.status.attempt)
        self.metrics.see(key, job.status, job.version)
        self.told.note(key, body)
        if is_over(job):  # the children do not matter: saves four reads
            self.ended.forget(key)
            return await self._clean_up(job)
        observed = await self._observe(job)
        if is_older(observed, job.status) and await self._exists(job):
            return STALE_SECONDS  # the lists are older than the status: decide nothing on them
        world = await self.world()
        if observed.snapshot is None:
            world = await self._with_namespace(world, job.namespace)
        done = step(job, observed, world, self._now())
        try:
            for manifest in done.apply:
                await self.cluster.apply(manifest)
            for name, stop in done.suspend.items():
                await self.cluster.suspend_job(job.namespace, name, stop)
            for pod in done.give_up:
                await self.cluster.fail_pod(job.namespace, pod.name, pod.uid)
        except NotOursError as error:
            done = step(job, Observed(taken=str(error)), world, self._now())
        except RefusedError as error:
            logger.warning("not accepted: %s", error, extra={"reason": "ObjectRefused"})
            done = step(job, Observed(refused=str(error)), world, self._now())
        await self._report(job, done)
        for pod in done.force_delete:
            await self.cluster.force_delete_pod(job.namespace, pod.name, pod.uid)
        return done.requeue_after

    async def _stop_children(self, key: Key, uid: str) -> None:
        """A job that is being deleted and stays, because of somebody's finalizer, holds no node."""
        jobs, pods = await self.cluster.children(*key)
        for stage in observe(None, jobs, pods, uid).stages:
            if stage.state == "Active" and not stage.suspended:
                await self.cluster.suspend_job(key[0], stage.name, True)

    async def _clean_up(self, job: Job) -> float | None:
        done = finished_step(job, self._now())
        await self._report(job, done)
        if done.delete:
            logger.info("%s", done.events[0].message, extra={"reason": done.events[0].reason})
            await self.cluster.delete_job(job.namespace, job.name, job.uid, job.version)
        return done.requeue_after

    async def _exists(self, job: Job) -> bool:
        """Whether the Kubernetes Job of the attempt that the status knows of is there."""
        name = names.stage_job(job.name, "train", job.status.attempt or 0)
        found = await self.cluster.stage_job(job.namespace, name)
        return found is not None

    async def _observe(self, job: Job) -> Observed:
        config_map = await self.cluster.run_config_map(job.namespace, job.name)
        if config_map is not None and not is_what_it_started_with(job, config_map):
            if not has_begun(job):
                return Observed(taken=f"ConfigMap {names.run_config_map(job.name)}")
            config_map = None  # somebody has replaced it: as if it were deleted
        jobs, pods = await self.cluster.children(job.namespace, job.name)
        pods = self.ended.with_gone((job.namespace, job.name), job.uid, pods)
        seen = observe(config_map, jobs, pods, job.uid)
        asked = questions(seen, job.status, self._now())
        if not asked:
            return seen
        events = await self.cluster.events_about(job.namespace, asked)
        return observe(config_map, jobs, pods, job.uid, events)

    async def world(self) -> World:
        """What passes need beside the job and its children, as it is now."""
        return World(
            settings=self.settings,
            profiles=parse_profiles(await self.cluster.profiles()),
            ca_cert=self.ca_cert,
            listening_since=self.listening_since,
        )

    async def _with_namespace(self, world: World, namespace: str) -> World:
        """With the namespace's labels, if a profile chooses by them."""
        if all(p.limits.namespace_selector is None for p in world.profiles.values()):
            return world
        labels = await self.cluster.namespace_labels(namespace)
        return dataclasses.replace(world, namespaces={namespace: labels})

    async def _report(self, job: Job, done: Step) -> None:
        """Status first, then Events: an Event never tells what the status does not say."""
        if done.progress is not None:
            part = {"progress": done.progress.to_json_dict()}
            if job.status.usage is not None:  # left out, it would be taken away from the status
                part["usage"] = job.status.usage.to_json_dict()
            job = await self._write(job, part, names.PROGRESS_FIELD_OWNER)
        if done.status is not None:
            try:
                await self._write(job, done.status.to_json_dict(), names.FIELD_OWNER)
            except ApiError as error:
                if error.code != 409 or not await self._has_said(job, done.status):
                    raise
            log_change(job, done.status)
        for event in done.events:
            try:
                told = event_manifest(job, done.status or job.status, event, self._now())
                await self.cluster.post_event(told)
            except ApiError as error:  # a lost Event is not worth failing the pass
                logger.warning("event not written: %s", error, extra={"reason": "EventLost"})

    async def _write(self, job: Job, part: Json, owner: str) -> Job:
        """Only onto the version that the decision was made on; returns the job as it is then."""
        key = (job.namespace, job.name)
        after = parse_job(await self.cluster.apply_status(*key, part, owner, job.version))
        self.metrics.see(key, after.status, after.version)
        return after

    async def _has_said(self, job: Job, status: FineTuneJobStatus) -> bool:
        """Whether a write that met a conflict was our own, taken before its answer was lost."""
        body = await self.cluster.job(job.namespace, job.name)
        if body is None:
            return False
        found = parse_job(body)
        return found.uid == job.uid and found.status.model_copy(update={"progress": None}) == status

    def keep_only(self, keys: Collection[Key]) -> None:
        """All other jobs are gone, whether or not a watch has told it."""
        self.metrics.keep_only(keys)
        self.told.keep_only(keys)
        self.ended.keep_only(keys)

    def hear_job(self, body: Mapping[str, Any]) -> None:
        """A job has changed and needs no pass: a report was written. What this replica has written
        itself it knows; what is new comes from one that does not lead."""
        metadata = body["metadata"]
        known = self.metrics.seen((metadata["namespace"], metadata["name"]))
        if known is None or known[1] < int(metadata["resourceVersion"]):
            job = parse_job(body)
            self.metrics.see((job.namespace, job.name), job.status, job.version)

    async def wake_waiting(self) -> None:
        """A profile changed: jobs that wait for one may start now."""
        for key, status in self.metrics.statuses().items():
            if status.phase in (None, "Pending"):
                self.queue.add(key)


def is_what_it_started_with(job: Job, config_map: Json) -> bool:
    """Whether a ConfigMap is the one that the operator has made for this job. Its owner reference
    proves nothing: whoever may make ConfigMaps can write one, and with it any profile."""
    data = config_map.get("data") or {}
    return objects.settings_digest(data) == job.status.settings_digest


def has_begun(job: Job) -> bool:
    """Whether a stage of it was started."""
    return bool(job.status.stages) or is_done(job.status, "Prepared")


def is_over(job: Job) -> bool:
    """Final, whatever became of the children: saves four reads."""
    return job.status.phase in TERMINAL_PHASES


def parse_profiles(bodies: list[Json]) -> Mapping[str, FineTuneProfileSpec]:
    """Profiles by name; one that does not parse is left out and logged."""
    found: dict[str, FineTuneProfileSpec] = {}
    for body in bodies:
        name = body["metadata"]["name"]
        try:
            found[name] = FineTuneProfileSpec.parse(body.get("spec") or {})
        except ValidationError as error:
            text = "FineTuneProfile %s is not usable: %s"
            logger.warning(text, name, error, extra={"reason": "InvalidProfile"})
    return found


def log_change(job: Job, new: FineTuneJobStatus) -> None:
    """One line for every change of phase or message."""
    if (new.phase, new.message) != (job.status.phase, job.status.message):
        logs.of_attempt(new.attempt)
        logger.info("%s: %s", new.phase, new.message, extra={"reason": reason_of(new)})


def reason_of(status: FineTuneJobStatus) -> str:
    """Why a job is in its phase, in the word of the condition that says it."""
    reasons = {c.type: c.reason for c in status.conditions}
    of_phase = {"Failed": "Failed", "Succeeded": "Complete"}
    return reasons.get(of_phase.get(status.phase or "", "Waiting"), status.phase or "Pending")


def event_manifest(job: Job, status: FineTuneJobStatus, event: Event, time_: str) -> Json:
    """An Event whose name follows from what it says, so that saying it twice is saying it once."""
    said = f"{job.uid}/{event.reason}/{status.attempt}/{event.message}"
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{job.name}.{digest}", "namespace": job.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": "FineTuneJob",
            "namespace": job.namespace,
            "name": job.name,
            "uid": job.uid,
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:1024],
        "firstTimestamp": time_,
        "lastTimestamp": time_,
        "count": 1,
        "source": {"component": names.FIELD_OWNER},
        "reportingComponent": names.FIELD_OWNER,
    }


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

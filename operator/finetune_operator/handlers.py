"""Kopf glue: an event becomes the key of a job in the queue. No decision is taken here.

Only `on.event` handlers: they leave no finalizer and no annotation on anybody's objects, so a job
can be deleted while the operator is down. All are `async`: Kopf runs plain functions in threads,
and the queue belongs to the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import kopf

from finetune_api.base import GROUP, VERSION
from finetune_operator import names
from finetune_operator.controller import Controller
from finetune_operator.rounds import Rounds
from finetune_operator.watches import Watches

WORKERS = 4
KINDS = 3
"""Of the resources that are watched in each namespace; the profiles have none."""
CONNECT_SECONDS = 10.0
REQUEST_SECONDS = 30.0

KOPF_END_SECONDS = 5.0


class NothingToCompare(kopf.DiffBaseStorage):
    """Kopf copies every object to see which fields have changed, for handlers that we have none of:
    more work than all the rest of an event."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Nothing of an object matters."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        """Nothing is remembered."""

    def store(self, **_: Any) -> None:
        """Nothing is written."""


class WatchesEndedError(Exception):
    """A watch has failed for good; the text says why."""


def register(
    registry: kopf.OperatorRegistry, controller: Controller, rounds: Rounds, watches: Watches
) -> None:
    """Every trigger of a pass."""

    @kopf.on.startup(registry=registry)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.scanning.disabled = True
        settings.posting.enabled = False
        settings.persistence.diffbase_storage = NothingToCompare()
        settings.watching.chunk_size = 500
        # A worker that waits keeps the last object: thousands of them, after a list.
        settings.queueing.idle_timeout = 0.5
        settings.watching.label_selectors["jobs.batch"] = names.MINE
        settings.watching.label_selectors["pods"] = names.MINE
        # A dead connection is found by its silence, and no request waits for minutes over it.
        settings.watching.inactivity_timeout = controller.settings.watch_silence_seconds
        settings.watching.connect_timeout = CONNECT_SECONDS
        settings.networking.request_timeout = REQUEST_SECONDS
        settings.networking.connect_timeout = CONNECT_SECONDS

    @kopf.on.login(registry=registry)
    async def login(**kwargs: Any) -> kopf.AiohttpSession | None:
        # Named here, so that Kopf does not load the whole synchronous client to ask it.
        found = kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
        agent = f"{names.FIELD_OWNER}/{controller.settings.identity}"
        return None if found is None else listened_to(found, watches, agent)

    told = controller.told

    @kopf.on.event(GROUP, VERSION, "finetunejobs", registry=registry)
    async def job_changed(type: str | None, body: kopf.Body, **_: Any) -> None:
        if told.news((body.metadata.namespace or "", body.metadata.name or ""), type, body):
            changed("finetunejobs", type, body, body.metadata.name)
        else:
            controller.hear_job(body)

    @kopf.on.event("batch", "v1", "jobs", registry=registry)
    async def stage_changed(type: str | None, body: kopf.Body, **_: Any) -> None:
        changed("jobs", type, body, body.metadata.labels[names.LABEL_JOB])

    @kopf.on.event("", "v1", "pods", registry=registry)
    async def pod_changed(type: str | None, body: kopf.Body, **_: Any) -> None:
        changed("pods", type, body, body.metadata.labels[names.LABEL_JOB])

    @kopf.on.event(GROUP, VERSION, "finetuneprofiles", registry=registry)
    async def profile_changed(**_: Any) -> None:
        await controller.wake_waiting()

    def changed(plural: str, event: str | None, body: kopf.Body, job: str | None) -> None:
        # No type: part of a list. What the last round has seen needs no pass of its own.
        if event is None and rounds.covers(plural, body["metadata"].get("resourceVersion")):
            return
        controller.queue.add((body.metadata.namespace or "", job or ""))


def listened_to(found: Any, watches: Watches, user_agent: str) -> kopf.AiohttpSession:
    """A session with these credentials (Kopf's `ConnectionInfo`), made as Kopf itself would."""
    # Kopf asks little; a connection that it had kept might be dead when it makes a watch anew.
    connector = aiohttp.TCPConnector(limit=0, force_close=True, ssl=found.as_ssl_context())
    session = watches.session(
        connector=connector,
        headers={**found.as_http_headers(), "User-Agent": user_agent},
        proxy=found.proxy_url,
        trust_env=found.trust_env,
    )
    return kopf.AiohttpSession(
        server=found.server,
        default_namespace=found.default_namespace,
        priority=found.priority,
        aiohttp_session=session,
    )


async def watch(
    controller: Controller,
    rounds: Rounds,
    watches: Watches,
    spawned: Callable[[], None],
) -> None:
    """Kopf's watches, until cancelled; raises `WatchesEndedError` when one of them has failed.

    Args:
        spawned: Called when Kopf has taken the process' signals, which are not for it.
    """
    registry = kopf.OperatorRegistry()
    register(registry, controller, rounds, watches)
    namespaces = controller.settings.watch_namespaces
    others = asyncio.all_tasks()  # at its end Kopf cancels every task that it does not know
    tasks = await kopf.spawn_tasks(
        registry=registry,
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
    )
    spawned()
    running = asyncio.create_task(kopf.run_tasks(tasks, ignored=others))
    try:
        # Not `await running`: after a failure Kopf may wait for ever for its other watches.
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        reasons = [str(t.exception()) for t in done if not t.cancelled() and t.exception()]
        raise WatchesEndedError("; ".join(reasons) or "Kopf has ended")
    finally:
        running.cancel()
        await asyncio.wait({running}, timeout=KOPF_END_SECONDS)


async def work(controller: Controller, rounds: Rounds) -> None:
    """The workers and the rounds, until cancelled."""
    async with asyncio.TaskGroup() as tasks:
        for _ in range(WORKERS):
            tasks.create_task(controller.queue.work(controller.reconcile))
        tasks.create_task(rounds.run())

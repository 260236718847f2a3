"""Kopf glue: an event becomes the key of a job in the queue. No decision is taken here.

Only `on.event` handlers: they leave no finalizer and no annotation on anybody's objects, so a job
can be deleted while the operator is down. All are `async`: Kopf runs plain functions in threads,
and the queue belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import kopf

from finetune_api.base import GROUP, VERSION
from finetune_operator import names
from finetune_operator.controller import Controller

logger = logging.getLogger(__name__)

WORKERS = 4


def register(registry: kopf.OperatorRegistry, controller: Controller) -> None:
    """Every trigger of a pass."""

    @kopf.on.startup(registry=registry)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.scanning.disabled = True
        settings.posting.enabled = False
        settings.watching.chunk_size = 500
        mine = f"{names.LABEL_JOB},{names.LABEL_MANAGED_BY}={names.FIELD_OWNER}"
        settings.watching.label_selectors["jobs.batch"] = mine
        settings.watching.label_selectors["pods"] = mine

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        # Named here, so that Kopf does not load the whole synchronous client to ask it.
        found = kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
        assert found is None or isinstance(found, kopf.ConnectionInfo)
        return found

    @kopf.on.event(GROUP, VERSION, "finetunejobs", registry=registry)
    async def job_changed(namespace: str | None, name: str | None, **_: Any) -> None:
        controller.queue.add((namespace or "", name or ""))

    @kopf.on.event("batch", "v1", "jobs", registry=registry)
    @kopf.on.event("", "v1", "pods", registry=registry)
    async def child_changed(namespace: str | None, labels: kopf.Labels, **_: Any) -> None:
        controller.queue.add((namespace or "", labels[names.LABEL_JOB]))

    @kopf.on.event(GROUP, VERSION, "finetuneprofiles", registry=registry)
    async def profile_changed(**_: Any) -> None:
        await controller.wake_waiting()


async def work(controller: Controller) -> None:
    """The workers and the resync, until cancelled."""
    async with asyncio.TaskGroup() as tasks:
        for _ in range(WORKERS):
            tasks.create_task(controller.queue.work(controller.reconcile))
        tasks.create_task(_resync(controller))


async def _resync(controller: Controller) -> None:
    while True:
        try:
            await controller.resync()
        except Exception:
            logger.exception("resync failed, will be tried again")
        await asyncio.sleep(controller.settings.resync_seconds)

"""Kopf's watches as we set them up, against an API server in memory that can go silent."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from aiohttp import web

from finetune_operator import handlers
from finetune_operator.cluster import Cluster
from finetune_operator.controller import Controller, Key
from finetune_operator.metrics import Metrics
from finetune_operator.rounds import Rounds
from finetune_operator.settings import Settings
from finetune_operator.transport import JSON, METADATA_ALONE, METADATA_LIST
from finetune_operator.watches import Watches

Json = dict[str, Any]
SILENCE = 0.5
JOBS = "/apis/finetune-operator.io/v1alpha1/finetunejobs"
PODS = "/api/v1/pods"
GROUPS = {"apiextensions.k8s.io": "v1", "batch": "v1", "finetune-operator.io": "v1alpha1"}
RESOURCES = {
    "/api/v1": ["pods", "namespaces"],
    "/apis/apiextensions.k8s.io/v1": ["customresourcedefinitions"],
    "/apis/batch/v1": ["jobs"],
    "/apis/finetune-operator.io/v1alpha1": ["finetunejobs", "finetuneprofiles"],
}


class FakeApiServer:
    """Discovery, lists of nothing and watches, as far as Kopf asks."""

    def __init__(self) -> None:
        self.lists: list[str] = []
        self.silent = False
        self._watches: dict[str, asyncio.Queue[Json]] = {}

    def tell(
        self,
        path: str,
        kind: str,
        name: str,
        version: int = 9,
        status: Json | None = None,
    ) -> None:
        """An event to the newest watch of a resource."""
        metadata = {"name": name, "namespace": "team-a", "uid": name}
        metadata["resourceVersion"] = str(version)
        if kind != "FineTuneJob":
            metadata["labels"] = {"finetune-operator.io/job": "docs"}  # type: ignore[assignment]
        body = {"kind": kind, "apiVersion": "v1", "metadata": metadata, "spec": {}}
        if status is not None:
            body["status"] = status
        self._watches[path].put_nowait({"type": "ADDED", "object": body})

    @property
    def watched(self) -> set[str]:
        return set(self._watches)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path in ("/api", "/apis"):
            groups = [
                {
                    "name": group,
                    "versions": [{"version": version}],
                    "preferredVersion": {"version": version},
                }
                for group, version in GROUPS.items()
            ]
            return web.json_response({"versions": ["v1"], "groups": groups})
        if path in RESOURCES:
            return web.json_response({"resources": [resource(p) for p in RESOURCES[path]]})
        accepted = request.headers["Accept"]
        if "watch" in request.query:
            assert accepted == (JSON if path == JOBS else METADATA_ALONE)
            return await self._watch(request)
        assert accepted == METADATA_LIST
        self.lists.append(path)
        return web.json_response({"metadata": {"resourceVersion": "5"}, "items": None})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        events = self._watches[request.path] = asyncio.Queue()
        silent_from_now = self.silent
        while True:
            event = await events.get()
            if self.silent == silent_from_now:
                await answer.write(json.dumps(event).encode() + b"\n")


def resource(plural: str) -> Json:
    return {
        "name": plural,
        "singularName": "",
        "kind": plural.title(),
        "namespaced": plural != "finetuneprofiles",
        "verbs": ["get", "list", "patch", "watch"],
    }


class Play:
    """What a test sees: the fake server, and the keys that came into the queue."""

    def __init__(
        self,
        server: FakeApiServer,
        controller: Controller,
        watches: Watches,
        task: asyncio.Task[None],
    ) -> None:
        self.server, self.watches, self.task = server, watches, task
        self._controller = controller

    @property
    def keys(self) -> set[Key]:
        return set(self._controller.queue._due)

    def step_shown(self) -> int | None:
        """The job's step, as a scrape has it."""
        status = self._controller.metrics.shown().get(("team-a", "mine"))
        return status.progress.step if status and status.progress else None

    async def passes_made(self) -> None:
        """Those that are due, of which nothing is left to do."""

        async def nothing(_: Key) -> None: ...

        worker = asyncio.create_task(self._controller.queue.work(nothing))
        await self.until("all passes to be made", lambda: not self.keys)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)

    async def until(self, what: str, check: Callable[[], bool], seconds: float = 10) -> float:
        """The seconds until something is true."""
        started = time.monotonic()
        while not check():
            assert time.monotonic() - started < seconds, f"not within {seconds} s: {what}"
            await asyncio.sleep(0.02)
        return time.monotonic() - started


@asynccontextmanager
async def watching(kubeconfig: Path) -> AsyncIterator[Play]:
    """Kopf with our handlers over a fake API server."""
    server = FakeApiServer()
    app = web.Application()
    app.router.add_get("/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    config = {
        "clusters": [
            {"name": "x", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}
        ],
        "users": [{"name": "x", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "current-context": "x",
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    settings = Settings(
        namespace="x", trainer_image="x", progress_url="x", watch_silence_seconds=SILENCE
    )
    controller = Controller(cast("Cluster", None), settings, "CA", Metrics())
    rounds = Rounds(controller)
    watches = Watches(time.monotonic, SILENCE, rounds.want, expected=handlers.KINDS + 1)
    taken: list[str] = []
    task = asyncio.create_task(
        handlers.watch(controller, rounds, watches, lambda: taken.append("signals"))
    )
    play = Play(server, controller, watches, task)
    try:
        await play.until("all watches to be up", lambda: watches.up)
        assert len(server.watched) == 4
        yield play
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert taken == ["signals"]
        await runner.cleanup()


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(path))
    return path


def test_events_of_jobs_and_of_children_become_keys(kubeconfig: Path) -> None:
    async def run() -> None:
        async with watching(kubeconfig) as play:
            play.server.tell(JOBS, "FineTuneJob", "mine")
            play.server.tell(PODS, "Pod", "docs-train-0-0")
            await play.until("both keys", lambda: len(play.keys) == 2)
            assert play.keys == {("team-a", "mine"), ("team-a", "docs")}

    asyncio.run(run())


def running(step: int) -> Json:
    """The status of a job whose workers report."""
    moment = f"2026-11-22T06:00:{step:02}Z"
    heard = {"type": "ProgressReported", "status": "True", "reason": "Reported", "message": ""}
    heard["observedGeneration"] = 1  # type: ignore[assignment]
    return {
        "phase": "Running",
        "conditions": [heard | {"lastTransitionTime": "2026-11-22T06:00:00Z"}],
        "progress": {"attempt": 0, "step": step, "lastUpdateTime": moment},
    }


def test_a_report_that_another_replica_took_is_shown_without_a_pass(kubeconfig: Path) -> None:
    async def run() -> None:
        async with watching(kubeconfig) as play:
            play.server.tell(JOBS, "FineTuneJob", "mine", 10, running(1))
            await play.until("a pass to be due", lambda: play.keys == {("team-a", "mine")})
            await play.passes_made()
            play.server.tell(JOBS, "FineTuneJob", "mine", 11, running(2))
            await play.until("the step of the report", lambda: play.step_shown() == 2)
            assert play.keys == set()

    asyncio.run(run())


def test_a_watch_that_goes_silent_is_made_anew_and_told_of_what_comes_then(
    kubeconfig: Path,
) -> None:
    async def run() -> None:
        async with watching(kubeconfig) as play:
            play.server.silent = True  # for those that are open now
            before = dict(play.server._watches)
            await play.until("a new watch", lambda: play.server._watches[JOBS] != before[JOBS])
            play.server.tell(JOBS, "FineTuneJob", "mine")
            await play.until("the key", lambda: ("team-a", "mine") in play.keys)
            assert play.watches.deaf() is None

    asyncio.run(run())


def test_a_watch_that_fails_for_good_ends_the_watching_and_says_why(kubeconfig: Path) -> None:
    async def run() -> None:
        async with watching(kubeconfig) as play:
            failure = {"type": "ERROR", "object": {"kind": "Status", "code": 500}}
            play.server._watches[PODS].put_nowait(failure)
            with pytest.raises(handlers.WatchesEndedError, match="Error in the watch-stream"):
                await asyncio.wait_for(play.task, 15)

    asyncio.run(run())

"""Which watch is deaf, by what was heard of each: over real connections to a server on loopback."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from finetune_operator.settings import Settings
from finetune_operator.watches import DEAF_AFTER, Watches


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_watch_is_deaf_when_nothing_was_heard_of_it_for_too_long(clock: Clock) -> None:
    watches = Watches(clock, 70, on_relist=lambda: None)
    assert watches.deaf() is None
    watches.asked("/api/v1/pods")
    watches.heard("/apis/batch/v1/jobs")
    clock.time += 87
    assert watches.deaf() is None
    clock.time += 1
    watches.heard("/apis/batch/v1/jobs")
    assert watches.deaf() == "nothing was heard of /api/v1/pods for 88 s"
    watches.heard("/api/v1/pods")
    assert watches.deaf() is None


def test_watches_that_never_come_up_are_told(clock: Clock) -> None:
    async def run() -> None:
        watches = Watches(clock, 70, on_relist=lambda: None, expected=4)
        assert (watches.up, watches.deaf()) == (False, None), "a standby has none"
        async with watches.session():
            clock.time += 87
            assert watches.deaf() is None
            clock.time += 1
            assert watches.deaf() == "only 0 of 4 watches are up"

    asyncio.run(run())


def test_the_second_whole_list_of_a_resource_is_told(clock: Clock) -> None:
    told: list[str] = []
    watches = Watches(clock, 70, on_relist=lambda: told.append("again"))
    watches.listed("/api/v1/pods")
    watches.listed("/apis/batch/v1/jobs")
    assert told == []
    watches.listed("/api/v1/pods")
    assert told == ["again"]


def test_a_silent_connection_is_found_and_told_in_less_than_90_seconds_by_default() -> None:
    settings = Settings(namespace="x", trainer_image="x", progress_url="x")
    # The API server sends a bookmark every 60 s or so: less would be a false alarm.
    assert settings.watch_silence_seconds > 60
    assert settings.watch_silence_seconds + 15 < DEAF_AFTER * settings.watch_silence_seconds < 90


def test_answers_pages_and_pieces_of_a_stream_are_heard(clock: Clock) -> None:
    heard: list[str] = []
    relists: list[str] = []

    class Listening(Watches):
        def heard(self, path: str) -> None:
            heard.append(path)

    watches = Listening(clock, 70, on_relist=lambda: relists.append("relist"))
    go_on = asyncio.Event()

    async def serve(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return web.Response(status=int(request.query.get("code", 200)), text="{}")
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"one\n")
        await go_on.wait()
        await answer.write(b"two\n")
        return answer

    async def run() -> list[Any]:
        app = web.Application()
        app.router.add_get("/{path:.*}", serve)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        pieces = []
        async with watches.session() as session:
            for other in ("pods?limit=5&code=500", "apis"):
                async with session.get(f"{url}/{other}") as answer:
                    assert await answer.text() == "{}"
            for query in ("limit=5", "limit=5&continue=x"):
                async with session.get(f"{url}/pods?{query}") as answer:
                    assert await answer.json(content_type=None) == {}
            async with session.get(f"{url}/pods?watch=true") as stream:
                async for piece in stream.content.iter_chunked(1024):
                    pieces.append(piece)
                    go_on.set()
        await runner.cleanup()
        return pieces

    assert asyncio.run(run()) == [b"one\n", b"two\n"]
    # Two pages, the headers of the watch, and its two pieces; a refusal is no sign of life, and
    # what is asked once is no watch.
    assert (heard, relists) == (["/pods"] * 5, [])


def test_an_empty_list_is_a_list_although_the_api_server_may_call_it_null(clock: Clock) -> None:
    watches = Watches(clock, 70, on_relist=lambda: None)

    async def serve(_: web.Request) -> web.Response:
        return web.json_response({"kind": "PartialObjectMetadataList", "items": None})

    async def run() -> Any:
        app = web.Application()
        app.router.add_get("/pods", serve)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/pods?limit=5"
        async with watches.session() as session, session.get(url) as answer:
            found = await answer.json()
        await runner.cleanup()
        return found

    assert asyncio.run(run()) == {"kind": "PartialObjectMetadataList", "items": []}

"""What a request does about an API server that refuses, stalls or hangs up: a server on loopback
that answers from a list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from finetune_operator import transport
from finetune_operator.lease import LeaseLostError
from finetune_operator.transport import JSON, ApiError, Request, Transport, open_transport

PATH = "/api/v1/namespaces/a/configmaps/b"


class Server:
    """Answers in turn, the last one for ever; what it got, and how long the client paused."""

    def __init__(self, *answers: web.Response | None) -> None:
        self._answers = list(answers)
        self.got: list[str] = []
        self.pauses: list[float] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.got.append(f"{request.method} {request.path_qs}")
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is None:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        body, status = answer.text or "", answer.status
        return web.Response(text=body, status=status, headers={**answer.headers})

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(round(seconds, 3))


def answer(code: int, **headers: str) -> web.Response:
    return web.Response(status=code, text='{"message": "said"}', headers=headers)


def play(
    tmp_path: Path, server: Server, scenario: Callable[[Transport], Coroutine[Any, Any, None]]
) -> None:
    async def run() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        config = {
            "clusters": [{"name": "x", "cluster": {"server": url}}],
            "users": [{"name": "x", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
            "current-context": "x",
        }
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        found = await open_transport(str(path), "finetune-operator/test", server.sleep)
        try:
            await scenario(found)
        finally:
            await found.close()
            await runner.cleanup()

    asyncio.run(run())


async def patch(found: Transport, permit: Callable[[], float] = lambda: 5.0) -> Any:
    return await found.request(Request("PATCH", PATH, {}, {"a": 1}, JSON, permit))


def test_what_may_work_a_moment_later_is_tried_again_with_growing_pauses(tmp_path: Path) -> None:
    server = Server(answer(500), answer(503), None, answer(429), answer(200))

    async def scenario(found: Transport) -> None:
        assert await patch(found) == {"message": "said"}

    play(tmp_path, server, scenario)
    assert server.got == [f"PATCH {PATH}?timeout=5000ms"] * 5
    assert server.pauses == [0.2, 0.4, 0.8, 1.6]


def test_the_pause_that_the_api_server_asks_for_is_kept(tmp_path: Path) -> None:
    server = Server(answer(429, **{"Retry-After": "3"}), answer(200))

    async def scenario(found: Transport) -> None:
        await patch(found)

    play(tmp_path, server, scenario)
    assert server.pauses == [3]


def test_a_long_pause_is_handed_to_the_queue_instead_of_waited_for(tmp_path: Path) -> None:
    server = Server(answer(429, **{"Retry-After": "60"}))

    async def scenario(found: Transport) -> None:
        with pytest.raises(ApiError) as caught:
            await patch(found)
        assert (caught.value.code, caught.value.retry_after) == (429, 60)

    play(tmp_path, server, scenario)
    assert (len(server.got), server.pauses) == (1, [])


@pytest.mark.parametrize("code", [400, 403, 404, 409, 422])
def test_what_cannot_work_a_moment_later_is_not_tried_again(tmp_path: Path, code: int) -> None:
    server = Server(answer(code))

    async def scenario(found: Transport) -> None:
        with pytest.raises(ApiError) as caught:
            await patch(found)
        assert str(caught.value) == f"{code}: said"

    play(tmp_path, server, scenario)
    assert len(server.got) == 1


def test_an_api_server_that_never_answers_is_given_up_after_five_attempts(tmp_path: Path) -> None:
    server = Server(None)

    async def scenario(found: Transport) -> None:
        with pytest.raises(ApiError, match="503: no answer from the API server"):
            await patch(found)

    play(tmp_path, server, scenario)
    assert len(server.got) == transport.ATTEMPTS


def test_each_attempt_asks_anew_whether_it_may_be_sent_and_for_how_long(tmp_path: Path) -> None:
    server = Server(answer(500))
    left = iter([4.0, 4.0, 2.0, 2.0])

    def permit() -> float:
        found = next(left, None)
        if found is None:
            raise LeaseLostError("no more")
        return found

    async def scenario(found: Transport) -> None:
        with pytest.raises(LeaseLostError):
            await patch(found, permit)

    play(tmp_path, server, scenario)
    # Twice for each: when it is begun, and again when there is a connection to send it over.
    assert server.got == [f"PATCH {PATH}?timeout=4000ms", f"PATCH {PATH}?timeout=2000ms"]


def test_a_lease_that_is_lost_while_a_connection_is_made_stops_the_request(tmp_path: Path) -> None:
    server = Server(answer(200))
    asked = iter([5.0])

    def permit() -> float:
        found = next(asked, None)
        if found is None:
            raise LeaseLostError("no more")
        return found

    async def scenario(found: Transport) -> None:
        with pytest.raises(LeaseLostError):
            await patch(found, permit)

    play(tmp_path, server, scenario)
    assert server.got == []

"""Two candidates over one Lease: an API server in memory, a clock that the test moves."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from finetune_operator.cluster import ApiError, Cluster
from finetune_operator.election import Election
from finetune_operator.lease import Fence, LeaseLostError, Moment
from finetune_operator.settings import Settings

Json = dict[str, Any]


class OneLease:
    """What the API server does with one Lease."""

    def __init__(self) -> None:
        self.body: Json | None = None
        self.down = False
        self._versions = itertools.count(1)

    async def lease(
        self, method: str, namespace: str, name: str | None, body: Json | None, seconds: float
    ) -> Json:
        if self.down:
            raise ApiError(503, "no answer from the API server")
        if method == "GET":
            if self.body is None:
                raise ApiError(404, "not found")
            return self.body
        assert body is not None
        current = None if self.body is None else self.body["metadata"]["resourceVersion"]
        if body["metadata"].get("resourceVersion") != current:
            raise ApiError(409, "the object has been modified")
        metadata = body["metadata"] | {"resourceVersion": str(next(self._versions))}
        self.body = body | {"metadata": metadata}
        return self.body

    @property
    def holder(self) -> str:
        assert self.body is not None
        holder: str = self.body["spec"]["holderIdentity"]
        return holder


class Play:
    """Candidates, and time that only the test lets pass."""

    def __init__(self) -> None:
        self.server = OneLease()
        self.time = 0.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def candidate(self, name: str) -> Election:
        settings = Settings(
            namespace="system", trainer_image="x", progress_url="x", identity=name, lease_seconds=10
        )
        fence = Fence(10, self._clock)
        return Election(cast("Cluster", self.server), settings, fence, self._clock, self._sleep)

    def _clock(self) -> Moment:
        return Moment(self.time, self.time)

    async def _sleep(self, seconds: float) -> None:
        event = asyncio.Event()
        self._sleepers.append((self.time + seconds, event))
        await event.wait()

    async def pass_(self, seconds: float) -> None:
        """Let time pass, in steps of a tenth of a second."""
        for _ in range(round(seconds * 10)):
            self.time += 0.1
            due = [e for t, e in self._sleepers if t <= self.time + 1e-9]
            self._sleepers = [(t, e) for t, e in self._sleepers if t > self.time + 1e-9]
            for event in due:
                event.set()
            await settle()


async def settle() -> None:
    """Let every task run until it waits for time."""
    loop = asyncio.get_running_loop()
    for _ in range(8):
        turn = loop.create_future()
        loop.call_soon(turn.set_result, None)
        await turn


async def life(candidate: Election) -> None:
    await candidate.acquire()
    await candidate.hold()


def play(scenario: Callable[[Play], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario(Play()))


def test_one_of_two_leads_for_as_long_as_it_lives() -> None:
    async def scenario(play: Play) -> None:
        a, b = play.candidate("a"), play.candidate("b")
        tasks = [asyncio.create_task(life(c)) for c in (a, b)]
        for _ in range(6):
            await play.pass_(5)
            assert (play.server.holder, a.fence.leading, b.fence.leading) == ("a", True, False)
        assert b.has_seen_a_leader
        for task in tasks:
            task.cancel()

    play(scenario)


def test_when_the_leader_dies_the_other_leads_within_15_seconds_and_never_too_early() -> None:
    async def scenario(play: Play) -> None:
        a, b = play.candidate("a"), play.candidate("b")
        tasks = [asyncio.create_task(life(c)) for c in (a, b)]
        await play.pass_(7)
        tasks[0].cancel()
        died = play.time
        while not b.fence.leading:
            assert play.time - died < 15
            await play.pass_(0.1)
            assert not (a.fence.leading and b.fence.leading)
        assert play.server.holder == "b"
        tasks[1].cancel()

    play(scenario)


def test_a_leader_that_ends_in_order_is_followed_within_a_second() -> None:
    async def scenario(play: Play) -> None:
        a, b = play.candidate("a"), play.candidate("b")
        tasks = [asyncio.create_task(life(c)) for c in (a, b)]
        await play.pass_(3)
        tasks[0].cancel()
        await a.release()
        await play.pass_(1.1)
        assert (play.server.holder, a.fence.leading, b.fence.leading) == ("b", False, True)
        tasks[1].cancel()

    play(scenario)


def test_a_leader_without_an_api_server_stops_before_its_lease_is_over() -> None:
    async def scenario(play: Play) -> None:
        a = play.candidate("a")
        task = asyncio.create_task(life(a))
        await play.pass_(3)
        play.server.down = True
        await play.pass_(6)
        assert a.fence.leading
        play.server.down = False
        await play.pass_(2)
        play.server.down = True
        await play.pass_(9)
        with pytest.raises(LeaseLostError):
            await task

    play(scenario)


def test_a_leader_that_finds_another_one_in_its_place_stops_at_once() -> None:
    async def scenario(play: Play) -> None:
        a = play.candidate("a")
        task = asyncio.create_task(life(a))
        await play.pass_(1)
        body = play.server.body
        assert body is not None
        body["spec"]["holderIdentity"] = "b"
        body["metadata"]["resourceVersion"] = "99"
        await play.pass_(2)
        with pytest.raises(LeaseLostError):
            await task

    play(scenario)


def test_a_candidate_waits_for_an_api_server_that_is_not_there_yet() -> None:
    async def scenario(play: Play) -> None:
        play.server.down = True
        a = play.candidate("a")
        task = asyncio.create_task(life(a))
        await play.pass_(30)
        assert (a.fence.leading, a.stuck_seconds < 2) == (False, True)
        play.server.down = False
        await play.pass_(2)
        assert a.fence.leading
        task.cancel()

    play(scenario)


def test_a_process_of_the_same_name_takes_its_lease_back_at_once() -> None:
    async def scenario(play: Play) -> None:
        before, after = play.candidate("a"), play.candidate("a")
        task = asyncio.create_task(life(before))
        await play.pass_(1)
        task.cancel()
        task = asyncio.create_task(life(after))
        await settle()
        assert after.fence.leading
        task.cancel()

    play(scenario)

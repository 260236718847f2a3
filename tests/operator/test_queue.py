"""The work queue: each key once, one at a time, and later when told so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from finetune_operator.queue import WorkQueue


def play(
    scenario: Callable[[WorkQueue[str], Callable[[float], Awaitable[None]]], Awaitable[None]],
    handle: Callable[[str], Awaitable[float | None]],
    workers: int = 2,
) -> None:
    """Run a scenario against workers; `advance` moves the queue's clock and lets them work."""
    clock = [0.0]

    async def run() -> None:
        queue: WorkQueue[str] = WorkQueue(lambda: clock[0])
        tasks = [asyncio.create_task(queue.work(handle)) for _ in range(workers)]

        async def advance(seconds: float) -> None:
            clock[0] += seconds
            queue._changed.set()
            for _ in range(20):
                await asyncio.sleep(0)

        try:
            await scenario(queue, advance)
        finally:
            for task in tasks:
                task.cancel()

    asyncio.run(run())


def test_a_key_that_is_added_many_times_is_handled_once() -> None:
    handled: list[str] = []

    async def handle(key: str) -> None:
        handled.append(key)

    async def scenario(queue: WorkQueue[str], advance: Callable[[float], Awaitable[None]]) -> None:
        for _ in range(5):
            queue.add("a")
        queue.add("b")
        await advance(0)

    play(scenario, handle)
    assert handled == ["a", "b"]


def test_a_key_added_while_it_is_handled_is_handled_once_more_after() -> None:
    running = 0
    most = 0
    count = 0
    release = asyncio.Event()

    async def handle(key: str) -> None:
        nonlocal running, most, count
        running += 1
        most, count = max(most, running), count + 1
        await release.wait()
        running -= 1

    async def scenario(queue: WorkQueue[str], advance: Callable[[float], Awaitable[None]]) -> None:
        queue.add("a")
        await advance(0)
        queue.add("a")
        queue.add("a")
        await advance(0)
        assert count == 1
        release.set()
        await advance(0)

    play(scenario, handle)
    assert (most, count) == (1, 2)


def test_a_key_waits_for_its_time_and_an_earlier_time_wins() -> None:
    handled: list[str] = []

    async def handle(key: str) -> None:
        handled.append(key)

    async def scenario(queue: WorkQueue[str], advance: Callable[[float], Awaitable[None]]) -> None:
        queue.add("a", 30)
        queue.add("a", 10)
        await advance(9)
        assert handled == []
        await advance(2)
        assert handled == ["a"]
        await advance(60)

    play(scenario, handle)
    assert handled == ["a"]


def test_a_key_whose_handler_fails_is_tried_again_with_growing_pauses() -> None:
    times: list[float] = []
    clock = 0.0

    async def handle(key: str) -> None:
        times.append(clock)
        raise ValueError("the API server is away")

    async def scenario(queue: WorkQueue[str], advance: Callable[[float], Awaitable[None]]) -> None:
        nonlocal clock
        queue.add("a")
        await advance(0)
        for _ in range(8):
            clock += 1
            await advance(1)

    play(scenario, handle)
    assert times == [0, 1, 3, 7]


def test_a_handler_says_when_to_look_again() -> None:
    handled: list[str] = []

    async def handle(key: str) -> float:
        handled.append(key)
        return 5.0

    async def scenario(queue: WorkQueue[str], advance: Callable[[float], Awaitable[None]]) -> None:
        queue.add("a")
        await advance(0)
        await advance(4)
        assert len(handled) == 1
        await advance(1)
        queue.forget("a")
        await advance(60)

    play(scenario, handle)
    assert len(handled) == 2

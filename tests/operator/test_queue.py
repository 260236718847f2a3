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


def test_keys_that_come_and_go_leave_nothing_behind_whatever_was_put_off_for_days() -> None:
    queue: WorkQueue[str] = WorkQueue(lambda: 0.0)
    for number in range(1000):
        queue.add(f"job-{number}", 86_400.0)
        queue.add(f"job-{number}", 3600.0)
        queue.forget(f"job-{number}")
    assert (len(queue), queue.held) == (0, 0)


def test_what_is_put_off_is_handled_although_older_entries_were_dropped() -> None:
    handled: list[str] = []

    async def handle(key: str) -> None:
        handled.append(key)

    async def scenario(queue: WorkQueue[str], advance: Callable[[float], Awaitable[None]]) -> None:
        queue.add("kept", 50.0)
        for number in range(100):
            queue.add(f"gone-{number}", 10.0)
            queue.forget(f"gone-{number}")
        await advance(60)

    play(scenario, handle)
    assert handled == ["kept"]


def test_a_queue_that_is_drained_ends_what_is_under_way_and_begins_nothing() -> None:
    begun: list[str] = []
    ended: list[str] = []
    release = asyncio.Event()

    async def handle(key: str) -> None:
        begun.append(key)
        await release.wait()
        ended.append(key)

    async def scenario(queue: WorkQueue[str], advance: Callable[[float], Awaitable[None]]) -> None:
        for key in ("a", "b", "c"):
            queue.add(key)
        await advance(0)
        assert await queue.drain(0.05) is False, "two are under way"
        release.set()
        assert await queue.drain(5) is True
        await advance(0)

    play(scenario, handle)
    assert (begun, ended) == (["a", "b"], ["a", "b"])


def test_an_object_made_anew_while_its_forerunner_was_found_gone_is_looked_at() -> None:
    queue: WorkQueue[str] = WorkQueue(lambda: 10.0)
    queue.add("made-anew")  # told of between the look that found nothing and `forget`
    queue.add("put-off", 300.0)
    for key in ("made-anew", "put-off"):
        queue.forget(key)
    assert (len(queue), queue.ready) == (1, 1)

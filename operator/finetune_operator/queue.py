"""A work queue of keys: a key waits once, is handled by one worker at a time, and can wait."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

FIRST_RETRY = 1.0
LAST_RETRY = 60.0


class WorkQueue(Generic[Key]):
    """Deduplicating and delaying; a key added while it is handled is handled once more after."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._count = 0
        self._busy: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()
        self._closed = False

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Handle `key` in `delay` seconds at the latest."""
        due = self._clock() + delay
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, key))
        self._tidy()
        self._changed.set()

    def forget(self, key: Key) -> None:
        """Drop what was put off: the key's object is gone. What is due stays: an object made anew
        under the name may have been told of since the caller has looked."""
        if self._due.get(key, -math.inf) > self._clock():
            del self._due[key]
        self._failures.pop(key, None)
        self._tidy()

    def __len__(self) -> int:
        return len(self._due)

    @property
    def ready(self) -> int:
        """Keys whose time has come; the others are put off."""
        now = self._clock()
        return sum(due <= now for due in list(self._due.values()))  # a scrape is a thread

    @property
    def age(self) -> float:
        """Seconds for which the key that is due longest waits."""
        return max(0.0, self._clock() - min(list(self._due.values()), default=math.inf))

    @property
    def held(self) -> int:
        """Entries in memory, those that are superseded and not dropped yet included."""
        return len(self._heap) + len(self._failures)

    def close(self) -> None:
        """No key is handed out any more; the workers end."""
        self._closed = True
        self._changed.set()

    async def drain(self, seconds: float) -> bool:
        """Close, and wait for what is being handled; says whether all of it ended in that time."""
        self.close()
        end = asyncio.get_running_loop().time() + seconds
        while self._busy and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
        return not self._busy

    def _tidy(self) -> None:
        """A superseded entry stays in the heap until it is due, which may be in days: where most of
        them are such, they go."""
        if len(self._heap) > 2 * len(self._due):
            entries = [e for e in self._heap if self._due.get(e[2]) == e[0]]
            self._heap = entries
            heapq.heapify(self._heap)

    async def work(self, handle: Callable[[Key], Awaitable[float | None]]) -> None:
        """One worker, until the queue is closed: `handle` returns the seconds after which to look
        again, or None. When it raises, the key is tried again with growing pauses."""
        while True:
            key = await self._next()
            if key is None:
                return
            self._busy.add(key)
            again: float | None
            try:
                again = await handle(key)
                self._failures.pop(key, None)
            except Exception:  # the handler has logged it; one bad object must not stop the others
                failures = self._failures.get(key, 0)
                self._failures[key] = failures + 1
                again = min(FIRST_RETRY * 2**failures, LAST_RETRY)
            finally:
                self._busy.discard(key)
                self._changed.set()
            if again is not None:
                self.add(key, again)

    async def _next(self) -> Key | None:
        while not self._closed:
            now = self._clock()
            put_back: list[tuple[float, int, Key]] = []
            found: Key | None = None
            while self._heap and self._heap[0][0] <= now:
                entry = heapq.heappop(self._heap)
                due, _, key = entry
                if self._due.get(key) != due:
                    continue  # superseded by an earlier one, or forgotten
                if key in self._busy:
                    put_back.append(entry)
                    continue
                found = key
                break
            for entry in put_back:
                heapq.heappush(self._heap, entry)
            if found is not None:
                del self._due[found]
                return found
            waiting = [due for due, _, key in self._heap if key not in self._busy]
            self._changed.clear()
            try:
                pause = max(0.0, min(waiting) - now) if waiting else None
                await asyncio.wait_for(self._changed.wait(), pause)
            except TimeoutError:
                pass
        return None

"""When something was last heard over each watch: a connection can be dead without being closed.

Kopf makes a watch anew over which nothing came for `Settings.watch_silence_seconds`. This module
is the second look at it: it sees every answer and every piece of a stream on Kopf's own
connections, so that `/healthz` can tell when even that does not help. It also tells when a watch
lists anew.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp

from finetune_operator.transport import JSON, METADATA_ALONE, METADATA_LIST

DEAF_AFTER = 1.25
"""Times `watch_silence_seconds`: the watch should have been made anew, and nothing was heard."""


WHOLE = "/finetunejobs"
"""Of these a watch tells all: whether an event needs a pass is in the status (`told`). All other
events are keys to us, so watches and lists carry metadata alone."""


class Watches:
    """What was heard, by path of the resource. One for each operator that leads."""

    def __init__(
        self,
        clock: Callable[[], float],
        silence_seconds: float,
        on_relist: Callable[[], None],
        expected: int = 0,
    ) -> None:
        """`expected`: how many watches there will be."""
        self._clock = clock
        self._expected = expected
        self._started: float | None = None
        self._watching: set[str] = set()
        self._limit = DEAF_AFTER * silence_seconds
        self._on_relist = on_relist
        self._heard: dict[str, float] = {}
        self._listed: set[str] = set()

    @property
    def up(self) -> bool:
        """Whether every watch was answered once."""
        return len(self._watching) >= self._expected

    def deaf(self) -> str | None:
        """The watch that was silent for too long, in a sentence; None: all is well."""
        now = self._clock()
        for path, time in self._heard.items():
            if now - time > self._limit:
                return f"nothing was heard of {path} for {now - time:.0f} s"
        if self._started is not None and not self.up and now - self._started > self._limit:
            return f"only {len(self._watching)} of {self._expected} watches are up"
        return None

    def silence(self) -> dict[str, float]:
        """Seconds since something was heard, by plural; of several namespaces the longest."""
        now, found = self._clock(), dict[str, float]()
        for path, time in list(self._heard.items()):  # a scrape is a thread
            plural = path.rpartition("/")[2]
            found[plural] = max(found.get(plural, 0.0), now - time)
        return found

    def asked(self, path: str) -> None:
        """A request was sent; where nothing has ever been heard, the time counts from here."""
        self._heard.setdefault(path, self._clock())

    def heard(self, path: str) -> None:
        """An answer, an event or a bookmark."""
        self._heard[path] = self._clock()

    def listed(self, path: str) -> None:
        """A whole list was asked for. A second one means that the watch had lost its place."""
        if path in self._listed:
            self._on_relist()
        self._listed.add(path)

    def session(self, **arguments: Any) -> aiohttp.ClientSession:
        """A session of aiohttp, listened to."""
        watches = self
        self._started = self._clock()

        class Response(aiohttp.ClientResponse):
            async def start(self, connection: Any) -> aiohttp.ClientResponse:
                await super().start(connection)
                path, query = self.url.path, self.url.query
                if self.status == 200 and is_of_a_watch(query):
                    watches.heard(path)
                    if "watch" in query:
                        watches._watching.add(path)
                    elif "continue" not in query:
                        watches.listed(path)
                    self.content = _Heard(  # type: ignore[assignment]
                        self.content, lambda: watches.heard(path)
                    )
                return self

            async def json(self, **options: Any) -> Any:
                """An empty list of metadata comes as `null`, which Kopf does not expect."""
                body = await super().json(**options)
                if isinstance(body, dict) and body.get("items", ()) is None:
                    body["items"] = []
                return body

        async def asked(_: Any, __: Any, request: aiohttp.TraceRequestStartParams) -> None:
            if is_of_a_watch(request.url.query):
                self.asked(request.url.path)

        async def metadata_alone(
            request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            if is_of_a_watch(request.url.query):
                watches_it = "watch" in request.url.query
                whole = watches_it and request.url.path.endswith(WHOLE)
                # To a watch that asks for the kind of a list the API server answers with 200, and
                # then with nothing.
                of_metadata = METADATA_ALONE if watches_it else METADATA_LIST
                request.headers["Accept"] = JSON if whole else of_metadata
            return await send(request)

        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(asked)
        return aiohttp.ClientSession(
            response_class=Response,
            trace_configs=[trace],
            middlewares=[metadata_alone],
            **arguments,
        )


def is_of_a_watch(query: Mapping[str, str]) -> bool:
    """Whether a request is a watch or a page of its list, and not one that is made once to find out
    what the API server knows."""
    return "watch" in query or "limit" in query


class _Heard:
    """A stream that tells when something comes over it; everything else is the stream's own."""

    def __init__(self, stream: aiohttp.StreamReader, heard: Callable[[], None]) -> None:
        self._stream = stream
        self._heard = heard

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        async for chunk in self._stream.iter_chunked(size):
            self._heard()
            yield chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

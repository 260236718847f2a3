"""A proxy in front of a real API server, which a test can make faulty.

Plain HTTP on loopback to the client, TLS with the administrator's certificate to the API server;
watches are passed through line by line. A client with the proxy's own kubeconfig sees nothing else.

    with FaultProxy(kubeconfig, directory) as proxy:
        proxy.decide = lambda request: Answer(500) if request.is_write else PASS
        Operator(proxy.kubeconfig, directory).start()

`decide` and `events` are called in the proxy's thread, one call at a time.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import yaml
from aiohttp import web

Json = dict[str, Any]
HOP_BY_HOP = ("host", "connection", "transfer-encoding", "content-length", "content-encoding")


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the proxy got it; `number` counts from 0 in the order of arrival."""

    number: int
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    time: float
    """Of the monotonic clock."""

    @property
    def is_watch(self) -> bool:
        return self.query.get("watch") in ("true", "1")

    @property
    def is_write(self) -> bool:
        """Whether it may change what is stored; asking whose token it is changes nothing."""
        return self.method not in ("GET", "HEAD") and not self.path.endswith("/tokenreviews")

    @property
    def is_lease(self) -> bool:
        return self.path.startswith("/apis/coordination.k8s.io/")

    def json(self) -> Any:
        """The body, parsed; None where there is none."""
        return json.loads(self.body) if self.body else None


@dataclass(frozen=True, slots=True)
class Pass:
    """Forward it and hand the answer back."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Do not forward it; answer with this status."""

    code: int
    message: str = "injected by the test"
    headers: dict[str, str] = field(default_factory=dict)
    body: Json | None = None
    """Instead of a `Status` object: an older list, for example."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Cut the connection: before the request is forwarded, or `after`, when the write has happened
    and only its answer is lost."""

    after: bool = False


@dataclass(frozen=True, slots=True)
class Delay:
    """Wait so many seconds before doing `then`."""

    seconds: float
    then: Pass | Answer | Drop = field(default_factory=Pass)


@dataclass(frozen=True, slots=True)
class Silence:
    """Never answer, and keep the connection open; `after`: when the write has happened."""

    after: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """Forward it, and hand the answer back only when `release` is set."""

    release: threading.Event


Verdict = Pass | Answer | Drop | Delay | Silence | Hold
PASS = Pass()


class FaultProxy:
    """A context manager; see the top of this module."""

    def __init__(self, kubeconfig: Path, directory: Path) -> None:
        self.kubeconfig = directory / "proxy.kubeconfig"
        self.decide: Callable[[Request], Verdict] = lambda _: PASS
        self.events: Callable[[Request, Json], list[Json]] | None = None
        """What becomes of an event of a watch: none, itself, itself twice, one kept back before."""
        self._requests: list[Request] = []
        self._codes: dict[int, int] = {}
        self._silent: set[asyncio.Transport] = set()
        self._open: set[asyncio.Transport] = set()
        self._lock = threading.Lock()
        self._server, self._tls = _upstream(kubeconfig, directory)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._run(self._start())
        cluster = {"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        context = {"cluster": "proxy", "user": "proxy"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "users": [{"name": "proxy", "user": {}}],
            "contexts": [{"name": "proxy", "context": context}],
            "current-context": "proxy",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def requests(self) -> list[Request]:
        """Every request so far, in order of arrival."""
        with self._lock:
            return list(self._requests)

    def writes(self) -> list[Request]:
        """Those that may change something, but for the operator's Lease."""
        return [r for r in self.requests() if r.is_write and not r.is_lease]

    def code(self, request: Request) -> int | None:
        """The HTTP status that the API server gave; None: not forwarded, or not answered yet."""
        return self._codes.get(request.number)

    def go_silent(self) -> None:
        """No byte comes any more over the connections that are open now, and none is closed: what a
        firewall does that has lost its memory. New connections work."""
        self._call(lambda: self._silent.update(self._open))

    def refuse(self) -> None:
        """Refuse new connections and cut the open ones, until `accept`."""
        self._run(self._refuse())

    def accept(self) -> None:
        """Take connections again, on the same port."""
        self._run(self._listen())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _call(self, work: Callable[[], None]) -> None:
        async def call() -> None:
            work()

        self._run(call())

    async def _start(self) -> None:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )
        app = web.Application(client_max_size=64 * 1024**2)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await self._listen()

    async def _listen(self) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await self._site.start()
        self.port = self._runner.addresses[0][1]

    async def _refuse(self) -> None:
        await self._site.stop()
        for transport in list(self._open):
            transport.abort()

    async def _stop(self) -> None:
        for transport in list(self._open):
            transport.abort()
        await self._runner.cleanup()
        await self._session.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if not isinstance(transport, asyncio.Transport):
            raise web.HTTPServiceUnavailable
        body = await request.read()
        if transport not in self._open:
            self._open = {t for t in self._open if not t.is_closing()} | {transport}
            self._silent = {t for t in self._silent if not t.is_closing()}
        with self._lock:
            seen = Request(
                number=len(self._requests),
                method=request.method,
                path=request.path,
                query=dict(request.query),
                headers=dict(request.headers),
                body=body,
                time=time.monotonic(),
            )
            self._requests.append(seen)
        verdict = self.decide(seen)
        if isinstance(verdict, Delay):
            await asyncio.sleep(verdict.seconds)
            verdict = verdict.then
        if transport in self._silent or verdict == Silence():
            await _for_ever()
        return await self._perform(request, transport, seen, verdict)

    async def _perform(
        self, request: web.Request, transport: asyncio.Transport, seen: Request, verdict: Verdict
    ) -> web.StreamResponse:
        if isinstance(verdict, Answer):
            return _answer(verdict)
        if verdict == Drop():
            transport.abort()
            raise asyncio.CancelledError
        url = self._server + request.raw_path
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        async with self._session.request(
            seen.method,
            url,
            data=seen.body or None,
            headers=headers,
            allow_redirects=False,
            skip_auto_headers=("Content-Type", "User-Agent"),
        ) as upstream:
            self._codes[seen.number] = upstream.status
            if seen.is_watch:
                return await self._stream(request, transport, seen, upstream)
            text = await upstream.read()
            if isinstance(verdict, Drop):
                transport.abort()
                raise asyncio.CancelledError
            if isinstance(verdict, Hold):
                await asyncio.to_thread(verdict.release.wait)
            if isinstance(verdict, Silence) or transport in self._silent:
                await _for_ever()
            return web.Response(body=text, status=upstream.status, headers=_headers(upstream))

    async def _stream(
        self,
        request: web.Request,
        transport: asyncio.Transport,
        seen: Request,
        upstream: aiohttp.ClientResponse,
    ) -> web.StreamResponse:
        answer = web.StreamResponse(status=upstream.status, headers=_headers(upstream))
        await answer.prepare(request)
        with contextlib.suppress(ConnectionError):  # the client has gone
            async for line in _lines(upstream):
                if transport in self._silent:
                    await _for_ever()
                events = [line] if self.events is None else self._change(seen, line)
                for event in events:
                    await answer.write(event)
        return answer

    def _change(self, seen: Request, line: bytes) -> list[bytes]:
        assert self.events is not None
        return [json.dumps(e).encode() + b"\n" for e in self.events(seen, json.loads(line))]


async def _for_ever() -> None:
    await asyncio.Event().wait()


async def _lines(upstream: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Whole lines, however long: an object may be larger than aiohttp's own limit of a line."""
    rest = b""
    async for chunk in upstream.content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
    if rest:
        yield rest


def _answer(answer: Answer) -> web.Response:
    status = {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "code": answer.code,
        "message": answer.message,
    }
    body = status if answer.body is None else answer.body
    return web.json_response(body, status=answer.code, headers=answer.headers)


def _headers(upstream: aiohttp.ClientResponse) -> dict[str, str]:
    """With `Content-Encoding`: bodies are handed on as they come."""
    left_out = {"connection", "transfer-encoding", "content-length", "date"}
    return {k: v for k, v in upstream.headers.items() if k.lower() not in left_out}


def _upstream(kubeconfig: Path, directory: Path) -> tuple[str, ssl.SSLContext]:
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(
        cadata=base64.b64decode(cluster["certificate-authority-data"]).decode()
    )
    chain, key = directory / "proxy.crt", directory / "proxy.key"
    chain.write_bytes(base64.b64decode(user["client-certificate-data"]))
    key.write_bytes(base64.b64decode(user["client-key-data"]))
    context.load_cert_chain(chain, key)
    server: str = cluster["server"]
    return server, context

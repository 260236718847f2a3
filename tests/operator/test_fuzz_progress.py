"""The progress endpoint under whatever a pod can send: bytes that are no HTTP, HTTP that is no
report, reports with any numbers. It answers each with its status, stays up, remembers no more than
it may, and writes only what the status of a job can be."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any, cast

import builders
import pytest
from fuzz import fuzz
from hypothesis import strategies as st

from finetune_api import progress as wire
from finetune_api.progress import audience, status_path
from finetune_api.status import FineTuneJobStatus
from finetune_operator import callers, progress_server
from finetune_operator.cluster import ApiError, Caller, Cluster
from finetune_operator.metrics import Metrics
from finetune_operator.progress_server import ProgressEndpoint, progress_app, serve

Json = dict[str, Any]
EXPECTED = {100, 200, 400, 401, 403, 404, 405, 408, 409, 413, 414, 417, 422, 429, 431, 503}
PATH = status_path("team-a", "docs")
LAST = b"GET /last HTTP/1.1\r\nConnection: close\r\n\r\n"
MOST = 32


class OneJob:
    """A cluster with one running job; the token `good` is its pod's."""

    def __init__(self) -> None:
        self.version, self.written = 1, [cast("Json", {})]

    async def review_token(self, token: str, wanted: str) -> Caller | None:
        if token != "good" or wanted != audience("team-a", "docs"):
            return None
        return Caller("team-a", "docs-train-0-0", "uid-pod")

    async def pod(self, namespace: str, name: str) -> Json:
        labels = {
            "finetune-operator.io/job": "docs",
            "finetune-operator.io/stage": "train",
            "finetune-operator.io/attempt": "0",
        }
        return {"metadata": {"uid": "uid-pod", "labels": labels}}

    async def owns(self, namespace: str, pod: Json, uid: str) -> bool:
        return True

    async def job(self, namespace: str, name: str) -> Json:
        assert (namespace, name) == ("team-a", "docs"), "asked for what nobody may report on"
        body = builders.job_body(status={"phase": "Running", "attempt": 0, **self.written[-1]})
        return body | {"metadata": body["metadata"] | {"resourceVersion": str(self.version)}}

    async def report_progress(
        self, namespace: str, name: str, part: Json, version: int, uid: str
    ) -> int:
        if version != self.version:
            raise ApiError(409, "the object has been modified")
        json.dumps(part, allow_nan=False)
        FineTuneJobStatus.parse(part)  # with every bound of the CRD
        self.written.append(part)
        self.version += 1
        return self.version


class Server:
    """The real server on a thread of its own, with a clock that nobody waits for."""

    def __init__(self) -> None:
        self.cluster, self.now = OneJob(), 0.0
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.endpoint, self._runner = self._do(self._start())
        self.port: int = self._runner.addresses[0][1]

    async def _start(self) -> Any:
        metrics = Metrics()
        cluster = cast("Cluster", self.cluster)
        found = ProgressEndpoint(cluster, metrics, self._time, self._clock, self._clock)
        return found, await serve(progress_app(found), "127.0.0.1", 0)

    def _clock(self) -> float:
        self.now += 60.0  # so that nobody reports too often, and every write is due
        return self.now

    def _time(self) -> str:
        return builders.NOW

    def _do(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(60)

    def send(self, data: bytes) -> int | None:
        """The status of the answer; None: it has closed the connection without one."""
        return cast("int | None", self._do(self._send(data)))

    async def _send(self, data: bytes) -> int | None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            line = await asyncio.wait_for(reader.readline(), 30)
            return int(line.split()[1]) if line.startswith(b"HTTP/1.") else None
        except ConnectionError:
            return None
        finally:
            writer.close()

    def close(self) -> None:
        self._do(self._runner.cleanup())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(callers, "MOST", MOST)
    monkeypatch.setattr(progress_server, "BODY_SECONDS", 0.5)
    found = Server()
    yield found
    found.close()


def request(
    body: bytes, path: str = PATH, token: bytes = b"good", method: str = "POST", *more: bytes
) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1".encode(),
        b"Host: x",
        b"Connection: close",
        b"Authorization: Bearer " + token,
        b"Content-Length: " + str(len(body)).encode(),
        *more,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from(["NaN", "-Infinity", "1e999", "-0", "٣", "1_0", "0x10", " 7 ", "9" * 400]),
    st.text(max_size=20),
)
NAMES = st.one_of(
    st.sampled_from([v for k, v in vars(wire).items() if k.isupper() and isinstance(v, str)]),
    st.text(max_size=80),
)
METRICS = st.lists(st.fixed_dictionaries({"name": NAMES, "value": NUMBERS.map(str)}), max_size=12)
REPORTS = st.fixed_dictionaries(
    {},
    optional={
        "progressPercentage": st.one_of(st.integers(), st.floats(), st.none(), st.text(max_size=5)),
        "estimatedRemainingSeconds": st.one_of(st.integers(), st.none()),
        "metrics": METRICS,
        "lastUpdatedTime": st.text(max_size=30),
    },
).map(lambda status: {"trainerStatus": status})
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


BODIES = st.one_of(
    REPORTS.map(encoded),
    ANYTHING.map(encoded),
    st.binary(max_size=200),
    st.integers(1, 60_000).map(lambda n: b"[" * n),
    st.integers(0, 200_000).map(lambda n: b'{"trainerStatus":{}}' + b" " * n),
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            [b"Content-Type", b"Content-Encoding", b"Transfer-Encoding", b"Expect", b"X"]
        ),
        st.one_of(
            st.sampled_from(
                [b"gzip", b"deflate", b"br", b"chunked", b"100-continue", b"text/html"]
            ),
            st.binary(max_size=30),
        ),
    ).map(b": ".join),
    max_size=3,
)
SEGMENTS = st.one_of(
    st.sampled_from(["docs", "..", "%2e%2e", "..%2f..", "a%00b", "%ff", "docs/../docs", "x" * 300]),
    st.text("abc.%/-", max_size=12),
)
PATHS = st.one_of(
    st.just(PATH),
    st.tuples(SEGMENTS, SEGMENTS).map(lambda two: status_path(*two)),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40).map(lambda p: f"/{p}"),
)
METHODS = st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "BREW", ""])
HIGH = st.lists(st.integers(0x80, 0xFF), min_size=1, max_size=9).map(bytes)
TOKENS = st.one_of(st.just(b"good"), st.just(b"good"), HIGH, st.binary(max_size=60))
REQUESTS = st.builds(
    lambda body, path, token, method, more: request(body, path, token, method, *more),
    BODIES,
    PATHS,
    TOKENS,
    METHODS,
    HEADERS,
)


def check(server: Server, caplog: pytest.LogCaptureFixture, data: bytes) -> int | None:
    caplog.clear()
    code = server.send(data)
    assert code is None or code in EXPECTED, code
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []
    assert server.endpoint.callers.held <= MOST
    assert server.endpoint.intake.held <= 1
    return code


def test_whatever_a_pod_reports_is_taken_or_refused_and_never_a_fault(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    codes: list[int | None] = []
    fuzz(REPORTS, lambda r: codes.append(check(server, caplog, request(encoded(r)))), 150)
    assert {200, 422} <= set(codes)
    assert len(server.cluster.written) > 1, "some of it was written"


def test_what_it_found_stays_mended(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Each was an internal error, with its stack trace in the operator's log."""
    found = {
        "a body that is no gzip": request(
            b"none", PATH, b"good", "POST", b"Content-Encoding: gzip"
        ),
        "a token in no character set": request(b"{}", PATH, b"\xff\xfe"),
        "no HTTP": b"\x16\x03\x01\r\n\r\n",
    }
    assert {what: check(server, caplog, data) for what, data in found.items()} == {
        "a body that is no gzip": 400,
        "a token in no character set": 401,
        "no HTTP": 400,
    }


def test_whatever_comes_as_http_has_an_answer(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    # What wants more than it has gets another request, and then runs into the server's deadline.
    fuzz(REQUESTS, lambda data: check(server, caplog, data + LAST), 250)
    assert server.send(request(encoded({"trainerStatus": {}}))) in (200, 422), "it still serves"


def test_bytes_that_are_no_http_do_not_stop_it(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    garbage = st.binary(max_size=400).map(lambda data: data + b"\r\n\r\n" + LAST)
    fuzz(garbage, lambda data: check(server, caplog, data), 100)
    assert server.send(request(encoded({"trainerStatus": {}}))) in (200, 422), "it still serves"

"""Reports over HTTP: who may, how often, and what is written of them; the cluster is a fake."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, cast

import aiohttp
import aiohttp.web
import builders
import pytest

from finetune_api.progress import status_path
from finetune_operator import callers
from finetune_operator.cluster import ApiError, Caller, Cluster
from finetune_operator.intake import CONFLICTS, IDLE_SECONDS, TRANSITIONS
from finetune_operator.lease import LeaseLostError
from finetune_operator.metrics import Metrics
from finetune_operator.progress_server import TLS_BUFFER, ProgressEndpoint, progress_app, serve

Json = dict[str, Any]
START = 1_795_327_200.0


def report(step: int = 10, activity: str = "Training", percent: int = 25, **more: object) -> Json:
    metrics = {"current_step": step, "total_steps": 40, "activity": activity, **more}
    return {
        "trainerStatus": {
            "progressPercentage": percent,
            "metrics": [{"name": name, "value": str(value)} for name, value in metrics.items()],
        }
    }


class Fake:
    """A cluster with one running job whose pod reports; counts what it is asked."""

    def __init__(self, *refusals: Exception, valid: bool = True) -> None:
        self.refusals, self.valid = list(refusals), valid
        self.asked: list[str] = []
        self.written: list[Json] = []
        self.versions: list[int] = []
        self.version = 7
        self.labels = {
            "finetune-operator.io/job": "docs",
            "finetune-operator.io/stage": "train",
            "finetune-operator.io/attempt": "0",
        }
        self.owned = True
        self.body = builders.job_body(status={"phase": "Running", "attempt": 0})

    async def review_token(self, token: str, audience: str) -> Caller | None:
        self.asked.append("token")
        return Caller("team-a", "docs-train-0-0", "uid-pod") if self.valid else None

    async def pod(self, namespace: str, name: str) -> Json:
        self.asked.append("pod")
        return {"metadata": {"uid": "uid-pod", "labels": self.labels}}

    async def owns(self, namespace: str, pod: Json, uid: str) -> bool:
        return self.owned

    async def job(self, namespace: str, name: str) -> Json:
        self.asked.append("job")
        return self._as_it_is()

    async def report_progress(
        self, namespace: str, name: str, part: Json, version: int, uid: str
    ) -> int:
        self.asked.append("write")
        self.versions.append(version)
        if self.refusals:
            self.version += 1
            raise self.refusals.pop(0)
        if version != self.version:
            raise conflict()
        self.written.append(part["progress"])
        self.changed(**part)
        return self.version

    def changed(self, **status: Any) -> None:
        """Somebody writes the status."""
        self.body = self.body | {"status": self.body["status"] | status}
        self.version += 1

    def _as_it_is(self) -> Json:
        version = {"resourceVersion": str(self.version)}
        return self.body | {"metadata": self.body["metadata"] | version}


Post = Callable[..., Awaitable[tuple[int, str, str | None]]]


class Server:
    """A real one, whose clocks the test moves."""

    def __init__(self, cluster: Fake, metrics: Metrics | None = None) -> None:
        self.metrics = metrics or Metrics()
        self.passed = 0.0
        self.endpoint = ProgressEndpoint(
            cast("Cluster", cluster),
            self.metrics,
            self.now,
            lambda: self.passed,
            lambda: START + self.passed,
        )

    def now(self) -> str:
        found = datetime.fromtimestamp(START + self.passed, UTC)
        return found.strftime("%Y-%m-%dT%H:%M:%SZ")

    def use(self, play: Callable[[Post], Awaitable[None]]) -> None:
        """Let a scene send reports."""
        asyncio.run(self._serve(play))

    async def _serve(self, play: Callable[[Post], Awaitable[None]]) -> None:
        runner = await serve(progress_app(self.endpoint), "127.0.0.1", 0)
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"

        async def post(
            body: Any, token: str = "token", **headers: str
        ) -> tuple[int, str, str | None]:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {"Authorization": f"Bearer {token}"} | headers
            url = address + status_path("team-a", "docs")
            async with session.post(url, data=data, headers=headers) as answer:
                found = json.loads(await answer.text())
                retry = answer.headers.get("Retry-After")
                return answer.status, found.get("message", ""), retry

        try:
            async with aiohttp.ClientSession() as session:
                await play(post)
        finally:
            await runner.cleanup()

    def codes(self, *bodies: Any, every: float = 5) -> list[int]:
        """The HTTP status of reports, one after the other."""
        found: list[int] = []

        async def play(post: Post) -> None:
            for body in bodies:
                found.append((await post(body))[0])
                self.passed += every

        self.use(play)
        return found


def conflict() -> ApiError:
    return ApiError(409, "the object has been modified")


def test_a_report_that_meets_a_change_is_merged_anew_with_what_is_there_then() -> None:
    cluster = Fake(conflict(), conflict())
    assert Server(cluster).codes(report()) == [200]
    assert cluster.versions == [7, 8, 9]
    assert [(w["step"], w["percent"]) for w in cluster.written] == [(10, 25)]


def test_a_report_that_meets_changes_without_end_is_to_be_sent_again() -> None:
    cluster = Fake(*[conflict() for _ in range(CONFLICTS)])
    assert (Server(cluster).codes(report()), cluster.written) == ([503], [])


def test_a_former_leader_takes_no_report() -> None:
    cluster = Fake(LeaseLostError("not the leader (any more)"))
    assert (Server(cluster).codes(report()), cluster.written) == ([503], [])


@pytest.mark.parametrize("leads", [True, False])
def test_only_the_leader_shows_what_was_reported(leads: bool) -> None:
    metrics = Metrics()
    if leads:
        metrics.lead()
    server = Server(Fake(), metrics)
    assert server.codes(report(10), report(11)) == [200, 200]
    shown = metrics.shown().get(("team-a", "docs"))
    assert (shown.progress.step if shown and shown.progress else None) == (11 if leads else None)


def test_numbers_are_written_once_in_thirty_seconds_and_cost_nothing_in_between() -> None:
    cluster = Fake()
    server = Server(cluster)
    server.codes(*[report(10 + n, percent=25 + n, loss=n) for n in range(13)])
    assert [w["step"] for w in cluster.written] == [10, 16, 22]
    assert cluster.asked == ["token", "job", "pod", "write", "write", "write"]
    # The points of the curve in between are not lost.
    assert [p["step"] for p in cluster.written[-1]["history"]] == list(range(10, 23))


def test_a_change_of_activity_is_written_at_once() -> None:
    cluster = Fake()
    Server(cluster).codes(report(10), report(11, "Checkpointing"), report(11), every=2)
    assert [w["activity"] for w in cluster.written] == ["Training", "Checkpointing", "Training"]


def test_writes_are_bounded_whatever_is_sent() -> None:
    cluster = Fake()
    activities = ("Training", "Checkpointing")
    bodies = [report(10 + n, activities[n % 2]) for n in range(600)]
    assert set(Server(cluster).codes(*bodies, every=1)) == {200}
    assert len(cluster.written) == TRANSITIONS.burst + 599 * TRANSITIONS.per_second // 1
    assert cluster.asked.count("token") == 2  # again after five minutes


def test_what_the_status_has_got_meanwhile_is_not_overwritten() -> None:
    """Another replica has taken a report."""
    cluster = Fake()
    server = Server(cluster)
    server.codes(report(10, loss=1))
    other = cluster.written[0] | {"step": 30, "lastUpdateTime": server.now()}
    cluster.changed(progress=other | {"history": [{"step": 30, "loss": 2}]})
    server.passed += 30
    assert server.codes(report(20), report(31), every=31) == [422, 200]
    assert [p["step"] for p in cluster.written[-1]["history"]] == [10, 30]


def test_a_job_made_anew_under_its_name_does_not_get_the_old_ones_progress() -> None:
    cluster = Fake()
    server = Server(cluster)
    server.codes(report(30))
    cluster.body["metadata"]["uid"] = "another"
    cluster.changed(progress=None)
    cluster.owned = False
    server.passed += 30
    assert (server.codes(report(31)), len(cluster.written)) == ([403], 1)


@pytest.mark.parametrize("status", [{"phase": "Running", "attempt": 1}, {"phase": "Failed"}])
def test_an_attempt_that_is_over_may_not_report(status: Json) -> None:
    cluster = Fake()
    cluster.changed(**status)
    assert (Server(cluster).codes(report()), cluster.written) == ([409], [])


def test_the_leader_knows_at_once_that_an_attempt_is_over() -> None:
    cluster, metrics = Fake(), Metrics()
    metrics.lead()
    server = Server(cluster, metrics)
    server.codes(report())
    status = metrics.statuses()[("team-a", "docs")].model_copy(update={"attempt": 1})
    metrics.see(("team-a", "docs"), status, 100)
    assert server.codes(report(11)) == [409]


def test_a_pod_that_floods_waits_and_costs_nothing() -> None:
    cluster = Fake()
    server = Server(cluster)
    found: list[tuple[int, str, str | None]] = []

    async def play(post: Post) -> None:
        found.extend([await post(report()) for _ in range(500)])

    server.use(play)
    burst = int(callers.REPORTS.burst)
    assert [code for code, _, _ in found] == [200] * burst + [429] * (500 - burst)
    assert found[-1] == (429, "this pod reports too often", "1")
    assert cluster.asked == ["token", "job", "pod", "write"]


def test_a_flood_of_invalid_tokens_is_not_passed_on() -> None:
    cluster = Fake(valid=False)
    server = Server(cluster)
    found: list[tuple[int, str, str | None]] = []

    async def play(post: Post) -> None:
        found.extend([await post(report(), token=f"forged-{n}") for n in range(100)])
        found.extend([await post(report(), token="forged-0") for _ in range(100)])

    server.use(play)
    known = int(callers.INVALID.burst)
    assert [code for code, _, _ in found] == [401] * known + [429] * (100 - known) + [401] * 100
    assert found[99] == (429, "too many invalid tokens from this address", "5")
    assert cluster.asked == ["token"] * known


def test_many_reports_with_one_new_token_ask_once() -> None:
    cluster = Fake()

    async def play(post: Post) -> None:
        await asyncio.gather(*(post(report()) for _ in range(8)))

    Server(cluster).use(play)
    assert cluster.asked.count("token") == 1


def token(expires: float) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": expires}).encode()).decode()
    return f"header.{claims.rstrip('=')}.signature"


def test_a_token_is_believed_no_longer_than_until_it_expires() -> None:
    cluster = Fake()
    server = Server(cluster)
    mine = token(START + 60)
    found: list[int] = []

    async def play(post: Post) -> None:
        for passed in (0, 59, 61):
            server.passed, cluster.valid = passed, passed < 60
            found.append((await post(report(), token=mine))[0])

    server.use(play)
    assert (found, cluster.asked.count("token")) == ([200, 200, 401], 2)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"x" * 65_537, 413),
        (b"not json", 422),
        (b'{"trainerStatus": {"progressPercentage": NaN}}', 422),
        (b'{"trainerStatus": {"progressPercentage": 101}}', 422),
        (b'{"trainerStatus": {"estimatedRemainingSeconds": -1}}', 422),
        (b"[" * 60_000, 422),
        (b'{"trainerStatus": {"metrics": [' + b",".join([b'{"name":"a","value":"1"}'] * 257)
         + b"]}}", 422),
        (json.dumps(report(loss="nan")).encode(), 422),
        (json.dumps(report(current_epoch=1e300)).encode(), 422),
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused(body: bytes, code: int) -> None:
    cluster = Fake()
    assert (Server(cluster).codes(body), cluster.written) == ([code], [])


def test_a_small_body_that_unpacks_to_a_large_one_is_refused() -> None:
    found: list[int] = []

    async def play(post: Post) -> None:
        packed = gzip.compress(b" " * 10_000_000)
        found.append((await post(packed, **{"Content-Encoding": "gzip"}))[0])

    Server(Fake()).use(play)
    assert found == [413]


@pytest.mark.parametrize("expected", [b"more", b"\x80"])
def test_an_expectation_that_nobody_can_meet_is_refused(expected: bytes) -> None:
    """Bytes that are no text, too, which aiohttp's own answer would repeat."""

    async def first_line() -> bytes:
        runner = await serve(progress_app(Server(Fake()).endpoint), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*runner.addresses[0])
        path = status_path("team-a", "docs").encode()
        writer.write(b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n" % path)
        writer.write(b"Expect: %s\r\n\r\n" % expected)
        try:
            return await reader.readline()
        finally:
            writer.close()
            await runner.cleanup()

    assert asyncio.run(first_line()) == b"HTTP/1.1 417 Expectation Failed\r\n"


def test_a_report_that_waits_for_100_continue_is_taken() -> None:
    found: list[int] = []

    async def play(post: Post) -> None:
        found.append((await post(report(), **{"Expect": "100-continue"}))[0])

    Server(Fake()).use(play)
    assert found == [200]


def test_who_does_not_report_any_more_is_forgotten() -> None:
    server = Server(Fake())
    server.codes(report())
    held = [server.endpoint.intake.held]
    server.passed += IDLE_SECONDS
    assert [*held, server.endpoint.intake.held] == [1, 0]


def test_a_tls_connection_holds_no_more_than_a_record_of_tls() -> None:
    """By an attribute of asyncio that no document promises."""

    async def buffer() -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        runner = await serve(aiohttp.web.Application(), "127.0.0.1", 0, context)
        await runner.cleanup()
        loop: Any = asyncio.get_running_loop()
        made: Any = SSLProtocol(loop, asyncio.Protocol(), context, None, server_side=True)
        return len(made.get_buffer(-1))

    assert asyncio.run(buffer()) == TLS_BUFFER

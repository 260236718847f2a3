"""The two servers of the operator: progress (TLS, for trainer pods) and metrics (for Prometheus).

A report is taken only from a pod of the job that its path names, of the job's current attempt,
with a token made for that job alone. Trainer pods have no access to the API server.

| refused with | what |
|---|---|
| 400 | a body that is not encoded as its header says; no HTTP |
| 401 | no token, a forged or expired one, one for another audience (another job's) |
| 403 | a valid token of a pod that is no training pod of this job |
| 404 | there is no such job |
| 408, 413 | a body that takes longer than 10 seconds, or is larger than 64 KiB |
| 409 | an attempt that is over, or a job that is |
| 417 | an `Expect` other than `100-continue` |
| 422 | no trainer status; NaN, infinities, numbers out of bounds, steps that go backwards |
| 429 | a pod that reports more than once a second, an address with invalid tokens: `Retry-After` |
| 503 | not now: `Retry-After` |

Metrics under names that are not ours (`finetune_api.progress`) are no error: every sender has some.
They are read past, and nothing of them is kept.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import ssl
import time
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable

from aiohttp import HttpVersion11, web
from aiohttp.web_protocol import RequestPayloadError
from pydantic import ValidationError

from finetune_api import progress as wire
from finetune_api.progress import ProgressBody
from finetune_operator import logs
from finetune_operator.callers import Callers
from finetune_operator.cluster import Cluster
from finetune_operator.intake import Intake
from finetune_operator.lease import LeaseLostError
from finetune_operator.metrics import Metrics
from finetune_operator.progress import Rejected

logger = logging.getLogger(__name__)

BODY_SECONDS = 10.0
"""For the body of a report to arrive."""
_NO_HTTP = logging.getLogger("finetune_operator.no_http")
_NO_HTTP.setLevel(logging.CRITICAL)
"""Of aiohttp, about what is no HTTP: it is answered with 400, and whoever reaches the port must not
fill the log with a stack trace for each. What goes wrong in a request is logged by `handle`."""
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
NO_JOB = Rejected(404, "there is no such FineTuneJob")
SHUTDOWN_SECONDS = 5.0
"""For requests that are under way when the server stops."""
TLS_BUFFER = 16 * 1024
"""Bytes that asyncio holds for a TLS connection: as long as a record of TLS may be."""


class ProgressEndpoint:
    """What is between a request and the intake."""

    def __init__(
        self,
        cluster: Cluster,
        metrics: Metrics,
        now: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._metrics = metrics
        self.callers = Callers(cluster, clock, wall)
        self.intake = Intake(cluster, self.callers, metrics, now, clock)

    async def handle(self, request: web.Request) -> web.Response:
        """`POST` of one report."""
        key = (request.match_info["namespace"], request.match_info["name"])
        try:
            answer = await self._take(request, key) if _are_names(*key) else NO_JOB
        except web.HTTPRequestEntityTooLarge:
            answer = Rejected(413, f"the body is larger than {wire.MAX_BODY} bytes")
        except RequestPayloadError:
            answer = Rejected(400, "the body cannot be read: it is not encoded as its header says")
        except TimeoutError:
            answer = Rejected(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds")
        except LeaseLostError as error:
            answer = Rejected(503, f"{error}; report again", 1)
        except Exception:
            with logs.about(key):
                logger.exception("report not taken", extra={"reason": "ReportFailed"})
            answer = Rejected(500, "internal error; report again")
        code = 200 if answer is None else answer.code
        self._metrics.progress_reports.labels(str(code)).inc()
        if answer is None:
            return web.Response(body=await request.read(), content_type="application/json")
        return web.json_response(failure(answer), status=code, headers=_headers(answer))

    async def _take(self, request: web.Request, key: tuple[str, str]) -> Rejected | None:
        authorization = request.headers.get("Authorization", "")
        caller = await self.callers.identify(authorization, request.remote or "", key)
        if isinstance(caller, Rejected):
            return caller
        data = await _body(request)
        try:
            body = ProgressBody.model_validate_json(data)
        except ValidationError as error:
            return Rejected(422, f"not a trainer status: {error.errors()[0]['msg']}")
        return await self.intake.take(caller, key, body.trainer_status)


async def _body(request: web.Request) -> bytes:
    """Nearly always it is there with the headers, and no clock is needed."""
    if request.content.is_eof():
        return await request.read()
    async with asyncio.timeout(BODY_SECONDS):
        return await request.read()


def _are_names(*found: str) -> bool:
    """Whether they can be names of Kubernetes: they become part of the path of a request to it."""
    return all(NAME.fullmatch(name) for name in found)


def _headers(rejected: Rejected) -> dict[str, str]:
    found = {}
    if rejected.code == 401:
        found["WWW-Authenticate"] = 'Bearer error="invalid_token"'
    if rejected.retry_after is not None:
        found["Retry-After"] = str(math.ceil(rejected.retry_after))
    return found


def failure(rejected: Rejected) -> dict[str, object]:
    """A refusal as Kubernetes writes it."""
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "code": rejected.code,
        "message": rejected.message,
    }


def progress_app(endpoint: ProgressEndpoint) -> web.Application:
    """The endpoint for trainer pods."""
    app = web.Application(client_max_size=wire.MAX_BODY)
    path = wire.status_path("{namespace}", "{name}")
    app.router.add_post(path, endpoint.handle, expect_handler=_expected)
    return app


async def _expected(request: web.Request) -> None:
    """Answer the header `Expect`. aiohttp's own refusal repeats it, and fails if it is no text."""
    if request.version < HttpVersion11:  # which does not know it
        return
    if request.headers["Expect"].lower() != "100-continue":
        raise web.HTTPExpectationFailed
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # else it is taken for the beginning of the answer


def metrics_app(
    metrics: Metrics, ready: Callable[[], bool], unhealthy: Callable[[], str | None]
) -> web.Application:
    """`/metrics`, `/healthz` (503 with the sentence of `unhealthy`) and `/readyz`."""

    async def show(request: web.Request) -> web.Response:
        """In the format that the scraper asks for; Prometheus asks for OpenMetrics."""
        # Of thousands of jobs it takes a while, and reports wait for nobody.
        accept = request.headers.get("Accept", "")
        text, content_type = await asyncio.to_thread(metrics.text, accept)
        return web.Response(body=text, headers={"Content-Type": content_type})

    async def healthz(_: web.Request) -> web.Response:
        problem = unhealthy()
        return web.Response(text=problem or "ok", status=503 if problem else 200)

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok") if ready() else web.Response(status=503, text="starting")

    app = web.Application()
    app.router.add_get("/metrics", show)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    return app


async def serve(
    app: web.Application, address: str, port: int, context: ssl.SSLContext | None = None
) -> web.AppRunner:
    """Listen; with a context by TLS."""
    # asyncio holds a quarter of a megabyte for each TLS connection; a report has 2 KiB, and a
    # thousand trainers keep theirs.
    SSLProtocol.max_size = TLS_BUFFER
    runner = web.AppRunner(app, access_log=None, logger=_NO_HTTP, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    await web.TCPSite(runner, address, port, ssl_context=context).start()
    return runner

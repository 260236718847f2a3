"""The two servers of the operator: progress (TLS, for trainer pods) and metrics (for Prometheus).

A report is taken only from a pod of the job that its path names, of the job's current attempt,
with a token made for that job alone. Trainer pods have no access to the API server.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from aiohttp import web
from prometheus_client.exposition import choose_encoder
from pydantic import ValidationError

from finetune_api import progress as wire
from finetune_api.progress import ProgressBody
from finetune_operator import names
from finetune_operator.cluster import ApiError, Caller, Cluster
from finetune_operator.lease import LeaseLostError
from finetune_operator.metrics import Metrics
from finetune_operator.progress import Rejected, merge
from finetune_operator.reconcile import parse_job
from finetune_operator.usage import reported

logger = logging.getLogger(__name__)

CONFLICTS = 5
"""How often a report is merged anew because the job has changed in between."""
CONFLICT = Rejected(503, "the job has changed; report again")
TOKEN_CACHE_SECONDS = 300.0
TOKEN_CACHE_SIZE = 10_000
SHUTDOWN_SECONDS = 5.0
"""For requests that are under way when the server stops."""


class ProgressEndpoint:
    """Checks, merges and writes progress reports."""

    def __init__(self, cluster: Cluster, metrics: Metrics, clock: Callable[[], str]) -> None:
        self._cluster = cluster
        self._metrics = metrics
        self._clock = clock
        self._tokens: dict[str, tuple[float, Caller]] = {}

    @property
    def held(self) -> int:
        """Tokens in memory."""
        return len(self._tokens)

    async def handle(self, request: web.Request) -> web.Response:
        """`POST` of one report."""
        key = (request.match_info["namespace"], request.match_info["name"])
        try:
            answer = await self._take(request, key)
        except web.HTTPRequestEntityTooLarge:
            answer = Rejected(413, f"the body is larger than {wire.MAX_BODY} bytes")
        except LeaseLostError as error:
            answer = Rejected(503, f"{error}; report again")
        except Exception:
            logger.exception("progress report not taken", extra={"job": "/".join(key)})
            answer = Rejected(500, "internal error; report again")
        code = 200 if answer is None else answer.code
        self._metrics.progress_reports.labels(str(code)).inc()
        if answer is None:
            return web.Response(body=await request.read(), content_type="application/json")
        return web.json_response(failure(answer), status=code)

    async def _take(self, request: web.Request, key: tuple[str, str]) -> Rejected | None:
        caller = await self._caller(request, key)
        if isinstance(caller, Rejected):
            return caller
        try:
            body = ProgressBody.model_validate_json(await request.read())
        except ValidationError as error:
            return Rejected(422, f"not a trainer status: {error.errors()[0]['msg']}")
        for _ in range(CONFLICTS):
            answer = await self._merge(caller, key, body)
            if answer != CONFLICT:
                return answer
        return Rejected(503, "the job changes too often; report again")

    async def _merge(
        self, caller: Caller, key: tuple[str, str], body: ProgressBody
    ) -> Rejected | None:
        """Read, merge, write what was read: whichever replica got the report, and whatever the
        leader writes meanwhile, nothing is overwritten unseen."""
        raw = await self._cluster.job(*key)
        if raw is None:
            return Rejected(404, f"there is no FineTuneJob {key[0]}/{key[1]}")
        job = parse_job(raw)
        attempt = await self._attempt(caller, key, job.uid)
        if isinstance(attempt, Rejected):
            return attempt
        if job.status.phase in ("Succeeded", "Failed") or attempt < (job.status.attempt or 0):
            return Rejected(409, "this attempt is over")
        new = merge(job.status.progress, body.trainer_status, attempt, self._clock())
        if isinstance(new, Rejected) or new is None:
            return new
        try:
            part = reported(job.status, new)
            now = parse_job(await self._cluster.report_progress(*key, part, job.version))
        except ApiError as error:
            if error.code == 409:
                return CONFLICT
            raise
        if self._metrics.leads:
            self._metrics.see(key, now.status, now.version)
        return None

    async def _caller(self, request: web.Request, key: tuple[str, str]) -> Caller | Rejected:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return Rejected(401, "a bearer token is needed")
        audience = wire.audience(*key)
        digest = hashlib.sha256(f"{audience}\0{token}".encode()).hexdigest()
        known = self._tokens.get(digest)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        caller = await self._cluster.review_token(token, audience)
        if caller is None or caller.namespace != key[0]:
            return Rejected(403, "the token is not valid for this job")
        if len(self._tokens) >= TOKEN_CACHE_SIZE:
            self._tokens.clear()
        self._tokens[digest] = (time.monotonic() + TOKEN_CACHE_SECONDS, caller)
        return caller

    async def _attempt(self, caller: Caller, key: tuple[str, str], uid: str) -> int | Rejected:
        """The attempt of the caller's pod, if it is a pod of this job."""
        not_ours = Rejected(403, "the token does not belong to a training pod of this job")
        if caller.pod is None:
            return not_ours
        pod = await self._cluster.pod(key[0], caller.pod)
        if pod is None or pod["metadata"]["uid"] != caller.pod_uid:
            return not_ours
        labels = pod["metadata"].get("labels") or {}
        if labels.get(names.LABEL_JOB) != key[1] or labels.get(names.LABEL_STAGE) != "train":
            return not_ours
        if not await self._cluster.owns(key[0], pod, uid):
            return not_ours
        return int(labels.get(names.LABEL_ATTEMPT, "0"))


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
    app.router.add_post(wire.status_path("{namespace}", "{name}"), endpoint.handle)
    return app


def metrics_app(
    metrics: Metrics, ready: Callable[[], bool], unhealthy: Callable[[], str | None]
) -> web.Application:
    """`/metrics`, `/healthz` (503 with the sentence of `unhealthy`) and `/readyz`."""

    async def show(request: web.Request) -> web.Response:
        """In the format that the scraper asks for; Prometheus asks for OpenMetrics."""
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        # Of thousands of jobs it takes a while, and reports wait for nobody.
        text = await asyncio.to_thread(encode, metrics.registry)
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
    app: web.Application, address: str, port: int, tls_dir: str | None = None
) -> web.AppRunner:
    """Listen; with `tls_dir` by TLS."""
    context = None
    if tls_dir is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        directory = Path(tls_dir)
        context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    await web.TCPSite(runner, address, port, ssl_context=context).start()
    return runner

"""The composition root: everything is made and joined here, nothing at import.

A replica serves its two ports from the start, waits for the Lease, and then leads until it ends: by
SIGTERM (exit code 0, the Lease is released) or because the Lease is lost (exit code 1).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_operator import handlers, logs
from finetune_operator.certificates import Certificates
from finetune_operator.cluster import Cluster, connect
from finetune_operator.controller import Controller, now
from finetune_operator.election import Election
from finetune_operator.lease import Fence, LeaseLostError, Moment
from finetune_operator.metrics import Metrics
from finetune_operator.progress_server import ProgressEndpoint, metrics_app, progress_app, serve
from finetune_operator.rounds import Rounds
from finetune_operator.settings import Settings, SettingsError
from finetune_operator.watches import Watches

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0
"""For passes that are under way at SIGTERM."""
CLOSING_SECONDS = 15
STUCK_SECONDS = 60.0
"""A candidate looks at the Lease every second; one that has not for so long is stuck."""


def clock() -> Moment:
    """Now, on both clocks."""
    return Moment(time.monotonic(), time.time())


class Replica:
    """One operator process: a standby, then perhaps the leader."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        election: Election,
        certificates: Certificates,
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.stop = asyncio.Event()
        self.certificates = certificates
        self.metrics = metrics
        self.election = election
        self.controller = Controller(cluster, settings, certificates.ca, self.metrics)
        self.endpoint = ProgressEndpoint(cluster, self.metrics, now)
        self.rounds = Rounds(self.controller)
        self.watches = Watches(
            time.monotonic,
            settings.watch_silence_seconds,
            on_relist=self.rounds.want,
            expected=handlers.KINDS * max(1, len(settings.watch_namespaces)) + 1,
        )
        queue = self.controller.queue
        self.metrics.queue(lambda: queue.ready, lambda: queue.age)
        self.metrics.watch(self.watches.silence)
        self.metrics.hold("queue", lambda: self.controller.queue.held)
        self.metrics.hold("statuses", lambda: len(self.metrics.statuses()))
        self.metrics.hold("ended", lambda: len(self.controller.ended))
        self.metrics.hold("told", lambda: len(self.controller.told))
        self.metrics.hold("tokens", lambda: self.endpoint.callers.held)
        self.metrics.hold("reports", lambda: self.endpoint.intake.held)

    def take_signals(self) -> None:
        """SIGTERM and SIGINT ask to end in order."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop.set)

    def ready(self) -> bool:
        """A standby that could take over is ready: else a rolling update would wait for ever, and
        `helm --wait` too. It takes progress reports, as the leader does."""
        if self.election.fence.leading:
            return self.watches.up
        return self.election.has_seen_a_leader

    def unhealthy(self) -> str | None:
        """Why this process has to be restarted; None: it has not."""
        stuck = self.election.stuck_seconds
        if stuck > STUCK_SECONDS + self.settings.lease_seconds:
            return f"did not look at the Lease for {stuck:.0f} s"
        return self.watches.deaf()

    async def follow_certificates(self) -> None:
        """Serve the certificate as it is, and tell new jobs to trust what signs it, for ever."""

        def changed() -> None:
            self.controller.ca_cert = self.certificates.ca

        await self.certificates.follow(changed)

    async def lead(self) -> None:
        """Wait for the Lease, then run jobs until cancelled; raises `LeaseLostError`."""
        await self.election.acquire()
        self.metrics.lead()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.election.hold())
            tasks.create_task(handlers.work(self.controller, self.rounds))
            tasks.create_task(self._watch())

    async def _watch(self) -> None:
        await self.rounds.tried.wait()  # it has seen what the first lists of the watches tell
        parts = (self.controller, self.rounds, self.watches)
        await handlers.watch(*parts, self.take_signals)

    async def retire(self, leading: asyncio.Task[None]) -> None:
        """End in order: passes first, then the watches, then the Lease. When a write may still be
        under way the Lease is kept: it expires, and only then another one leads."""
        drained = await self.controller.queue.drain(DRAIN_SECONDS)
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        if drained:
            await self.election.release()


async def run(settings: Settings) -> int:
    """Serve until SIGTERM, SIGINT or the loss of the Lease; the exit code."""
    fence = Fence(settings.lease_seconds, clock)
    kubeconfig = os.environ.get("KUBECONFIG")
    metrics = Metrics()
    cluster = await connect(kubeconfig, fence, settings.identity, metrics.asked)
    # Connections of its own: a renewal must not wait behind passes, nor on what they left dead.
    for_lease = await connect(kubeconfig, None, settings.identity, metrics.asked)
    election = Election(for_lease, settings, fence, clock)
    certificates = Certificates(Path(settings.tls_dir))
    replica = Replica(settings, cluster, election, certificates, metrics)
    replica.take_signals()

    address, health = settings.bind_address, (replica.ready, replica.unhealthy)
    pages = metrics_app(replica.metrics, *health)
    reports = progress_app(replica.endpoint)
    servers = [
        await serve(reports, address, settings.progress_port, certificates.context),
        await serve(pages, address, settings.metrics_port),
    ]
    leading = asyncio.create_task(replica.lead())
    following = asyncio.create_task(replica.follow_certificates())
    stopping = asyncio.create_task(replica.stop.wait())
    try:
        await asyncio.wait({leading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if leading.done():
            return _why(leading)
        await servers.pop(0).cleanup()  # reports write, too
        await replica.retire(leading)
        return 0
    finally:
        signal.alarm(CLOSING_SECONDS)  # ends the process, whatever does not let itself be closed
        for task in (leading, stopping, following):
            task.cancel()
        await asyncio.gather(leading, stopping, following, return_exceptions=True)
        for server in servers:
            await server.cleanup()
        await cluster.close()
        await for_lease.close()


def _why(leading: asyncio.Task[Any]) -> int:
    """Log what ended the work; what is expected to happen without a trace of the stack."""
    error = leading.exception()
    expected = (LeaseLostError, handlers.WatchesEndedError)
    if error is not None and all(isinstance(e, expected) for e in _leaves(error)):
        logger.error("this process ends: %s", next(_leaves(error)), extra={"reason": "Ends"})
    else:
        logger.error("this process ends", exc_info=error, extra={"reason": "Ends"})
    return 1


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def spare_the_collector() -> None:
    """Python's collector of cycles takes a tenth of the time where a thousand jobs report, and
    up to a third of a second at once. What was imported stays for good and need not be looked at;
    the rest is looked at less often. Nearly all garbage here is in no cycle."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 50)


def main() -> int:
    """Entry point of `python -m finetune_operator`."""
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as error:
        print(f"finetune-operator: {error}", file=sys.stderr)
        return 2
    logs.configure(settings.log_format)
    spare_the_collector()
    return asyncio.run(run(settings))

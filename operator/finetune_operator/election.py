"""Leader election: takes the Lease, keeps it, lets it go. The rules are in `lease.py`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from finetune_operator import lease
from finetune_operator.cluster import ApiError, Cluster
from finetune_operator.lease import Clock, Fence, LeaseLostError, Seen
from finetune_operator.settings import Settings

logger = logging.getLogger(__name__)

ROUNDS = 5
"""How often a lease is renewed in its duration."""
LOOK_SECONDS = 1.0
"""How often a candidate looks whether the Lease was released, and a leader tries again to renew it
after an attempt that failed."""


class Election:
    """One candidate. `fence` says at any time whether it may write."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        fence: Fence,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.fence = fence
        self._sleep = sleep
        self.round_seconds = settings.lease_seconds / ROUNDS
        self._cluster = cluster
        self._settings = settings
        self._clock = clock
        self._seen: Seen | None = None
        self._last_turn = clock()

    @property
    def stuck_seconds(self) -> float:
        """Seconds since it looked at the Lease, with or without an answer."""
        return self._last_turn.seconds_to(self._clock())

    @property
    def has_seen_a_leader(self) -> bool:
        """Whether the Lease could be read, and is somebody else's."""
        return self._seen is not None and self._seen.holder not in ("", self._settings.identity)

    async def acquire(self) -> None:
        """Returns when the Lease is ours, however long that takes."""
        while not await self._turn():
            pause = lease.seconds_until_free(self._seen, self._settings.identity, self._clock())
            await self._sleep(min(max(pause, 0.1), LOOK_SECONDS))
        logger.info("leads, as %s", self._settings.identity, extra={"reason": "Leads"})

    async def hold(self) -> None:
        """Renews the Lease for ever; raises `LeaseLostError` when it is lost, or cannot be renewed
        before we have to stop writing."""
        renewed = True
        while self.fence.leading:
            pause = self.round_seconds if renewed else LOOK_SECONDS
            await self._sleep(min(pause, self.fence.remaining()))
            renewed = await self._turn()
        raise LeaseLostError("the lease is lost")

    async def release(self) -> None:
        """Let another one lead at once. Only when nothing of ours is under way any more."""
        if not self.fence.leading:
            return
        self.fence.give_up()
        name, namespace = self._settings.lease_name, self._settings.namespace
        try:
            self._seen = await self._read()
            if self._seen is None or self._seen.holder != self._settings.identity:
                return
            body = lease.released(name, namespace, self._seen, self._clock().wall)
            await self._cluster.lease("PUT", namespace, name, body, self.round_seconds)
            logger.info("the lease is released", extra={"reason": "LeaseReleased"})
        except ApiError as error:  # it expires by itself
            text = "the lease was not released: %s"
            logger.warning(text, error, extra={"reason": "LeaseKept"})

    async def _turn(self) -> bool:
        """Look at the Lease and take or renew it; says whether it is ours now."""
        self._last_turn = self._clock()
        try:
            return await self._look_and_take()
        except ApiError as error:
            # 409: another one was faster, or our own last write was taken and its answer lost.
            level = logging.DEBUG if error.code == 409 else logging.WARNING
            text = "the lease was not taken or renewed: %s"
            logger.log(level, text, error, extra={"reason": "LeaseFailed"})
            return False

    async def _look_and_take(self) -> bool:
        name, namespace = self._settings.lease_name, self._settings.namespace
        identity, seconds = self._settings.identity, self._settings.lease_seconds
        self._seen = await self._read()
        sent = self._clock()
        if lease.seconds_until_free(self._seen, identity, sent) > 0:
            if self.fence.leading:
                self.fence.give_up()  # somebody else has it: it cannot be ours
            return False
        if self.fence.lost:
            return False  # a process that has lost it never leads again: it ends
        wanted = lease.lease(name, namespace, identity, seconds, self._seen, sent.wall)
        verb, target = ("POST", None) if self._seen is None else ("PUT", name)
        taken = await self._cluster.lease(verb, namespace, target, wanted, self.round_seconds)
        self._seen = lease.see(taken, self._seen, self._clock())
        self.fence.renewed(sent)
        return True

    async def _read(self) -> Seen | None:
        name, namespace = self._settings.lease_name, self._settings.namespace
        try:
            body = await self._cluster.lease("GET", namespace, name, None, self.round_seconds)
        except ApiError as error:
            if error.code == 404:
                return None
            raise
        return lease.see(body, self._seen, self._clock())

"""Who reports: tokens, the pods they belong to, and how much one of them may ask for.

What asks the API server something is bounded here: a token is reviewed once in five minutes, a pod
looked up once for its job, and who presents invalid tokens soon waits.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from finetune_api import progress as wire
from finetune_operator import names
from finetune_operator.cluster import Caller, Cluster
from finetune_operator.progress import Rejected
from finetune_operator.rate import Bucket, Buckets, Rate

TOKEN_SECONDS = 300.0
"""For which the API server's word on a token is believed; at most until the token expires."""
INVALID_SECONDS = 60.0
"""For which a token that was not valid is refused without asking again."""
MOST = 10_000
"""Tokens, pods and addresses that are remembered."""
REPORTS = Rate(burst=10, per_second=1)
"""Of one pod. A trainer sends one in two seconds at most, Hugging Face's callback one in five."""
INVALID = Rate(burst=10, per_second=0.2)
"""Tokens from one address that the API server does not know."""
REVIEWS = Rate(burst=2000, per_second=100)
"""Questions to the API server about tokens: all pods of thousands of jobs at once, after a start
of the operator, and not a flood of forged ones."""

NOT_VALID = Rejected(401, "the token is not valid for this job, or not any more")
NOT_OURS = Rejected(403, "the token does not belong to a training pod of this job")


@dataclass(frozen=True, slots=True)
class Sender:
    """A training pod that may report."""

    pod_uid: str
    job_uid: str
    attempt: int


@dataclass(frozen=True, slots=True)
class _Known:
    until: float
    caller: Caller | None


class Callers:
    """What is known of tokens and pods."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float], wall: Callable[[], float]):
        """`clock` for pauses, `wall` (seconds since the epoch) for the expiry of tokens."""
        self._cluster, self._clock, self._wall = cluster, clock, wall
        self._tokens: OrderedDict[str, _Known] = OrderedDict()
        self._senders: OrderedDict[str, Sender] = OrderedDict()
        self._reports = Buckets(REPORTS, MOST)
        self._invalid = Buckets(INVALID, MOST)
        self._reviews = Bucket(REVIEWS, clock())
        self._locks: dict[str, asyncio.Lock] = {}

    @property
    def held(self) -> int:
        """Tokens in memory."""
        return len(self._tokens)

    async def identify(
        self, authorization: str, address: str, key: tuple[str, str]
    ) -> Caller | Rejected:
        """Whose token it is, once it is known to be for this job and its pod may report now."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token or not token.isascii():
            return Rejected(401, "a bearer token is needed")
        caller = await self._review(token, wire.audience(*key), address)
        if isinstance(caller, Rejected):
            return caller
        if caller.namespace != key[0] or caller.pod is None or caller.pod_uid is None:
            return NOT_OURS
        wait = self._reports.of(caller.pod_uid, self._clock()).take(self._clock())
        if wait > 0:
            return Rejected(429, "this pod reports too often", wait)
        return caller

    async def sender(self, caller: Caller, key: tuple[str, str], job_uid: str) -> Sender | Rejected:
        """The training pod that the caller is, if it is one of this very job."""
        known = self._senders.get(caller.pod_uid or "")
        if known is not None and known.job_uid == job_uid:
            return known
        pod = await self._cluster.pod(key[0], caller.pod or "")
        if pod is None or pod["metadata"]["uid"] != caller.pod_uid:
            return NOT_OURS
        labels = pod["metadata"].get("labels") or {}
        if labels.get(names.LABEL_JOB) != key[1] or labels.get(names.LABEL_STAGE) != "train":
            return NOT_OURS
        if not await self._cluster.owns(key[0], pod, job_uid):
            return NOT_OURS
        attempt = labels.get(names.LABEL_ATTEMPT, "")
        if not attempt.isdecimal():
            return NOT_OURS
        found = Sender(pod["metadata"]["uid"], job_uid, int(attempt))
        self._senders[found.pod_uid] = found
        if len(self._senders) > MOST:
            self._senders.popitem(last=False)
        return found

    async def _review(self, token: str, audience: str, address: str) -> Caller | Rejected:
        digest = hashlib.sha256(f"{audience}\0{token}".encode()).hexdigest()
        known = self._tokens.get(digest)
        if known is not None and self._clock() < known.until:
            return known.caller or NOT_VALID
        lock = self._locks.setdefault(digest, asyncio.Lock())
        try:
            async with lock:  # many at once with one token ask once
                return await self._known(digest, token, audience, address)
        finally:
            if not lock.locked():
                self._locks.pop(digest, None)

    async def _known(
        self, digest: str, token: str, audience: str, address: str
    ) -> Caller | Rejected:
        now = self._clock()
        known = self._tokens.get(digest)
        if known is None or known.until <= now:
            bad = self._invalid.of(address, now)
            wait = bad.wait(now)
            if wait > 0:
                return Rejected(429, "too many invalid tokens from this address", wait)
            wait = self._reviews.take(now)
            if wait > 0:
                return Rejected(503, "too many tokens are being reviewed; report again", wait)
            caller = await self._cluster.review_token(token, audience)
            if caller is None:
                bad.take(now)
            known = _Known(now + self._believed(token, caller), caller)
            self._tokens[digest] = known
            if len(self._tokens) > MOST:
                self._tokens.popitem(last=False)
        return known.caller or NOT_VALID

    def _believed(self, token: str, caller: Caller | None) -> float:
        if caller is None:
            return INVALID_SECONDS
        expires = expiry(token)
        return TOKEN_SECONDS if expires is None else min(TOKEN_SECONDS, expires - self._wall())


def expiry(token: str) -> float | None:
    """When a token that the API server has found valid expires, in seconds since the epoch: it has
    checked the signature, so the claim can be read as it stands. None: it names none."""
    try:
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return float(claims["exp"])
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
        return None

"""Takes reports in: what a job has told is kept in memory, and written now and then.

A job may report every few seconds, and be one of thousands. So a report that changes nothing but
numbers costs no request: it is merged with what is known here, which `/metrics` shows at once, and
written with the next one after 30 seconds, when among all jobs it is its turn. A transition (see
`progress.worth`) is written at once, while there are not too many of them.

Every write names the version of the job that it was made for, so whichever replica took the report,
and whatever the leader writes meanwhile, nothing is overwritten unseen. What is only in memory when
a process ends comes again with the next report; the last one is in the termination message too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from finetune_api.progress import TrainerStatus
from finetune_api.status import TERMINAL_PHASES, FineTuneJobStatus, Progress
from finetune_operator.callers import Callers
from finetune_operator.cluster import ApiError, Caller, Cluster
from finetune_operator.metrics import Metrics
from finetune_operator.progress import NUMBERS, Rejected, Worth, merge, newer, worth
from finetune_operator.rate import Bucket, Rate
from finetune_operator.reconcile import parse_job
from finetune_operator.usage import report_part, reported

Key = tuple[str, str]

CONFLICTS = 5
"""How often a report is merged anew because the job has changed in between."""
TRANSITIONS = Rate(burst=8, per_second=1 / 10)
"""Writes of one job beside those of every 30 seconds. A job that changes its activity more often (a
checkpoint after every step) is written later, and with all that came until then."""
MOST = 10_000
"""Jobs in memory."""
IDLE_SECONDS = 300.0
"""After which a job that does not report is forgotten: what it told last has been written, or comes
with its termination message."""
OVER = Rejected(409, "this attempt is over")


@dataclass(slots=True)
class _Job:
    """What is known of a job that reports."""

    uid: str
    status: FineTuneJobStatus
    """As it was written last."""
    version: int
    known: Progress | None
    """With what came since."""
    transitions: Bucket
    used: float
    """When it last reported, by the clock for pauses."""


class Intake:
    """Merges and writes what jobs report."""

    def __init__(
        self,
        cluster: Cluster,
        callers: Callers,
        metrics: Metrics,
        now: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        self._cluster, self._callers, self._metrics = cluster, callers, metrics
        self._now, self._clock = now, clock
        self._jobs: OrderedDict[Key, _Job] = OrderedDict()
        self._numbers = Bucket(NUMBERS, clock())

    @property
    def held(self) -> int:
        """Jobs in memory."""
        self._tidy()
        return len(self._jobs)

    async def take(self, caller: Caller, key: Key, report: TrainerStatus) -> Rejected | None:
        """One report; None: it was taken."""
        for _ in range(CONFLICTS):
            job = self._jobs.get(key) or await self._read(key)
            if job is None:
                return Rejected(404, f"there is no FineTuneJob {key[0]}/{key[1]}")
            answer = await self._merge(caller, key, job, report)
            if answer != "changed":
                return answer
            await self._read(key)
        return Rejected(503, "the job changes too often; report again", 1)

    async def _merge(
        self, caller: Caller, key: Key, job: _Job, report: TrainerStatus
    ) -> Rejected | Literal["changed"] | None:
        """`changed`: the job is not what it was; nothing was taken."""
        sender = await self._callers.sender(caller, key, job.uid)
        if isinstance(sender, Rejected):
            # Perhaps the one in memory is gone, and this is of another job under its name.
            fresh = await self._read(key)
            return sender if fresh is not None and fresh.uid == job.uid else "changed"
        if not self._catch_up(key, job):
            return "changed"
        if job.status.phase in TERMINAL_PHASES or sender.attempt < (job.status.attempt or 0):
            return OVER
        new = merge(job.known, report, sender.attempt, self._now())
        if isinstance(new, Rejected):
            return new
        value = worth(job.status.progress, new, len(self._jobs))
        if self._is_due(job, value):
            if not await self._write(key, job, new):
                return "changed"
            if value == "Transition":
                job.transitions.take(self._clock())
        job.known, job.used = new, self._clock()
        self._jobs[key] = self._jobs.pop(key, job)
        self._tidy()
        if self._metrics.leads:
            self._metrics.report(key, new)
        return None

    def _is_due(self, job: _Job, value: Worth) -> bool:
        if value == "Transition":
            return job.transitions.wait(self._clock()) == 0
        if value == "Numbers":
            return self._numbers.take(self._clock()) == 0
        return value == "Overdue"

    def _tidy(self) -> None:
        """Forget who does not report any more."""
        while self._jobs:
            key, job = next(iter(self._jobs.items()))
            if len(self._jobs) <= MOST and self._clock() - job.used < IDLE_SECONDS:
                return
            del self._jobs[key]

    async def _write(self, key: Key, job: _Job, new: Progress) -> bool:
        """False: the job has changed since, or is gone."""
        try:
            after = reported(job.status, new)
            part = report_part(after)
            version = await self._cluster.report_progress(*key, part, job.version, job.uid)
        except ApiError as error:
            if error.code not in (404, 409):
                raise
            return False
        # Nothing else can have changed: the version was the one that is known here.
        job.status, job.version = after, version
        if self._metrics.leads:
            self._metrics.see(key, after, version)
        return True

    async def _read(self, key: Key) -> _Job | None:
        """As the API server has it; what is known here and not written yet is kept."""
        body = await self._cluster.job(*key)
        before = self._jobs.pop(key, None)
        if body is None:
            return None
        read = parse_job(body)
        same = before is not None and before.uid == read.uid
        job = _Job(
            uid=read.uid,
            status=read.status,
            version=read.version,
            known=newer(before.known if before and same else None, read.status.progress),
            transitions=before.transitions
            if before and same
            else Bucket(TRANSITIONS, self._clock()),
            used=self._clock(),
        )
        self._jobs[key] = job
        return job

    def _catch_up(self, key: Key, job: _Job) -> bool:
        """The leader has seen what its passes have read and written since. False: it is another
        job, made anew under the name."""
        found = self._metrics.seen(key) if self._metrics.leads else None
        if found is None or found[1] <= job.version:
            return True
        if found[0].start_time != job.status.start_time:
            return False
        job.status, job.version = found
        job.known = newer(job.known, job.status.progress)
        return True

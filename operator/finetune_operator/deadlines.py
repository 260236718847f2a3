"""How long a job may take, and its workers to start. A suspended job's clock stands still."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.lifecycle import TtlSecondsAfterFinished
from finetune_api.snapshot import Refused
from finetune_api.status import FineTuneJobStatus, LastFailure
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_operator.observe import StageFacts, seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a person may change while a job is under way, as it stands in the spec now."""

    suspend: bool = False
    active_deadline_seconds: int | None = None
    startup_deadline_seconds: int | None = None
    num_nodes: int | None = None
    """Of the next attempt; None: as it is."""
    ttl: TtlSecondsAfterFinished | None = None

    @classmethod
    def of(cls, spec: FineTuneJobSpec | Refused) -> Wishes:
        """From the live spec; one that cannot be read wishes nothing."""
        if isinstance(spec, Refused):
            return cls()
        return cls(
            suspend=spec.suspend,
            active_deadline_seconds=spec.active_deadline_seconds,
            startup_deadline_seconds=spec.startup_deadline_seconds,
            num_nodes=spec.workers.num_nodes,
            ttl=spec.ttl_seconds_after_finished,
        )


@dataclass(frozen=True, slots=True)
class Due:
    """A deadline: when (seconds since the epoch), and what is said when it has passed."""

    at: float
    message: str


def job_due(status: FineTuneJobStatus, wishes: Wishes) -> Due | None:
    """The deadline of the whole job; None: it has none, or has not started."""
    limit = wishes.active_deadline_seconds
    if limit is None or status.start_time is None or status.suspend_time is not None:
        return None
    at = seconds(status.start_time) + (status.suspended_seconds or 0) + limit
    return Due(at, f"the job was active for {limit} s (spec.activeDeadlineSeconds)")


def startup_due(train: StageFacts, wishes: Wishes, why: str) -> Due | None:
    """The deadline of an attempt whose workers do not all run yet.

    Args:
        why: What they wait for.
    """
    limit = wishes.startup_deadline_seconds
    if limit is None or train.start_time is None:
        return None
    said = f"the workers did not all start within {limit} s (spec.startupDeadlineSeconds)"
    return Due(seconds(train.start_time) + limit, f"{said}: {why}" if why else said)


def ttl_due(status: FineTuneJobStatus, wishes: Wishes) -> Due | None:
    """When a finished job is deleted; None: it is kept, or has not finished."""
    ttl, ended = wishes.ttl, status.completion_time
    if ttl is None or ended is None:
        return None
    limit, how = (
        (ttl.failed, "failed") if status.phase == "Failed" else (ttl.succeeded, "succeeded")
    )
    if limit is None:
        return None
    kept = f"; {status.output.uri} stays" if status.output is not None else ""
    said = f"it {how} at {ended}, and spec.ttlSecondsAfterFinished.{how} is {limit}{kept}"
    return Due(seconds(ended) + limit, said)


def failure(due: Due, stage: StageFacts | None, now: str) -> LastFailure:
    """What the status says of a deadline that has passed."""
    return LastFailure(
        failure_class="DeadlineExceeded",
        stage=stage.stage if stage else None,
        message=due.message,
        time=now,
    )

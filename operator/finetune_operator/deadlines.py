"""How long a job may take, and its workers to start. A suspended job's clock stands still."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.defaults import with_taken
from finetune_api.lifecycle import TtlSecondsAfterFinished
from finetune_api.names import work_claim
from finetune_api.outcome import FailureClass
from finetune_api.snapshot import Refused
from finetune_api.status import FineTuneJobStatus, LastFailure, Resolved
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_operator.allowance import Allowance, used_up
from finetune_operator.observe import StageFacts, seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a person may change while a job is under way, as it stands in the spec now (with the
    defaults that the job took from its profile), and what the profile sets for it."""

    suspend: bool = False
    active_deadline_seconds: int | None = None
    startup_deadline_seconds: int | None = None
    num_nodes: int | None = None
    """Of the next attempt; None: as it is."""
    ttl: TtlSecondsAfterFinished | None = None
    allowance: Allowance | None = None
    """What the profile lets the job use; None: it has not started, or is over."""

    @classmethod
    def of(
        cls,
        spec: FineTuneJobSpec | Refused,
        taken: Mapping[str, str],
        allowance: Allowance | None = None,
    ) -> Wishes:
        """From the live spec; one that cannot be read wishes nothing.

        Args:
            taken: Defaults of the profile, as in `status.resolved.defaults`.
        """
        if isinstance(spec, Refused):
            return cls(allowance=allowance)
        spec = with_taken(spec, taken)
        return cls(
            allowance=allowance,
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
    failure_class: FailureClass = "DeadlineExceeded"


def job_due(status: FineTuneJobStatus, wishes: Wishes) -> Due | None:
    """The deadline of the whole job; None: it has none, or has not started."""
    limit, field = _longest(wishes)
    if limit is None or status.start_time is None or status.suspend_time is not None:
        return None
    at = seconds(status.start_time) + (status.suspended_seconds or 0) + limit
    return Due(at, f"the job was active for {limit} s ({field})")


def _longest(wishes: Wishes) -> tuple[int | None, str]:
    """How long a job may be active, and which field says so."""
    wish, allowed = wishes.active_deadline_seconds, wishes.allowance
    cap = allowed.limits.max_duration_seconds if allowed is not None else None
    if allowed is None or cap is None or (wish is not None and wish <= cap):
        return wish, "spec.activeDeadlineSeconds"
    return cap, f"limits.maxDurationSeconds of profile '{allowed.profile_name}'"


def allowance_dues(status: FineTuneJobStatus, wishes: Wishes) -> list[Due]:
    """When the job has used up what its profile lets it use."""
    found = used_up(status.usage, wishes.allowance)
    return [Due(at, message, "AllowanceUsedUp") for at, message in found]


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


def ttl_due(name: str, status: FineTuneJobStatus, wishes: Wishes) -> Due | None:
    """When a finished job is deleted; None: it is kept, or has not finished. One whose result lies
    in its own claim is kept: that would go with it."""
    ended = status.completion_time
    own = f"pvc://{work_claim(name)}/"
    if ended is None or (status.output is not None and status.output.uri.startswith(own)):
        return None
    how = "failed" if status.phase == "Failed" else "succeeded"
    resolved = status.resolved or Resolved()
    wish: int | None = getattr(wishes.ttl, how, None)
    most: int | None = getattr(resolved.retention, how, None)
    if most is not None and (wish is None or most < wish):
        limit, why = most, f"profile '{resolved.profile}' keeps it for {most} s (retention.{how})"
    elif wish is not None:
        limit, why = wish, f"spec.ttlSecondsAfterFinished.{how} is {wish}"
    else:
        return None
    kept = f"; {status.output.uri} stays" if status.output is not None else ""
    return Due(seconds(ended) + limit, f"it {how} at {ended}, and {why}{kept}")


def failure(due: Due, stage: StageFacts | None, now: str) -> LastFailure:
    """What the status says of a deadline that has passed."""
    return LastFailure(
        failure_class=due.failure_class,
        stage=stage.stage if stage else None,
        message=due.message,
        time=now,
    )

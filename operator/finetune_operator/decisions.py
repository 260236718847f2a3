"""What a pass can decide to do with a job, and what it has proven on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_api.outcome import ExportFacts, FetchFacts, PrepareFacts, TrainFacts
from finetune_api.snapshot import Refused
from finetune_api.status import LastFailure, Restarts
from finetune_operator.observe import StageFacts

SUSPENDED = "suspended; set spec.suspend to false to go on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Not startable: says why, and looks again when something changes."""

    refused: Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """Say that the job has started, which fixes its spec; make nothing before that is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Make the objects of a stage that is not there yet."""

    stage: Literal["prepare", "train", "export"]
    attempt: int = 0
    restarts: Restarts | None = None
    """Where they have changed."""
    late: StageFacts | None = None
    """An attempt before it that was stopped while its workers were still being started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """A stage is under way."""

    facts: StageFacts
    running: bool
    """All its pods run."""
    why: str
    """What is going on, or what it waits for, in a sentence."""
    reason: str = "Starting"
    """What it waits for, in a word; see `waiting`."""
    late: StageFacts | None = None
    """The attempt, if its workers are still being started: it has a deadline for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Suspended, or on the way there."""

    stop: StageFacts | None
    """A stage that has to be told."""
    why: str
    refused: Refused | None = None
    """Why it cannot go on at the size that it is to have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Let a stage go on that was told to stop."""

    stage: StageFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew:
    """Stop an attempt that has not begun, for one that may use more nodes; counts as nothing."""

    stop: StageFacts
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeed:
    """Everything is done and proven."""

    facts: ExportFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """The job is over."""

    failure: LastFailure
    restarts: Restarts | None = None
    """Where they have changed."""
    stop: StageFacts | None = None
    """A stage that still runs."""
    refused: Refused | None = None
    """Why it may not even start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """An attempt has failed, and the next one is to come."""

    attempt: int
    """The one that failed."""
    failure: LastFailure
    restarts: Restarts
    at: float
    """When the next may start, in seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the stages left, as far as it is still to be seen."""

    prepare: PrepareFacts | None = None
    fetched: FetchFacts | None = None
    """In place of `prepare`, where the job brings its own trainer ..."""
    train: TrainFacts | None = None
    ran: bool = False
    """... and in place of `train`: every pod of it has ended without an error."""


Decision = Wait | Begin | Start | Watch | Hold | Resume | Restart | Renew | Succeed | Fail


def refusal(refused: Refused, now: str) -> Wait | Fail:
    """A job that its profile does not take waits for another profile, or fails."""
    if not refused.final:
        return Wait(refused=refused)
    failure = LastFailure(failure_class="Configuration", message=refused.message, time=now)
    return Fail(failure=failure, refused=refused)

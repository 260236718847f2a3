"""What a scrape tells of one job: pure functions over its status, one for each metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from finetune_api.status import TERMINAL_PHASES, FineTuneJobStatus, Progress
from finetune_api.usage import Badput, Usage
from finetune_operator.conditions import condition
from finetune_operator.observe import seconds

Values = Iterable[tuple[tuple[str, ...], float]]
"""Values of further labels, each with a number."""

WAITING_REASONS = (
    "Starting",
    "Unschedulable",
    "QuotaExceeded",
    "PodsRefused",
    "ImagePull",
    "Volume",
    "Restarting",
    "Stopping",
    "InvalidSpec",
    "ProfileNotFound",
    "NoDefaultProfile",
    "AmbiguousProfile",
    "ExceedsProfile",
    "InvalidBatchSize",
    "NameTaken",
    "ObjectRefused",
)
"""Of the condition `Waiting`; every other one is `Other`: the words of a scheduler have no end."""
BADPUT_REASONS: tuple[str, ...] = tuple(Badput.model_fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One job, as a scrape sees it."""

    namespace: str
    name: str
    status: FineTuneJobStatus
    usage: Usage | None
    """The account until the scrape."""
    now: float
    """Of the scrape, in seconds since the epoch."""

    @property
    def trains(self) -> bool:
        """What a finished job reported last is in its status, and in no metric."""
        return self.status.phase in ("Starting", "Running")

    @property
    def over(self) -> bool:
        """Whether it is final."""
        return self.status.phase in TERMINAL_PHASES

    def since(self, moment: str) -> float:
        """Seconds since then."""
        return max(0.0, self.now - seconds(moment))


def progress(field: str) -> Callable[[Seen], Values]:
    def found(job: Seen) -> Values:
        progress: Progress | None = job.status.progress
        value = getattr(progress, field) if progress is not None and job.trains else None
        return [] if value is None else [((), float(value))]

    return found


def since_report(job: Seen) -> Values:
    progress = job.status.progress
    running = job.status.phase == "Running" and progress is not None
    return [((), job.since(progress.last_update_time))] if running and progress else []


def checkpoint_age(job: Seen) -> Values:
    if job.status.phase != "Running" or job.status.phase_time is None:
        return []
    progress = job.status.progress
    known = progress.checkpoint_time if progress and progress.checkpoint_time else None
    return [((), job.since(max(known or job.status.phase_time, job.status.phase_time)))]


def waiting(job: Seen) -> Values:
    found = condition(job.status, "Waiting")
    if found is None or found.status != "True" or job.over or found.reason == "Suspended":
        return []
    reason = found.reason if found.reason in WAITING_REASONS else "Other"
    return [((reason,), job.since(found.last_transition_time))]


def restarts(job: Seen) -> Values:
    found = job.status.restarts
    counts = (found.counted, found.disruptions) if found else (0, 0)
    return [(("Platform",), counts[0]), (("Disruption",), counts[1])]


def restarts_left(job: Seen) -> Values:
    most = job.status.resolved.max_restarts if job.status.resolved else None
    if most is None or job.over:
        return []
    return [((), max(0, most - (job.status.restarts.counted if job.status.restarts else 0)))]


def used(number: Callable[[Usage], float]) -> Callable[[Seen], Values]:
    def found(job: Seen) -> Values:
        return [] if job.usage is None else [((job.usage.unit,), number(job.usage))]

    return found


def badput(job: Seen) -> Values:
    if job.usage is None:
        return []
    lost = job.usage.badput
    return [((job.usage.unit, reason), getattr(lost, reason)) for reason in BADPUT_REASONS]


def goodput(job: Seen) -> Values:
    usage = job.usage
    if usage is None or usage.held_seconds == 0:
        return []
    return [((), 1 - usage.badput.total / usage.held_seconds)]


def cost(amount: Callable[[Usage], str | None]) -> Callable[[Seen], Values]:
    def found(job: Seen) -> Values:
        usage = job.usage
        if usage is None or usage.price is None:
            return []
        return [((usage.price.currency,), float(amount(usage) or 0))]

    return found


def finished(job: Seen) -> Values:
    status = job.status
    if not job.over or status.completion_time is None:
        return []
    failure = status.last_failure.failure_class if status.last_failure else "Internal"
    outcome = "Succeeded" if status.phase == "Succeeded" else failure
    return [((outcome,), seconds(status.completion_time))]


def is_held(usage: Usage) -> float:
    return usage.holding

"""Metric families over the statuses of all jobs: pure functions, also of an operator that has just
started. The families of single jobs: `job_metrics`."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from prometheus_client.core import (
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    Metric,
)

from finetune_api.status import PHASES, FineTuneJobStatus
from finetune_operator.job_values import Seen
from finetune_operator.usage import advance

Key = tuple[str, str]
JOBS = ("finetune_jobs", "Jobs that exist, by namespace, profile and phase.")
PHASE_SECONDS = (
    "finetune_job_phase_seconds",
    "Seconds that jobs which exist have spent in a phase, when they had left it.",
)
QUEUE_WAIT = (
    "finetune_job_queue_wait_seconds",
    "Seconds that jobs which exist have waited until all their workers had a node.",
)
BUCKETS = (10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600, 86_400, 604_800)
"""Seconds."""
NO_PROFILE = "none"
"""The profile of a job that has not started."""


def seen(statuses: Mapping[Key, FineTuneJobStatus], now: float) -> list[Seen]:
    """The jobs, as a scrape sees them.

    Args:
        now: Seconds since the epoch.
    """
    moment = datetime.fromtimestamp(now, UTC).isoformat()
    return [
        Seen(
            namespace=namespace,
            name=name,
            status=status,
            usage=status.usage and advance(status.usage, status.progress, status.progress, moment),
            now=now,
        )
        for (namespace, name), status in sorted(statuses.items())
    ]


def aggregates(jobs: Sequence[Seen]) -> list[Metric]:
    """What is told of all jobs together."""
    return [_counts(jobs), _phase_seconds(jobs), _queue_wait(jobs)]


def _profile(job: Seen) -> str:
    resolved = job.status.resolved
    return resolved.profile if resolved and resolved.profile else NO_PROFILE


def _counts(jobs: Sequence[Seen]) -> Metric:
    found = GaugeMetricFamily(*JOBS, labels=["namespace", "profile", "phase"])
    counts = Count((j.namespace, _profile(j), j.status.phase or "Pending") for j in jobs)
    for namespace, profile in sorted({(j.namespace, _profile(j)) for j in jobs}):
        for phase in PHASES:
            found.add_metric([namespace, profile, phase], counts[(namespace, profile, phase)])
    return found


def _phase_seconds(jobs: Sequence[Seen]) -> Metric:
    found = GaugeHistogramMetricFamily(*PHASE_SECONDS, labels=["phase"])
    for phase in PHASES:
        spent = [j.status.phase_seconds[phase] for j in jobs if phase in j.status.phase_seconds]
        if spent:
            found.add_metric([phase], _buckets(spent), sum(spent))
    return found


def _queue_wait(jobs: Sequence[Seen]) -> Metric:
    found = GaugeHistogramMetricFamily(*QUEUE_WAIT, labels=["profile"])
    waited: dict[str, list[int]] = {}
    for job in jobs:
        if job.usage is not None and job.usage.held_seconds:
            waited.setdefault(_profile(job), []).append(job.usage.queue_seconds)
    for profile, spent in sorted(waited.items()):
        found.add_metric([profile], _buckets(spent), sum(spent))
    return found


def _buckets(spent: Iterable[int]) -> list[tuple[str, float]]:
    values = list(spent)
    counted = [(str(float(le)), float(sum(v <= le for v in values))) for le in BUCKETS]
    return [*counted, ("+Inf", float(len(values)))]

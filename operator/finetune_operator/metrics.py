"""Metrics are a projection of the current statuses: a series goes with its job."""

from __future__ import annotations

import time
from collections import Counter as Count
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily

from finetune_api.status import PHASES, FineTuneJobStatus, Progress
from finetune_operator.observe import seconds

Key = tuple[str, str]

JOB_GAUGES: dict[str, tuple[str, str]] = {
    "step": ("finetune_job_step", "Optimizer steps done."),
    "total_steps": ("finetune_job_total_steps", "Optimizer steps in all."),
    "percent": ("finetune_job_progress_percent", "Steps done, in percent."),
    "eta_seconds": ("finetune_job_eta_seconds", "Estimated seconds until training ends."),
    "loss": ("finetune_job_loss", "Training loss of the last logged step."),
    "eval_loss": ("finetune_job_eval_loss", "Last loss on the held-out part."),
    "learning_rate": ("finetune_job_learning_rate", "Learning rate of the last logged step."),
    "grad_norm": ("finetune_job_grad_norm", "Global gradient norm before clipping."),
    "tokens_per_second": (
        "finetune_job_tokens_per_second",
        "Tokens trained on per second, over all workers.",
    ),
}
"""Fields of `status.progress` that are shown for every running job."""

METRIC_NAMES: tuple[str, ...] = (
    "finetune_jobs",
    *(name for name, _ in JOB_GAUGES.values()),
    "finetune_job_seconds_since_report",
    "finetune_reconcile_seconds",
    "finetune_reconcile_errors_total",
    "finetune_progress_reports_total",
    "finetune_operator_leader",
    "finetune_operator_held",
)


class Metrics:
    """What `/metrics` shows; also the memory of the statuses that were seen last."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since the epoch."""
        self.registry = CollectorRegistry()
        self._statuses: dict[Key, FineTuneJobStatus] = {}
        self._versions: dict[Key, int] = {}
        self._reported: dict[Key, Progress] = {}
        self.reconcile_seconds = Histogram(
            "finetune_reconcile_seconds",
            "Duration of one pass over one job.",
            registry=self.registry,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self.reconcile_errors = Counter(
            "finetune_reconcile_errors",
            "Passes that failed and are tried again.",
            registry=self.registry,
        )
        self.progress_reports = Counter(
            "finetune_progress_reports",
            "Progress reports by HTTP status.",
            ["code"],
            registry=self.registry,
        )
        self.leads = False
        self._leader = Gauge(
            "finetune_operator_leader",
            "1 on the replica that leads.",
            registry=self.registry,
        )
        self._held = Gauge(
            "finetune_operator_held",
            "Entries that the operator holds in memory.",
            ["what"],
            registry=self.registry,
        )
        self.registry.register(_Statuses(self.shown, clock))

    def lead(self) -> None:
        """From now on this replica shows the jobs; what a standby knows is soon out of date."""
        self.leads = True
        self._leader.set(1)

    def hold(self, what: str, count: Callable[[], int]) -> None:
        """Show at each scrape how many entries there are of something."""
        self._held.labels(what).set_function(count)

    def see(self, key: Key, status: FineTuneJobStatus, version: int) -> None:
        """This was the job's status at a resource version. Passes and progress reports both tell,
        and their answers may cross: what is older than what is known changes nothing."""
        if version >= self._versions.get(key, 0):
            self._statuses[key], self._versions[key] = status, version

    def seen(self, key: Key) -> tuple[FineTuneJobStatus, int] | None:
        """The status that was seen last, and its resource version."""
        status = self._statuses.get(key)
        return None if status is None else (status, self._versions[key])

    def report(self, key: Key, progress: Progress) -> None:
        """The job has told this; its status has it a little later, or never if it is overtaken."""
        if key in self._statuses:
            self._reported[key] = progress

    def shown(self) -> Mapping[Key, FineTuneJobStatus]:
        """The statuses seen last, with what was reported since."""
        found = dict(self._statuses)
        for key, progress in self._reported.items():
            before = found[key].progress
            if before is None or _age(before) < _age(progress):
                found[key] = found[key].model_copy(update={"progress": progress})
        return found

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self._statuses.pop(key, None)
        self._versions.pop(key, None)
        self._reported.pop(key, None)

    def keep_only(self, keys: Iterable[Key]) -> None:
        """Forget every other job."""
        for key in set(self._statuses) - set(keys):
            self.forget(key)

    def statuses(self) -> Mapping[Key, FineTuneJobStatus]:
        """The statuses seen last."""
        return dict(self._statuses)


def _age(progress: Progress) -> tuple[int, float]:
    return progress.attempt, seconds(progress.last_update_time)


class _Statuses:
    """A collector over the statuses, evaluated at each scrape."""

    def __init__(
        self,
        statuses: Callable[[], Mapping[Key, FineTuneJobStatus]],
        clock: Callable[[], float],
    ) -> None:
        self._statuses, self._clock = statuses, clock

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return families(self._statuses(), self._clock())


def families(statuses: Mapping[Key, FineTuneJobStatus], now: float) -> list[GaugeMetricFamily]:
    """Metric families of these statuses: a pure function, also of an operator that just started.

    Args:
        now: Seconds since the epoch.
    """
    jobs = GaugeMetricFamily(
        "finetune_jobs", "Jobs by namespace and phase.", labels=["namespace", "phase"]
    )
    counts = Count((ns, status.phase or "Pending") for (ns, _), status in statuses.items())
    for namespace in sorted({ns for ns, _ in statuses}):
        for phase in PHASES:
            jobs.add_metric([namespace, phase], counts[(namespace, phase)])
    found = [jobs]
    for field, (name, text) in JOB_GAUGES.items():
        family = GaugeMetricFamily(name, text, labels=["namespace", "job"])
        for (namespace, job), status in sorted(statuses.items()):
            value = _value(status, field)
            if value is not None:
                family.add_metric([namespace, job], value)
        found.append(family)
    return [*found, _since_report(statuses, now)]


def _since_report(statuses: Mapping[Key, FineTuneJobStatus], now: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "finetune_job_seconds_since_report",
        "Seconds since the last report that was written; one a minute where all is well.",
        labels=["namespace", "job"],
    )
    for (namespace, job), status in sorted(statuses.items()):
        progress = status.progress
        if status.phase == "Running" and progress is not None:
            value = max(0.0, now - seconds(progress.last_update_time))
            family.add_metric([namespace, job], value)
    return family


def _value(status: FineTuneJobStatus, field: str) -> float | None:
    """Of running jobs only: what a finished job reported last is in its status."""
    progress: Progress | None = status.progress
    if status.phase not in ("Starting", "Running") or progress is None:
        return None
    value: float | None = getattr(progress, field)
    return value

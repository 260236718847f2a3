"""Metrics are a projection of the current statuses: a series goes with its job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from finetune_api.status import FineTuneJobStatus, Progress
from finetune_operator.exposition import exposition
from finetune_operator.families import seen
from finetune_operator.observe import seconds

Key = tuple[str, str]

RECONCILE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


@dataclass(frozen=True, slots=True)
class OwnMetric:
    """One family about the operator itself."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = ()
    values: str = ""
    """Of the label, for people."""


OWN_METRICS = (
    OwnMetric("finetune_reconcile_seconds", "histogram", "Duration of one pass over one job."),
    OwnMetric("finetune_reconcile_errors", "counter", "Passes that failed and are tried again."),
    OwnMetric(
        "finetune_progress_reports",
        "counter",
        "Progress reports by HTTP status.",
        ("code",),
        "200, 401, 403, 404, 409, 413, 422, 429, 500, 503",
    ),
    OwnMetric(
        "finetune_api_requests",
        "counter",
        "Requests to the API server, watches left out; code 503 is also no answer.",
        ("verb", "code"),
        "DELETE, GET, PATCH, POST, PUT; the HTTP status",
    ),
    OwnMetric("finetune_operator_leader", "gauge", "1 on the replica that leads."),
    OwnMetric(
        "finetune_operator_held",
        "gauge",
        "Entries that the operator holds in memory.",
        ("what",),
        "ended, queue, reports, statuses, told, tokens",
    ),
    OwnMetric("finetune_operator_queue_depth", "gauge", "Jobs whose pass is due."),
    OwnMetric(
        "finetune_operator_queue_age_seconds", "gauge", "For how long the oldest pass is due."
    ),
    OwnMetric(
        "finetune_operator_watch_silence_seconds",
        "gauge",
        "Seconds since something was heard over the most silent watch of a resource.",
        ("resource",),
        "finetunejobs, finetuneprofiles, jobs, pods",
    ),
)
_TEXTS = {metric.name: metric for metric in OWN_METRICS}


class Metrics:
    """What `/metrics` shows; also the memory of the statuses that were seen last."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since the epoch."""
        self.registry = CollectorRegistry()
        """Of the operator itself."""
        self._statuses: dict[Key, FineTuneJobStatus] = {}
        self._versions: dict[Key, int] = {}
        self._reported: dict[Key, Progress] = {}
        self.reconcile_seconds = Histogram(
            *_named("finetune_reconcile_seconds"), registry=self.registry, buckets=RECONCILE_BUCKETS
        )
        self.reconcile_errors = self._counter("finetune_reconcile_errors")
        self.progress_reports = self._counter("finetune_progress_reports")
        self.api_requests = self._counter("finetune_api_requests")
        self.leads = False
        self._leader = self._gauge("finetune_operator_leader")
        self._held = self._gauge("finetune_operator_held")
        self._depth = self._gauge("finetune_operator_queue_depth")
        self._age = self._gauge("finetune_operator_queue_age_seconds")
        self._silence: Callable[[], Mapping[str, float]] = dict
        self._clock = clock
        self.registry.register(_Own(lambda: self._silence()))

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """A scrape and its content type, in the format that the header `Accept` asks for."""
        return exposition(self.registry, seen(self.shown(), self._clock()), accept)

    def lead(self) -> None:
        """From now on this replica shows the jobs; what a standby knows is soon out of date."""
        self.leads = True
        self._leader.set(1)

    def hold(self, what: str, count: Callable[[], int]) -> None:
        """Show at each scrape how many entries there are of something."""
        self._held.labels(what).set_function(count)

    def queue(self, depth: Callable[[], int], age: Callable[[], float]) -> None:
        """Show at each scrape how many passes are due, and since when."""
        self._depth.set_function(depth)
        self._age.set_function(age)

    def watch(self, silence: Callable[[], Mapping[str, float]]) -> None:
        """Show at each scrape for how many seconds nothing was heard of each resource."""
        self._silence = silence

    def asked(self, verb: str, code: int) -> None:
        """The API server has answered a request."""
        self.api_requests.labels(verb, str(code)).inc()

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
        # A scrape is a thread, and jobs come and go meanwhile: copies, the younger one last.
        reported = dict(self._reported)
        found = dict(self._statuses)
        for key, progress in reported.items():
            if key not in found:
                continue
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

    def _counter(self, name: str) -> Counter:
        return Counter(*_named(name), _TEXTS[name].labels, registry=self.registry)

    def _gauge(self, name: str) -> Gauge:
        return Gauge(*_named(name), _TEXTS[name].labels, registry=self.registry)


def _named(name: str) -> tuple[str, str]:
    return name, _TEXTS[name].text


def _age(progress: Progress) -> tuple[int, float]:
    return progress.attempt, seconds(progress.last_update_time)


class _Own:
    """A collector over the watches: a resource that is watched no more has no series."""

    def __init__(self, silence: Callable[[], Mapping[str, float]]) -> None:
        self._silence = silence

    def collect(self) -> Iterable[Metric]:
        found = GaugeMetricFamily(
            *_named("finetune_operator_watch_silence_seconds"), labels=["resource"]
        )
        for resource, value in sorted(self._silence().items()):
            found.add_metric([resource], value)
        return [found]

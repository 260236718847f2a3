"""Metrics follow the statuses."""

from __future__ import annotations

import metrics_table
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from running_statuses import NOW, running
from tools import run_tool

from finetune_api.status import FineTuneJobStatus, Progress
from finetune_api.usage import Badput, Usage
from finetune_operator.families import seen
from finetune_operator.job_metrics import JOB_METRICS
from finetune_operator.metrics import OWN_METRICS, Metrics

RUNNING = FineTuneJobStatus(
    phase="Running",
    progress=Progress(
        attempt=0,
        step=10,
        total_steps=40,
        percent=25,
        loss=2.5,
        last_update_time="2026-11-22T06:00:00Z",
    ),
)


OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def open_metrics(metrics: Metrics) -> str:
    return metrics.text(OPEN_METRICS)[0].decode()


def samples(metrics: Metrics) -> dict[str, float]:
    lines = metrics.text()[0].decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line.startswith("finetune_job")]
    return {name: float(value) for name, value in pairs if float(value)}


def test_a_running_job_shows_what_it_reported_and_nothing_else() -> None:
    metrics = Metrics(lambda: 1_795_327_290.0)  # 90 s after the last report
    metrics.see(("team-a", "docs"), RUNNING, 7)
    metrics.see(("team-a", "new"), FineTuneJobStatus(), 8)
    job = '{job="docs",namespace="team-a"}'
    assert samples(metrics) == {
        'finetune_jobs{namespace="team-a",phase="Pending",profile="none"}': 1,
        'finetune_jobs{namespace="team-a",phase="Running",profile="none"}': 1,
        f"finetune_job_step{job}": 10,
        f"finetune_job_total_steps{job}": 40,
        f"finetune_job_progress_percent{job}": 25,
        f"finetune_job_loss{job}": 2.5,
        f"finetune_job_seconds_since_report{job}": 90,
    }


def test_an_answer_that_was_overtaken_does_not_turn_the_clock_back() -> None:
    metrics, key = Metrics(), ("team-a", "docs")
    metrics.see(key, RUNNING, 7)
    metrics.see(key, FineTuneJobStatus(phase="Starting"), 6)
    assert dict(metrics.statuses()) == {key: RUNNING}


def test_a_series_goes_with_its_job() -> None:
    metrics = Metrics()
    metrics.see(("team-a", "docs"), RUNNING, 7)
    metrics.forget(("team-a", "docs"))
    assert samples(metrics) == {}


def test_a_finished_job_is_counted_but_no_longer_followed() -> None:
    metrics = Metrics()
    metrics.see(("team-a", "docs"), RUNNING.model_copy(update={"phase": "Succeeded"}), 7)
    assert samples(metrics) == {
        'finetune_jobs{namespace="team-a",phase="Succeeded",profile="none"}': 1
    }


ACCOUNT = Usage(
    unit="GPU",
    held_seconds=1000,
    useful_seconds=400,
    badput=Badput(start_up=150, lost_steps=50),
    queue_seconds=45,
    price={"perGpuHour": "3.60", "currency": "EUR"},  # type: ignore[arg-type]
    attempt=0,
    holding=16,
    counts_as="Training",
    time="2026-11-22T06:00:00Z",
)


def test_a_scrape_adds_what_is_held_since_the_account_was_written() -> None:
    metrics = Metrics(lambda: 1_795_327_225.0)  # 25 s later
    metrics.see(("team-a", "docs"), RUNNING.model_copy(update={"usage": ACCOUNT}), 7)
    found = samples(metrics)
    shown = {
        name.removeprefix("finetune_job_").replace('job="docs",namespace="team-a"', "J"): value
        for name, value in found.items()
        if any(word in name for word in ("held", "useful", "badput", "goodput", "cost", "holding"))
    }
    assert shown == {
        'holding{J,unit="GPU"}': 16,
        'held_seconds{J,unit="GPU"}': 1400,
        'useful_seconds{J,unit="GPU"}': 400,
        'badput_seconds{J,reason="start_up",unit="GPU"}': 150,
        'badput_seconds{J,reason="lost_steps",unit="GPU"}': 50,
        "goodput_ratio{J}": 1 - 200 / 1400,
        'cost{currency="EUR",J}': 1.4,
        'estimated_cost{currency="EUR",J}': 1.4,
    }


def test_histograms_are_of_the_jobs_that_exist() -> None:
    metrics = Metrics(lambda: NOW)
    status = RUNNING.model_copy(update={"usage": ACCOUNT, "phase_seconds": {"Preparing": 90}})
    metrics.see(("team-a", "docs"), status, 7)
    lines = dict(line.rsplit(" ", 1) for line in open_metrics(metrics).splitlines())
    assert [
        lines[f'finetune_job_phase_seconds_bucket{{le="{le}",phase="Preparing"}}']
        for le in ("60.0", "120.0", "+Inf")
    ] == ["0.0", "1.0", "1.0"]
    assert lines['finetune_job_phase_seconds_gsum{phase="Preparing"}'] == "90.0"
    assert lines['finetune_job_queue_wait_seconds_gsum{profile="none"}'] == "45.0"


def test_a_reason_that_nobody_foresaw_is_another_one() -> None:
    metrics = Metrics(lambda: 1_795_327_290.0)
    waiting = {
        "type": "Waiting",
        "status": "True",
        "reason": "TooManyVolumesOnTheMoon",
        "message": "",
        "lastTransitionTime": "2026-11-22T06:00:00Z",
        "observedGeneration": 1,
    }
    status = FineTuneJobStatus.parse({"phase": "Starting", "conditions": [waiting]})
    metrics.see(("team-a", "docs"), status, 7)
    name = 'finetune_job_waiting_seconds{job="docs",namespace="team-a",reason="Other"}'
    assert samples(metrics)[name] == 90


def thousand() -> Metrics:
    metrics = Metrics(lambda: NOW)
    for number in range(1000):
        metrics.see((f"team-{number % 10}", f"job-{number}"), running(number), number + 1)
    return metrics


def test_a_thousand_running_jobs_have_thirty_series_each_and_few_beside() -> None:
    families_ = list(text_string_to_metric_families(open_metrics(thousand())))
    of_jobs = [s for f in families_ for s in f.samples if "job" in s.labels]
    beside = [s for f in families_ for s in f.samples if "job" not in s.labels]
    assert len(of_jobs) <= 30_000
    assert len(of_jobs) >= 27_000, "they are not as full as the statuses of running jobs are"
    assert len(beside) <= 9 * 10 + 14 * (9 + 10) + 60


def test_openmetrics_and_promtool_can_read_it() -> None:
    metrics = thousand()
    metrics.asked("GET", 200)
    metrics.progress_reports.labels("200").inc()
    metrics.watch(lambda: {"pods": 3.0})
    text = open_metrics(metrics)
    read = {f.name: f for f in text_string_to_metric_families(text)}
    names = {"finetune_jobs", "finetune_job_phase_seconds", "finetune_job_queue_wait_seconds"}
    wanted = names | {m.name for m in (*JOB_METRICS, *OWN_METRICS)}
    assert set(read) == wanted
    for metric in JOB_METRICS:
        labels = {"namespace", "job", *metric.labels}
        assert {frozenset(s.labels) for s in read[metric.name].samples} <= {frozenset(labels)}
        if metric.allowed:
            values = {s.labels[metric.labels[-1]] for s in read[metric.name].samples}
            assert values <= set(metric.allowed)


@pytest.mark.cluster
def test_promtool_finds_nothing_to_complain_about() -> None:
    text = thousand().text()[0].decode()
    done = run_tool("promtool", "check", "metrics", stdin=text)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_tables_of_the_document_are_those_of_the_code() -> None:
    text = metrics_table.DOCUMENT.read_text()
    assert metrics_table.written(text) == text, "run `make generate`"


def test_no_jobs_have_no_series() -> None:
    assert samples(Metrics()) == {}


@pytest.mark.parametrize("accept", ["", OPEN_METRICS])
def test_lines_about_jobs_are_those_of_prometheus_client(accept: str) -> None:
    statuses = {
        ("team-a", name): running(number, phase)
        for number, (name, phase) in enumerate(
            [("docs", "Running"), ("waits", "Starting"), ('a"b\\c\nd', "Failed")]
        )
    }
    metrics = Metrics(lambda: NOW)
    for version, (key, status) in enumerate(statuses.items()):
        metrics.see(key, status, version)
    text, content_type = metrics.text(accept)
    library, expected_type = choose_encoder(accept)
    reference = CollectorRegistry()
    for metric in JOB_METRICS:
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(metric.name, metric.text, labels=["namespace", "job", *metric.labels])
        for job in seen(statuses, NOW):
            for labels, value in metric.values(job):
                family.add_metric([job.namespace, job.name, *labels], value)
        reference.register(type("Found", (), {"collect": lambda self, f=family: [f]})())
    assert content_type == expected_type
    assert text.endswith(library(reference))


def test_a_job_that_goes_while_its_report_is_shown_costs_no_scrape() -> None:
    metrics, gone = Metrics(), ("team-a", "gone")
    metrics.see(gone, RUNNING, 7)
    assert RUNNING.progress is not None
    metrics.report(gone, RUNNING.progress)
    del metrics._statuses[gone]  # as a scrape, which is a thread, may find it
    assert samples(metrics) == {}

"""Metrics follow the statuses."""

from __future__ import annotations

from prometheus_client import generate_latest

from finetune_api.status import FineTuneJobStatus, Progress
from finetune_operator.metrics import METRIC_NAMES, Metrics, families

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


def samples(metrics: Metrics) -> dict[str, float]:
    lines = generate_latest(metrics.registry).decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line.startswith("finetune_job")]
    return {name: float(value) for name, value in pairs if float(value)}


def test_a_running_job_shows_what_it_reported_and_nothing_else() -> None:
    metrics = Metrics(lambda: 1_795_327_290.0)  # 90 s after the last report
    metrics.see(("team-a", "docs"), RUNNING, 7)
    metrics.see(("team-a", "new"), FineTuneJobStatus(), 8)
    job = '{job="docs",namespace="team-a"}'
    assert samples(metrics) == {
        'finetune_jobs{namespace="team-a",phase="Pending"}': 1,
        'finetune_jobs{namespace="team-a",phase="Running"}': 1,
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
    assert samples(metrics) == {'finetune_jobs{namespace="team-a",phase="Succeeded"}': 1}


def test_the_names_are_those_that_dashboards_may_use() -> None:
    text = generate_latest(Metrics().registry).decode()
    shown = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    own = {name for name in shown if not name.endswith("_created")}
    assert own == set(METRIC_NAMES)
    assert [f.name for f in families({}, 0.0)] == [
        n for n in METRIC_NAMES if n.startswith("finetune_job")
    ]

"""Every alert fires when it should and not before, and leads to its entry of the runbook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import alerts
import pytest
import yaml
from chart import CHART, only, render
from tools import ROOT, run_tool

RULES = CHART / "files/alerts/finetune-operator.yaml"
JOB = 'namespace="a", job="docs"'
FAILED = "finetune_job_finished_timestamp_seconds"


def ended(name: str, outcome: str) -> str:
    return f'{FAILED}{{namespace="a", job="{name}", outcome="{outcome}"}}'


FIRES: dict[str, tuple[dict[str, str], str, int]] = {
    "FineTuneJobHangs": ({f"finetune_job_hangs_total{{{JOB}}}": "0x10 1x60"}, "15m", 1),
    "FineTuneJobDiverged": ({ended("docs", "Diverged"): "600x60"}, "15m", 1),
    "FineTuneRestartBudgetNearlySpent": (
        {
            f"finetune_job_restarts_left{{{JOB}}}": "1x60",
            f'finetune_job_restarts_total{{{JOB}, cause="Platform"}}': "2x60",
        },
        "1m",
        1,
    ),
    "FineTuneJobWaitsTooLong": (
        {f'finetune_job_waiting_seconds{{{JOB}, reason="Unschedulable"}}': "3000+60x60"},
        "20m",
        1,
    ),
    "FineTuneFailureRateHigh": (
        {
            ended("one", "Data"): "0x60",
            ended("two", "Killed"): "0x60",
            ended("three", "Hang"): "0x60",
            ended("four", "Succeeded"): "0x60",
        },
        "20m",
        1,
    ),
    "FineTuneCheckpointStale": (
        {f"finetune_job_checkpoint_age_seconds{{{JOB}}}": "7000+60x60"},
        "15m",
        1,
    ),
    "FineTuneGoodputLow": (
        {
            f"finetune_job_goodput_ratio{{{JOB}}}": "0.4x60",
            f'finetune_job_holding{{{JOB}, unit="GPU"}}': "8x60",
            f'finetune_job_held_seconds{{{JOB}, unit="GPU"}}': "5000x60",
        },
        "20m",
        1,
    ),
    "FineTuneOperatorDeaf": (
        {'finetune_operator_watch_silence_seconds{instance="o", resource="pods"}': "0+60x60"},
        "10m",
        1,
    ),
    "FineTuneNoLeader": ({'finetune_operator_leader{instance="o"}': "0x60"}, "5m", 1),
}
"""Series, a moment at which the alert fires, and how often."""
QUIET: dict[str, tuple[dict[str, str], str]] = {
    "FineTuneJobHangs": ({f"finetune_job_hangs_total{{{JOB}}}": "1x200"}, "2h"),
    "FineTuneJobDiverged": ({ended("docs", "Diverged"): "0x200"}, "2h"),
    "FineTuneRestartBudgetNearlySpent": (
        {
            f"finetune_job_restarts_left{{{JOB}}}": "1x60",
            f'finetune_job_restarts_total{{{JOB}, cause="Platform"}}': "0x60",
        },
        "10m",
    ),
    "FineTuneJobWaitsTooLong": (
        {f'finetune_job_waiting_seconds{{{JOB}, reason="Unschedulable"}}': "0+60x60"},
        "50m",
    ),
    "FineTuneFailureRateHigh": (
        {ended("one", "Data"): "0x60", ended("two", "Killed"): "0x60"},
        "20m",
    ),
    "FineTuneCheckpointStale": (
        {f"finetune_job_checkpoint_age_seconds{{{JOB}}}": "0+60x15 0+60x15"},
        "20m",
    ),
    "FineTuneGoodputLow": (
        {
            f"finetune_job_goodput_ratio{{{JOB}}}": "0.4x60",
            f'finetune_job_holding{{{JOB}, unit="GPU"}}': "0x60",
            f'finetune_job_held_seconds{{{JOB}, unit="GPU"}}': "5000x60",
        },
        "20m",
    ),
    "FineTuneOperatorDeaf": (
        {'finetune_operator_watch_silence_seconds{instance="o", resource="pods"}': "55x60"},
        "10m",
    ),
    "FineTuneNoLeader": (
        {
            'finetune_operator_leader{instance="o"}': "1x60",
            'finetune_operator_leader{instance="p"}': "0x60",
        },
        "5m",
    ),
}


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    names = [alert.name for alert in alerts.ALERTS]
    assert list(FIRES) == names
    assert list(QUIET) == names


def play(directory: Path, series: dict[str, str], at: str, name: str, expected: int) -> str:
    """What promtool says of one alert at one moment; empty: as expected."""
    found = [{"series": key, "values": values} for key, values in series.items()]
    expression = f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) or vector(0)'
    query: dict[str, Any] = {"expr": expression, "eval_time": at}
    query["exp_samples"] = [{"labels": "{}", "value": expected}]
    test = {"interval": "1m", "input_series": found, "promql_expr_test": [query]}
    file = directory / "test.yaml"
    whole = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}
    file.write_text(yaml.safe_dump(whole))
    done = run_tool("promtool", "test", "rules", str(file))
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("name", FIRES)
def test_it_fires_when_it_should(name: str, tmp_path: Path) -> None:
    series, at, count = FIRES[name]
    assert play(tmp_path, series, at, name, count) == ""


@pytest.mark.parametrize("name", QUIET)
def test_it_is_quiet_when_nothing_is_wrong(name: str, tmp_path: Path) -> None:
    series, at = QUIET[name]
    assert play(tmp_path, series, at, name, 0) == ""


def test_promtool_finds_nothing_to_complain_about() -> None:
    done = run_tool("promtool", "check", "rules", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alerts.ALERTS)} rules found" in done.stdout


def test_every_alert_links_its_entry_of_the_runbook_and_every_entry_is_of_an_alert() -> None:
    text = (ROOT / alerts.RUNBOOK).read_text()
    entries = {heading.lower() for heading in re.findall(r"^## (.+)$", text, re.MULTILINE)}
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    linked = {rule["annotations"]["runbook_url"].removeprefix("docs/runbook.md#") for rule in rules}
    assert linked == entries


def test_the_chart_installs_the_rules_when_asked_with_the_runbook_of_ones_own() -> None:
    assert "PrometheusRule" not in [m["kind"] for m in render()]
    place = "https://wiki.example/runbook"
    wanted = {"enabled": True, "labels": {"release": "prometheus"}, "runbook": place}
    found = only(render({"monitoring": {"prometheusRule": wanted}}), "PrometheusRule")
    assert found["metadata"]["labels"]["release"] == "prometheus"
    text = RULES.read_text().replace("docs/runbook.md", place)
    assert found["spec"] == yaml.safe_load(text)

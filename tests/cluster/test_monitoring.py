"""Every query of the dashboards and the alerts, asked of a real Prometheus that scrapes a real
operator among jobs in every phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import alerts
import builders
import pytest
from apiserver import api_server
from chart import CHART
from fault_proxy import PASS, Answer, FaultProxy, Request, Verdict
from fleet_panels import FLEET
from job_panels import JOB
from kube import GROUP, Kube, eventually
from operator_process import Operator, install_api
from panels import Panel
from prometheus import Prometheus
from running_statuses import running

from finetune_api.status import PHASES

RULES = CHART / "files/alerts/finetune-operator.yaml"
NAMESPACE = "team-a"
VALUES = {"$namespace": NAMESPACE, "$job": "running", "$__rate_interval": "1m"}
PANELS = [panel for rows in (FLEET, JOB) for panels in rows.values() for panel in panels]
GPU_JOBS = len(PHASES)
"""The status of each has held 36,000 s of GPUs; the running one goes on holding 16."""


@dataclass
class Watched:
    """What is asked."""

    prometheus: Prometheus
    statuses_made: float
    """When, in seconds since the epoch."""


def only_reads(request: Request) -> Verdict:
    """The statuses stay as the test has written them: the operator may only look."""
    return Answer(403) if request.is_write and not request.is_lease else PASS


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("monitoring")
    with api_server() as kubeconfig:
        kube = Kube(kubeconfig)
        install_api(kube)
        kube.namespace(NAMESPACE)
        made = time.time()
        for number, phase in enumerate(PHASES):
            body = builders.job_body(phase.lower())
            body["metadata"] = {"name": phase.lower(), "namespace": NAMESPACE}
            jobs = f"{GROUP}/namespaces/{NAMESPACE}/finetunejobs"
            kube.create(jobs, body)
            status = running(number, phase, made).to_json_dict()
            kube.patch(f"{jobs}/{phase.lower()}/status", {"status": status})
        with FaultProxy(kubeconfig, directory) as proxy:
            proxy.decide = only_reads
            operator = Operator(proxy.kubeconfig, directory, WATCH_NAMESPACES=NAMESPACE)
            operator.start()
            found = Prometheus(directory, operator.metrics_port, RULES)
            try:
                eventually("Prometheus to be ready", found.is_ready, 60)
                rate = "rate(finetune_api_requests_total[1m])"
                eventually("two scrapes", lambda: found.query(rate), 60)
                yield Watched(found, made)
            finally:
                found.stop()
                operator.stop()


def concrete(expression: str) -> str:
    for name, value in VALUES.items():
        expression = expression.replace(name, value)
    return expression


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_every_panel_has_an_answer(watched: Watched, panel: Panel) -> None:
    empty = {
        legend
        for legend, expression in panel.queries.items()
        if not watched.prometheus.query(concrete(expression))
    }
    assert not empty or panel.may_be_empty, f"nothing for {empty}"


def answers(watched: Watched, title: str, label: str = "") -> dict[str, float]:
    """What a panel shows, by legend or by the value of a label."""
    panel = next(panel for panel in PANELS if panel.title == title)
    return {
        sample["metric"].get(label, legend): float(sample["value"][1])
        for legend, expression in panel.queries.items()
        for sample in watched.prometheus.query(concrete(expression))
    }


def test_the_answers_are_right(watched: Watched) -> None:
    assert answers(watched, "How many jobs are in each phase?", "phase") == dict.fromkeys(PHASES, 1)
    assert answers(watched, "How many GPUs are held now?") == {"GPUs": 16}
    assert answers(watched, "What makes attempts fail?", "cause") == {
        "Platform": GPU_JOBS,
        "Disruption": 2 * GPU_JOBS,
        "hangs": GPU_JOBS,
    }
    lost = answers(watched, "What were GPU-hours lost to?", "reason")
    assert {reason: hours for reason, hours in lost.items() if hours} == {
        "start_up": GPU_JOBS,
        "lost_steps": GPU_JOBS / 2,
    }
    ended = answers(watched, "How did the jobs end that ended within a day?", "outcome")
    assert ended == {"Succeeded": 1, "Diverged": 1}
    assert answers(watched, "How far is it?") == {"": 50}
    assert answers(watched, "How often did it start again, and how often may it?", "cause") == {
        "Platform": 1,
        "Disruption": 2,
        "hangs": 1,
        "left": 1,
    }
    waits = answers(watched, "Which jobs wait, for what and since when?", "job")
    assert set(waits) == {"pending", "preparing", "starting", "restarting", "exporting"}
    assert min(waits.values()) >= 7200


def test_what_is_held_grows_with_time_and_the_share_that_is_lost_falls(watched: Watched) -> None:
    (held,) = answers(watched, "How many GPU-hours has it used?").values()
    # The account is 20 s old when it is made, and its time has no parts of seconds.
    passed = time.time() - watched.statuses_made + 21
    assert 36_000 < held * 3600 <= 36_000 + 16 * passed
    (good,) = answers(watched, "How good is its goodput?").values()
    assert 1 - 5400 / 36_000 < good <= 1 - 5400 / (36_000 + 16 * passed)


FIRING = {
    "FineTuneJobHangs": {"running", "starting"},
    "FineTuneJobDiverged": {"failed"},
    "FineTuneRestartBudgetNearlySpent": {p.lower() for p in PHASES} - {"succeeded", "failed"},
    "FineTuneJobWaitsTooLong": {"pending", "preparing", "starting", "restarting", "exporting"},
}
"""The jobs for which an expression of an alert is true; nothing for the others."""


@pytest.mark.parametrize("alert", alerts.ALERTS, ids=lambda alert: alert.name)
def test_every_alert_is_about_the_jobs_that_it_should_be_about(
    watched: Watched, alert: alerts.Alert
) -> None:
    found = watched.prometheus.query(alert.expr)
    assert {sample["metric"].get("job") for sample in found} == FIRING.get(alert.name, set())


def test_prometheus_has_loaded_the_rules(watched: Watched) -> None:
    firing = 'ALERTS{alertname="FineTuneJobDiverged", job="failed"}'
    eventually("the alert to fire", lambda: watched.prometheus.query(firing), 90)

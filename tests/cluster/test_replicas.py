"""Two replicas of the operator over one Lease, on a real API server of their own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import builders
import played
import pytest
import requests
from apiserver import api_server
from audit import AuditLog
from fault_proxy import PASS, FaultProxy, Request, Verdict
from kube import GROUP, Kube, eventually
from operator_process import LEASE, Operator, install_api
from played import Reporter, report

Json = dict[str, Any]
COUNT = iter(range(1000))


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    """An API server where no other operator acts."""
    with api_server() as kubeconfig:
        install_api(Kube(kubeconfig))
        yield kubeconfig


@pytest.fixture
def kube(server: Path) -> Kube:
    return Kube(server)


class Replicas:
    """Operators by identity, with one Lease; whatever still runs is ended after the test."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._all: list[Operator] = []

    def start(self, identity: str, kubeconfig: Path, **settings: str) -> Operator:
        directory = self._directory / identity
        directory.mkdir()
        operator = Operator(kubeconfig, directory, IDENTITY=identity, **settings)
        self._all.append(operator)
        operator.start()
        return operator

    def end(self) -> None:
        for operator in self._all:
            if operator.running:
                operator.stop(signal.SIGKILL)


@pytest.fixture
def replicas(kube: Kube, tmp_path: Path) -> Iterator[Replicas]:
    kube.call("DELETE", LEASE)  # of the test before
    found = Replicas(tmp_path)
    yield found
    found.end()


def holder(kube: Kube) -> str:
    found = kube.get(LEASE)
    return "" if found is None else str(found["spec"].get("holderIdentity") or "")


def apply(kube: Kube) -> str:
    """A job in a namespace of its own."""
    namespace = kube.namespace(f"team-{next(COUNT)}")
    body = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "docs"},
        "spec": {
            "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
            "dataset": {"uri": "pvc://team-data/docs.jsonl"},
        },
    }
    kube.create(f"{GROUP}/namespaces/{namespace}/finetunejobs", body)
    return namespace


def phase(kube: Kube, namespace: str) -> str | None:
    found: str | None = kube.job(namespace, "docs").get("status", {}).get("phase")
    return found


def test_a_standby_is_ready_and_writes_nothing(
    kube: Kube, server: Path, replicas: Replicas
) -> None:
    first = replicas.start("first", server)
    second = replicas.start("second", server)
    written = AuditLog(server, "finetune-operator/second")
    namespace = apply(kube)
    eventually("the first to act", lambda: phase(kube, namespace) == "Preparing")
    assert (holder(kube), written.writes()) == ("first", [])
    assert [o.page("readyz") for o in (first, second)] == [(200, "ok")] * 2
    assert [o.page("healthz") for o in (first, second)] == [(200, "ok")] * 2
    assert [o.metrics()["finetune_operator_leader"] for o in (first, second)] == [1, 0]


def test_a_leader_that_is_killed_is_replaced_within_15_seconds(
    kube: Kube, server: Path, replicas: Replicas
) -> None:
    first = replicas.start("first", server)
    replicas.start("second", server)
    first.stop(signal.SIGKILL)
    namespace = apply(kube)
    eventually("the second to act", lambda: phase(kube, namespace) == "Preparing", 15)
    assert holder(kube) == "second"


def test_a_leader_that_is_ended_in_order_is_replaced_at_once(
    kube: Kube, server: Path, replicas: Replicas
) -> None:
    first = replicas.start("first", server, LEASE_SECONDS="60")
    replicas.start("second", server, LEASE_SECONDS="60")
    assert first.stop(signal.SIGTERM) == 0, first.log.read_text()
    namespace = apply(kube)
    eventually("the second to act", lambda: phase(kube, namespace) == "Preparing", 5)
    assert holder(kube) == "second"


def test_a_leader_that_was_stopped_beyond_its_lease_writes_nothing_when_it_goes_on(
    kube: Kube, server: Path, replicas: Replicas, tmp_path: Path
) -> None:
    with FaultProxy(server, tmp_path) as proxy:
        first = replicas.start("first", proxy.kubeconfig, LEASE_SECONDS="3")
        second = replicas.start("second", server, LEASE_SECONDS="3")
        before, stopped = [""], threading.Event()

        def stop_in_mid_pass(request: Request) -> Verdict:
            """A pass reads the ConfigMap after the job, for its decision, and again right before it
            applies it: with the answer to that its very next act would be the first write."""
            if request.is_lease or request.is_watch:
                return PASS
            is_map = request.path.endswith("/configmaps/docs-run")
            if is_map and not before[0].endswith("/finetunejobs/docs") and not stopped.is_set():
                first.send(signal.SIGSTOP)
                stopped.set()
            before[0] = request.path
            return PASS

        proxy.decide = stop_in_mid_pass
        namespace = apply(kube)
        eventually("the first to be stopped", stopped.is_set)
        jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        assert kube.items(jobs) == []
        eventually("the second to act", lambda: kube.items(jobs), 15)
        assert holder(kube) == "second"

        by_first = AuditLog(server, "finetune-operator/first")
        sent = len(proxy.writes())
        first.send(signal.SIGCONT)
        assert first.wait(20) == 1, first.log.read_text()
        assert (by_first.writes(), proxy.writes()[sent:]) == ([], [])
        assert "not the leader (any more): nothing is written" in first.log.read_text()
        assert (holder(kube), second.running) == ("second", True)


def test_reports_go_on_while_the_leader_changes_and_the_last_one_is_not_lost(
    kube: Kube, server: Path, replicas: Replicas
) -> None:
    """A report is in the leader's hands when it dies; its trainer reports to the other one, which
    takes it before it leads. Training ends while nobody leads."""
    first = replicas.start("first", server, LEASE_SECONDS="30")
    second = replicas.start("second", server, LEASE_SECONDS="30")
    namespace = kube.namespace(f"team-{next(COUNT)}")
    played.apply(kube, namespace)
    workers = played.running(kube, namespace)
    to_first, to_second = (Reporter(kube, one, namespace, workers[0]) for one in (first, second))
    assert to_first.post(report(25, 10)) == (200, "")

    first.send(signal.SIGSTOP)  # it accepts connections, and answers none
    unanswered: list[str] = []

    def send() -> None:
        try:
            to_first.post(report(50, 20))
        except requests.RequestException as error:
            unanswered.append(type(error).__name__)

    in_flight = threading.Thread(target=send)
    in_flight.start()
    assert to_second.post(report(50, 20)) == (200, "")
    assert to_second.post(report(50, 9)) == (422, "current_step went back from 20 to 9")
    first.stop(signal.SIGKILL)
    in_flight.join()
    assert unanswered
    assert holder(kube) == "first"
    kube.end(workers[0], 0, builders.OUTCOMES["train"].to_message())
    kube.end(workers[1], 0)

    facts = builders.OUTCOMES["train"].train
    assert facts is not None
    found = played.phase(kube, namespace, "Exporting", 90)["status"]["progress"]
    assert (holder(kube), found["step"], found["percent"], found["activity"], found["loss"]) == (
        *("second", facts.step, 100, "Done"),
        facts.loss,
    )

"""docs/platform.md, backup and restore: its commands, with the real operator, on a cluster that
loses all jobs in between. The kubelet and the trainer are played."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apiserver import api_server
from chart import NAMESPACE
from doc_commands import commands_of
from doc_shell import Shell
from job_phases import Player, many_phases
from kube import GROUP, Kube, eventually
from operator_process import Operator, install_api
from pretended_kubelet import pretended_kubelet

pytestmark = pytest.mark.cluster
Json = dict[str, Any]
TEAM = "team-a"
JOBS = f"{GROUP}/namespaces/{TEAM}/finetunejobs"
PROFILES = f"{GROUP}/finetuneprofiles"
MADE = f"/apis/batch/v1/namespaces/{TEAM}/jobs"
COMMANDS = [c for c in commands_of("docs/platform.md") if "-backup.yaml" in c or "replicas" in c]
"""Two that make the backup, and those that restore it."""


@pytest.fixture
def kube(server: Path) -> Kube:
    """With what the chart makes, as far as the commands name it; the operator itself is a process
    of the test."""
    found = Kube(server)
    install_api(found)
    found.namespace(TEAM)
    labels = {"app.kubernetes.io/name": "finetune-operator"}
    pod = {"containers": [{"name": "operator", "image": "example/operator:1"}]}
    spec = {
        "replicas": 2,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
    found.create(path, {"metadata": {"name": "finetune-operator"}, "spec": spec})
    return found


@pytest.fixture
def server() -> Iterator[Path]:
    with api_server() as kubeconfig, pretended_kubelet(kubeconfig, NAMESPACE):
        yield kubeconfig


def jobs(kube: Kube) -> dict[str, Json]:
    return {job["metadata"]["name"]: job for job in kube.items(JOBS)}


def part(of: dict[str, Json], name: str) -> dict[str, Any]:
    """One part of every job."""
    return {key: job[name] for key, job in of.items()}


def lose_everything(kube: Kube) -> None:
    for path in (JOBS, PROFILES):
        for item in kube.items(path):
            kube.delete(f"{path}/{item['metadata']['name']}?propagationPolicy=Background")
    eventually("all children to be gone", lambda: not jobs(kube) and not kube.items(MADE), 60)


def test_finished_jobs_come_back_as_they_were_and_none_trains_by_accident(
    server: Path, kube: Kube, tmp_path: Path
) -> None:
    operator, shell = Operator(server, tmp_path), Shell(server, tmp_path)
    operator.start()
    try:
        many_phases(Player(kube, TEAM))
        before, profiles = jobs(kube), kube.items(PROFILES)
        for command in COMMANDS[:2]:
            shell.run(command)
        assert operator.stop(signal.SIGTERM) == 0, operator.log.read_text()
        lose_everything(kube)
        for command in COMMANDS[2:]:
            shell.run(command)
        restored = jobs(kube)
        assert [p["spec"] for p in kube.items(PROFILES)] == [p["spec"] for p in profiles]
        assert part(restored, "spec") == part(before, "spec")
        assert part(restored, "status") == part(before, "status")
        uids = {job["metadata"]["uid"] for job in (*before.values(), *restored.values())}
        assert len(uids) == 12
        operator.start()
        look_at_each(kube, before)
        make_one_without_its_status(kube, before["support-style"])
    finally:
        if operator.running:
            operator.stop(signal.SIGTERM)


def look_at_each(kube: Kube, before: dict[str, Json]) -> None:
    """What has become of them once the operator has looked."""
    player = Player(kube, TEAM)
    for name in ("docs-assistant", "translations"):  # they ran
        failure = player.phase(name, "Failed")["lastFailure"]
        assert (failure["class"], failure["message"]) == (
            "Killed",
            f"ConfigMap {name}-run, which holds what the job was started with, was deleted or "
            "replaced; apply the job again under another name",
        )
    after = part(jobs(kube), "status")
    for name in ("support-style", "code-review"):  # they were over
        assert after[name] == before[name]["status"]
    assert (after["triage"]["phase"], after["summaries"]["phase"]) == ("Pending", "Suspended")
    assert kube.items(MADE) == []
    kube.patch(f"{JOBS}/summaries", {"spec": {"suspend": False}})
    assert "suspendTime" not in player.phase("summaries", "Preparing")


def make_one_without_its_status(kube: Kube, job: Json) -> None:
    """Why the page restores it: a job that has succeeded starts anew."""
    name = job["metadata"]["name"]
    assert job["status"]["phase"] == "Succeeded"
    kube.delete(f"{JOBS}/{name}")
    kube.create(
        JOBS, {k: job[k] for k in ("apiVersion", "kind", "spec")} | {"metadata": {"name": name}}
    )
    Player(kube, TEAM).phase(name, "Preparing")

"""The chart goes from one version to the next and back among running jobs, and nothing is lost.

A real API server, a real operator, and jobs in the middle of training; the older chart is a copy of
this one with another version, other defaults, and a CRD that lacks a field which has a default.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiserver import api_server
from chart import CHART, NAMESPACE, RELEASE
from kube import GROUP, Kube, eventually
from operator_process import Operator
from running_jobs import make_running_jobs, no_controllers
from tls import self_signed
from tools import run_tool

pytestmark = pytest.mark.cluster

COUNT = 4
FIELD = "maxGradNorm"
CPU = {"default": True, "node": {"accelerator": "CPU", "gpusPerNode": 0}}
Json = dict[str, Any]
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunejobs.finetune-operator.io"
CHILDREN = {
    "ConfigMap": "/api/v1/namespaces/team-a/configmaps",
    "Job": "/apis/batch/v1/namespaces/team-a/jobs",
    "Pod": "/api/v1/namespaces/team-a/pods",
}


def of_training(crd: Json) -> Json:
    """The schema of `spec.training`."""
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    found: Json = schema["spec"]["properties"]["training"]
    return found


def older_chart(directory: Path) -> Path:
    """Version 0.0.1: one replica, and jobs without a field that there is now."""
    chart = shutil.copytree(CHART, directory / "older")
    about = (chart / "Chart.yaml").read_text()
    (chart / "Chart.yaml").write_text(re.sub(r"(?m)^(version|appVersion): .*", r"\1: 0.0.1", about))
    values = (chart / "values.yaml").read_text()
    assert "\n  replicas: 2\n" in values
    (chart / "values.yaml").write_text(values.replace("\n  replicas: 2\n", "\n  replicas: 1\n"))
    path = chart / "files" / "crds" / "finetunejobs.yaml"
    crd = yaml.safe_load(path.read_text())
    training = of_training(crd)
    del training["properties"][FIELD]
    path.write_text(yaml.safe_dump(crd, sort_keys=False))
    return chart


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    with api_server() as kubeconfig:
        yield kubeconfig


class Release:
    """The chart on the API server, and what it makes there."""

    def __init__(self, server: Path, kube: Kube) -> None:
        self._server, self._kube = server, kube

    def helm(self, *arguments: str, values: Json | None = None) -> None:
        where = ["--kubeconfig", str(self._server), "--namespace", NAMESPACE]
        told = [] if values is None else ["--values", "-"]
        done = run_tool("helm", *where, *arguments, *told, stdin=json.dumps(values))
        assert done.returncode == 0, done.stderr

    def state(self) -> tuple[str, int, bool, str]:
        """Version, replicas, whether the CRD has the newer field, and the served certificate."""
        apps = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{RELEASE}"
        secret = f"/api/v1/namespaces/{NAMESPACE}/secrets/{RELEASE}-tls"
        deployment, crd = self._kube.get(apps), self._kube.get(CRD)
        certificate = self._kube.get(secret)
        assert deployment is not None
        assert crd is not None
        assert certificate is not None
        version = deployment["metadata"]["labels"]["app.kubernetes.io/version"]
        replicas = deployment["spec"]["replicas"]
        served = certificate["data"]["tls.crt"]
        return version, replicas, FIELD in of_training(crd)["properties"], served


def jobs(kube: Kube) -> dict[str, Json]:
    """Spec, status and identity of every job, but for the field that one CRD lacks."""
    found = kube.items(f"{GROUP}/namespaces/team-a/finetunejobs")
    for job in found:
        job["spec"].get("training", {}).pop(FIELD, None)
    return {
        job["metadata"]["name"]: {
            "uid": job["metadata"]["uid"],
            "generation": job["metadata"]["generation"],
            "spec": job["spec"],
            "status": job.get("status"),
        }
        for job in found
    }


def children(kube: Kube) -> dict[tuple[str, str], tuple[str, str]]:
    """Identity and version of everything that was made for the jobs: not even touched."""
    return {
        (kind, item["metadata"]["name"]): (
            item["metadata"]["uid"],
            item["metadata"]["resourceVersion"],
        )
        for kind, path in CHILDREN.items()
        for item in kube.items(path)
        if item["metadata"]["name"].startswith("job-")
    }


def begin_anew(operator: Operator) -> None:
    """What a Deployment does when its pod changes, until it has looked at every job."""
    assert operator.stop(signal.SIGTERM) == 0, operator.log.read_text()
    before = len(operator.log.read_text())
    operator.start()
    done = f"looked at {COUNT} jobs"
    eventually("a round over all jobs", lambda: done in operator.log.read_text()[before:], 60)


def renew(operator: Operator, directory: Path) -> None:
    """A new certificate in its files is served by the running operator."""

    def served() -> str:
        return ssl.get_server_certificate(("127.0.0.1", operator.progress_port))

    old = served()
    self_signed(directory)
    eventually("the new certificate to be served", lambda: served() != old, 60)
    assert served() == (directory / "tls.crt").read_text()


def test_an_upgrade_and_a_rollback_among_running_jobs_lose_nothing(
    server: Path, tmp_path: Path
) -> None:
    kube = Kube(server)
    for name in (NAMESPACE, "team-a"):
        kube.namespace(name)
    release = Release(server, kube)
    profiles = {"profiles": [{"name": "cpu", "spec": CPU}]}
    older = older_chart(tmp_path)
    release.helm("install", RELEASE, str(older), values=profiles)
    eventually("jobs to be served", lambda: kube.call("GET", f"{GROUP}/finetunejobs")[0] == 200)
    version, replicas, newer, certificate = release.state()
    assert (version, replicas, newer) == ("0.0.1", 1, False)

    directory = tmp_path / "operator"
    directory.mkdir()
    operator = Operator(server, directory)
    with no_controllers(server):
        make_running_jobs(server, "team-a", COUNT)
        try:
            operator.start()
            begin_anew(operator)
            before, made = jobs(kube), children(kube)
            assert [j["status"]["phase"] for j in before.values()] == ["Running"] * COUNT
            assert len(made) == COUNT * 5

            release.helm("upgrade", RELEASE, str(CHART), values=profiles)
            assert release.state() == ("0.1.0", 2, True, certificate)
            renew(operator, directory)
            begin_anew(operator)
            assert (jobs(kube), children(kube)) == (before, made)

            release.helm("rollback", RELEASE, "1")
            assert release.state() == ("0.0.1", 1, False, certificate)
            begin_anew(operator)
            assert (jobs(kube), children(kube)) == (before, made)
        finally:
            if operator.running:
                operator.stop(signal.SIGTERM)

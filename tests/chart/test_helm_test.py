"""What `helm test` makes, and that it tells a job that works from one that does not.

The job itself is trained by tests/trainer/test_chart_job.py, all of it on a kubelet by tests/e2e.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiserver import api_server, kubectl
from chart import CHART, NAMESPACE, Manifest, only, render, render_tests
from kube import GROUP, Kube, eventually

from finetune_api.profile import FineTuneProfile
from finetune_api.v1alpha1 import FineTuneJob

SCRIPT = CHART / "files" / "test" / "await_job.py"
NAME = "finetune-operator-test"


@pytest.fixture(scope="module")
def hooks() -> list[Manifest]:
    return render_tests()


def test_these_objects_are_made_in_this_order(hooks: list[Manifest]) -> None:
    assert [(m["kind"], m["metadata"]["name"]) for m in hooks] == [
        ("ServiceAccount", NAME),
        ("ConfigMap", f"{NAME}-data"),
        ("PersistentVolumeClaim", f"{NAME}-model"),
        ("Role", NAME),
        ("RoleBinding", NAME),
        ("Pod", f"{NAME}-model"),
        ("FineTuneProfile", f"{NAMESPACE}-{NAME}"),
        ("FineTuneJob", NAME),
        ("Pod", NAME),
    ]


def test_all_of_it_is_removed_afterwards_and_before_the_next_time(hooks: list[Manifest]) -> None:
    policies = {m["metadata"]["annotations"]["helm.sh/hook-delete-policy"] for m in hooks}
    assert policies == {"before-hook-creation,hook-succeeded"}


def test_job_and_profile_are_valid_and_fit_each_other(hooks: list[Manifest]) -> None:
    profile = FineTuneProfile.parse(only(hooks, "FineTuneProfile"))
    job = FineTuneJob.parse(only(hooks, "FineTuneJob"))
    assert job.spec.profile == only(hooks, "FineTuneProfile")["metadata"]["name"]
    assert (profile.spec.default, profile.spec.node.accelerator) == (False, "CPU")
    pod = only(hooks, "Pod", f"{NAME}-model")["spec"]
    claim = pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert job.spec.model.uri == f"pvc://{claim}/tiny"
    assert pod["containers"][0]["args"] == ["finetune_trainer.tiny", "/model/tiny"]
    key = only(hooks, "ConfigMap")["data"]
    assert job.spec.dataset.uri == f"configmap://{NAME}-data/{next(iter(key))}"
    lines = next(iter(key.values())).splitlines()
    assert [sorted(json.loads(line)) for line in lines] == [["messages"]] * 12


def test_the_pod_that_waits_may_read_this_one_job_and_nothing_else(hooks: list[Manifest]) -> None:
    assert only(hooks, "Role")["rules"] == [
        {
            "apiGroups": ["finetune-operator.io"],
            "resources": ["finetunejobs"],
            "resourceNames": [NAME],
            "verbs": ["get"],
        }
    ]
    assert only(hooks, "Pod", NAME)["spec"]["containers"][0]["args"] == [
        SCRIPT.read_text(),
        NAMESPACE,
        NAME,
        "900",
    ]
    assert only(hooks, "Pod", f"{NAME}-model")["spec"]["automountServiceAccountToken"] is False


def test_no_pod_of_it_is_taken_for_an_operator(hooks: list[Manifest]) -> None:
    selector = only(render(), "Service")["spec"]["selector"].items()
    for pod in (m for m in hooks if m["kind"] == "Pod"):
        assert not selector <= pod["metadata"]["labels"].items()


def test_it_runs_where_jobs_are_watched_on_what_is_named() -> None:
    found = render_tests(
        {
            "watchNamespaces": ["team-a", "team-b"],
            "test": {"profile": "standard", "storageClassName": "fast", "seconds": 60},
        }
    )
    assert {m["metadata"]["namespace"] for m in found} == {"team-a"}
    assert only(found, "FineTuneJob")["spec"]["profile"] == "standard"
    assert only(found, "PersistentVolumeClaim")["spec"]["storageClassName"] == "fast"
    assert not [m for m in found if m["kind"] == "FineTuneProfile"]


def test_without_cluster_objects_it_takes_the_default_profile() -> None:
    found = render_tests({"watchNamespaces": ["team-a"], "clusterObjects": False})
    assert "profile" not in only(found, "FineTuneJob")["spec"]


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    with api_server() as kubeconfig:
        yield kubeconfig


@pytest.fixture(scope="module")
def kube(server: Path) -> Kube:
    """An API server with the CRDs, and a namespace where PodSecurity `restricted` is enforced."""
    found = Kube(server)
    for manifest in render():
        if manifest["kind"] == "CustomResourceDefinition":
            path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
            found.create(path, manifest)
    jobs = f"{GROUP}/finetunejobs"
    eventually("jobs to be served", lambda: found.call("GET", jobs)[0] == 200)
    namespace = {
        "metadata": {
            "name": NAMESPACE,
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        }
    }
    found.create("/api/v1/namespaces", namespace)
    return found


@pytest.mark.cluster
def test_a_restricted_api_server_takes_all_of_it(
    server: Path, kube: Kube, hooks: list[Manifest]
) -> None:
    needed = [m for m in hooks if m["kind"] != "Pod"]
    options = ["--server-side", "--validate=strict", "-f", "-"]
    done = kubectl(server, "apply", *options, stdin=yaml.safe_dump_all(needed))
    assert done.returncode == 0, done.stderr
    pods = [m for m in hooks if m["kind"] == "Pod"]
    done = kubectl(server, "apply", *options, "--dry-run=server", stdin=yaml.safe_dump_all(pods))
    assert (done.returncode, done.stderr) == (0, "")


class Job:
    """The job of the test, whose status the test plays."""

    def __init__(self, server: Path, kube: Kube, name: str, manifest: Manifest) -> None:
        self._server, self._kube, self._name = server, kube, name
        self._path = f"{GROUP}/namespaces/{NAMESPACE}/finetunejobs"
        kube.create(self._path, manifest | {"metadata": {"name": name}})

    def says(self, phase: str, **status: Any) -> None:
        body = {"status": {"phase": phase, "message": "as played", **status}}
        path = f"{self._path}/{self._name}/status"
        code, answer = self._kube.call("PATCH", path, body, "application/merge-patch+json")
        assert code == 200, answer

    def awaited(self, seconds: str = "60") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), NAMESPACE, self._name, seconds],
            env=os.environ | {"KUBECONFIG": str(self._server)},
            stdout=subprocess.PIPE,
            text=True,
        )


@pytest.mark.cluster
def test_it_waits_until_the_job_has_succeeded(
    server: Path, kube: Kube, hooks: list[Manifest]
) -> None:
    job = Job(server, kube, "good", only(hooks, "FineTuneJob"))
    waiting = job.awaited()
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "good: not seen by the operator yet\n"
    for phase in ("Preparing", "Running", "Succeeded"):
        job.says(phase)
        assert waiting.stdout.readline() == f"good: {phase} as played\n"
    assert waiting.wait(30) == 0


@pytest.mark.cluster
def test_it_fails_with_the_job_and_tells_why(
    server: Path, kube: Kube, hooks: list[Manifest]
) -> None:
    job = Job(server, kube, "bad", only(hooks, "FineTuneJob"))
    job.says("Failed", message="no storage class")
    waiting = job.awaited()
    said, _ = waiting.communicate(timeout=30)
    first, rest = said.split("\n", 1)
    assert (waiting.returncode, first) == (1, "bad: Failed no storage class")
    assert {"phase": "Failed", "message": "no storage class"}.items() <= json.loads(rest).items()


@pytest.mark.cluster
def test_it_fails_when_nobody_runs_the_job(server: Path, kube: Kube, hooks: list[Manifest]) -> None:
    waiting = Job(server, kube, "alone", only(hooks, "FineTuneJob")).awaited("1")
    said, _ = waiting.communicate(timeout=30)
    assert waiting.returncode == 1
    assert "alone did not end within 1 s; the operator has seen it: False" in said

"""Profiles and the real operator: what a job takes from its profile, and why one is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kube import GROUP, Kube, eventually
from operator_process import Operator

Json = dict[str, Any]

KIND = {"apiVersion": "finetune-operator.io/v1alpha1"}
CPU = {"accelerator": "CPU", "gpusPerNode": 0}
SPEC: Json = {
    "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
    "dataset": {"uri": "pvc://team-data/docs.jsonl"},
}


def profile(kube: Kube, name: str, **spec: Any) -> str:
    body = {**KIND, "kind": "FineTuneProfile", "metadata": {"name": name}}
    kube.create(f"{GROUP}/finetuneprofiles", {**body, "spec": {"node": CPU, **spec}})
    return name


def submit(kube: Kube, namespace: str, name: str, **spec: Any) -> None:
    body = {**KIND, "kind": "FineTuneJob", "metadata": {"name": name}, "spec": {**SPEC, **spec}}
    kube.create(f"{GROUP}/namespaces/{namespace}/finetunejobs", body)


def phase_of(kube: Kube, namespace: str, name: str) -> Json:
    """The job, once the operator has said something that holds."""

    def looked_at() -> Json | None:
        found = kube.job(namespace, name)
        status = found.get("status", {})
        made = kube.get(f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}-prepare")
        return found if status.get("phase") == "Pending" or made else None

    found: Json = eventually(f"{name} to start or to wait", looked_at)
    return found


def test_a_job_takes_its_profiles_defaults_and_stays_as_it_was_written(
    kube: Kube, operator: Operator
) -> None:
    namespace = kube.namespace("defaults")
    used = profile(
        kube,
        "with-defaults",
        defaults={"training": {"epochs": 2, "seed": 7}, "workers": {"numNodes": 2}},
        retention={"failed": 3600},
    )
    submit(kube, namespace, "docs", profile=used, training={"seed": 1})
    job = phase_of(kube, namespace, "docs")
    resolved = job["status"]["resolved"]
    assert job["spec"] == {**SPEC, "profile": used, "training": {"seed": 1}}
    assert (resolved["defaults"], resolved["retention"], resolved["numNodes"]) == (
        {"training.epochs": "2", "workers.numNodes": "2"},
        {"failed": 3600},
        2,
    )
    path = f"/api/v1/namespaces/{namespace}/configmaps/docs-run"
    before = kube.get(path)
    assert before is not None
    run = json.loads(before["data"]["run.json"])
    assert (run["training"]["epochs"], run["training"]["seed"], run["numNodes"]) == (2.0, 1, 2)

    kube.patch(
        f"{GROUP}/finetuneprofiles/{used}",
        {"spec": {"defaults": {"training": {"epochs": 9}}, "limits": {"maxNodes": 1}}},
    )
    submit(kube, namespace, "later", profile=used, workers={"numNodes": 1})
    later = phase_of(kube, namespace, "later")  # so the operator has seen the profile as it is now
    assert later["status"]["resolved"]["defaults"]["training.epochs"] == "9"
    assert kube.get(path) == before
    assert kube.job(namespace, "docs")["status"]["resolved"] == resolved


@pytest.mark.parametrize(
    ("name", "labels", "refused"),
    [("gold", {"tier": "gold"}, False), ("plain", {}, True)],
)
def test_the_labels_of_a_namespace_decide_whether_its_jobs_may_use_a_profile(
    kube: Kube, operator: Operator, name: str, labels: dict[str, str], refused: bool
) -> None:
    namespace = kube.namespace(f"selected-{name}", **labels)
    limits = {"namespaceSelector": {"matchLabels": {"tier": "gold"}}}
    used = profile(kube, f"for-{name}", limits=limits)
    submit(kube, namespace, "docs", profile=used)
    status = phase_of(kube, namespace, "docs")["status"]
    said = (
        f"metadata.namespace is selected-{name}, which profile 'for-{name}' is not for "
        "(limits.namespaceSelector)"
    )
    found = {c["type"]: (c["status"], c["reason"], c["message"]) for c in status["conditions"]}
    accepted = ("True", "Accepted", "the job fits its profile")
    expected = ("False", "ForbiddenByProfile", said) if refused else accepted
    assert found["Validated"] == expected
    assert (status["phase"] == "Pending") is refused
    if refused:
        assert kube.items(f"/apis/batch/v1/namespaces/{namespace}/jobs") == []

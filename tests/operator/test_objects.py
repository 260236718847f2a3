"""Every manifest, whole, against a file: `pytest --update-golden` writes them anew."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import builders
import pytest

from finetune_api.snapshot import Snapshot, make_snapshot
from finetune_api.status import Resolved
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_operator import names, objects
from finetune_operator.plan import Plan, make_plan
from finetune_operator.sizing import resize

Golden = Callable[[str, Any], None]

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "five-lines": ({"workers": {}}, builders.PROFILE),
    "everything": (
        {
            "model": {
                "uri": "hf://meta/llama",
                "revision": "main",
                "secretRef": {"name": "hf-token"},
            },
            "dataset": {"uri": "configmap://team-docs/docs.jsonl"},
            "output": {"uri": "pvc://team-models/docs", "merge": True},
            "tracking": {
                "reportTo": ["TensorBoard", "MLflow", "WandB"],
                "project": "llamas",
                "secretRef": {"name": "tracking"},
            },
        },
        {
            "default": True,
            "image": "example/own:1",
            "node": {"gpusPerNode": 8, "sharedMemory": "8Gi"},
            "placement": {
                "nodeSelector": {"pool": "gpu"},
                "tolerations": [{"key": "gpu", "operator": "Exists"}],
                "schedulerName": "kai-scheduler",
            },
            "storage": {"storageClassName": "fast", "size": "1Ti", "accessMode": "ReadWriteOnce"},
            "limits": {"reportTo": ["TensorBoard", "MLflow", "WandB"]},
            "env": {"NCCL_DEBUG": "WARN", "MLFLOW_TRACKING_URI": "https://mlflow.example"},
        },
    ),
    "whole-profile": (
        {"serviceAccountName": "tune-a"},
        {
            "default": True,
            "node": {
                "gpusPerNode": 8,
                "extraResources": {"rdma/hca": "1", "hugepages-2Mi": "5120Mi"},
                "runtimeClassName": "nvidia",
                "annotations": {"k8s.v1.cni.cncf.io/networks": "rdma-net"},
            },
            "placement": {
                "priorityClassName": "training",
                "queue": "team-a",
                "together": {"topologyKey": "topology.kubernetes.io/zone", "required": True},
                "topologySpread": [{"topologyKey": "kubernetes.io/hostname"}],
            },
            "storage": {"cacheClaim": "hub-cache"},
            "limits": {"serviceAccounts": ["tune-*"]},
            "pods": {"serviceAccountName": "other", "imagePullSecrets": ["registry"]},
            "defaults": {"training": {"epochs": 2}},
        },
    ),
    "own-trainer": (
        {
            "trainer": {
                "image": "example/mine:1",
                "command": ["torchrun", "/etc/finetune/files/train.py"],
                "args": ["--epochs", "2"],
                "env": [
                    {"name": "STEPS", "value": "12"},
                    {"name": "KEY", "secretKeyRef": {"name": "keys", "key": "mine"}},
                ],
                "filesFrom": "my-script",
            },
        },
        {
            "default": True,
            "node": {"gpusPerNode": 8},
            "limits": {"ownTrainer": True},
            "env": {"NCCL_DEBUG": "WARN"},
        },
    ),
    "shared-claim-on-cpu": (
        {
            "model": {"uri": "pvc://team-data/model"},
            "workers": {"numNodes": 2, "numProcPerNode": 1},
        },
        {
            "default": True,
            "node": {"accelerator": "CPU", "gpusPerNode": 0},
            "storage": {"workClaim": "team-work"},
        },
    ),
}


def plan_of(name: str) -> Plan:
    return plan_from(*CASES[name])


def plan_from(spec: dict[str, Any], profile: dict[str, Any]) -> Plan:
    world = builders.world(standard=profile)
    snapshot = make_snapshot(
        FineTuneJobSpec.parse(builders.SPEC | spec),
        dict(world.profiles),
        builders.SETTINGS.trainer_image,
    )
    assert isinstance(snapshot, Snapshot)
    return make_plan("team-a", "docs", builders.UID, snapshot)


@pytest.mark.parametrize("name", CASES)
def test_the_manifests_of_a_job_are_as_written(name: str, golden: Golden) -> None:
    plan = plan_of(name)
    manifests = [
        objects.run_config_map(plan, "CA"),
        *objects.preparing_objects(plan, 0, builders.SETTINGS),
        *objects.training_objects(plan, 0, builders.SETTINGS),
        objects.stage_job(plan, "export", 0, builders.SETTINGS),
    ]
    golden(name, manifests)


def test_the_manifests_of_an_attempt_at_another_size_that_keeps_off_nodes(golden: Golden) -> None:
    plan = plan_of("shared-claim-on-cpu")
    resized = resize(plan, 1, 2, Resolved(shape=builders.SHAPE))
    assert isinstance(resized, Plan)
    attempt = replace(
        resized, attempt=3, config="docs-run-3", grace_seconds=90, not_on=("node-a", "node-b")
    )
    export = replace(plan, config="docs-run-3")
    manifests = [
        *objects.training_objects(attempt, 3, builders.SETTINGS),
        objects.stage_job(export, "export", 0, builders.SETTINGS),
    ]
    golden("another-attempt", manifests)


@pytest.mark.parametrize("name", CASES)
def test_every_object_belongs_to_the_job_and_says_so(name: str) -> None:
    plan = plan_of(name)
    for manifest in objects.preparing_objects(plan, 0, builders.SETTINGS):
        metadata = manifest["metadata"]
        assert metadata["ownerReferences"][0]["uid"] == builders.UID
        assert metadata["labels"]["finetune-operator.io/job"] == "docs"


def test_a_cluster_that_assigns_users_finds_none_in_the_pods_and_all_else_as_restricted_asks() -> (
    None
):
    settings = replace(builders.SETTINGS, trainer_user=None)
    plan = plan_of("five-lines")
    for stage in names.STAGES:
        spec = objects.stage_job(plan, stage, 0, settings)["spec"]["template"]["spec"]
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        }


def test_a_variable_has_one_value_and_it_is_the_jobs_own_where_it_may_have_one() -> None:
    spec, profile = copy.deepcopy(CASES["own-trainer"])
    spec["trainer"]["env"] = [{"name": "HOME", "value": "/mine"}, {"name": "A", "value": "1"}]
    profile = profile | {"env": {"A": "0", "PET_NNODES": "9"}}
    plan = plan_from(spec, profile)
    job = objects.stage_job(plan, "train", 0, builders.SETTINGS)
    env = job["spec"]["template"]["spec"]["containers"][0]["env"]
    names = [variable["name"] for variable in env]
    assert sorted(names) == sorted(set(names))
    values = {variable["name"]: variable.get("value") for variable in env}
    assert {n: values[n] for n in ("A", "HOME", "PET_NNODES")} == {
        "A": "1",
        "HOME": "/mine",
        "PET_NNODES": "2",
    }

"""A job keeps what it started with: whatever becomes of its profile, at whatever moment."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import builders
import pytest
from simulation import SimulatedCluster

from finetune_api.profile import FineTuneProfileSpec

Json = dict[str, Any]

BEFORE: Json = {
    "default": True,
    "image": "example/one:1",
    "node": {
        "gpusPerNode": 8,
        "gpuMemoryGiB": 80,
        "extraResources": {"rdma/hca": "1"},
        "runtimeClassName": "nvidia",
        "annotations": {"k8s.v1.cni.cncf.io/networks": "rdma-a"},
    },
    "placement": {
        "nodeSelector": {"pool": "a"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "priorityClassName": "low",
        "queue": "team-a",
        "together": {"topologyKey": "rack"},
        "topologySpread": [{"topologyKey": "kubernetes.io/hostname"}],
    },
    "storage": {"cacheClaim": "cache"},
    "price": {"perGpuHour": "2.50"},
    "limits": {"maxNodes": 2, "maxGpuHours": 1000, "maxDurationSeconds": 86_400},
    "retention": {"failed": 3600},
    "pods": {"serviceAccountName": "one", "imagePullSecrets": ["registry"]},
    "defaults": {"training": {"epochs": 3}},
    "env": {"NCCL_DEBUG": "WARN"},
}
AFTER: Json = {
    "default": False,
    "image": "example/two:2",
    "node": {
        "accelerator": "CPU",
        "gpusPerNode": 1,
        "gpuResourceName": "amd.com/gpu",
        "gpuMemoryGiB": 1,
        "cpu": "1",
        "memory": "1Gi",
        "sharedMemory": "1Gi",
        "extraResources": {},
        "runtimeClassName": "other",
        "annotations": {},
    },
    "cpuStages": {"cpu": "1", "memory": "1Gi"},
    "placement": {
        "nodeSelector": {},
        "tolerations": [],
        "schedulerName": "other",
        "priorityClassName": "high",
        "queue": "team-b",
        "together": {"topologyKey": "zone", "required": True},
        "topologySpread": [],
    },
    "storage": {
        "storageClassName": "slow",
        "size": "1Gi",
        "accessMode": "ReadWriteOnce",
        "workClaim": None,
        "cacheClaim": "other",
    },
    "price": {"perGpuHour": "9", "currency": "USD"},
    "limits": {
        "maxNodes": 1,
        "maxGpus": 1,
        "maxDurationSeconds": 1,
        "maxGpuHours": 1,
        "maxCost": "1",
        "models": ["none"],
        "datasets": ["none"],
        "objectives": ["DPO"],
        "tunings": ["Full"],
        "namespaceSelector": {"matchLabels": {"none": "none"}},
        "serviceAccounts": ["none"],
        "remoteCode": True,
        "reportTo": ["WandB"],
        "ownTrainer": True,
        "trainerImages": ["none"],
    },
    "retention": {"succeeded": 1, "failed": 1},
    "pods": {"serviceAccountName": "two", "imagePullSecrets": []},
    "defaults": {"training": {"seed": 7}},
    "env": {"NCCL_DEBUG": "INFO"},
}
STEPS = ("docs-prepare", "docs-train-0", "docs-export")


def life(edited_after: int | None, becomes: Json | None) -> Iterator[SimulatedCluster]:
    """The job as it is after each step of its life; at one of them its profile is edited, or
    deleted (None)."""
    cluster = SimulatedCluster(builders.job_body(), builders.world(standard=BEFORE))
    steps = [None, *STEPS]
    for number, job in enumerate(steps):
        if job is not None:
            outcome = builders.OUTCOMES[job.split("-")[1]]
            cluster.finish(job, outcome)
        cluster.settle()
        yield cluster
        if number == edited_after:
            other = builders.world(**({"standard": becomes} if becomes else {"other": {}}))
            cluster.world = other


def told(cluster: SimulatedCluster) -> Json:
    """All that is there, and all that is said."""
    return copy.deepcopy(
        {
            "status": cluster.body["status"],
            "objects": cluster.objects,
            "events": cluster.events,
            "writes": cluster.writes,
        }
    )


@pytest.mark.parametrize("edited_after", range(len(STEPS)))
@pytest.mark.parametrize("becomes", [AFTER, None], ids=["edited", "deleted"])
def test_a_profile_that_changes_does_not_touch_a_job_that_has_started(
    edited_after: int, becomes: Json | None
) -> None:
    lives = zip(life(None, None), life(edited_after, becomes), strict=True)
    found = [(told(expected), told(edited)) for expected, edited in lives]
    assert found[-1][0]["status"]["phase"] == "Succeeded"
    for expected, edited in found:
        assert edited == expected


def test_every_field_of_the_profile_is_changed_by_these_tests() -> None:
    assert set(AFTER) == set(FineTuneProfileSpec.parse({}).model_dump(by_alias=True))
    before, after = (
        FineTuneProfileSpec.parse(p).model_dump(by_alias=True) for p in (BEFORE, AFTER)
    )
    for part, fields in after.items():
        if isinstance(fields, dict) and part not in ("env", "defaults"):
            same = [name for name in fields if fields[name] == before[part][name]]
            assert same == (["workClaim"] if part == "storage" else []), part
            assert set(AFTER[part]) == set(fields), part
        else:
            assert fields != before[part], part


def test_a_job_that_starts_after_the_edit_has_all_of_the_new_profile() -> None:
    cluster = SimulatedCluster(builders.job_body(), builders.world(standard=BEFORE))
    cluster.world = builders.world(
        standard=AFTER | {"default": True, "limits": {}, "node": {"gpusPerNode": 8}}
    )
    cluster.settle()
    resolved = cluster.body["status"]["resolved"]
    assert (resolved["image"], resolved["defaults"]) == ("example/two:2", {"training.seed": "7"})
    assert resolved["retention"] == {"succeeded": 1, "failed": 1}

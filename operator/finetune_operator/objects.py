"""Builders of every object that a job owns: one plan in, one whole manifest out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from finetune_api.base import API_VERSION
from finetune_operator import names, network
from finetune_operator.names import Stage
from finetune_operator.placement import queue_label
from finetune_operator.plan import Plan
from finetune_operator.pods import pod_spec
from finetune_operator.settings import Settings

Manifest = dict[str, Any]

DONT_RETRY = [10, 11, 12, 13, 14]
"""Exit codes of the user's failures (`finetune_api.outcome.ExitCode`)."""
CPU_STAGE_RETRIES = 2
DISRUPTED = {"type": "DisruptionTarget", "status": "True"}


def labels(plan: Plan, stage: Stage | None = None, attempt: int = 0) -> dict[str, str]:
    """Labels of an object of this job."""
    found = {names.LABEL_JOB: plan.name, names.LABEL_MANAGED_BY: names.FIELD_OWNER}
    if stage is not None:
        found |= {names.LABEL_STAGE: stage, names.LABEL_ATTEMPT: str(attempt)}
    return found


def _metadata(plan: Plan, name: str, extra: dict[str, str] | None = None) -> Manifest:
    return {
        "name": name,
        "namespace": plan.namespace,
        "labels": extra or labels(plan),
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": "FineTuneJob",
                "name": plan.name,
                "uid": plan.uid,
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
    }


def settings_of(plan: Plan, ca_cert: str) -> dict[str, str]:
    """What the stages are told, what the job started with, and whom to trust with progress."""
    return {
        "run.json": plan.run.model_dump_json(by_alias=True, indent=1),
        "snapshot.json": plan.snapshot.model_dump_json(by_alias=True, exclude_none=True),
        "ca.crt": ca_cert,
    }


def settings_digest(settings: Mapping[str, str]) -> str:
    """Of the data of the ConfigMap that `run_config_map` makes, for `status.settingsDigest`: who
    may make ConfigMaps and knows the job's uid can make one that looks like it, and only the
    operator may write the status."""
    text = json.dumps(dict(settings), sort_keys=True).encode()
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def run_config_map(plan: Plan, ca_cert: str) -> Manifest:
    """What the job started with."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(plan, names.run_config_map(plan.name)),
        "immutable": True,
        "data": settings_of(plan, ca_cert),
    }


def attempt_config_map(plan: Plan, name: str) -> Manifest:
    """What the workers of an attempt are told that has another size than the job started with."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(plan, name),
        "immutable": True,
        "data": {"run.json": plan.run.model_dump_json(by_alias=True, indent=1)},
    }


def work_claim(plan: Plan) -> Manifest:
    """The volume with prepared data and result."""
    storage = plan.snapshot.profile.storage
    spec: Manifest = {
        "accessModes": [storage.access_mode],
        "resources": {"requests": {"storage": storage.size}},
    }
    if storage.storage_class_name is not None:
        spec["storageClassName"] = storage.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(plan, names.work_claim(plan.name)),
        "spec": spec,
    }


def service(plan: Plan) -> Manifest:
    """Headless, over rank 0 only: rendezvous needs one name, and fewer endpoints cost less."""
    selector = {names.LABEL_JOB: plan.name, names.LABEL_STAGE: "train", names.LABEL_INDEX: "0"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(plan, names.service(plan.name)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": selector,
            "ports": [{"name": "rendezvous", "port": names.MASTER_PORT, "protocol": "TCP"}],
        },
    }


def network_policies(plan: Plan, settings: Settings) -> tuple[Manifest, ...]:
    """One for each stage."""
    return tuple(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": _metadata(plan, names.network_policy(plan.name, stage)),
            "spec": spec,
        }
        for stage, spec in network.specs(plan, settings).items()
    )


def tracking_policy(plan: Plan) -> tuple[Manifest, ...]:
    """Where the job reports to a tracker's server."""
    spec = network.tracking(plan)
    if spec is None:
        return ()
    metadata = _metadata(plan, f"{plan.name}-tracking")
    head = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata}
    return (head | {"spec": spec},)


def stage_job(plan: Plan, stage: Stage, attempt: int, settings: Settings) -> Manifest:
    """The Kubernetes Job of a stage."""
    mine = labels(plan, stage, attempt)
    codes = {"containerName": names.CONTAINER, "operator": "In", "values": DONT_RETRY}
    rules: list[Manifest] = [{"action": "FailJob", "onExitCodes": codes}]
    # A disrupted pod of a CPU stage is made anew and spends no retry. A gang ends with it, and its
    # Job keeps the reason, which may be gone with the pod when the operator looks.
    action = "FailJob" if stage == "train" else "Ignore"
    rules.append({"action": action, "onPodConditions": [DISRUPTED]})
    spec: Manifest = {
        "backoffLimit": CPU_STAGE_RETRIES,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": rules},
        "template": {
            "metadata": _template_metadata(plan, stage, mine),
            "spec": pod_spec(plan, stage, attempt, settings),
        },
    }
    queued = mine | queue_label(plan) if stage == "train" else mine
    if stage == "train":
        nodes = plan.run.num_nodes
        spec |= {
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            "backoffLimit": 0,  # a gang: one worker fails, all are gone
        }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(plan, names.stage_job(plan.name, stage, attempt), queued),
        "spec": spec,
    }


def _template_metadata(plan: Plan, stage: Stage, mine: dict[str, str]) -> Manifest:
    annotations = plan.snapshot.profile.node.annotations
    given = {"annotations": annotations} if stage == "train" and annotations else {}
    return {"labels": mine, **given}


def preparing_objects(plan: Plan, attempt: int, settings: Settings) -> tuple[Manifest, ...]:
    """Everything that prepare needs beside the ConfigMap, in order."""
    claim = () if plan.snapshot.profile.storage.work_claim else (work_claim(plan),)
    return (
        *claim,
        *network_policies(plan, settings),
        *tracking_policy(plan),
        stage_job(plan, "prepare", attempt, settings),
    )


def training_objects(plan: Plan, attempt: int, settings: Settings) -> tuple[Manifest, ...]:
    """The gang."""
    told = (attempt_config_map(plan, plan.config),) if plan.config else ()
    return (*told, service(plan), stage_job(plan, "train", attempt, settings))

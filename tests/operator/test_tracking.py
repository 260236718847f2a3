"""`spec.tracking`: what a profile allows, and what changes in the objects."""

from __future__ import annotations

from typing import Any

import builders
import pytest

from finetune_api.snapshot import Refused, Snapshot, make_snapshot
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_operator import objects, trackers
from finetune_operator.plan import Plan, make_plan


def snapshot(profile: dict[str, Any], *trackers: str) -> Snapshot | Refused:
    spec = builders.SPEC | {"tracking": {"reportTo": trackers, "secretRef": {"name": "keys"}}}
    profiles = dict(builders.world(standard=builders.PROFILE | profile).profiles)
    return make_snapshot(FineTuneJobSpec.parse(spec), profiles, "image")


def plan(profile: dict[str, Any], *trackers: str) -> Plan:
    found = snapshot(profile, *trackers)
    assert isinstance(found, Snapshot)
    return make_plan("team-a", "docs", builders.UID, found)


@pytest.mark.parametrize("tracker", ["MLflow", "WandB"])
def test_what_leaves_the_gang_must_be_allowed_by_the_profile(tracker: str) -> None:
    assert snapshot({}, "TensorBoard", tracker) == Refused(
        "ForbiddenByProfile",
        f"spec.tracking.reportTo is TensorBoard, {tracker}; profile 'standard' allows TensorBoard "
        "(limits.reportTo)",
    )
    assert isinstance(snapshot({"limits": {"reportTo": [tracker]}}, tracker), Snapshot)


def test_files_need_no_way_out() -> None:
    assert objects.tracking_policy(plan({}, "TensorBoard")) == ()


def test_a_server_in_the_cluster_is_reached_where_the_profile_names_it() -> None:
    profile = {
        "limits": {"reportTo": ["MLflow"]},
        "env": {"MLFLOW_TRACKING_URI": "http://mlflow.mlops.svc:5000"},
    }
    (policy,) = objects.tracking_policy(plan(profile, "MLflow"))
    assert policy["spec"]["podSelector"]["matchLabels"] == {
        "finetune-operator.io/job": "docs",
        "finetune-operator.io/stage": "train",
        "batch.kubernetes.io/job-completion-index": "0",
    }
    public, inside = policy["spec"]["egress"]
    assert [port["port"] for port in public["ports"]] == [80, 443, 5000]
    namespace = {"matchLabels": {"kubernetes.io/metadata.name": "mlops"}}
    assert inside == {"to": [{"namespaceSelector": namespace}]}


def test_export_has_no_business_with_a_trackers_secrets() -> None:
    allowed = plan({"limits": {"reportTo": ["MLflow"]}}, "MLflow")
    names = {
        stage: [v["name"] for v in trackers.variables(allowed, stage)]
        for stage in ("prepare", "train", "export")
    }
    keys = [
        "MLFLOW_TRACKING_URI",
        "MLFLOW_TRACKING_TOKEN",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "WANDB_API_KEY",
        "WANDB_BASE_URL",
        "WANDB_ENTITY",
    ]
    assert names == {"prepare": keys, "train": keys, "export": []}


def test_a_variable_that_the_profile_sets_is_not_read_from_the_secret() -> None:
    address = {"MLFLOW_TRACKING_URI": "https://mlflow.example"}
    allowed = plan({"limits": {"reportTo": ["MLflow"]}, "env": address}, "MLflow")
    made = objects.stage_job(allowed, "train", 0, builders.SETTINGS)
    env = made["spec"]["template"]["spec"]["containers"][0]["env"]
    assert [e for e in env if e["name"] == "MLFLOW_TRACKING_URI"] == [
        {"name": "MLFLOW_TRACKING_URI", "value": "https://mlflow.example"}
    ]

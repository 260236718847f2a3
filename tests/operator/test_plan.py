"""Every `Auto` and default, and every refusal that needs the profile."""

from __future__ import annotations

from typing import Any

import builders
import pytest

from finetune_api.profile import FineTuneProfileSpec
from finetune_api.resolve import quantity_bytes
from finetune_api.snapshot import Refused, Snapshot, make_snapshot
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_operator.plan import make_plan


def snapshot(spec: dict[str, Any], **profiles: dict[str, Any]) -> Snapshot | Refused:
    found = profiles or {"standard": builders.PROFILE}
    return make_snapshot(
        FineTuneJobSpec.parse(builders.SPEC | spec),
        {name: FineTuneProfileSpec.parse(p) for name, p in found.items()},
        "example/finetune-trainer:1",
    )


def run_config(spec: dict[str, Any], **profiles: dict[str, Any]) -> dict[str, Any]:
    found = snapshot(spec, **profiles)
    assert isinstance(found, Snapshot)
    return make_plan("team-a", "docs", builders.UID, found).run.to_json_dict()


def test_a_five_line_job_is_resolved_completely() -> None:
    assert run_config({"workers": {}}) == {
        "schemaVersion": 1,
        "namespace": "team-a",
        "name": "docs",
        "uid": builders.UID,
        "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
        "dataset": {
            "uri": "pvc://team-data/docs.jsonl",
            "path": "/var/finetune/claims/team-data/docs.jsonl",
        },
        "datasetFormat": "Auto",
        "longExamples": "Truncate",
        "evalFraction": 0.05,
        "objective": "SFT",
        "tuning": "LoRA",
        "lora": {
            "rank": 16,
            "alpha": 32,
            "dropout": 0.0,
            "targetModules": ["all-linear"],
            "useRslora": False,
            "useDora": False,
            "modulesToSave": [],
        },
        "training": {
            "epochs": 1.0,
            "learningRate": 0.0002,
            "schedule": "Cosine",
            "warmupFraction": 0.03,
            "weightDecay": 0.0,
            "maxGradNorm": 1.0,
            "globalBatchSize": 32,
            "microBatchSize": 4,
            "gradientAccumulationSteps": 1,
            "sequenceLength": 2048,
            "packing": True,
            "precision": "BF16",
            "gradientCheckpointing": False,
            "seed": 42,
        },
        "numNodes": 1,
        "numProcPerNode": 8,
        "zeroStage": 1,
        "offload": "None",
        "auto": ["microBatchSize", "gradientCheckpointing", "zeroStage", "offload"],
        "resolved": False,
        "memory": {"hostBytes": 8 * 2**30},
        "evaluation": {"retentionMaxExamples": 500},
        "checkpoints": {"everyMinutes": 15, "keep": 2, "resume": True},
        "hang": {"reportOnly": False},
        "accelerator": "CUDA",
        "workDir": "/var/finetune/work",
        "outputUri": "pvc://docs-work/output",
        "outputDir": "/var/finetune/work/output",
        "allowRemoteCode": False,
        "merge": False,
        "ownTrainer": False,
    }


def test_only_the_profile_permits_the_code_of_a_model() -> None:
    profile = {"default": True, "limits": {"remoteCode": True}}
    assert run_config({}, a=profile)["allowRemoteCode"] is True
    assert run_config({}, a={"default": True})["allowRemoteCode"] is False


def test_what_the_job_says_of_hangs_reaches_the_watchdog() -> None:
    wanted = {"trainingSeconds": 300, "loadingSeconds": 900, "evaluatingSeconds": 60}
    wanted |= {"checkpointingSeconds": 1200}
    found = run_config({"hangPolicy": wanted | {"action": "Report"}})["hang"]
    assert found == wanted | {"reportOnly": True}
    assert run_config({"hangPolicy": {"action": "Fail"}})["hang"] == {"reportOnly": False}


def test_what_the_job_says_is_not_left_to_prepare() -> None:
    found = run_config(
        {
            "training": {"microBatchSize": 2, "gradientCheckpointing": "Always"},
            "zero": {"stage": 3, "offload": "Optimizer"},
        }
    )
    decided = (found["auto"], found["offload"], found["training"]["gradientCheckpointing"])
    assert decided == ([], "Optimizer", True)


def test_preferences_and_continued_pre_training_get_their_own_settings() -> None:
    dpo = run_config({"method": {"objective": "DPO"}})
    cpt = run_config({"method": {"objective": "CPT"}})
    weights = {"beta": 0.1, "desirableWeight": 1.0, "undesirableWeight": 1.0}
    assert (dpo["preference"], dpo["longExamples"]) == (weights, "Truncate")
    assert (cpt.get("preference"), cpt["longExamples"]) == (None, "Split")


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [("64Gi", 64 * 2**30), ("1.5G", 1_500_000_000), ("512", 512), ("100m", 0), ("2Ti", 2**41)],
)
def test_quantities_are_read_as_kubernetes_writes_them(quantity: str, expected: int) -> None:
    assert quantity_bytes(quantity) == expected


def test_full_tuning_gets_stage_2_and_no_adapter() -> None:
    found = run_config({"method": {"tuning": "Full"}})
    assert (found["zeroStage"], found.get("lora")) == (2, None)


def test_max_steps_stand_in_place_of_epochs() -> None:
    found = run_config({"training": {"maxSteps": 7}})["training"]
    assert (found.get("epochs"), found["maxSteps"]) == (None, 7)


def test_a_shared_work_claim_gets_a_directory_per_job() -> None:
    found = run_config({}, shared={"default": True, "storage": {"workClaim": "team-work"}})
    assert (found["workDir"], found["outputUri"]) == (
        "/var/finetune/work/docs-666ff6cc",
        "pvc://team-work/docs-666ff6cc/output",
    )


@pytest.mark.parametrize(
    ("spec", "profiles", "refused"),
    [
        pytest.param(
            {"profile": "big"},
            {"a": {}, "b": {}},
            Refused(
                "ProfileNotFound",
                "spec.profile: there is no FineTuneProfile 'big'; existing: a, b",
            ),
            id="unknown profile",
        ),
        pytest.param(
            {},
            {"a": {}},
            Refused(
                "NoDefaultProfile",
                "no FineTuneProfile has spec.default: true; set spec.profile, or ask your "
                "platform team for a default profile",
            ),
            id="no default",
        ),
        pytest.param(
            {},
            {"a": {"default": True}, "b": {"default": True}},
            Refused(
                "AmbiguousProfile",
                "several FineTuneProfiles have spec.default: true (a, b); set spec.profile",
            ),
            id="two defaults",
        ),
        pytest.param(
            {},
            {"a": {"default": True, "limits": {"maxNodes": 1}}},
            Refused(
                "ExceedsProfile",
                "spec.workers.numNodes is 2; profile 'a' allows at most 1 (limits.maxNodes)",
            ),
            id="too many nodes",
        ),
        pytest.param(
            {},
            {"a": {"default": True, "node": {"gpusPerNode": 4}}},
            Refused(
                "ExceedsProfile",
                "spec.workers.numProcPerNode is 8; a node of profile 'a' has 4 GPUs "
                "(node.gpusPerNode)",
            ),
            id="too many GPUs",
        ),
        pytest.param(
            {"workers": {"numNodes": 3}},
            {"a": {"default": True}},
            Refused(
                "InvalidBatchSize",
                "spec.training.globalBatchSize is 32, which 3 x 8 processes cannot share evenly; "
                "use 24 or 48",
            ),
            id="batch does not divide",
        ),
        pytest.param(
            {"training": {"microBatchSize": 3}},
            {"a": {"default": True}},
            Refused(
                "InvalidBatchSize",
                "spec.training.microBatchSize is 3, which does not divide a process's share of 2 "
                "(globalBatchSize 32 / 16 processes); use Auto or a divisor of it",
            ),
            id="micro-batch does not divide",
        ),
    ],
)
def test_what_cannot_start_is_refused_with_the_fix(
    spec: dict[str, Any], profiles: dict[str, Any], refused: Refused
) -> None:
    assert snapshot(spec, **profiles) == refused

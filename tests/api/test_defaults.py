"""A profile's defaults under what a job says itself."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.crd import all_crds
from finetune_api.defaults import as_texts, with_defaults, with_taken
from finetune_api.profile import FineTuneProfileSpec
from finetune_api.snapshot import Snapshot, make_snapshot
from finetune_api.v1alpha1 import FineTuneJobSpec

Json = dict[str, Any]
SPEC: Json = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "pvc://data/x.jsonl"}}
DPO = {"uri": "pvc://data/x.jsonl", "format": "Preference"}


def merged(job: Json, defaults: Json) -> tuple[Json, Json]:
    """What a job says then, and which defaults it took."""
    checked = FineTuneProfileSpec.parse({"defaults": defaults}).defaults
    spec, taken = with_defaults(FineTuneJobSpec.parse(SPEC | job), checked)
    said = spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    return {name: value for name, value in said.items() if SPEC.get(name) != value}, taken


@pytest.mark.parametrize(
    ("job", "defaults", "says", "taken"),
    [
        pytest.param(
            {},
            {"workers": {"numNodes": 2}, "activeDeadlineSeconds": 3600},
            {"workers": {"numNodes": 2}, "activeDeadlineSeconds": 3600},
            {"workers.numNodes": 2, "activeDeadlineSeconds": 3600},
            id="what the job does not say is the profile's",
        ),
        pytest.param(
            {"workers": {"numNodes": 1}, "training": {"packing": True}},
            {
                "workers": {"numNodes": 2, "numProcPerNode": 4},
                "training": {"packing": False, "seed": 7},
            },
            {
                "workers": {"numNodes": 1, "numProcPerNode": 4},
                "training": {"packing": True, "seed": 7},
            },
            {"workers.numProcPerNode": 4, "training.seed": 7},
            id="what the job says stays, also where it is the usual value",
        ),
        pytest.param(
            {"training": {"maxSteps": 10}},
            {"training": {"epochs": 3.0, "learningRate": 1e-5}},
            {"training": {"maxSteps": 10, "learningRate": 1e-5}},
            {"training.learningRate": 1e-5},
            id="no passes where the job names steps",
        ),
        pytest.param(
            {"method": {"tuning": "Full"}},
            {"method": {"lora": {"rank": 8}}, "output": {"uri": "pvc://a/b", "merge": True}},
            {"method": {"tuning": "Full"}, "output": {"uri": "pvc://a/b"}},
            {"output.uri": "pvc://a/b"},
            id="no adapter where all weights are tuned",
        ),
        pytest.param(
            {"method": {"lora": {"rank": 8}}},
            {"method": {"tuning": "Full"}},
            {"method": {"lora": {"rank": 8}}},
            {},
            id="not all weights where the job has an adapter",
        ),
        pytest.param(
            {"method": {"lora": {"rank": 4, "targetModules": ["q_proj"]}}},
            {"method": {"lora": {"rank": 8, "alpha": 16, "targetModules": ["all-linear"]}}},
            {"method": {"lora": {"rank": 4, "alpha": 16, "targetModules": ["q_proj"]}}},
            {"method.lora.alpha": 16},
            id="a list is one value",
        ),
        pytest.param(
            {"dataset": DPO},
            {"method": {"objective": "DPO", "preference": {"beta": 0.2}}},
            {"dataset": DPO, "method": {"objective": "DPO", "preference": {"beta": 0.2}}},
            {"method.objective": "DPO", "method.preference.beta": 0.2},
            id="settings that need one another",
        ),
        pytest.param(
            {"dataset": {**DPO, "format": "Chat"}},
            {"method": {"objective": "DPO", "preference": {"beta": 0.2}}},
            {"dataset": {**DPO, "format": "Chat"}},
            {},
            id="no preferences from chats",
        ),
        pytest.param(
            {"method": {"objective": "CPT"}},
            {"dataset": {"format": "Chat", "longExamples": "Split", "evalFraction": 0.1}},
            {
                "method": {"objective": "CPT"},
                "dataset": {**SPEC["dataset"], "longExamples": "Split", "evalFraction": 0.1},
            },
            {"dataset.longExamples": "Split", "dataset.evalFraction": 0.1},
            id="no chats where the job goes on pre-training",
        ),
        pytest.param(
            {"zero": {"stage": 2}},
            {"zero": {"offload": "OptimizerAndParameters"}},
            {"zero": {"stage": 2}},
            {},
            id="no offload that the stage does not have",
        ),
        pytest.param(
            {"training": {"microBatchSize": 8}},
            {"training": {"globalBatchSize": 4}},
            {"training": {"microBatchSize": 8}},
            {},
            id="no batch smaller than the job's micro-batch",
        ),
        pytest.param(
            {"dataset": {**SPEC["dataset"], "evalFraction": 0.0}},
            {"evaluation": {"everySteps": 10, "earlyStoppingPatience": 3}},
            {"dataset": {**SPEC["dataset"], "evalFraction": 0.0}},
            {},
            id="no evaluations where nothing is held out",
        ),
        pytest.param(
            {},
            {"ttlSecondsAfterFinished": {"succeeded": 60, "failed": 90}},
            {"ttlSecondsAfterFinished": {"failed": 90}},
            {"ttlSecondsAfterFinished.failed": 90},
            id="no deletion of the only result",
        ),
        pytest.param(
            {"output": {"uri": "pvc://models/x"}},
            {"ttlSecondsAfterFinished": {"succeeded": 60}},
            {"output": {"uri": "pvc://models/x"}, "ttlSecondsAfterFinished": {"succeeded": 60}},
            {"ttlSecondsAfterFinished.succeeded": 60},
            id="deletion where the result is elsewhere",
        ),
        pytest.param(
            {},
            {"evaluation": {"retention": {"maxExamples": 100}}},
            {},
            {},
            id="a part of what the job does not have",
        ),
        pytest.param(
            {"evaluation": {"retention": {"uri": "hf://a/general"}}},
            {"evaluation": {"retention": {"maxExamples": 100}}},
            {"evaluation": {"retention": {"uri": "hf://a/general", "maxExamples": 100}}},
            {"evaluation.retention.maxExamples": 100},
            id="a part of what the job has",
        ),
    ],
)
def test_a_job_says_what_it_says_and_the_profile_the_rest(
    job: Json, defaults: Json, says: Json, taken: Json
) -> None:
    assert merged(job, defaults) == (says, taken)


@pytest.mark.parametrize(
    ("defaults", "problem"),
    [
        ({"profile": "x"}, "defaults.profile: only a job itself can say this; remove it"),
        ({"suspend": True}, "defaults.suspend: only a job itself can say this; remove it"),
        ({"workers": {"numNodes": 0}}, "greater than or equal to 1"),
        ({"worker": {}}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_defaults_make_a_profile_unusable_with_the_field(
    defaults: Json, problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        FineTuneProfileSpec.parse({"defaults": defaults})


def test_the_defaults_are_tried_in_the_order_of_the_fields_however_they_were_written() -> None:
    turned = {"evaluation": {"earlyStoppingPatience": 3, "everySteps": 10}}
    said = {"evaluation": {"everySteps": 10, "earlyStoppingPatience": 3}}
    assert merged({}, turned)[0] == said


def test_the_snapshot_has_the_whole_spec_and_says_what_is_the_profiles() -> None:
    profile = FineTuneProfileSpec.parse(
        {
            "default": True,
            "defaults": {"training": {"epochs": 2}, "restartPolicy": {"maxRestarts": 9}},
        }
    )
    found = make_snapshot(FineTuneJobSpec.parse(SPEC), {"p": profile}, "image")
    assert isinstance(found, Snapshot)
    assert (found.spec.training.epochs, found.spec.restart_policy.max_restarts) == (2.0, 9)
    assert found.defaults == {"training.epochs": "2", "restartPolicy.maxRestarts": "9"}
    assert Snapshot.model_validate_json(found.model_dump_json(by_alias=True)) == found


def test_what_was_taken_holds_until_the_job_says_something_else() -> None:
    taken = as_texts({"activeDeadlineSeconds": 60, "trainer.command": ["x" * 2000]})
    silent, speaking = (
        with_taken(FineTuneJobSpec.parse(SPEC | job), taken)
        for job in ({}, {"activeDeadlineSeconds": 90})
    )
    assert (silent.active_deadline_seconds, speaking.active_deadline_seconds) == (60, 90)
    assert silent.trainer is None


def test_the_crd_takes_every_field_of_a_job_as_a_default_but_two() -> None:
    specs = [
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        for crd in all_crds().values()
    ]
    job, profile = specs
    fragment = profile["properties"]["defaults"]["properties"]
    assert set(job["properties"]) - set(fragment) == {"profile", "suspend"}
    assert "default:" not in str(job).replace("'", "").replace("default: true", "")
    assert "required" not in profile["properties"]["defaults"]
    assert "required" not in fragment["model"]

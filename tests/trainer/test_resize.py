"""A run of two workers that goes on with one and with four: from the same checkpoint, by the
`run.json` that the operator writes for an attempt of another size."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkpoint_builders import Gang, Scenario, run_gangs
from trainer_builders import questions, tiny_model, write_jsonl

from finetune_api.outcome import PrepareFacts
from finetune_api.profile import FineTuneProfileSpec
from finetune_api.resolve import Paths
from finetune_api.run_config import RunConfig
from finetune_api.snapshot import Snapshot, make_snapshot
from finetune_api.status import Resolved
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_operator.plan import Plan, make_plan
from finetune_operator.sizing import resize
from finetune_trainer.prepare import prepare
from finetune_trainer.train import finished

SPEC = {
    "model": {"uri": "pvc://data/tiny"},
    "dataset": {"uri": "pvc://data/docs.jsonl", "format": "Instruction", "evalFraction": 0.1},
    "training": {
        "maxSteps": 6,
        "globalBatchSize": 8,
        "sequenceLength": 64,
        "learningRate": 1e-2,
        "precision": "FP32",
    },
    "method": {"lora": {"rank": 4}},
    "workers": {"numNodes": 2},
}
PROFILE = {"default": True, "node": {"accelerator": "CPU", "gpusPerNode": 0}}


@dataclass
class Story:
    """The attempts: two workers to the end; two that are stopped after step 3; what went on."""

    whole: Scenario
    stopped: Scenario
    one: Scenario
    four: Scenario
    prepared: PrepareFacts


def plan_at(root: Path, work: str) -> Plan:
    """As the operator makes it of the manifest, with paths of this machine."""
    profiles = {"cpu": FineTuneProfileSpec.parse(PROFILE)}
    snapshot = make_snapshot(FineTuneJobSpec.parse(SPEC), profiles, "none")
    assert isinstance(snapshot, Snapshot)
    return make_plan(
        "team-a", "docs", "0000", snapshot, Paths(str(root / work), str(root / "claims"))
    )


def run_at(root: Path, work: str, num_nodes: int, facts: PrepareFacts) -> RunConfig:
    """What the ConfigMap of an attempt with so many workers holds, read as a worker does."""
    known = Resolved(shape=facts.shape, attention=facts.attention)
    found = resize(plan_at(root, work), num_nodes, 2, known)
    assert isinstance(found, Plan)
    return RunConfig.model_validate_json(found.run.model_dump_json(by_alias=True))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    root = tmp_path_factory.mktemp("resize")
    claim = root / "claims" / "data"
    tiny_model(claim / "tiny")
    write_jsonl(claim / "docs.jsonl", *questions(60))
    run, whole = plan_at(root, "stopped").run, plan_at(root, "whole").run
    prepare(whole)
    facts = prepare(run)
    copies = [str(root / "one"), str(root / "four")]
    told = Story(
        whole=Scenario(whole),
        stopped=Scenario(run, asked_after=3, asked_rank=1, copies=copies),
        one=Scenario(run_at(root, "one", 1, facts)),
        four=Scenario(run_at(root, "four", 4, facts)),
        prepared=facts,
    )
    gangs = [Gang(2, [told.whole, told.stopped]), Gang(1, [told.one]), Gang(4, [told.four])]
    run_gangs(root, gangs)
    return told


def shares(run: RunConfig) -> tuple[int, int, int, bool]:
    training = run.training
    return (
        run.num_nodes,
        training.micro_batch_size,
        training.gradient_accumulation_steps,
        run.resolved,
    )


def test_the_operator_deals_the_same_batch_out_anew(story: Story) -> None:
    assert [shares(s.run) for s in (story.stopped, story.one, story.four)] == [
        (2, 4, 1, False),
        (1, 8, 1, True),
        (4, 2, 1, True),
    ]


@pytest.mark.parametrize("name", ["one", "four"])
def test_a_run_stopped_on_two_workers_goes_on_at_another_size_as_if_nothing_had_been(
    story: Story, name: str
) -> None:
    assert story.stopped.ended["class"] == "Stopped"
    scenario: Scenario = getattr(story, name)
    facts, expected = scenario.ended["facts"], story.whole.ended["facts"]
    first = int(story.stopped.checkpoints[-1].removeprefix("step-"))
    assert (facts["resumedFrom"], facts["step"]) == (first, 6)
    assert scenario.losses == pytest.approx(story.whole.losses, abs=1e-4)
    assert facts["evalLossAfter"] == pytest.approx(expected["evalLossAfter"], abs=1e-4)


def test_what_is_trained_at_one_size_is_trained_at_every_other(story: Story) -> None:
    run = story.one.run
    again = run.model_copy(
        update={
            "num_nodes": 2,
            "resolved": False,
            "training": story.stopped.run.training,
        }
    )
    expected = json.loads((story.one.work / "train.json").read_text())
    found = finished(again)
    assert found is not None
    assert found.to_json_dict() == expected
    other = run.training.model_copy(update={"learning_rate": 2e-2})
    assert finished(run.model_copy(update={"training": other})) is None


def test_prepare_tells_the_operator_what_memory_depends_on(story: Story) -> None:
    shape = story.prepared.shape
    assert shape is not None
    assert (shape.hidden_size, shape.layers, len(shape.linears)) == (64, 2, 7)
    assert story.prepared.attention == "Masked"

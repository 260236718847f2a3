"""Runs that are stopped, killed and resumed, at other numbers of processes and other ZeRO stages.

What an interrupted run does after it was resumed is compared with a run that was not interrupted.
Four gangs do all of it, one after the other: each takes up what the one before it has left.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_builders import Gang, Scenario, run_gangs
from training_builders import LORA, arrays, run_config, write_work

STEPS = 4
TRAIN, HELD_OUT = arrays(20, seed=1), arrays(4, seed=2)
TUNINGS: dict[str, dict[str, Any]] = {
    "Full": {"tuning": "Full", "lora": None},
    "LoRA": {"tuning": "LoRA", "lora": LORA},
}
KINDS = [(stage, tuning) for tuning in TUNINGS for stage in (1, 2, 3)]
FOUR = [(1, "Full"), (2, "LoRA"), (3, "Full")]
DROPOUT = {"tuning": "LoRA", "lora": LORA | {"dropout": 0.2}}
EVERY_STEP = {"checkpoints": {"every_steps": 1, "keep": 3}}


class Story:
    """All scenarios, by name; those of one name and several attempts share a work directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self, work: str, processes: int, **changes: Any) -> Scenario:
        """A scenario in a work directory that a copy will be, or is."""
        options = {k: changes.pop(k) for k in list(changes) if k in Scenario.__dataclass_fields__}
        run = run_config(self.root / work, num_proc_per_node=processes, **changes)
        return Scenario(run, **options)

    def new(self, work: str, processes: int, held_out: Any = None, **changes: Any) -> Scenario:
        """A scenario in a work directory as prepare leaves it."""
        write_work(self.root / work, TRAIN, held_out, STEPS)
        return self.make(work, processes, **changes)

    def copy(self, work: str) -> str:
        """The path of a work directory to be."""
        return str(self.root / work)


def kind(stage: int, tuning: str) -> dict[str, Any]:
    return {"zero_stage": stage, **TUNINGS[tuning]}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    told = Story(tmp_path_factory.mktemp("runs"))
    one = [told.new(f"1 to 2, {s} {t}", 1, **kind(s, t), asked_after=1) for s, t in KINDS]
    killed = told.new("killed", 1, **EVERY_STEP, dies_at=3)
    whole = [told.new(f"whole {t}", 2, **kind(1, t)) for t in TUNINGS]
    up = [told.make(f"1 to 2, {s} {t}", 2, **kind(s, t)) for s, t in KINDS]
    cut = [
        told.new(
            f"2 to 2, {s} {t}",
            2,
            **kind(s, t),
            asked_after=1,
            asked_rank=1,
            copies=[
                told.copy(f"2 to 1, {s} {t}"),
                *([told.copy(f"2 to 4, {s} {t}")] if (s, t) in FOUR else []),
                *([told.copy("stage 1 to 3")] if (s, t) == (1, "Full") else []),
            ],
        )
        for s, t in KINDS
    ]
    same = [told.make(f"2 to 2, {s} {t}", 2, **kind(s, t)) for s, t in KINDS]
    down = [told.make(f"2 to 1, {s} {t}", 1, **kind(s, t)) for s, t in KINDS]
    four = [told.make(f"2 to 4, {s} {t}", 4, **kind(s, t)) for s, t in FOUR]
    run_gangs(
        told.root,
        [
            Gang(1, [*one, killed], killed=True),
            Gang(2, [*whole, *up, *cut, *same, *special(told)]),
            Gang(1, down),
            Gang(4, four),
        ],
    )
    return told


def special(told: Story) -> list[Scenario]:
    """What two processes do beside."""
    best = EVERY_STEP | {
        "checkpoints": {"every_steps": 1, "keep": 1},
        "evaluation": {"every_steps": 1, "early_stopping_patience": 2},
    }
    halves = []
    for stage in (1, 2, 3):
        half = {"zero_stage": stage, "precision": "BF16"}
        halves += [
            told.new(f"bfloat16 {stage}", 2, **half),
            told.new(f"bfloat16 {stage}, cut", 2, **half, asked_after=1),
            told.make(f"bfloat16 {stage}, cut", 2, **half),
        ]
    copies = {name: told.copy(name) for name in ("broken", "other settings", "never")}
    return [
        *halves,
        told.make("stage 1 to 3", 2, zero_stage=3),
        told.make("killed", 2, zero_stage=2),
        told.new("dropout", 2, **DROPOUT),
        told.new("dropout again", 2, **DROPOUT),
        told.new("dropout, cut", 2, **DROPOUT, asked_after=1),
        told.make("dropout, cut", 2, **DROPOUT),
        told.new(
            "best", 2, held_out=HELD_OUT, **best, zero_stage=3, evaluations=[3.0, 2.0, 2.5, 2.6]
        ),
        told.new("diverged", 2, **EVERY_STEP, zero_stage=2, diverges_at=3),
        told.new("first", 2, **EVERY_STEP, asked_after=2, copies=list(copies.values())),
        told.make(
            "broken",
            2,
            tamper={
                "step-00000003/rank-00001.safetensors": "flip",
                "step-00000002/COMMITTED": "delete",
            },
        ),
        told.make("other settings", 2, learning_rate=2e-2),
        told.make("never", 2, checkpoints={"resume": False}),
    ]


def scenario(story: Story, name: str) -> Scenario:
    return story.make(name, 1)


def resumed_from(story: Story, name: str) -> int | None:
    found: int | None = scenario(story, name).ended["facts"].get("resumedFrom")
    return found


@pytest.mark.parametrize("sizes", ["2 to 2", "1 to 2", "2 to 1"])
@pytest.mark.parametrize(("stage", "tuning"), KINDS)
def test_a_resumed_run_goes_on_as_if_it_had_not_been_interrupted(
    story: Story, sizes: str, stage: int, tuning: str
) -> None:
    expected = scenario(story, f"whole {tuning}").losses
    assert sorted(expected) == [1, 2, 3, 4]
    name = f"{sizes}, {stage} {tuning}"
    assert resumed_from(story, name) == 2
    assert scenario(story, name).losses == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("stage", "tuning"), FOUR)
def test_a_run_of_two_processes_goes_on_with_four(story: Story, stage: int, tuning: str) -> None:
    name = f"2 to 4, {stage} {tuning}"
    assert resumed_from(story, name) == 2
    expected = scenario(story, f"whole {tuning}").losses
    assert scenario(story, name).losses == pytest.approx(expected, abs=1e-4)


def test_a_run_goes_on_at_another_zero_stage(story: Story) -> None:
    assert resumed_from(story, "stage 1 to 3") == 2
    found = scenario(story, "stage 1 to 3")
    assert found.losses == pytest.approx(scenario(story, "whole Full").losses, abs=1e-4)
    assert "of step 2 (written by 2 processes, ZeRO 1)" in found.ended["log"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_goes_on_from_the_32_bit_weights(story: Story, stage: int) -> None:
    whole, cut = (scenario(story, f"bfloat16 {stage}{name}") for name in ("", ", cut"))
    assert resumed_from(story, f"bfloat16 {stage}, cut") == 2
    assert cut.losses == whole.losses
    name = "result/model.safetensors"
    assert (cut.work / name).read_bytes() == (whole.work / name).read_bytes()


def test_a_seed_gives_the_same_run_bit_for_bit_also_when_it_is_resumed(story: Story) -> None:
    first = scenario(story, "dropout")
    name = "result/adapter_model.safetensors"
    for other in ("dropout again", "dropout, cut"):
        found = scenario(story, other)
        assert found.losses == first.losses
        assert (found.work / name).read_bytes() == (first.work / name).read_bytes()
    assert resumed_from(story, "dropout, cut") == 2
    assert first.losses != scenario(story, "whole LoRA").losses  # dropout does something


def test_a_process_killed_while_it_writes_leaves_the_checkpoint_before_it_in_use(
    story: Story,
) -> None:
    found = scenario(story, "killed")
    assert resumed_from(story, "killed") == 2
    log = found.ended["log"]
    assert "checkpoint step-00000003 is skipped: it was never completed (no COMMITTED)" in log
    assert found.checkpoints == ["step-00000001", "step-00000002"]
    assert found.losses == pytest.approx(scenario(story, "whole Full").losses, abs=1e-4)


def test_all_processes_save_the_step_that_one_was_asked_in(story: Story) -> None:
    ended = scenario(story, "first").ended
    assert ended["class"] == "Stopped"
    assert ended["message"] == "asked to stop (SIGTERM); checkpoint of step 3 is saved"
    assert scenario(story, "first").checkpoints == [
        "step-00000001", "step-00000002", "step-00000003"
    ]  # fmt: skip


def test_broken_checkpoints_are_skipped_and_the_log_says_why(story: Story) -> None:
    found = scenario(story, "broken")
    assert resumed_from(story, "broken") == 1
    log = found.ended["log"]
    skipped = "checkpoint step-00000003 is skipped: rank-00001.safetensors is not what was written"
    assert skipped in log
    assert "checkpoint step-00000002 is skipped: it was never completed" in log
    assert found.checkpoints == ["other-step-00000003", "step-00000001"]


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(story: Story) -> None:
    found = scenario(story, "other settings")
    assert resumed_from(story, "other settings") is None
    assert "step-00000003 is skipped: it was made with another training" in found.ended["log"]
    assert sorted(found.losses) == [1, 2, 3, 4]


def test_a_run_that_is_not_to_resume_starts_from_the_beginning(story: Story) -> None:
    found = scenario(story, "never")
    assert resumed_from(story, "never") is None
    assert found.losses == pytest.approx(scenario(story, "whole Full").losses, abs=1e-4)


def weights(work: Path, step: int) -> dict[str, Any]:
    """The weights of a checkpoint, flattened and put together."""
    import torch
    from safetensors import safe_open

    found: dict[str, list[tuple[int, Any]]] = {}
    for path in (work / "checkpoints" / f"step-{step:08}").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                which, start, name = key.split(":", 2)
                if which == "weight":
                    found.setdefault(name, []).append((int(start), file.get_tensor(key)))
    return {
        name: torch.cat([numbers for _, numbers in sorted(parts, key=lambda part: part[0])])
        for name, parts in found.items()
    }


def result(work: Path) -> dict[str, Any]:
    """The weights of a result, flattened."""
    from safetensors.torch import load_file

    tensors = load_file(work / "result" / "model.safetensors")
    return {name: tensor.flatten() for name, tensor in tensors.items()}


def test_the_best_step_is_kept_beside_the_newest_and_becomes_the_result(story: Story) -> None:
    found = scenario(story, "best")
    facts = found.ended["facts"]
    told = ("step", "bestStep", "stoppedEarly", "evalLossBefore", "evalLossAfter")
    assert {name: facts[name] for name in told} == {
        "step": 3,
        "bestStep": 1,
        "stoppedEarly": True,
        "evalLossBefore": 3.0,
        "evalLossAfter": 2.0,
    }
    assert found.checkpoints == ["step-00000001", "step-00000003"]
    expected, there = weights(found.work, 1), result(found.work)
    assert sorted(expected) == sorted(there)
    assert all((there[name] == tensor).all() for name, tensor in expected.items())


def test_a_run_that_diverges_leaves_the_newest_checkpoint_as_its_result(story: Story) -> None:
    found = scenario(story, "diverged")
    assert found.ended["class"] == "Diverged"
    assert found.ended["message"] == (
        "training diverged at step 3; the checkpoint of step 2 is left as the result"
    )
    expected, there = weights(found.work, 2), result(found.work)
    assert all((there[name] == tensor).all() for name, tensor in expected.items())
    assert not (found.work / "train.json").exists()


def test_the_manifest_says_all_that_is_needed_to_go_on(story: Story) -> None:
    place = scenario(story, "first").work / "checkpoints" / "step-00000003"
    manifest = json.loads((place / "manifest.json").read_text())
    files, state, identity = (manifest.pop(name) for name in ("files", "state", "identity"))
    assert manifest == {
        "version": 1,
        "step": 3,
        "worldSize": 2,
        "zeroStage": 1,
        "position": {"sequences": 12, "seed": 7},
        "random": {"rule": "sha256(seed/step/rank)", "seed": 7},
        "optimizerSteps": 3,
    }
    assert [f["name"] for f in files] == ["rank-00000.safetensors", "rank-00001.safetensors"]
    assert [f["bytes"] for f in files] == [(place / f["name"]).stat().st_size for f in files]
    assert state["loss"] == scenario(story, "first").losses[3]
    assert sorted(identity) == ["data", "method", "model", "training"]

"""Objectives with real ranks: the same run, however its batches are split and its weights sharded.

Each run is prepared from a file, as a job's is. One gang of each size trains all cases.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from preference_builders import PREFERENCE, write_preferences
from trainer_builders import tiny_model, write_jsonl
from training_builders import LORA, Case, run_cases, run_config

from finetune_trainer.prepare import prepare

STEPS = 3
OBJECTIVES = ("DPO", "KTO", "ORPO")
FULL: dict[str, Any] = {"tuning": "Full", "lora": None, "learning_rate": 2e-3}
LORA_TUNING: dict[str, Any] = {"tuning": "LoRA", "lora": LORA}
TUNINGS = {"Full": FULL, "LoRA": LORA_TUNING}
SHARDED = [
    *(("DPO", tuning, stage) for tuning in TUNINGS for stage in (1, 2, 3)),
    *(("KTO", "LoRA", 1), ("KTO", "Full", 2), ("KTO", "LoRA", 3)),
    *(("ORPO", "LoRA", 2), ("ORPO", "Full", 3)),
]
"""Each objective by every stage, and DPO by everything: switching off the adapter is what could
disturb DeepSpeed."""
NOTHING_PERSISTENT = {"stage3_param_persistence_threshold": 0}


class Cases:
    """Cases by name, prepared."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: dict[str, Case] = {}

    def add(
        self, name: str, objective: str, patches: dict[str, Any] | None = None, **changes: Any
    ) -> None:
        work = self.root / name
        changes = {"sequence_length": 64, "eval_fraction": 0.2, "max_steps": STEPS} | changes
        if objective == "CPT":
            data = write_jsonl(
                self.root / "text.jsonl",
                *({"text": f"The sum of {i} and {i} is {2 * i}."} for i in range(16)),
            )
        else:
            data = write_preferences(self.root, objective)
            changes["preference"] = PREFERENCE
        run = run_config(
            work,
            objective=objective,
            model={"uri": "pvc://models/tiny", "path": str(self.root / "model")},
            dataset={"uri": f"pvc://data/{data.name}", "path": str(data)},
            **changes,
        )
        prepare(run)
        self.made[name] = Case(run, patches or {})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("objectives")
    tiny_model(found / "model", tie=True)
    return found


@pytest.fixture(scope="module")
def alone(root: Path) -> dict[str, Case]:
    """All cases of a single process."""
    cases = Cases(root)
    for objective in OBJECTIVES:
        for tuning, changes in TUNINGS.items():
            cases.add(f"{objective} {tuning}", objective, **changes)
        cases.add(f"{objective} at once", objective, micro_batch_size=4, **LORA_TUNING)
    cases.add("CPT", "CPT", **LORA_TUNING)
    run_cases(root, 1, list(cases.made.values()), timeout=480)
    return cases.made


@pytest.fixture(scope="module")
def pair(root: Path) -> dict[str, Case]:
    """All cases of two processes."""
    cases, two = Cases(root), {"num_proc_per_node": 2}
    for objective, tuning, stage in SHARDED:
        cases.add(
            f"2 x {objective} {tuning} ZeRO {stage}",
            objective,
            NOTHING_PERSISTENT if stage == 3 else {},
            zero_stage=stage,
            **two,
            **TUNINGS[tuning],
        )
    cases.add(
        "bfloat16",
        "DPO",
        zero_stage=3,
        precision="BF16",
        gradient_checkpointing=True,
        **two,
        **LORA_TUNING,
    )
    run_cases(root, 2, list(cases.made.values()), timeout=480)
    return cases.made


def numbers(case: Case) -> list[dict[str, float]]:
    """What the log says of every step and evaluation, but for speed."""
    return [
        {name: value for name, value in line.items() if name != "tokensPerSecond"}
        for line in case.lines
    ]


def check_same(found: Case, expected: Case) -> None:
    assert len(found.lines) == STEPS + 2
    for ours, theirs in zip(numbers(found), numbers(expected), strict=True):
        assert ours == pytest.approx(theirs, abs=5e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_large_micro_batch_is_as_good_as_four_small_ones(
    alone: dict[str, Case], objective: str
) -> None:
    check_same(alone[f"{objective} at once"], alone[f"{objective} LoRA"])


@pytest.mark.parametrize(("objective", "tuning", "stage"), SHARDED)
def test_two_processes_learn_what_one_learns(
    alone: dict[str, Case], pair: dict[str, Case], objective: str, tuning: str, stage: int
) -> None:
    check_same(pair[f"2 x {objective} {tuning} ZeRO {stage}"], alone[f"{objective} {tuning}"])


@pytest.mark.parametrize("tuning", TUNINGS)
def test_dpo_starts_at_the_reference_and_leaves_it(alone: dict[str, Case], tuning: str) -> None:
    first, *_, last = numbers(alone[f"DPO {tuning}"])
    assert first["evalLoss"] == pytest.approx(0.693147, abs=1e-5)  # log 2: no difference yet
    assert first["eval/rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert last["evalLoss"] < 0.68
    assert last["eval/rewards/margins"] > 0.02
    assert last["eval/rewards/accuracies"] == 1.0


@pytest.mark.parametrize("tuning", TUNINGS)
def test_kto_starts_in_the_middle_and_learns(alone: dict[str, Case], tuning: str) -> None:
    first, *_, last = numbers(alone[f"KTO {tuning}"])
    assert first["evalLoss"] == pytest.approx(0.5, abs=1e-5)
    assert last["evalLoss"] < 0.5


def test_orpo_and_continued_pretraining_learn(alone: dict[str, Case]) -> None:
    for name in ("ORPO Full", "ORPO LoRA", "CPT"):
        first, *_, last = numbers(alone[name])
        assert last["evalLoss"] < first["evalLoss"] - 0.05


def test_a_run_in_bfloat16_stays_near_the_one_in_float32(
    alone: dict[str, Case], pair: dict[str, Case]
) -> None:
    assert pair["bfloat16"].losses == pytest.approx(alone["DPO LoRA"].losses, abs=0.02)

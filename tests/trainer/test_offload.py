"""Offload with real ranks: the same losses, with gradients of several backward passes per step.

DeepSpeed lost or miscounted such gradients more than once (its pull requests 7967 and 7981).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_builders import (
    LORA,
    Case,
    arrays,
    reference_losses,
    run_cases,
    run_config,
    write_work,
)

from finetune_api.outcome import PrepareFacts, ResolvedTraining
from finetune_trainer.train import finished

STEPS = 5
TRAIN = arrays(20, seed=1)
FULL: dict[str, Any] = {"tuning": "Full", "lora": None}
TUNINGS: dict[str, dict[str, Any]] = {"Full": FULL, "LoRA": {"tuning": "LoRA", "lora": LORA}}
CHOICES: list[tuple[int, str]] = [
    (1, "Optimizer"),
    (2, "Optimizer"),
    (3, "Optimizer"),
    (3, "OptimizerAndParameters"),
]
IN_FLOAT32: list[tuple[str, int, str]] = [
    *(("Full", *choice) for choice in CHOICES),
    ("LoRA", 2, "Optimizer"),
    ("LoRA", 3, "OptimizerAndParameters"),
]
IN_BFLOAT16: list[tuple[int, str]] = [(1, "None"), (2, "None"), (3, "None"), *CHOICES]


def changes(tuning: str, stage: int, offload: str) -> dict[str, Any]:
    """8 sequences per step: 4 backward passes on each of 2 ranks."""
    shape = {"num_proc_per_node": 2, "global_batch_size": 8, "micro_batch_size": 1}
    return shape | {"zero_stage": stage, "offload": offload} | TUNINGS[tuning]


def as_prepare_decided(work: Path) -> Case:
    """Asks for micro-batches of 8, more than a rank's share: only prepare's decision can train."""
    write_work(work, TRAIN, None, STEPS)
    facts = PrepareFacts.model_validate_json((work / "prepare.json").read_bytes())
    decided = ResolvedTraining(
        zero_stage=2,
        offload="Optimizer",
        micro_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
    )
    told = facts.model_copy(update={"resolved": decided})
    (work / "prepare.json").write_text(told.model_dump_json(by_alias=True))
    wanted = changes("Full", 1, "None") | {"micro_batch_size": 8, "gradient_accumulation_steps": 1}
    return Case(run_config(work, **wanted))


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, list[float]]:
    """Of all cases, from one gang, and of a plain loop."""
    root = tmp_path_factory.mktemp("offload")
    cases: dict[Any, Case] = {}
    wanted = [("FP32", *case) for case in IN_FLOAT32]
    wanted += [("BF16", "Full", *choice) for choice in IN_BFLOAT16]
    for precision, tuning, stage, offload in wanted:
        work = root / f"{precision}-{tuning}-{stage}-{offload}"
        write_work(work, TRAIN, None, STEPS)
        run = run_config(work, precision=precision, **changes(tuning, stage, offload))
        cases[precision, tuning, stage, offload] = Case(run)
    cases["resolved"] = as_prepare_decided(root / "resolved")
    run_cases(root, 2, list(cases.values()))
    assert finished(cases["resolved"].run) is not None  # known by what was asked for
    found = {name: case.losses for name, case in cases.items()}
    for tuning in TUNINGS:
        work = root / f"plain-{tuning}"
        write_work(work, TRAIN, None, STEPS)
        plain = run_config(work, global_batch_size=8, **TUNINGS[tuning])
        found[tuning] = reference_losses(plain, TRAIN, STEPS)
    return found


@pytest.mark.parametrize(("tuning", "stage", "offload"), IN_FLOAT32)
def test_offload_follows_the_plain_loop(
    losses: dict[Any, list[float]], tuning: str, stage: int, offload: str
) -> None:
    found = losses["FP32", tuning, stage, offload]
    assert found == pytest.approx(losses[tuning], abs=5e-5)


@pytest.mark.parametrize(("stage", "offload"), CHOICES)
def test_in_bfloat16_offload_changes_nothing(
    losses: dict[Any, list[float]], stage: int, offload: str
) -> None:
    found = losses["BF16", "Full", stage, offload]
    assert found == pytest.approx(losses["BF16", "Full", stage, "None"], abs=2e-3)
    assert found == pytest.approx(losses["Full"], abs=0.03)


def test_ranks_train_as_prepare_decided(losses: dict[Any, list[float]]) -> None:
    assert losses["resolved"] == pytest.approx(losses["Full"], abs=5e-5)


def test_there_is_something_to_lose(losses: dict[Any, list[float]]) -> None:
    for tuning in TUNINGS:
        assert len({round(loss, 3) for loss in losses[tuning]}) == STEPS

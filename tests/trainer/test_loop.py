"""Training against a plain loop in PyTorch: the same losses, whatever the gang and the sharding.

One gang of each size trains all cases, since starting one takes longer than all its training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_builders import (
    LORA,
    Case,
    arrays,
    examples,
    reference_losses,
    run_cases,
    run_config,
    sequences,
    summed_loss,
    write_work,
)

STEPS = 6
TRAIN, HELD_OUT = arrays(20, seed=1), arrays(5, seed=2)
SHORT, LONG = arrays(6, 3, learned=(1, 1)), arrays(6, 4, learned=(10, 12))
UNEQUAL = {name: np.concatenate((SHORT[name], LONG[name])) for name in SHORT}
"""Sequences with one learned token per example beside some with twelve: a mean of means errs."""
TUNINGS: dict[str, dict[str, Any]] = {
    "Full": {"tuning": "Full", "lora": None},
    "LoRA": {"tuning": "LoRA", "lora": LORA},
}


class Cases:
    """Cases by name, in directories of that name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: dict[str, Case] = {}

    def add(
        self,
        name: str,
        data: dict[str, Any] = TRAIN,
        patches: dict[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        work = self.root / name
        write_work(work, data, HELD_OUT, STEPS)
        self.made[name] = Case(run_config(work, **changes), patches or {})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(root: Path) -> dict[str, Case]:
    """All cases of a single process."""
    cases = Cases(root)
    for tuning, changes in TUNINGS.items():
        for stage in (1, 2, 3):
            cases.add(f"1 process, ZeRO {stage}, {tuning}", zero_stage=stage, **changes)
    cases.add("micro-batch 4", micro_batch_size=4)
    cases.add("again")
    run_cases(root, 1, list(cases.made.values()))
    return cases.made


@pytest.fixture(scope="module")
def pair(root: Path) -> dict[str, Case]:
    """All cases of two processes."""
    cases = Cases(root)
    two = {"num_proc_per_node": 2}
    for tuning, changes in TUNINGS.items():
        for stage in (1, 2, 3):
            cases.add(f"2 processes, ZeRO {stage}, {tuning}", zero_stage=stage, **two, **changes)
            cases.add(
                f"bfloat16, ZeRO {stage}, {tuning}",
                zero_stage=stage,
                precision="BF16",
                **two,
                **changes,
            )
    for stage in (2, 3):
        cases.add(
            f"checkpointing, ZeRO {stage}",
            zero_stage=stage,
            gradient_checkpointing=True,
            **two,
            **TUNINGS["LoRA"],
        )
    cases.add("unequal", data=UNEQUAL, zero_stage=2, **two)
    cases.add(
        "nothing persistent",
        patches={"stage3_param_persistence_threshold": 0},
        zero_stage=3,
        **two,
        **TUNINGS["LoRA"],
    )
    run_cases(root, 2, list(cases.made.values()))
    return cases.made


@pytest.fixture(scope="module")
def reference(root: Path) -> dict[str, list[float]]:
    """What a plain loop gives."""
    found = {}
    for tuning, changes in TUNINGS.items():
        work = root / f"reference-{tuning}"
        write_work(work, TRAIN, HELD_OUT, STEPS)
        found[tuning] = reference_losses(run_config(work, **changes), TRAIN, STEPS)
    return found


@pytest.mark.parametrize("tuning", ["Full", "LoRA"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_process_follows_the_plain_loop(
    alone: dict[str, Case], reference: dict[str, list[float]], stage: int, tuning: str
) -> None:
    found = alone[f"1 process, ZeRO {stage}, {tuning}"].losses
    assert found == pytest.approx(reference[tuning], abs=5e-5)


@pytest.mark.parametrize("tuning", ["Full", "LoRA"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_processes_follow_the_plain_loop(
    pair: dict[str, Case], reference: dict[str, list[float]], stage: int, tuning: str
) -> None:
    found = pair[f"2 processes, ZeRO {stage}, {tuning}"].losses
    assert found == pytest.approx(reference[tuning], abs=5e-5)


def test_the_plain_loop_learns_something(reference: dict[str, list[float]]) -> None:
    for losses in reference.values():
        assert len({round(loss, 4) for loss in losses}) == STEPS


@pytest.mark.parametrize("tuning", ["Full", "LoRA"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_stays_near_float32_at_every_stage(
    pair: dict[str, Case], reference: dict[str, list[float]], stage: int, tuning: str
) -> None:
    found = pair[f"bfloat16, ZeRO {stage}, {tuning}"].losses
    assert found == pytest.approx(reference[tuning], abs=0.03)


def test_four_micro_batches_of_one_are_one_of_four(alone: dict[str, Case]) -> None:
    assert alone["micro-batch 4"].losses == pytest.approx(
        alone["1 process, ZeRO 1, Full"].losses, abs=1e-5
    )


def test_the_same_seed_gives_the_same_losses_to_the_last_bit(alone: dict[str, Case]) -> None:
    assert alone["again"].losses == alone["1 process, ZeRO 1, Full"].losses


@pytest.mark.parametrize("stage", [2, 3])
def test_gradient_checkpointing_changes_memory_not_losses(
    pair: dict[str, Case], reference: dict[str, list[float]], stage: int
) -> None:
    found = pair[f"checkpointing, ZeRO {stage}"].losses
    assert found == pytest.approx(reference["LoRA"], abs=5e-5)


def test_every_learned_token_counts_the_same_however_they_are_spread(
    pair: dict[str, Case], root: Path
) -> None:
    found = pair["unequal"]
    assert found.losses == pytest.approx(reference_losses(found.run, UNEQUAL, STEPS), abs=5e-5)


def test_the_held_out_loss_is_the_mean_over_its_tokens_before_and_after(
    alone: dict[str, Case], pair: dict[str, Case]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    case = alone["1 process, ZeRO 1, Full"]
    expected = []
    for directory in ("model", "result"):
        model = AutoModelForCausalLM.from_pretrained(case.work / directory, dtype=torch.float32)
        with torch.no_grad():
            found = [
                summed_loss(model, *example)
                for row in range(len(HELD_OUT["labels"]))
                for example in examples(HELD_OUT, row)
            ]
        expected.append(float(sum(f[0] for f in found) / sum(f[1] for f in found)))
    for other in (case, alone["1 process, ZeRO 3, Full"], pair["2 processes, ZeRO 3, Full"]):
        told = [(e["step"], e["evalLoss"]) for e in other.lines if "evalLoss" in e]
        assert [step for step, _ in told] == [0, STEPS]
        assert [loss for _, loss in told] == pytest.approx(expected, abs=5e-5)


def test_packed_examples_have_the_loss_they_have_by_themselves(root: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from finetune_trainer.batches import micro_batch
    from finetune_trainer.losses import SummedLoss, tensors

    write_work(root / "packing", TRAIN, HELD_OUT, STEPS)
    model = AutoModelForCausalLM.from_pretrained(root / "packing" / "model", dtype=torch.float32)
    module = SummedLoss(model, model)
    data = sequences(TRAIN)
    rows = np.array([3, 8, 11])
    alone_by_example = [
        summed_loss(model, *example)[0].item() for row in rows for example in examples(TRAIN, row)
    ]
    with torch.no_grad():
        together = {
            "a row each": [
                module(**tensors(micro_batch(data, rows[i : i + 1]), torch.device("cpu"))).item()
                for i in range(3)
            ],
            "three rows": module(**tensors(micro_batch(data, rows), torch.device("cpu"))).item(),
            "flat": module(
                **tensors(micro_batch(data, rows, flat=True), torch.device("cpu"))
            ).item(),
        }
    by_row = np.array(alone_by_example).reshape(3, -1).sum(axis=1).tolist()
    assert together["a row each"] == pytest.approx(by_row, rel=1e-5)
    assert together["three rows"] == pytest.approx(sum(by_row), rel=1e-5)
    assert together["flat"] == pytest.approx(sum(by_row), rel=1e-5)
    # And the test can tell: as one example, position ids running through, the loss is another.
    joined = sequences(
        {
            "input_ids": TRAIN["input_ids"],
            "labels": np.where(TRAIN["position_ids"] == 0, -100, TRAIN["labels"]),
            "position_ids": np.tile(np.arange(32, dtype=np.int32), (20, 1)),
        }
    )
    with torch.no_grad():
        mixed = module(**tensors(micro_batch(joined, rows), torch.device("cpu"))).item()
    assert abs(mixed - sum(by_row)) > 0.01


def adapter(case: Case) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(case.work / "result" / "adapter_model.safetensors")


@pytest.mark.parametrize("name", ["2 processes, ZeRO 3, LoRA", "nothing persistent"])
def test_the_adapter_from_zero_3_is_whole_and_that_of_zero_1(
    pair: dict[str, Case], name: str
) -> None:
    expected, found = adapter(pair["2 processes, ZeRO 1, LoRA"]), adapter(pair[name])
    assert sorted(found) == sorted(expected)
    assert len(found) == 2 * 7 * 2  # A and B for 7 linear layers in each of 2 layers
    for key, tensor in expected.items():
        assert found[key].shape == tensor.shape
        assert found[key].numpy() == pytest.approx(tensor.numpy(), abs=1e-5)
    assert all(found[k].abs().max() > 0 for k in found if "lora_B" in k)


def test_the_adapter_names_its_base_model_and_not_a_path_of_the_pod(
    pair: dict[str, Case],
) -> None:
    work = pair["2 processes, ZeRO 3, LoRA"].work
    config = json.loads((work / "result" / "adapter_config.json").read_text())
    told = {k: config[k] for k in ("base_model_name_or_path", "revision", "r", "lora_alpha")}
    assert told == {
        "base_model_name_or_path": "someone/tiny",
        "revision": "abc",
        "r": 4,
        "lora_alpha": 8,
    }


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_whole_model_is_saved_in_the_precision_of_the_run(
    pair: dict[str, Case], stage: int
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    types = {}
    for name in ("2 processes", "bfloat16"):
        work = pair[f"{name}, ZeRO {stage}, Full"].work
        model = AutoModelForCausalLM.from_pretrained(work / "result", dtype="auto")
        types[name] = {p.dtype for p in model.parameters()}
        assert all(torch.isfinite(p).all() and p.numel() for p in model.parameters())
    assert types == {"2 processes": {torch.float32}, "bfloat16": {torch.bfloat16}}


def test_the_facts_say_what_was_done(pair: dict[str, Case]) -> None:
    case = pair["2 processes, ZeRO 2, LoRA"]
    facts = json.loads((case.work / "train.json").read_text())
    speed, seconds = facts.pop("tokensPerSecond"), facts.pop("durationSeconds")
    evaluations = [line["evalLoss"] for line in case.lines if "evalLoss" in line]
    assert facts == {
        "step": STEPS,
        "totalSteps": STEPS,
        "loss": case.losses[-1],
        "evalLossBefore": evaluations[0],
        "evalLossAfter": evaluations[1],
        "stoppedEarly": False,
        "tokens": STEPS * 4 * 28,
    }
    assert speed * seconds == pytest.approx(STEPS * 4 * 28)


def test_the_log_has_a_line_for_every_step(alone: dict[str, Case]) -> None:
    lines = alone["1 process, ZeRO 2, LoRA"].lines
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5, 6, 6]
    assert [round(line["learningRate"], 6) for line in steps] == [
        0.005, 0.01, 0.01, 0.008536, 0.005, 0.001464
    ]  # fmt: skip
    assert {tuple(sorted(line)) for line in steps} == {
        ("gradNorm", "learningRate", "loss", "step", "tokensPerSecond")
    }

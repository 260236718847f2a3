"""Exactness with four processes, and where batches are cut in another way: the loss stays the same.

One and two processes, LoRA, checkpointing and bfloat16 are in test_loop.py. Here one gang of four
trains all its cases, and one process the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_builders import (
    LENGTH,
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

STEPS, BATCH = 4, 8
TRAIN = arrays(20, seed=11)
ALL = arrays(BATCH, seed=12)
"""As many sequences as a batch has: every step learns from all of them, in whatever order."""
SHORT, LONG = arrays(4, 13, learned=(1, 1)), arrays(4, 14, learned=(11, 12))
UNEVEN = {name: np.concatenate((SHORT[name], LONG[name])) for name in SHORT}
"""Two tokens are learned of some sequences and more than twenty of others, on different ranks."""


def unpacked(data: dict[str, Any]) -> dict[str, Any]:
    """Every example in a sequence of its own."""
    found = [
        (ids, labels)
        for row in range(len(data["input_ids"]))
        for ids, labels in examples(data, row)
        if (labels != -100).any()
    ]
    shape = (len(found), LENGTH)
    made = {"input_ids": np.full(shape, 2, np.int32), "labels": np.full(shape, -100, np.int32)}
    made["position_ids"] = np.zeros(shape, np.int32)
    for row, (ids, labels) in enumerate(found):
        count = len(ids)
        made["input_ids"][row, :count], made["labels"][row, :count] = ids, labels
        made["position_ids"][row] = np.r_[np.arange(count), np.arange(LENGTH - count)]
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exactness")


def case(root: Path, name: str, data: dict[str, Any], **changes: Any) -> Case:
    write_work(root / name, data, None, STEPS)
    return Case(run_config(root / name, **({"global_batch_size": BATCH} | changes)))


@pytest.fixture(scope="module")
def four(root: Path) -> dict[str, Case]:
    """All cases of four processes."""
    processes = {"num_proc_per_node": 4}
    lora = {"tuning": "LoRA", "lora": LORA}
    made = {}
    for stage in (1, 2, 3):
        told = {"zero_stage": stage, **processes}
        made[f"ZeRO {stage}"] = case(root, f"stage-{stage}", TRAIN, **told)
    made["uneven"] = case(root, "uneven", UNEVEN, zero_stage=2, **processes)
    made["again"] = case(root, "again", TRAIN, zero_stage=2, **processes)
    made["LoRA"] = case(root, "lora", TRAIN, zero_stage=3, **lora, **processes)
    run_cases(root, 4, list(made.values()))
    return made


@pytest.fixture(scope="module")
def one(root: Path) -> dict[str, Case]:
    """All cases of one process."""
    made = {
        "1 x 8": case(root, "micro-1", TRAIN, micro_batch_size=1),
        "8 x 1": case(root, "micro-8", TRAIN, micro_batch_size=8),
        "2 x 4, uneven": case(root, "micro-2-uneven", UNEVEN, micro_batch_size=2),
        "packed": case(root, "packed", ALL, micro_batch_size=2),
        "unpacked": case(
            root, "unpacked", unpacked(ALL), micro_batch_size=2, global_batch_size=2 * BATCH
        ),
    }
    run_cases(root, 1, list(made.values()))
    return made


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_four_processes_follow_the_plain_loop(four: dict[str, Case], stage: int) -> None:
    found = four[f"ZeRO {stage}"]
    assert found.losses == pytest.approx(reference_losses(found.run, TRAIN, STEPS), abs=5e-5)


def test_four_processes_follow_the_plain_loop_with_lora(four: dict[str, Case]) -> None:
    found = four["LoRA"]
    assert found.losses == pytest.approx(reference_losses(found.run, TRAIN, STEPS), abs=5e-5)


def test_a_token_counts_the_same_on_a_rank_with_few_of_them(four: dict[str, Case]) -> None:
    found = four["uneven"]
    assert found.losses == pytest.approx(reference_losses(found.run, UNEVEN, STEPS), abs=5e-5)


def test_a_token_counts_the_same_in_a_micro_batch_with_few_of_them(one: dict[str, Case]) -> None:
    found = one["2 x 4, uneven"]
    assert found.losses == pytest.approx(reference_losses(found.run, UNEVEN, STEPS), abs=5e-5)


def test_a_mean_of_means_would_be_noticed() -> None:
    learned = [(UNEVEN["labels"][row] != -100).sum() for row in range(BATCH)]
    assert max(learned) > 10 * min(learned)


def test_eight_micro_batches_of_one_are_one_of_eight(one: dict[str, Case]) -> None:
    assert one["1 x 8"].losses == pytest.approx(one["8 x 1"].losses, abs=1e-5)
    assert len({round(loss, 4) for loss in one["1 x 8"].losses}) == STEPS


def test_four_processes_give_the_same_twice_to_the_last_bit(four: dict[str, Case]) -> None:
    names = ("ZeRO 2", "again")
    told = [[(line["loss"], line["gradNorm"]) for line in four[name].lines] for name in names]
    assert told[0] == told[1]
    weights = [sorted((four[name].work / "result").glob("*.safetensors")) for name in names]
    assert [p.read_bytes() for p in weights[0]] == [p.read_bytes() for p in weights[1]]


def test_training_on_packed_examples_is_training_on_each_by_itself(one: dict[str, Case]) -> None:
    assert len(unpacked(ALL)["labels"]) == 2 * BATCH
    assert one["packed"].losses == pytest.approx(one["unpacked"].losses, abs=1e-5)


def test_every_packed_example_has_the_loss_that_it_has_by_itself(root: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from finetune_trainer.losses import SummedLoss

    write_work(root / "each", ALL, None, STEPS)
    model = AutoModelForCausalLM.from_pretrained(root / "each/model", dtype=torch.float32)
    data = sequences(ALL)
    stored, positions = data.read(np.arange(BATCH))
    ids = torch.tensor((stored & ((1 << 31) - 1)).astype(np.int64))
    targets = torch.tensor(data.targets(np.arange(BATCH)))
    with torch.no_grad():
        keep = torch.arange(positions.shape[1])
        logits = SummedLoss(model, model).logits(ids, torch.tensor(positions), keep)
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=-100, reduction="none"
        )
        for row in range(BATCH):
            starts = [*np.flatnonzero(positions[row] == 0), positions.shape[1]]
            parts = examples(ALL, row)
            for (tokens, labels), begin, end in zip(parts, starts[:-1], starts[1:], strict=True):
                alone, _ = summed_loss(model, tokens, labels)
                together = losses[row, begin:end].sum()
                assert together.item() == pytest.approx(alone.item(), rel=1e-5, abs=1e-5)

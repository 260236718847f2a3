"""The terms of the memory model, one by one, against arithmetic done by hand."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.memory import estimate
from finetune_api.run_config import LoraConfig
from finetune_api.sizes import GIB, LinearShape, ModelShape, Setup, Stack, trained_parameters

SHAPE = ModelShape(
    parameters=1_000_000_000,
    largest_module=100_000_000,
    small_parameters=500_000,
    hidden_size=2000,
    intermediate_size=8000,
    layers=10,
    heads=20,
    kv_heads=5,
    head_size=100,
    vocabulary_size=50_000,
    linears=[
        LinearShape(name="q_proj", in_features=2000, out_features=2000, count=10),
        LinearShape(name="up_proj", in_features=2000, out_features=8000, count=10),
    ],
)
LORA = LoraConfig(rank=8, alpha=16, dropout=0.0, target_modules=["all-linear"])
ADAPTER = 10 * 8 * (4000 + 10_000)


def setup(**changes: Any) -> Setup:
    plain: dict[str, Any] = {
        "tuning": "Full",
        "zero_stage": 1,
        "ranks": 4,
        "rows": 1,
        "sequence_length": 1000,
        "attention": "Flash",
    }
    return Setup.model_validate(plain | changes)


@pytest.mark.parametrize(
    ("changes", "trained"),
    [
        ({}, ADAPTER),
        ({"target_modules": ["q_proj"]}, 10 * 8 * 4000),
        ({"use_dora": True}, ADAPTER + 10 * (2000 + 8000)),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, ADAPTER + 2 * 50_000 * 2000),
        ({"modules_to_save": ["up_proj"]}, ADAPTER + 10 * 2000 * 8000),
    ],
)
def test_an_adapter_has_rank_times_inputs_and_outputs(
    changes: dict[str, Any], trained: int
) -> None:
    assert trained_parameters(SHAPE, LORA.model_copy(update=changes)) == trained


@pytest.mark.parametrize(
    ("stage", "parameters", "gradients", "optimizer"),
    [
        (1, 2_000_000_000, 4_000_000_000, 3_000_000_000),
        (2, 2_000_000_000, 1_000_000_000, 3_000_000_000),
        (3, 501_000_000, 1_000_000_000, 3_000_000_000),
    ],
)
def test_each_stage_shards_what_the_paper_says(
    stage: int, parameters: int, gradients: int, optimizer: int
) -> None:
    found = estimate(SHAPE, setup(zero_stage=stage))
    assert (found.parameters, found.gradients, found.optimizer) == (
        parameters,
        gradients,
        optimizer,
    )


def test_frozen_weights_are_whole_until_stage_3() -> None:
    for stage, base in ((1, 2_000_000_000), (2, 2_000_000_000), (3, 500_000_000)):
        found = estimate(SHAPE, setup(zero_stage=stage, tuning="LoRA", lora=LORA))
        assert found.parameters == pytest.approx(base, rel=0.01)
        assert found.optimizer == 12 * ADAPTER / 4


def test_4_bit_weights_are_a_quarter_and_not_sharded() -> None:
    for stage in (1, 3):
        found = estimate(SHAPE, setup(zero_stage=stage, tuning="QLoRA", lora=LORA))
        quantised = 10 * 2000 * 10_000
        assert found.parameters > 0.516 * quantised
    assert (
        estimate(SHAPE, setup(tuning="LoRA", lora=LORA)).parameters
        - estimate(SHAPE, setup(tuning="QLoRA", lora=LORA)).parameters
    ) == round((2 - 0.516) * quantised)


def test_offloading_moves_states_to_the_node() -> None:
    here = estimate(SHAPE, setup(zero_stage=3))
    optimizer = estimate(SHAPE, setup(zero_stage=3, offload="Optimizer"))
    everything = estimate(SHAPE, setup(zero_stage=3, offload="OptimizerAndParameters"))
    assert (optimizer.optimizer, optimizer.gradients) == (0, 0)
    assert optimizer.host >= here.optimizer + here.gradients
    assert everything.host == optimizer.host + 500_000_000
    assert everything.parameters == 1_000_000  # what ZeRO-3 keeps whole
    assert here.host == 0


def test_on_a_cpu_offloaded_states_are_in_the_same_memory() -> None:
    found = estimate(SHAPE, setup(zero_stage=3, offload="Optimizer", accelerator="CPU"))
    assert found.total > found.host > 0
    assert found.total == sum(
        getattr(found, name)
        for name in ("parameters", "gradients", "activations", "logits", "buffers", "host")
    )


def test_activations_are_counted_tensor_by_tensor() -> None:
    found = estimate(SHAPE, setup())
    norms = 2 * (4 + 2) * 2000
    inputs = 2 * 2 * 2000
    attention = 2 * (2 * 2000 + 2 * 500) + 4 * 20
    feed_forward = 2 * 4 * 8000
    ends = (2 * 2 + 4) * 2000
    per_token = 10 * (norms + inputs + attention + feed_forward) + ends
    assert found.activations == 1000 * per_token  # going backward needs less than the logits did


def test_checkpointing_keeps_the_input_of_every_layer_and_one_layer() -> None:
    whole = estimate(SHAPE, setup(sequence_length=4000)).activations
    kept = estimate(SHAPE, setup(sequence_length=4000, gradient_checkpointing=True)).activations
    assert 10 * 4000 * 2 * 2000 <= kept < whole / 4


def test_a_mask_costs_memory_in_every_layer() -> None:
    flash, masked = (
        estimate(SHAPE, setup(attention=kind)).activations for kind in ("Flash", "Masked")
    )
    repeated = 2 * 2 * (2000 - 500) * 1000
    assert masked - flash == 10 * (1000**2 * 2 + repeated)


def test_logits_are_in_32_bit_for_a_chunk_only() -> None:
    chunks = Stack(loss="Chunks")
    found = estimate(SHAPE, setup(sequence_length=10_000), chunks).logits
    assert found == 50_000 * (2 * 10_000 + 2 * (10_000 - 2048) + 12 * 2048)
    alone = estimate(SHAPE, setup(precision="FP32"), chunks)
    assert alone.logits == 12 * 1000 * 50_000


def test_a_loss_inside_the_output_layer_never_has_all_logits() -> None:
    short, long = (
        estimate(SHAPE, setup(sequence_length=length)).logits for length in (1_000, 100_000)
    )
    assert short == long


def test_all_terms_make_the_total() -> None:
    for stage in (1, 2, 3):
        found = estimate(SHAPE, setup(zero_stage=stage))
        terms = found.model_dump(exclude={"total", "host"})
        assert found.total == sum(terms.values())
        assert found.buffers > 2 * GIB  # CUDA and NCCL


@pytest.mark.parametrize("offload", ["None", "Optimizer"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_more_processes_never_need_more_each(stage: int, offload: str) -> None:
    totals = [
        estimate(SHAPE, setup(zero_stage=stage, ranks=ranks, offload=offload)).total
        for ranks in (2, 4, 8, 16)
    ]
    assert totals == sorted(totals, reverse=True)


def test_longer_sequences_and_more_rows_need_more() -> None:
    for name in ("rows", "sequence_length"):
        totals = [estimate(SHAPE, setup(**{name: 2**n})).total for n in range(4, 10)]
        assert totals == sorted(totals)
        assert len(set(totals)) == len(totals)

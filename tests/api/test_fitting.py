"""What Auto decides: the order of preference, what it never touches, and how it refuses."""

from __future__ import annotations

from typing import Any

import memory_table
import published_memory
import pytest

from finetune_api.fitting import Fitted, TooLarge, advice, applied, choices, decide
from finetune_api.memory import estimate
from finetune_api.outcome import ResolvedTraining
from finetune_api.run_config import LoraConfig, RunConfig
from finetune_api.sizes import GIB, ModelShape, Setup

LORA = LoraConfig(rank=16, alpha=32, dropout=0.0, target_modules=["all-linear"])
SHAPE = published_memory.MODELS["Llama 2 7B"]


def run(
    gpus: int = 8, tuning: str = "Full", gib: float | None = 80, host: float = 128, **changes: Any
) -> RunConfig:
    """A job with every Auto; `changes` by the names of its fields or those of its training."""
    made = memory_table.a_run(tuning, None if tuning == "Full" else LORA, gpus)
    training = {k: v for k, v in changes.items() if k in type(made.training).model_fields}
    rest = {k: v for k, v in changes.items() if k not in training}
    memory = {
        "accelerator_bytes": None if gib is None else int(gib * GIB),
        "host_bytes": int(host * GIB),
    }
    return RunConfig.model_validate(
        made.model_dump()
        | {"memory": memory, "training": made.training.model_dump() | training}
        | rest
    )


def needed(of: RunConfig, **resolved: Any) -> float:
    """GiB that a process needs, should `of` be resolved like this."""
    plain = {
        "zero_stage": of.zero_stage,
        "offload": "None",
        "micro_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": False,
    }
    choice = ResolvedTraining.model_validate(plain | resolved)
    return estimate(SHAPE, Setup.of(applied(of, choice))).total / GIB


def decided(found: Fitted | TooLarge) -> tuple[int, bool, int, str]:
    """Micro-batch, checkpointing, stage, offload."""
    assert isinstance(found, Fitted)
    chosen = found.resolved
    return (
        chosen.micro_batch_size,
        chosen.gradient_checkpointing,
        chosen.zero_stage,
        chosen.offload,
    )


def test_the_first_choice_stays_where_it_fits() -> None:
    assert decided(decide(run(gib=1000), SHAPE)) == (8, False, 2, "None")


def test_the_first_choice_stays_where_the_memory_is_unknown() -> None:
    found = decide(run(gib=None), published_memory.MODELS["Llama 3.1 70B"])
    assert decided(found) == (8, False, 2, "None")
    assert isinstance(found, Fitted)
    assert found.estimate.total > 200 * GIB


@pytest.mark.parametrize(
    ("resolved", "expected"),
    [
        ({"micro_batch_size": 4}, (4, False, 2, "None")),
        ({"micro_batch_size": 1}, (1, False, 2, "None")),
        ({"gradient_checkpointing": True, "micro_batch_size": 4}, (4, True, 2, "None")),
        ({"zero_stage": 3, "gradient_checkpointing": True}, None),
    ],
)
def test_each_step_is_taken_where_the_one_before_does_not_fit(
    resolved: dict[str, Any], expected: tuple[int, bool, int, str] | None
) -> None:
    job = run(gib=needed(run(), **resolved) / 0.9 + 0.1)
    found = decided(decide(job, SHAPE))
    if expected is not None:
        assert found == expected
    assert found[3] == "None"


def test_when_nothing_else_fits_states_go_to_the_node() -> None:
    optimizer = run(gpus=1, gib=40, host=400)
    assert decided(decide(optimizer, SHAPE))[3] == "Optimizer"
    everything = run(gpus=1, gib=14, host=400)
    assert decided(decide(everything, SHAPE))[2:] == (3, "OptimizerAndParameters")


def test_the_order_is_micro_batch_checkpointing_stage_offload() -> None:
    found = [decided(Fitted(c, estimate(SHAPE, Setup.of(run())))) for c in choices(run())]
    assert found[:6] == [
        (8, False, 2, "None"),
        (4, False, 2, "None"),
        (2, False, 2, "None"),
        (1, False, 2, "None"),
        (8, True, 2, "None"),
        (4, True, 2, "None"),
    ]
    order = [(("None", "Optimizer", "OptimizerAndParameters").index(x[3]), x[2]) for x in found]
    assert order == sorted(order)
    assert found[-1] == (1, True, 3, "OptimizerAndParameters")


@pytest.mark.parametrize(
    ("auto", "fixed"),
    [
        ("microBatchSize", {"micro_batch_size"}),
        ("gradientCheckpointing", {"gradient_checkpointing"}),
        ("zeroStage", {"zero_stage"}),
        ("offload", {"offload"}),
    ],
)
def test_what_the_job_fixes_is_never_changed(auto: str, fixed: set[str]) -> None:
    everything = set(run().auto)
    job = run(auto=sorted(everything - {auto}))
    first, *others = choices(job)
    for other in others:
        assert other.model_dump(include=fixed) == first.model_dump(include=fixed)
    assert [first] == list(choices(run(auto=[])))


def test_the_global_batch_is_kept() -> None:
    for choice in choices(run()):
        assert choice.micro_batch_size * choice.gradient_accumulation_steps * 8 == 128


def test_a_cpu_has_no_other_memory_to_offload_to() -> None:
    assert {c.offload for c in choices(run(accelerator="CPU"))} == {"None"}


def test_4_bit_weights_are_not_put_under_stage_3() -> None:
    assert {c.zero_stage for c in choices(run(tuning="QLoRA", zero_stage=1))} == {1, 2}


def test_offloading_parameters_is_not_tried_under_a_fixed_lower_stage() -> None:
    job = run(auto=["microBatchSize", "offload"])
    assert {(c.zero_stage, c.offload) for c in choices(job)} == {(2, "None"), (2, "Optimizer")}


def test_the_headroom_is_left_where_it_can_be_and_used_where_it_must() -> None:
    fixed = run(auto=[])
    size = needed(fixed)
    tight = run(auto=[], gib=size + 0.1)
    assert decided(decide(tight, SHAPE)) == (8, False, 2, "None")
    assert isinstance(decide(run(auto=[], gib=size - 0.1), SHAPE), TooLarge)
    assert decided(decide(run(gib=size + 0.1), SHAPE)) == (4, False, 2, "None")


def test_the_nodes_memory_is_a_limit_too() -> None:
    assert isinstance(decide(run(gpus=1, gib=40, host=60), SHAPE), TooLarge)


def test_a_refusal_says_what_is_needed_what_is_there_and_what_to_change() -> None:
    large: ModelShape = published_memory.MODELS["Llama 3.1 70B"]
    found = decide(run(gib=80, auto=["microBatchSize"], zero_stage=3), large)
    assert isinstance(found, TooLarge)
    start, _, rest = found.message.partition(" (")
    assert start.startswith("training needs about ")
    assert start.endswith("GiB on every GPU")
    assert "optimizer 98.6 GiB, " in rest
    assert rest.endswith(
        "at micro-batch size 1, gradient checkpointing off, ZeRO stage 3, offload None, but "
        "80.0 GiB is there; in this order: set spec.training.gradientCheckpointing: Always, "
        "set spec.zero.offload: OptimizerAndParameters (now None), use spec.method.tuning: LoRA, "
        "shorten spec.training.sequenceLength (now 2048), "
        "use more workers or a profile with more memory"
    )


def test_a_refusal_for_want_of_node_memory_says_so() -> None:
    found = decide(run(gpus=1, gib=40, host=60), SHAPE)
    assert isinstance(found, TooLarge)
    assert "of the pod's memory, where a process has 60.0 GiB; in this order" in found.message


def test_advice_leaves_out_what_is_done_already() -> None:
    last = run(
        tuning="LoRA",
        zero_stage=3,
        offload="OptimizerAndParameters",
        micro_batch_size=1,
        gradient_checkpointing=True,
    )
    assert advice(last) == [
        "shorten spec.training.sequenceLength (now 2048)",
        "use more workers or a profile with more memory",
    ]

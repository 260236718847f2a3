"""The configuration that DeepSpeed is given."""

from pathlib import Path
from typing import Any

import pytest
from training_builders import LORA, run_config

from finetune_api.run_config import RunConfig
from finetune_trainer.zero import deepspeed_config

COMMON = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 4,
    "gradient_clipping": 0.5,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
    "steps_per_print": None,
    "wall_clock_breakdown": False,
}


def run(**changes: Any) -> RunConfig:
    shape = {"global_batch_size": 32, "micro_batch_size": 2, "num_nodes": 2, "num_proc_per_node": 2}
    return run_config(Path("/work"), **shape, **changes)


def test_stage_1_on_cpu_in_float32() -> None:
    assert deepspeed_config(run()) == COMMON | {
        "bf16": {"enabled": False, "check_grad_overflow": True, "immediate_grad_update": True},
        "zero_optimization": {
            "stage": 1,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "reduce_bucket_size": 25_000_000,
            "overlap_comm": False,
            "allgather_partitions": True,
            "allgather_bucket_size": 25_000_000,
            "round_robin_gradients": False,
        },
    }


def test_stage_3_on_gpus_in_bfloat16() -> None:
    wanted = run(zero_stage=3, accelerator="CUDA", precision="BF16", tuning="LoRA", lora=LORA)
    assert deepspeed_config(wanted) == COMMON | {
        "bf16": {"enabled": True, "check_grad_overflow": True, "immediate_grad_update": True},
        "zero_optimization": {
            "stage": 3,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "reduce_bucket_size": 100_000_000,
            "overlap_comm": True,
            "stage3_prefetch_bucket_size": 50_000_000,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "sub_group_size": 1_000_000_000,
            "stage3_gather_16bit_weights_on_model_save": False,
        },
    }


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_is_told_to_both_and_pinned_for_gpus_only(stage: int) -> None:
    for accelerator, pinned in (("CUDA", True), ("CPU", False)):
        there = {"device": "cpu", "pin_memory": pinned}
        plain = deepspeed_config(run(zero_stage=stage, accelerator=accelerator))
        optimizer = deepspeed_config(
            run(zero_stage=stage, accelerator=accelerator, offload="Optimizer")
        )
        section = plain["zero_optimization"] | {"offload_optimizer": there}
        assert optimizer == plain | {"zero_optimization": section}
    everything = deepspeed_config(run(zero_stage=3, offload="OptimizerAndParameters"))
    there = {"device": "cpu", "pin_memory": False}
    found = everything["zero_optimization"]
    assert (found["offload_optimizer"], found["offload_param"]) == (there, there)


CHOICES = [
    (1, "None"),
    (2, "None"),
    (3, "None"),
    (1, "Optimizer"),
    (2, "Optimizer"),
    (3, "Optimizer"),
    (3, "OptimizerAndParameters"),
]


@pytest.mark.parametrize(("stage", "offload"), CHOICES)
@pytest.mark.parametrize("accelerator", ["CPU", "CUDA"])
def test_deepspeed_knows_every_key_and_reads_the_values_as_meant(
    stage: int, offload: str, accelerator: str
) -> None:
    from deepspeed.runtime import constants
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    config = deepspeed_config(
        run(zero_stage=stage, offload=offload, accelerator=accelerator, precision="BF16")
    )
    known = {value for value in vars(constants).values() if isinstance(value, str)}
    assert set(config) - known <= {"bf16", "zero_optimization"}
    zero = config["zero_optimization"]
    for section, kind in (
        (config["bf16"], DeepSpeedBF16Config),
        (zero, DeepSpeedZeroConfig),
        (zero.get("offload_optimizer", {}), DeepSpeedZeroOffloadOptimizerConfig),
        (zero.get("offload_param", {}), DeepSpeedZeroOffloadParamConfig),
    ):
        names = {n for k, f in kind.model_fields.items() for n in (k, f.alias)}
        assert set(section) <= names

    # Without a gang DeepSpeed counts one process.
    read = DeepSpeedConfig(config | {"train_batch_size": 8})
    assert (
        read.train_batch_size,
        read.train_micro_batch_size_per_gpu,
        read.gradient_accumulation_steps,
        read.gradient_clipping,
        read.bfloat16_config.enabled,
        read.grad_accum_dtype,
        str(read.communication_data_type),
        int(read.zero_config.stage),
        read.zero_config.overlap_comm,
        read.zero_force_ds_cpu_optimizer,
        read.steps_per_print,
    ) == (8, 2, 4, 0.5, True, "fp32", "torch.float32", stage, accelerator == "CUDA", False, None)
    assert read.bfloat16_config.immediate_grad_update
    for there, wanted in (
        (read.zero_config.offload_optimizer, offload != "None"),
        (read.zero_config.offload_param, offload == "OptimizerAndParameters"),
    ):
        assert (there is not None) == wanted
        if there is not None:
            assert (there.device, there.pin_memory) == ("cpu", accelerator == "CUDA")

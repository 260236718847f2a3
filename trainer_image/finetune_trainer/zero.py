"""The complete DeepSpeed configuration of a run, as a pure function.

DeepSpeed takes unknown names at the top level without a word, so nothing of it is passed through
from a user: every key is a literal below, and a test compares them with DeepSpeed's own classes.
"""

from __future__ import annotations

from typing import Any

from finetune_api.run_config import RunConfig
from finetune_api.sizes import CPU_BUCKET, CUDA_BUCKET, MAX_LIVE, PERSISTENT, SUB_GROUP


def deepspeed_config(run: RunConfig) -> dict[str, Any]:
    """What `deepspeed.initialize` is given; a client optimizer (AdamW) comes with it.

    `train_batch_size = micro x accumulation x processes` must hold; DeepSpeed refuses otherwise.
    """
    training = run.training
    return {
        "train_batch_size": training.global_batch_size,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "gradient_clipping": training.max_grad_norm,
        # torch's AdamW is not on DeepSpeed's list, which names only its own compiled optimizers:
        # those need a compiler at run time.
        "zero_allow_untested_optimizer": True,
        # Likewise with offload: torch's AdamW on the node's memory, not DeepSpeed's own.
        "zero_force_ds_cpu_optimizer": False,
        # bfloat16 for forward and backward; ZeRO keeps the 32-bit weights that AdamW changes.
        # A step whose gradient is not finite is left out, and our loop ends the run. Under ZeRO-1
        # the gradient of each weight is added to the 32-bit sum as it comes and freed: DeepSpeed
        # would keep it beside the sum, a third more.
        "bf16": {
            "enabled": training.precision == "BF16",
            "check_grad_overflow": True,
            "immediate_grad_update": True,
        },
        # Sums of many small gradients lose their low bits in bfloat16: over micro-batches ...
        "data_types": {"grad_accum_dtype": "fp32"},
        # ... and over processes.
        "communication_data_type": "fp32",
        "zero_optimization": _zero(run),
        "steps_per_print": None,  # our loop prints
        "wall_clock_breakdown": False,  # it waits for the GPU after every phase
    }


def _zero(run: RunConfig) -> dict[str, Any]:
    cuda = run.accelerator == "CUDA"
    bucket = CUDA_BUCKET if cuda else CPU_BUCKET
    common: dict[str, Any] = {
        "stage": run.zero_stage,
        # One flat buffer for gradients as they come: no fragmentation, one collective per bucket.
        "contiguous_gradients": True,
        # Every process gets only the sum of the part that it owns.
        "reduce_scatter": True,
        "reduce_bucket_size": bucket,
        # Gradients travel while the backward pass goes on; a CPU has no second stream for it.
        "overlap_comm": cuda,
    }
    if run.offload != "None":
        common["offload_optimizer"] = _in_node_memory(run)
    if run.zero_stage < 3:
        return common | {
            "allgather_partitions": True,
            "allgather_bucket_size": bucket,
            # Spreads the copies of optimizer offload over the processes; else of no use, and it
            # changes which process owns what.
            "round_robin_gradients": False,
        }
    if run.offload == "OptimizerAndParameters":
        common["offload_param"] = _in_node_memory(run)
    return common | {
        # Elements fetched ahead of the layer that is being computed.
        "stage3_prefetch_bucket_size": bucket // 2,
        # Smaller tensors (norms, adapters) stay whole on every process: latency counts, not size.
        "stage3_param_persistence_threshold": PERSISTENT,
        # Weights that may be gathered at a time, and how soon used again to be kept: 2 GB in
        # bfloat16.
        "stage3_max_live_parameters": MAX_LIVE,
        "stage3_max_reuse_distance": MAX_LIVE,
        # The optimizer changes so many at a time; their gradients are copied for it.
        "sub_group_size": SUB_GROUP,
        # The result is gathered by our own code, tensor by tensor, see `result`.
        "stage3_gather_16bit_weights_on_model_save": False,
    }


def _in_node_memory(run: RunConfig) -> dict[str, Any]:
    """Pinned memory is what a GPU copies from while it computes; without GPUs it has no use."""
    return {"device": "cpu", "pin_memory": run.accelerator == "CUDA"}

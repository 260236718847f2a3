"""From the prepared model to a DeepSpeed engine: load, adapter, optimizer, sharding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as transformers_logging

from finetune_api.run_config import WORK_MODEL, RunConfig
from finetune_trainer.errors import ConfigurationError, ModelError
from finetune_trainer.fast import attention
from finetune_trainer.fast.apply import speed_up, use_segments
from finetune_trainer.lora import add_adapter, quantization
from finetune_trainer.losses import SummedLoss
from finetune_trainer.objectives import objective_of
from finetune_trainer.objectives.base import Objective
from finetune_trainer.ranks import Gang
from finetune_trainer.zero import deepspeed_config


@dataclass
class Engine:
    """What is trained, and with what."""

    deepspeed: Any
    """The DeepSpeed engine around the module of the objective."""

    model: Any
    """The model of transformers, or of peft around it."""

    optimizer: torch.optim.Optimizer
    """Ours; DeepSpeed has put its own 32-bit weights into it."""

    flat: bool
    """Attention wants all sequences in one row, see `batches.micro_batch`."""

    objective: Objective[Any]
    """How batches are made, and what their loss is."""

    keep_alive: HfDeepSpeedConfig | None
    """transformers shards while loading only as long as this object lives (ZeRO-3)."""

    def set_learning_rate(self, rate: float) -> None:
        """For the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate


def build(run: RunConfig, gang: Gang) -> Engine:
    """Load the model that prepare wrote and make it ready for training.

    Raises:
        ModelError: the model cannot be loaded.
        ConfigurationError: the settings do not fit the model.
    """
    config = deepspeed_config(run)
    sharded = run.zero_stage == 3
    keep_alive = HfDeepSpeedConfig(config) if sharded else None
    torch.manual_seed(run.training.seed)  # the adapter's first weights: alike on all processes
    base = _load(run, gang, sharded)
    if run.training.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model = add_adapter(base, run, run.lora) if run.lora else base
    speed_up(model, base, sharded)
    optimizer = _optimizer(model, run)
    objective = objective_of(run)
    wrapped, *_ = deepspeed.initialize(
        model=objective.module(model, base),
        optimizer=optimizer,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config=config,
        dist_init_required=False,
    )
    torch.manual_seed(run.training.seed + gang.rank)  # dropout: different on every process
    flat = base.config._attn_implementation == "flash_attention_2"
    engine = Engine(wrapped, model, optimizer, flat, objective, keep_alive)
    if isinstance(wrapped.module, SummedLoss):
        wrapped.module.fuse(base, gang.device)
        if use_segments(base, gang.device):
            wrapped.module.by_segments()
    if run.training.packing and objective.packs:
        check_separation(wrapped.module, gang.device)
    return engine


def _load(run: RunConfig, gang: Gang, sharded: bool) -> Any:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    bf16 = run.training.precision == "BF16"
    options: dict[str, Any] = {"dtype": torch.bfloat16 if bf16 else torch.float32}
    if gang.device.type == "cuda":
        if bf16 and is_flash_attn_2_available():
            options["attn_implementation"] = "flash_attention_2"
        if not sharded:  # straight to the GPU: no copy of the model in memory for every process
            options["device_map"] = {"": gang.device}
    if run.tuning == "QLoRA":
        options |= {
            "quantization_config": quantization(options["dtype"]),
            "device_map": {"": gang.device},
        }
    path = Path(run.work_dir) / WORK_MODEL
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, local_files_only=True, trust_remote_code=run.allow_remote_code, **options
        )
    except (OSError, ValueError, KeyError) as exc:
        raise ModelError(f"the prepared model cannot be loaded: {exc}") from exc
    model.train()
    return model


def _optimizer(model: nn.Module, run: RunConfig) -> torch.optim.Optimizer:
    """AdamW; weight decay is for matrices only, norms and biases are scales and offsets."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Under ZeRO-3 the parameter itself is empty; `ds_shape` is what it stands for.
            shape = getattr(parameter, "ds_shape", parameter.shape)
            (matrices if len(shape) >= 2 else others).append(parameter)
    decay = run.training.weight_decay
    groups = [
        {"params": parameters, "weight_decay": rate}
        for parameters, rate in ((matrices, decay), (others, 0.0))
        if parameters
    ]
    return torch.optim.AdamW(
        groups,
        lr=run.training.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        # One pass over the numbers, without temporary copies; on GPUs and CPUs alike.
        fused=True,
    )


@torch.no_grad()
def check_separation(module: SummedLoss, device: torch.device) -> None:
    """Prove on the loaded model that one packed example cannot see the one before it.

    The same example twice in a sequence, after two different ones, must get the same predictions
    both times. Not every architecture keeps them apart: recurrent ones carry a state along.

    Raises:
        ConfigurationError: it does not.
    """
    length = 8
    positions = torch.arange(length).repeat(4)[None]
    segments = attention.segments(positions.numpy())
    vocabulary = module.model.config.get_text_config().vocab_size
    second = torch.arange(length)
    ids = torch.cat((second + 1, second, second + 11, second)).remainder(vocabulary)[None]
    keep = torch.cat((second + length, second + 3 * length))
    module.eval()
    seen = module.logits(ids.to(device), positions.to(device), keep.to(device), segments).float()
    module.train()
    one, other = seen.reshape(2, length, -1)
    apart = (one - other).abs().max().item()
    if apart > 1e-3 * max(1.0, one.abs().max().item()):
        raise ConfigurationError(
            f"{type(module.model).__name__} does not keep examples apart that are packed into one "
            "sequence; set spec.training.packing: false"
        )

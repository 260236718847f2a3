"""LoRA by peft: putting the adapter in."""

from __future__ import annotations

from typing import Any

from torch import nn

from finetune_api.run_config import LoraConfig, RunConfig
from finetune_trainer.errors import ConfigurationError


def add_adapter(model: Any, run: RunConfig, lora: LoraConfig) -> Any:
    """The model with an adapter in it, the only part with gradients.

    The adapter's first weights come from torch's generator: all processes must have seeded it
    alike.

    Raises:
        ConfigurationError: no layer has one of the wanted names.
    """
    import peft

    whole = lora.target_modules == ["all-linear"]
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if whole else list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    try:
        # Of the base's own type: DeepSpeed keeps the 32-bit weights, and ZeRO-3 shards one type.
        adapted = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as exc:
        raise ConfigurationError(
            f"spec.method.lora.targetModules {lora.target_modules} fit no layer of "
            f"{type(model).__name__}; its linear layers are {', '.join(linear_layers(model))}"
        ) from exc
    name, revision = base_model(run)
    adapted.peft_config["default"].base_model_name_or_path = name
    adapted.peft_config["default"].revision = revision
    return adapted


def base_model(run: RunConfig) -> tuple[str, str | None]:
    """Name and revision of the base model for whoever loads the adapter: not a path of this pod."""
    if run.model.uri.startswith("hf://"):
        return run.model.uri.removeprefix("hf://"), run.model.revision
    return run.model.uri, None


def linear_layers(model: nn.Module) -> list[str]:
    """The names of linear layers, each once, without their place in the model."""
    return sorted(
        {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    )

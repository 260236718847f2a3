"""LoRA by peft: putting the adapter in."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from finetune_api.run_config import LoraConfig, RunConfig
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.model.adapters import import_peft
from finetune_trainer.model.fit import linear_layers

if TYPE_CHECKING:
    pass


def add_adapter(model: Any, run: RunConfig, lora: LoraConfig) -> Any:
    """The model with an adapter in it, the only part with gradients.

    The adapter's first weights come from torch's generator: all processes must have seeded it
    alike.

    Raises:
        ConfigurationError: no layer has one of the wanted names.
    """
    peft = import_peft(quantized=run.tuning == "QLoRA")
    whole = lora.target_modules == ["all-linear"]
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if whole else list(lora.target_modules),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        modules_to_save=lora.modules_to_save or None,
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


def quantization(dtype: Any) -> Any:
    """How QLoRA loads the base model: NF4 with quantized scales, computing in `dtype`.

    The output head and the norms stay as they are; the adapter has the type `dtype` too.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def check_tuning(run: RunConfig) -> None:
    """Refuse settings that cannot work here, before anything is fetched.

    Raises:
        ConfigurationError: the sharding does not fit the tuning, or QLoRA lacks what it needs.
    """
    other = "use spec.method.tuning: LoRA"
    quantized = run.tuning == "QLoRA"
    if run.zero_stage > run.highest_stage:
        raise ConfigurationError(
            "spec.method.tuning: QLoRA keeps base weights of 4 bits, which ZeRO-3 cannot shard; "
            f"set spec.zero.stage to 1 or 2, or {other}"
            if quantized
            # Peft reads weights outside of the layers for which DeepSpeed gathers them.
            else "spec.method.lora.useDora needs whole weights, which ZeRO-3 does not keep; set "
            "spec.zero.stage to 1 or 2, or useDora: false"
        )
    if not quantized:
        return
    if find_spec("bitsandbytes") is None:
        raise ConfigurationError(
            "spec.method.tuning: QLoRA needs bitsandbytes, which is not in this image; set "
            f"spec.image of the profile to the trainer image of this release, or {other}"
        )
    if run.accelerator == "CPU" and (problem := _problem_on_cpu()):
        raise ConfigurationError(
            f"spec.method.tuning: QLoRA does not run on this CPU ({problem}); choose a profile "
            f"with GPUs, or {other}"
        )


def _problem_on_cpu() -> str | None:
    """What bitsandbytes says to four bits on this CPU; None: it can do it."""
    import torch

    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        dequantize_4bit(*quantize_4bit(torch.ones(64, 64), quant_type="nf4"))
    except Exception as exc:  # whatever a library built for other hardware trips over
        return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
    return None


def base_model(run: RunConfig) -> tuple[str, str | None]:
    """Name and revision of the base model for whoever loads the adapter: not a path of this pod."""
    if run.model.uri.startswith("hf://"):
        return run.model.uri.removeprefix("hf://"), run.model.revision
    return run.model.uri, None

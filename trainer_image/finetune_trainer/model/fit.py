"""Whether weights, architecture and method fit together: on shapes, before a GPU waits for it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from finetune_api.run_config import LoraConfig
from finetune_trainer.errors import ConfigurationError, ModelError
from finetune_trainer.logs import warn
from finetune_trainer.model.adapters import import_peft

_SHOWN = 5


def check_complete(skeleton: Any, shapes: dict[str, list[int]], uri: str) -> None:
    """Refuse weights that leave a parameter of the model unset, or have another shape.

    Transformers itself would start such parameters with random numbers and only warn. It is asked
    here with tensors that have no content, so that old names and fused experts are understood as
    they will be when the model is loaded.

    Args:
        skeleton: The model of transformers on the meta device.
        shapes: Shape of every tensor in the files.
    """
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    _, found = type(skeleton).from_pretrained(
        None,
        config=skeleton.config,
        state_dict=tensors,
        device_map="meta",
        ignore_mismatched_sizes=True,  # they are reported instead
        output_loading_info=True,
    )
    wrong = [
        f"{name} is {_shape(here)} in place of {_shape(wanted)}"
        for name, here, wanted in sorted(found["mismatched_keys"])
    ]
    missing = [f"{name} is missing" for name in sorted(found["missing_keys"])]
    problems = [*missing, *wrong, *(str(text) for text in found["error_msgs"])]
    if problems:
        raise ModelError(
            f"{uri}: the weights do not fit config.json: {_some(problems)}; copy the model anew, "
            "all files of the same revision"
        )


def check_finite(directory: Path, names: list[str], uri: str) -> None:
    """Refuse weights with values that are not finite: no learning rate would help.

    Reads every tensor once, which is about a second for 1 to 4 GB.
    """
    import torch
    from safetensors import safe_open

    for name in names:
        with safe_open(directory / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dictionary)
                tensor = file.get_tensor(key)
                # The sum of finite numbers is finite but for numbers that are absurdly large.
                if not torch.isfinite(tensor.sum(dtype=torch.float32)):
                    bad = int((~torch.isfinite(tensor)).sum())
                    raise ModelError(
                        f"{uri}: {bad or 'very large'} of {tensor.numel()} values of {key} in "
                        f"{name} are not usable numbers; copy or convert the model anew"
                    )


def check_lora(skeleton: Any, lora: LoraConfig, quantized: bool = False) -> None:
    """Refuse an adapter that fits no layer, or whose rank is not low.

    Raises:
        ConfigurationError: names the layers that there are.
    """
    peft = import_peft(quantized)

    names = [name for name, _ in skeleton.named_modules()]
    for module in lora.modules_to_save:
        if not any(name == module or name.endswith(f".{module}") for name in names):
            raise ConfigurationError(
                f"spec.method.lora.modulesToSave {module!r} is no module of "
                f"{type(skeleton).__name__}; it has {_some(_last_parts(names), 20)}"
            )
    wanted: Any = list(lora.target_modules)
    if wanted == ["all-linear"]:
        wanted = "all-linear"
    try:
        adapted = peft.get_peft_model(
            copy.deepcopy(skeleton),
            peft.LoraConfig(r=lora.rank, target_modules=wanted, task_type="CAUSAL_LM"),
        )
    except ValueError as exc:
        raise ConfigurationError(
            f"spec.method.lora.targetModules {lora.target_modules} cannot be tuned in "
            f"{type(skeleton).__name__}; its linear layers are {_some(linear_layers(skeleton), 20)}"
        ) from exc
    _check_targets(skeleton, lora, adapted)


def _check_targets(skeleton: Any, lora: LoraConfig, adapted: Any) -> None:
    layers = {
        name: min(module.in_features, module.out_features)
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "in_features")
    }
    if lora.target_modules != ["all-linear"]:
        for target in lora.target_modules:
            if not any(name.endswith(f".{target}") for name in layers):
                raise ConfigurationError(
                    f"spec.method.lora.targetModules {target!r} fits no layer of "
                    f"{type(skeleton).__name__}; its linear layers are "
                    f"{_some(linear_layers(skeleton), 20)}"
                )
    if not layers:
        return
    largest = max(layers.values())
    if lora.rank > largest:
        raise ConfigurationError(
            f"spec.method.lora.rank is {lora.rank}, but the largest of the chosen matrices has "
            f"rank {largest}, so nothing would be saved; lower it to {largest // 4 or 1} or less, "
            "or use spec.method.tuning: Full"
        )
    small = sorted({n.rsplit(".", 1)[-1] for n, smallest in layers.items() if lora.rank > smallest})
    if small:
        warn(
            f"spec.method.lora.rank {lora.rank} is more than {_some(small)} can have; "
            "the surplus costs memory and does nothing"
        )


def linear_layers(model: Any) -> list[str]:
    """Names of layers that an adapter can go into, each once, without their place."""
    kinds = ("Linear", "Conv1D")
    return _last_parts([n for n, m in model.named_modules() if type(m).__name__ in kinds])


def _last_parts(names: list[str]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in names if name} - set("0123456789"))


def _shape(shape: Any) -> str:
    return " x ".join(str(n) for n in shape)


def _some(names: list[str], shown: int = _SHOWN) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more

"""Says what a model is, and refuses what cannot be tuned, without loading its weights."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.sizes import PERSISTENT, LinearShape, ModelShape
from finetune_trainer.errors import ConfigurationError, ModelError
from finetune_trainer.model.fit import check_complete

FLOATS = ("F32", "F16", "BF16")
"""Number formats of weights that can be trained."""


@dataclass(frozen=True)
class ModelInfo:
    """What the rest of the run needs to know."""

    architecture: str
    """Class in transformers."""

    parameters: int
    """Tied weights counted once."""

    vocabulary_size: int
    """Rows of the embedding."""

    longest_sequence: int | None
    """Tokens that the model was made for; None where it has no limit."""

    shape: ModelShape
    """What its memory depends on."""

    skeleton: Any = field(default=None, repr=False, compare=False)
    """The model of transformers with shapes but without numbers (torch's meta device)."""


def inspect_model(directory: Path, uri: str, allow_code: bool = False) -> ModelInfo:
    """Check a directory in the layout of transformers and count its parameters.

    Nothing is executed that came with the model, unless the platform permits it (`allow_code`).

    Raises:
        ModelError: unreadable, not a causal language model, quantised, or in need of own code.
    """
    config = _read_config(directory, uri, allow_code)
    names = check_weights(directory, uri)
    skeleton = _skeleton(config, uri, allow_code)
    if not names:
        raise ModelError(f"{uri}: the safetensors files contain no tensors; fetch the model anew")
    check_complete(skeleton, names, uri)
    text = config.get_text_config()
    shape = shape_of(skeleton, text)
    return ModelInfo(
        architecture=type(skeleton).__name__,
        parameters=shape.parameters,
        vocabulary_size=int(text.vocab_size),
        longest_sequence=getattr(text, "max_position_embeddings", None),
        shape=shape,
        skeleton=skeleton,
    )


def check_length(info: ModelInfo, sequence_length: int) -> None:
    """Refuse sequences that are longer than the model can tell positions apart."""
    longest = info.longest_sequence
    if longest is not None and sequence_length > longest:
        raise ConfigurationError(
            f"spec.training.sequenceLength is {sequence_length}, but the model was made for at "
            f"most {longest} tokens; lower it to {longest} or less"
        )


def check_weights(directory: Path, uri: str) -> dict[str, list[int]]:
    """Shape of every tensor, read from the headers of the safetensors files.

    Raises:
        ModelError: a file is missing or broken, or the weights are not plain floats.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for name in weight_files(directory, uri):
        try:
            with safe_open(directory / name, framework="np") as file:
                for key in file.keys():  # noqa: SIM118 (not a dictionary)
                    piece = file.get_slice(key)
                    if piece.get_dtype() not in FLOATS:
                        raise ModelError(
                            f"{uri}: {key} in {name} has the number format {piece.get_dtype()}; "
                            f"only {', '.join(FLOATS)} can be trained, use unquantised weights"
                        )
                    shapes[key] = list(piece.get_shape())
        except (SafetensorError, OSError) as exc:
            raise ModelError(
                f"{uri}: {name} cannot be read ({exc}); it is damaged or incomplete, copy it anew"
            ) from exc
    return shapes


def weight_files(directory: Path, uri: str) -> list[str]:
    """Names of the safetensors files: those of the index, else all; raises ModelError."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as exc:
            raise ModelError(f"{uri}: {index.name} is broken ({exc}); copy it anew") from exc
        absent = [name for name in names if "/" in name or not (directory / name).is_file()]
        if absent:
            raise ModelError(
                f"{uri}: {', '.join(absent)} is missing, which {index.name} lists; copy it there"
            )
        return names
    if (directory / "model.safetensors").is_file():
        return ["model.safetensors"]
    return sorted(path.name for path in directory.glob("*.safetensors"))


def _read_config(directory: Path, uri: str, allow_code: bool) -> Any:
    """The model's configuration; it is foreign, so any error of the library is the model's."""
    from transformers import AutoConfig

    if not (directory / "config.json").is_file():
        raise ModelError(
            f"{uri}: there is no config.json, so this is no model in the layout of transformers; "
            "point spec.model.uri at the directory that contains it"
        )
    try:
        config = AutoConfig.from_pretrained(
            directory, trust_remote_code=allow_code, local_files_only=True
        )
    except Exception as exc:
        if "trust_remote_code" in str(exc):
            raise ModelError(
                f"{uri} needs Python code of its own (auto_map in config.json), which this "
                "platform does not run; use a model whose architecture is part of transformers, "
                "or ask the platform team for a profile with spec.limits.remoteCode: true"
            ) from exc
        raise ModelError(
            f"{uri}: config.json cannot be used: {_first_line(exc)}; the model may be damaged or "
            "newer than this trainer"
        ) from exc
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        raise ModelError(
            f"{uri} is quantised (quantization_config in config.json), so its weights cannot be "
            "trained; use the unquantised model"
        )
    return config


def _skeleton(config: Any, uri: str, allow_code: bool) -> Any:
    """The model on the meta device; raises ModelError where it does not continue text."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    own = allow_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not own and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{uri} is of type {config.model_type}, which is no causal language model; only "
            "models that continue text can be tuned"
        )
    declared = config.architectures or []
    names = ("CausalLM", "LMHead", "Conditional")
    if not own and declared and not any(name in a for a in declared for name in names):
        raise ModelError(
            f"{uri} was saved as {declared[0]}, which is no causal language model; only models "
            "that continue text can be tuned"
        )
    if getattr(config, "is_decoder", True) is False and not config.is_encoder_decoder:
        raise ModelError(
            f"{uri} is a {config.model_type} without is_decoder in config.json, so it sees what it "
            "should predict; only models that continue text can be tuned"
        )
    try:
        with torch.device("meta"):  # shapes without memory
            return AutoModelForCausalLM.from_config(config, trust_remote_code=allow_code)
    except Exception as exc:
        raise ModelError(
            f"{uri}: config.json describes no model that can be built: {_first_line(exc)}"
        ) from exc


def shape_of(model: Any, text: Any) -> ModelShape:
    """Sizes of a model for the estimate of its memory; `text` is its text configuration."""
    sizes = [p.numel() for p in model.parameters()]
    linears = _linears(model)
    hidden = int(text.hidden_size)
    # Recurrent models have no heads; as if there were one of the whole width.
    heads = int(getattr(text, "num_attention_heads", None) or 1)
    inner = getattr(text, "intermediate_size", None)
    if experts := getattr(text, "num_experts_per_tok", None):
        inner = int(experts) * int(getattr(text, "moe_intermediate_size", None) or inner or 0)
    return ModelShape(
        parameters=sum(sizes),
        largest_module=max(
            sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()
        ),
        small_parameters=sum(size for size in sizes if size <= PERSISTENT),
        hidden_size=hidden,
        intermediate_size=int(inner or max([4 * hidden, *(x.out_features for x in linears)])),
        layers=int(text.num_hidden_layers),
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_size=int(getattr(text, "head_dim", None) or hidden // heads),
        vocabulary_size=int(text.vocab_size),
        linears=linears,
    )


def _linears(model: Any) -> list[LinearShape]:
    """The layers that can get an adapter, by name and size, the output head left out."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head, found = model.get_output_embeddings(), Counter[tuple[str, int, int]]()
    for name, module in model.named_modules():
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            size = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):  # GPT-2's, stored the other way round
            size = (module.weight.shape[0], module.weight.shape[1])
        else:
            continue
        found[(name.rsplit(".", 1)[-1], *size)] += 1
    return [
        LinearShape(name=name, in_features=rows, out_features=columns, count=count)
        for (name, rows, columns), count in sorted(found.items())
    ]


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]

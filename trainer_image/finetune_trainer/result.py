"""What training leaves for export: the adapter or the model, checked before it gets its name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors import safe_open
from torch import Tensor

from finetune_api.run_config import WORK_RESULT, RunConfig
from finetune_trainer.engine import Engine
from finetune_trainer.errors import DivergedError, InternalError, PeerLostError
from finetune_trainer.ranks import Gang

MAX_SHARD = "5GB"
"""Size of one file of a large model."""


def save(engine: Engine, run: RunConfig, gang: Gang) -> None:
    """Write `result` in the work directory; to be called by all processes.

    Raises:
        DivergedError: a weight is not finite.
        InternalError: a tensor is missing or empty.
        PeerLostError: on the other processes, where rank 0 could not write.
    """
    weights = gathered(engine, gang)
    problem: str | None = None
    failure: Exception | None = None
    if gang.is_lead:
        try:
            _write(engine.model, weights, run)
        except Exception as exc:  # the others wait below; they must hear of it first
            problem, failure = str(exc), exc
    if gang.agree(problem) is None:
        return
    raise failure or PeerLostError("rank 0 could not save the result")


def gathered(engine: Engine, gang: Gang) -> dict[str, Tensor]:
    """The weights that were trained, whole and on CPU, on rank 0; empty on the others.

    Under ZeRO-3 every process holds a part of each, and gathering needs all processes. One tensor
    at a time: there need not be room on a GPU for more.
    """
    adapter_only = any(not p.requires_grad for p in engine.model.parameters())
    found: dict[str, Tensor] = {}
    for name, parameter in engine.model.named_parameters():
        if adapter_only and not parameter.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if gang.is_lead:
                found[name] = parameter.detach().to("cpu", copy=True)
    if gang.is_lead and not adapter_only:
        found |= {
            name: value.detach().to("cpu", copy=True)
            for name, value in _persistent_buffers(engine.model).items()
        }
    return found


def _persistent_buffers(model: Any) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {k: v for k, v in model.state_dict().items() if k not in parameters}


def _write(model: Any, weights: dict[str, Tensor], run: RunConfig) -> None:
    """Into a directory of another name first: a `result` that exists is complete."""
    final = Path(run.work_dir) / WORK_RESULT
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if run.lora:
        # Embeddings are not trained; peft would ask the Hub whether they were.
        model.save_pretrained(partial, state_dict=weights, save_embedding_layers=False)
    else:
        model.save_pretrained(partial, state_dict=weights, max_shard_size=MAX_SHARD)
    check(partial, sum(tensor.numel() for tensor in weights.values()))
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)


def check(directory: Path, elements: int) -> None:
    """Read everything back: as many numbers as were trained, no tensor empty, all finite.

    Raises:
        DivergedError: a weight is not finite.
        InternalError: a tensor is missing or empty (an adapter saved from a shard is).
    """
    found = 0
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no dictionary)
                tensor = file.get_tensor(name)
                found += tensor.numel()
                if tensor.numel() == 0:
                    raise InternalError(f"{name} was saved empty")
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise DivergedError(
                        f"{name} has values that are not finite after the last step; lower "
                        "spec.training.learningRate"
                    )
    if found != elements or not found:
        raise InternalError(f"{found} numbers were saved, {elements} were trained")

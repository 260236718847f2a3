"""The loss: cross entropy summed over the learned tokens, without logits for the others."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from finetune_trainer.batches import IGNORED

CHUNK = 2048
"""Positions whose logits are turned into 32 bit at a time."""


class SummedLoss(nn.Module):
    """A causal language model whose forward pass gives the summed loss: what DeepSpeed wraps."""

    def __init__(self, model: nn.Module, base: nn.Module) -> None:
        """Take a model, and the model of transformers inside it (the same without an adapter)."""
        super().__init__()
        self.model = model
        # The output layer over the whole vocabulary is the largest tensor of all; most models of
        # transformers can leave out positions before it.
        self._keeps = "logits_to_keep" in inspect.signature(type(base).forward).parameters

    def logits(self, input_ids: Tensor, position_ids: Tensor, keep: Tensor) -> Tensor:
        """[rows, kept, vocabulary].

        No attention mask is given: transformers then builds a causal one from the position ids
        that keeps packed examples apart.
        """
        options = {"logits_to_keep": keep} if self._keeps else {}
        found = self.model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, **options
        ).logits
        return found if self._keeps else found[:, keep]

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, keep: Tensor, targets: Tensor
    ) -> Tensor:
        """The summed loss of a micro-batch in nats, a 32-bit scalar; shapes as in `MicroBatch`."""
        logits = self.logits(input_ids, position_ids, keep).flatten(0, 1)
        targets = targets.flatten()
        if logits.dtype == torch.float32:
            return _summed(logits, targets)
        parts = [
            checkpoint(_summed, part, wanted, use_reentrant=False)
            for part, wanted in zip(logits.split(CHUNK), targets.split(CHUNK), strict=True)
        ]
        return torch.stack(parts).sum()


def tensors(batch: Any, device: torch.device) -> dict[str, Tensor]:
    """The arrays of a batch as arguments of a forward pass, by name; what is None is left out."""
    arrays = ((field.name, getattr(batch, field.name)) for field in fields(batch))
    return {
        name: torch.from_numpy(array).to(device, non_blocking=True)
        for name, array in arrays
        if array is not None
    }


def _summed(logits: Tensor, targets: Tensor) -> Tensor:
    """In 32 bit: a sum of exponentials over 100,000 words is worth nothing in bfloat16."""
    return cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")

"""The loss: cross entropy of the learned tokens, without logits for the others."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from finetune_trainer.batches import IGNORED, MicroBatch
from finetune_trainer.fast import attention
from finetune_trainer.fast.output import LossLayer, hands_on

CHUNK = 2048
"""Positions whose logits are turned into 32 bit at a time, where they cannot be left out."""


class SummedLoss(nn.Module):
    """A causal language model whose forward pass gives the summed loss: what DeepSpeed wraps."""

    def __init__(self, model: nn.Module, base: Any) -> None:
        """Take a model, and the model of transformers inside it (the same without an adapter)."""
        super().__init__()
        self.model = model
        # The output layer over the whole vocabulary is the largest tensor of all; most models of
        # transformers can leave out positions before it.
        self._keeps = "logits_to_keep" in inspect.signature(type(base).forward).parameters
        self._output: LossLayer | None = None
        self._segmented = False

    def fuse(self, base: Any, device: torch.device) -> None:
        """Compute the loss inside the output layer from now on, if the model allows it."""
        if hands_on(base, device):
            self._output = LossLayer(base.get_output_embeddings())

    def by_segments(self) -> None:
        """From now on the model's attention wants to know where the examples are."""
        self._segmented = True

    def logits(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        keep: Tensor,
        segments: attention.Segments | None = None,
    ) -> Tensor:
        """[rows, kept, vocabulary].

        No attention mask is given: transformers then builds a causal one from the position ids
        that keeps packed examples apart.
        """
        options: dict[str, Any] = {"logits_to_keep": keep} if self._keeps else {}
        if self._segmented and segments is not None:
            options[attention.KEYWORD] = segments
        found = self.model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, **options
        ).logits
        return found if self._keeps or self._output_is_busy() else found[:, keep]

    def _output_is_busy(self) -> bool:
        return self._output is not None and self._output.busy

    def token_losses(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        keep: Tensor,
        targets: Tensor,
        learned: Tensor | None = None,
        segments: attention.Segments | None = None,
    ) -> Tensor:
        """What every learned token costs in nats, [learned tokens], 32 bit, row by row.

        Shapes as in `MicroBatch`; `learned` [learned tokens] are the places of the targets that are
        not `IGNORED` in `targets.flatten()`, given so that a GPU need not be asked for them.
        """
        targets = targets.flatten()
        if learned is None:
            learned = targets.ne(IGNORED).nonzero().squeeze(1)
        wanted = targets.index_select(0, learned)
        if self._output is not None:
            if self._keeps:
                places = learned
            else:
                rows, kept = len(input_ids), len(keep)
                row, place = learned.div(kept, rounding_mode="floor"), learned.remainder(kept)
                places = row * (input_ids.numel() // rows) + keep.index_select(0, place)
            with self._output.given(places, wanted):
                return self.logits(input_ids, position_ids, keep, segments)
        logits = self.logits(input_ids, position_ids, keep, segments).flatten(0, 1)
        logits = logits.index_select(0, learned)
        if logits.dtype == torch.float32:
            return _losses(logits, wanted)
        parts = [
            checkpoint(_losses, part, some, use_reentrant=False)
            for part, some in zip(logits.split(CHUNK), wanted.split(CHUNK), strict=True)
        ]
        return torch.cat(parts)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        keep: Tensor,
        targets: Tensor,
        learned: Tensor | None = None,
        segments: attention.Segments | None = None,
    ) -> Tensor:
        """The summed loss of a micro-batch in nats, a 32-bit scalar; shapes as `token_losses`."""
        return self.token_losses(input_ids, position_ids, keep, targets, learned, segments).sum()


def tensors(batch: Any, device: torch.device) -> dict[str, Any]:
    """The arrays of a batch as arguments of a forward pass, by name; what is None is left out.

    A `MicroBatch` comes with what can be told of it on the host: see `SummedLoss.token_losses`.
    """
    arrays = {field.name: getattr(batch, field.name) for field in fields(batch)}
    if isinstance(batch, MicroBatch):
        arrays["learned"] = np.flatnonzero(batch.targets != IGNORED)
    found: dict[str, Any] = {
        name: _to(array, device) for name, array in arrays.items() if array is not None
    }
    if isinstance(batch, MicroBatch) and device.type == "cpu":
        found["segments"] = attention.segments(batch.position_ids)
    return found


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)  # from pinned memory it does not wait


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """In 32 bit: a sum of exponentials over 100,000 words is worth nothing in bfloat16."""
    return cross_entropy(logits.float(), targets, reduction="none")

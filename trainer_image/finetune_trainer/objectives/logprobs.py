"""Log-probabilities of given answers under a causal language model, and under its base."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from finetune_trainer.batches import IGNORED

CHUNK = 2048
"""Positions whose logits are turned into 32 bit at a time."""


class LogProbs(nn.Module):
    """A causal language model that says how likely given tokens are."""

    def __init__(self, model: nn.Module, base: nn.Module) -> None:
        """Take a model, and the model of transformers inside it (the same without an adapter)."""
        super().__init__()
        self.model = model
        self._keeps = "logits_to_keep" in inspect.signature(type(base).forward).parameters

    def tokens(self, input_ids: Tensor, keep: Tensor, targets: Tensor) -> Tensor:
        """Log-probability of every target in nats, float32 [rows, kept]; 0 where there is none.

        Rows end in padding, which causal attention keeps away from all that counts, so no
        attention mask is needed, and the fastest attention can be used.

        Args:
            input_ids: [rows, length]
            keep: [kept], ascending: the positions of the targets.
            targets: [rows, kept], -100 where there is none.
        """
        options = {"logits_to_keep": keep} if self._keeps else {}
        logits = self.model(input_ids=input_ids, use_cache=False, **options).logits
        logits = (logits if self._keeps else logits[:, keep]).flatten(0, 1)
        flat = targets.flatten()
        if logits.dtype == torch.float32 or not torch.is_grad_enabled():
            parts = [_log_probs(*part) for part in _chunks(logits, flat)]
        else:
            parts = [
                checkpoint(_log_probs, *part, use_reentrant=False) for part in _chunks(logits, flat)
            ]
        return torch.cat(parts).view(targets.shape)

    @torch.no_grad()
    def reference(self, input_ids: Tensor, keep: Tensor, targets: Tensor) -> Tensor:
        """As `tokens`, by the base model: the adapter is switched off, and so is dropout."""
        with _without_adapter(self.model):
            return self.tokens(input_ids, keep, targets)


@contextmanager
def _without_adapter(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with model.disable_adapter():
            yield
    finally:
        model.train(training)


def _chunks(logits: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(logits.split(CHUNK), targets.split(CHUNK), strict=True)


def _log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """In 32 bit: a sum of exponentials over 100,000 words is worth nothing in bfloat16."""
    return -cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="none")

"""SFT and continued pre-training: the next token, wherever it is learned; one loss for both."""

# ruff: noqa: ARG002  (the arguments of `Objective`, needed or not)
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from finetune_trainer.batches import MicroBatch, Sequences, learned_tokens, micro_batch
from finetune_trainer.losses import SummedLoss
from finetune_trainer.objectives.base import Constants


class Supervised:
    """Every learned token counts the same, wherever it is."""

    rows_per_item: ClassVar[int] = 1
    packs: ClassVar[bool] = True

    def open(self, directory: Path) -> Sequences:
        """See `Objective`."""
        return Sequences.open(directory)

    def module(self, model: nn.Module, base: nn.Module) -> nn.Module:
        """See `Objective`."""
        return SummedLoss(model, base)

    def batch(
        self, data: Sequences, items: np.ndarray, learned: bool = True, flat: bool = False
    ) -> MicroBatch:
        """See `Objective`."""
        return micro_batch(data, items, learned, flat)

    def divisor(self, data: Sequences, items: np.ndarray) -> float:
        """The learned tokens."""
        return max(1, learned_tokens(data, items))

    def constants(
        self,
        forward: Any,
        data: Sequences,
        items: np.ndarray,
        parts: Sequence[np.ndarray],
        gang: Any,
    ) -> Constants:
        """None."""
        return {}

    def taken(self, module: nn.Module) -> Tensor:
        """Nothing beside the loss."""
        return torch.zeros(0, dtype=torch.float64)

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """None."""
        return {}

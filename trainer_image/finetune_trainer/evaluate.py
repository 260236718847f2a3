"""The loss on the held-out sequences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from finetune_trainer.batches import IGNORED, Sequences, evaluation_batches
from finetune_trainer.engine import Engine
from finetune_trainer.errors import DivergedError
from finetune_trainer.losses import tensors
from finetune_trainer.ranks import Gang


@torch.no_grad()
def evaluate(
    engine: Engine,
    data: Sequences,
    gang: Gang,
    micro: int,
    alive: Callable[[], None] = lambda: None,
) -> float:
    """The mean loss in nats over all learned tokens of `data`, the same on every process.

    Args:
        alive: Called after every batch, for the watchdog.

    Raises:
        DivergedError: it is not a finite number.
    """
    engine.deepspeed.eval()
    summed = torch.zeros(2, dtype=torch.float64, device=gang.device)
    for batch in evaluation_batches(data, gang.rank, gang.world_size, micro, engine.flat):
        summed[0] += engine.deepspeed(**tensors(batch, gang.device)).double()
        summed[1] += int(np.count_nonzero(batch.targets != IGNORED))
        alive()
    engine.deepspeed.train()
    loss, tokens = gang.sum(summed).tolist()
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss on the held-out examples is {loss}; the weights are no longer usable: lower "
            "spec.training.learningRate"
        )
    return float(loss / max(1.0, tokens))

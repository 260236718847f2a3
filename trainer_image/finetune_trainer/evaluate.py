"""The loss on the held-out sequences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from finetune_trainer.batches import evaluation_parts
from finetune_trainer.engine import Engine
from finetune_trainer.errors import DivergedError
from finetune_trainer.losses import tensors
from finetune_trainer.ranks import Gang


@torch.no_grad()
def measure(
    engine: Engine,
    data: Any,
    gang: Gang,
    micro: int,
    alive: Callable[[], None] = lambda: None,
) -> tuple[float, dict[str, float]]:
    """The mean loss over `data` and more numbers of the objective, the same on every process.

    The loss is that of the objective: in nats per learned token, or per preference.

    Args:
        alive: Called after every batch, for the watchdog.

    Raises:
        DivergedError: it is not a finite number.
    """
    objective, items = engine.objective, np.arange(len(data))
    parts = evaluation_parts(len(data), gang.rank, gang.world_size, micro)
    engine.deepspeed.eval()
    constants = objective.constants(engine.deepspeed, data, items, parts, gang)
    objective.taken(engine.deepspeed.module)  # nothing of before
    summed = torch.zeros(1, dtype=torch.float64, device=gang.device)
    for part in parts:
        filler = part.size == 0
        chosen = np.zeros(1, dtype=np.int64) if filler else part
        batch = objective.batch(data, chosen, learned=not filler, flat=engine.flat)
        summed += engine.deepspeed(**tensors(batch, gang.device), **constants).double()
        alive()
    engine.deepspeed.train()
    taken = objective.taken(engine.deepspeed.module).to(gang.device)
    loss, *sums = gang.sum(torch.cat([summed, taken])).tolist()
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss on the held-out examples is {loss}; the weights are no longer usable: lower "
            "spec.training.learningRate"
        )
    return loss / objective.divisor(data, items), objective.metrics(sums)

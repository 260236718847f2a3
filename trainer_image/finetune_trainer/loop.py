"""The training loop: from the first optimizer step to the last."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from finetune_api.run_config import RunConfig
from finetune_trainer.batches import share, step_rows
from finetune_trainer.engine import Engine
from finetune_trainer.errors import DivergedError
from finetune_trainer.losses import tensors
from finetune_trainer.ranks import Gang
from finetune_trainer.report import duration
from finetune_trainer.schedule import learning_rate

MAX_LINES = 1000
"""A run logs every step, or every n-th so that there are at most about this many lines ..."""
MAX_SILENCE = 60.0
"""... but is never silent for more seconds than this (and a step)."""


@dataclass(frozen=True)
class Step:
    """What is known after an optimizer step; the same on every process."""

    step: int
    """Counted from 1."""
    total_steps: int
    epoch: float
    """Passes over the data so far."""
    loss: float
    """Mean over the global batch: over its learned tokens in nats, or over its preferences."""
    learning_rate: float
    grad_norm: float
    """Global norm before clipping."""
    seconds: float
    tokens_per_second: float
    """Over all processes; padding not counted."""
    metrics: dict[str, float] = field(default_factory=dict)
    """More numbers of the objective, by their names in the log."""


def train_steps(
    engine: Engine,
    data: Any,
    run: RunConfig,
    gang: Gang,
    total_steps: int,
    tokens_per_sequence: float,
    after_step: Callable[[Step], None],
) -> None:
    """Do all optimizer steps, and call `after_step` after each.

    Raises:
        DivergedError: on every process alike, if the loss or the gradient is not finite.
    """
    training = run.training
    for number in range(total_steps):
        began = time.perf_counter()
        rate = learning_rate(
            number,
            total_steps,
            training.learning_rate,
            training.schedule,
            training.warmup_fraction,
        )
        engine.set_learning_rate(rate)
        rows = step_rows(number, training.global_batch_size, len(data), training.seed)
        loss, metrics = _step(engine, data, rows, run, gang)
        grad_norm = float(engine.deepspeed.get_global_grad_norm())
        _check_finite(number + 1, total_steps, loss, grad_norm, rate)
        seconds = time.perf_counter() - began
        speed = training.global_batch_size * tokens_per_sequence / seconds
        epoch = (number + 1) * training.global_batch_size / len(data)
        after_step(
            Step(number + 1, total_steps, epoch, loss, rate, grad_norm, seconds, speed, metrics)
        )


def _step(
    engine: Engine, data: Any, rows: Any, run: RunConfig, gang: Gang
) -> tuple[float, dict[str, float]]:
    """One optimizer step; returns the mean loss over the global batch, and more numbers.

    Every token (or preference) counts the same, wherever it is: a mean of the micro-batches' means
    would give those of short answers more weight. All processes know the whole batch, so they know
    the number of its tokens beforehand. DeepSpeed averages gradients over processes, hence
    `world_size`, and is told not to divide by the accumulation steps.
    """
    objective = engine.objective
    parts = share(rows, gang.rank, gang.world_size, run.training.micro_batch_size)
    constants = objective.constants(engine.deepspeed, data, rows, parts, gang)
    weight = gang.world_size / objective.divisor(data, rows)
    summed = torch.zeros(1, dtype=torch.float64, device=gang.device)
    for part in parts:
        batch = objective.batch(data, part, flat=engine.flat)
        loss = engine.deepspeed(**tensors(batch, gang.device), **constants) * weight
        engine.deepspeed.backward(loss, scale_wrt_gas=False)
        engine.deepspeed.step()  # changes weights after the last micro-batch only
        summed += loss.detach().double()
    taken = objective.taken(engine.deepspeed.module).to(gang.device)
    total, *sums = gang.sum(torch.cat([summed, taken])).tolist()
    return total / gang.world_size, objective.metrics(sums)


def _check_finite(step: int, total_steps: int, loss: float, grad_norm: float, rate: float) -> None:
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient is {grad_norm}"
    raise DivergedError(
        f"training diverged at step {step} of {total_steps}: {what} at learning rate {rate:.3g}; "
        "lower spec.training.learningRate, raise spec.training.warmupFraction, or look for broken "
        "examples in the data"
    )


class LossLog:
    """`losses.jsonl` and the lines that a person reads; on rank 0 only."""

    def __init__(
        self,
        path: Path,
        total_steps: int,
        say: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the file anew."""
        self._monotonic, self._last = monotonic, monotonic()
        self._path = path
        self._path.write_text("")
        self._every = -(-total_steps // MAX_LINES)
        self._say = say

    def step(self, step: Step, eta_seconds: float) -> None:
        """Log a step, if it is its turn; the first and the last always are."""
        now = self._monotonic()
        turn = step.step % self._every == 0 or step.step in (1, step.total_steps)
        if not turn and now - self._last < MAX_SILENCE:
            return
        self._last = now
        self._write(
            {
                "step": step.step,
                "loss": step.loss,
                "learningRate": step.learning_rate,
                "gradNorm": step.grad_norm,
                "tokensPerSecond": step.tokens_per_second,
                **step.metrics,
            }
        )
        self._say(
            f"step {step.step}/{step.total_steps}  loss {step.loss:.3f}  "
            f"lr {step.learning_rate:.2g}  grad {step.grad_norm:.2g}  "
            f"{step.tokens_per_second:.0f} tok/s  eta {duration(eta_seconds)}"
        )

    def evaluation(self, step: int, loss: float, metrics: dict[str, float] | None = None) -> None:
        """Log the loss on the held-out examples after `step` steps, and more numbers of it."""
        more = {f"eval/{name}": value for name, value in (metrics or {}).items()}
        self._write({"step": step, "evalLoss": loss, **more})
        self._say(f"step {step}  held-out loss {loss:.3f}")

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

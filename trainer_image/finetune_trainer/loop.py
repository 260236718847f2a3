"""The training loop: from the first optimizer step to the last."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from finetune_api.run_config import RunConfig
from finetune_trainer.batches import share, step_rows
from finetune_trainer.engine import Engine
from finetune_trainer.losses import tensors
from finetune_trainer.perplexity import sentence
from finetune_trainer.ranks import Gang
from finetune_trainer.report import duration
from finetune_trainer.schedule import learning_rate
from finetune_trainer.seeds import seed_step

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


class Course(Protocol):
    """What happens between steps; see `course`. Its answers must be alike on all processes."""

    def wishes(self) -> tuple[bool, bool]:
        """Of this process: whether it was asked to stop, whether a checkpoint is due by the clock.

        Told to all with the step's loss.
        """

    def after_step(self, step: Step, stop: bool, save: bool) -> None:
        """A step's numbers are known; `stop`, `save`: some process wished it."""

    def pauses_at(self, done: int) -> bool:
        """Whether there is something to do after so many steps."""

    def pause(self, done: int) -> bool:
        """Do it; False: the run ends here."""


@dataclass(frozen=True)
class Task:
    """What all steps have in common."""

    engine: Engine
    data: Any
    """What the objective has opened; its length is what a batch and an epoch count."""
    run: RunConfig
    gang: Gang
    total_steps: int
    tokens_per_sequence: float
    """Mean; padding not counted."""

    def rate(self, number: int) -> float:
        """Learning rate of a step, counted from 0."""
        training = self.run.training
        return learning_rate(
            number,
            self.total_steps,
            training.learning_rate,
            training.schedule,
            training.warmup_fraction,
        )


@dataclass(frozen=True)
class _Launched:
    """A step whose numbers may still be on their way from the GPU."""

    number: int
    """Counted from 0."""
    numbers: Tensor
    """On the host: summed loss of all processes, how many wish to stop, and to save, the norm of
    the gradient, and the objective's sums."""
    arrived: Any
    """A CUDA event; None: they are there."""


def train_steps(task: Task, first: int, course: Course) -> None:
    """Do the optimizer steps from `first` (counted from 0) on, with what `course` wants between.

    On a GPU a step's loss is read when the next step has been launched: the GPU never waits for
    the host. Before a pause, and at the end, everything that was launched is read.

    What `course` raises (`DivergedError`, `StoppedError`) it raises on every process alike.
    """
    lag = 1 if task.gang.device.type == "cuda" else 0
    launched: deque[_Launched] = deque()
    began = time.perf_counter()

    def read_down_to(left: int) -> None:
        nonlocal began
        while len(launched) > left:
            step, stop, save = _read(task, launched.popleft(), began)
            began = time.perf_counter()
            course.after_step(step, stop, save)

    for number in range(first, task.total_steps):
        launched.append(_launch(task, number, course.wishes()))
        read_down_to(lag)
        done = number + 1
        if done < task.total_steps and course.pauses_at(done):
            read_down_to(0)
            if not course.pause(done):
                return
            began = time.perf_counter()
    read_down_to(0)


def _launch(task: Task, number: int, wishes: tuple[bool, bool]) -> _Launched:
    """Forward, backward and update of one step."""
    training, gang = task.run.training, task.gang
    task.engine.set_learning_rate(task.rate(number))
    seed_step(training.seed, number, gang.rank)
    rows = step_rows(number, training.global_batch_size, len(task.data), training.seed)
    summed, taken = _step(task, rows)
    told = torch.tensor(wishes, dtype=torch.float64).to(gang.device, non_blocking=True)
    numbers = gang.sum(torch.cat((summed, told, taken)))
    norm = task.engine.deepspeed.get_global_grad_norm()
    norm = torch.as_tensor(norm, dtype=torch.float64, device=gang.device)
    numbers = torch.cat((numbers[:3], norm.reshape(1), numbers[3:]))
    if gang.device.type != "cuda":
        return _Launched(number, numbers, None)
    host = torch.empty(len(numbers), dtype=torch.float64, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return _Launched(number, host, arrived)


def _step(task: Task, rows: Any) -> tuple[Tensor, Tensor]:
    """One optimizer step; returns this process's part of `world_size` x the mean loss, [1], and
    of the objective's sums.

    Every token (or preference) counts the same, wherever it is: a mean of the micro-batches' means
    would give those of short answers more weight. All processes know the whole batch, so they know
    the number of its tokens beforehand. DeepSpeed averages gradients over processes, hence
    `world_size`, and is told not to divide by the accumulation steps.
    """
    engine, gang, objective = task.engine, task.gang, task.engine.objective
    parts = share(rows, gang.rank, gang.world_size, task.run.training.micro_batch_size)
    constants = objective.constants(engine.deepspeed, task.data, rows, parts, gang)
    weight = gang.world_size / objective.divisor(task.data, rows)
    summed = torch.zeros(1, dtype=torch.float64, device=gang.device)
    for part in parts:
        batch = objective.batch(task.data, part, flat=engine.flat)
        loss = engine.deepspeed(**tensors(batch, gang.device), **constants) * weight
        engine.deepspeed.backward(loss, scale_wrt_gas=False)
        engine.deepspeed.step()  # changes weights after the last micro-batch only
        summed += loss.detach().double()
    return summed, objective.taken(engine.deepspeed.module).to(gang.device)


def _read(task: Task, launched: _Launched, began: float) -> tuple[Step, bool, bool]:
    """A step's numbers, and whether some process wished to stop or to save by then.

    Args:
        began: When the step began; on a GPU, when the one before it was read.
    """
    if launched.arrived is not None:
        launched.arrived.synchronize()
    summed, stop, save, grad_norm, *sums = launched.numbers.tolist()
    loss, done = summed / task.gang.world_size, launched.number + 1
    rate = task.rate(launched.number)
    seconds = time.perf_counter() - began
    batch = task.run.training.global_batch_size
    speed = batch * task.tokens_per_sequence / seconds
    epoch = done * batch / len(task.data)
    metrics = task.engine.objective.metrics(sums)
    step = Step(done, task.total_steps, epoch, loss, rate, grad_norm, seconds, speed, metrics)
    return step, stop > 0, save > 0


class LossLog:
    """`losses.jsonl` and the lines that a person reads; on rank 0 only."""

    def __init__(
        self,
        path: Path,
        total_steps: int,
        say: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
        resumed_from: int = 0,
        also: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Start the file anew, or after the step of the checkpoint that the run goes on from.

        Args:
            also: Gets every line of the file that is new.
        """
        self._also = also
        self._monotonic, self._last = monotonic, monotonic()
        self._path = path
        self._path.write_text("".join(_lines_until(path, resumed_from)))
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

    def evaluation(
        self, step: int, loss: float, metrics: dict[str, float] | None = None, of_text: bool = True
    ) -> None:
        """Log the loss on the held-out examples after `step` steps, and more numbers of it."""
        more = {f"eval/{name}": value for name, value in (metrics or {}).items()}
        self._write({"step": step, "evalLoss": loss, **more})
        self._say(f"step {step}  {sentence('held-out loss', loss, of_text=of_text)}")

    def retention(self, step: int, loss: float, before: float | None) -> None:
        """Log the loss on the retention set after `step` steps."""
        self._write({"step": step, "retentionLoss": loss})
        self._say(f"step {step}  {sentence('retention loss', loss, before)}")

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._also:
            self._also(line)


def _lines_until(path: Path, step: int) -> Iterator[str]:
    """What an earlier attempt has logged of the steps that are not done again."""
    if step == 0 or not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                yield line + "\n"
        except (ValueError, KeyError, TypeError):
            continue  # the process died while it wrote this line

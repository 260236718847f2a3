"""Follows a run on one process: for the log, the reporter, the watchdog and a failure's step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from finetune_api.run_config import PREFERENCES
from finetune_trainer.report import Estimate, Reporter
from finetune_trainer.tracking import State, Tracking
from finetune_trainer.watchdog import Watchdog

if TYPE_CHECKING:
    from finetune_api.run_config import RunConfig
    from finetune_trainer.engine import Engine
    from finetune_trainer.loop import LossLog, Step
    from finetune_trainer.ranks import Gang

Doing = Literal["Loading", "Training", "Evaluating", "Checkpointing", "Saving"]


@dataclass
class Watch:
    """What is known of this process's run so far."""

    reporter: Reporter
    watchdog: Watchdog | None = None
    estimate: Estimate = field(default_factory=Estimate)
    log: LossLog | None = None
    """What rank 0 says; what the others keep to themselves."""
    tracking: Tracking | None = None
    """Of rank 0, where the job asks for it."""
    step: int | None = None
    """Optimizer steps done, those of earlier attempts included."""

    def close(self, state: State) -> None:
        """The attempt is over."""
        if self.tracking:
            self.tracking.close(state)

    def doing(self, activity: Doing, size: int = 0) -> None:
        """What comes next on this process: every change passes through here.

        Args:
            size: Bytes that will be read or written.
        """
        self.reporter.update(activity=activity)
        if self.watchdog:
            self.watchdog.begin(activity, size)

    def alive(self) -> None:
        """It gets on: another batch."""
        if self.watchdog:
            self.watchdog.alive()

    def stalled(self, seconds: float | None) -> None:
        """It has not got on for so long, and is only reported; None: it gets on again."""
        self.reporter.update(stalled_seconds=seconds)

    def after_step(self, step: Step) -> None:
        """Take note of an optimizer step."""
        self.step = step.step
        self.estimate.add(step.seconds)
        if self.watchdog:
            self.watchdog.step_ended(step.step, step.seconds)
        eta = self.estimate.remaining(step.total_steps - step.step)
        self.reporter.update(
            step=step.step,
            epoch=step.epoch,
            eta_seconds=eta,
            loss=step.loss,
            learning_rate=step.learning_rate,
            grad_norm=step.grad_norm,
            tokens_per_second=step.tokens_per_second,
        )
        if self.log:
            self.log.step(step, eta)

    def has_saved(self, seconds: float) -> None:
        """The longest checkpoint so far took so long: the operator lets workers that it stops save.

        Whoever is asked to stop may just evaluate; then come the step under way, and the next one,
        with which all are told.
        """
        self.reporter.update(save_seconds=self.estimate.before_a_stop() + seconds)

    def checkpointed(self, step: int, seconds: float, stalled: float) -> None:
        """The checkpoint of `step` is complete and took so long; training has stood still for all
        of them for `stalled` seconds."""
        self.reporter.update(
            checkpoint_step=step, checkpoint_seconds=seconds, checkpoint_stalled_seconds=stalled
        )

    def after_evaluation(
        self, loss: float, seconds: float, metrics: dict[str, float], of_text: bool
    ) -> None:
        """Take note of the loss on the held-out examples."""
        self.estimate.evaluation_seconds = seconds
        self.reporter.update(eval_loss=loss)
        if self.log:
            self.log.evaluation(self.step or 0, loss, metrics, of_text)

    def after_retention(self, loss: float, before: float | None) -> None:
        """Take note of the loss on the retention set, and of what it was before training."""
        if self.log:
            self.log.retention(self.step or 0, loss, before)


@dataclass(frozen=True)
class Measures:
    """What is measured beside training; every call is one of all processes."""

    engine: Engine
    run: RunConfig
    gang: Gang
    watch: Watch
    held_out: Any | None
    """As the objective has opened it."""
    general: Any | None
    """The retention set: `batches.Sequences`."""

    def held_out_loss(self) -> float | None:
        """Of the objective; None where nothing is held out."""
        from finetune_trainer.evaluate import measure

        if self.held_out is None:
            return None
        self.watch.doing("Evaluating")
        began, micro = time.monotonic(), self.run.training.micro_batch_size
        alive = self.watch.alive
        loss, metrics = measure(self.engine, self.held_out, self.gang, micro, alive)
        of_text = self.run.objective not in PREFERENCES
        self.watch.after_evaluation(loss, time.monotonic() - began, metrics, of_text)
        return loss

    def retention_loss(self, before: float | None = None) -> float | None:
        """Plain cross entropy; None where there is no retention set."""
        from finetune_trainer.plain import text_loss

        if self.general is None:
            return None
        self.watch.doing("Evaluating")
        micro, alive = self.run.training.micro_batch_size, self.watch.alive
        loss = text_loss(self.engine, self.general, self.gang, micro, alive)
        self.watch.after_retention(loss, before)
        return loss

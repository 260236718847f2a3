"""What a run does between its steps: checkpoints, evaluations, and when it ends early.

Every decision is made of what all processes know alike: the step, the losses, and the wishes that
were told with them (see `loop.Course`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from finetune_api.outcome import TrainFacts
from finetune_api.run_config import RunConfig
from finetune_trainer import logs
from finetune_trainer.checkpoint.history import History
from finetune_trainer.checkpoint.manifest import RunState
from finetune_trainer.checkpoint.saving import Checkpoints
from finetune_trainer.errors import DivergedError, InternalError, StoppedError
from finetune_trainer.health import LossWatch
from finetune_trainer.loop import Step, Task
from finetune_trainer.ranks import Gang
from finetune_trainer.stopping import StopRequest
from finetune_trainer.watch import Doing


class Watcher(Protocol):
    """Who is told how far the run is."""

    def doing(self, activity: Doing) -> None:
        """What comes next on this process."""

    def after_step(self, step: Step) -> None:
        """A step was done."""

    def has_saved(self, seconds: float) -> None:
        """The longest checkpoint so far took so long."""

    def checkpointed(self, step: int, seconds: float, stalled: float) -> None:
        """The checkpoint of a step is complete; `stalled`: what all of them have cost training."""


class Course:
    """One run's, on one process."""

    def __init__(
        self,
        run: RunConfig,
        gang: Gang,
        checkpoints: Checkpoints,
        stop: StopRequest,
        state: RunState,
        watch: Watcher,
        evaluate: Callable[[], float | None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Go on from `state`.

        Args:
            evaluate: The held-out loss; None where nothing is held out. By all processes.
        """
        self.state = state
        self.evaluated_at: int | None = None
        """Step of the last evaluation ..."""
        self.last_evaluation: float | None = None
        """... and what it gave."""
        self.stopped_early = False
        self._run, self._gang, self._checkpoints, self._request = run, gang, checkpoints, stop
        self._watch, self._evaluate, self._monotonic = watch, evaluate, monotonic
        self._losses = LossWatch(state.losses)
        self._stop, self._due = False, False
        self._saved_at = monotonic()

    def wishes(self) -> tuple[bool, bool]:
        """Whether this process was asked to stop; on process 0: whether its clock says to save."""
        minutes = self._run.checkpoints.every_minutes
        if minutes is None or not self._gang.is_lead:
            return self._request.asked, False
        return self._request.asked, self._monotonic() - self._saved_at >= 60 * minutes

    def after_step(self, step: Step, stop: bool, save: bool) -> None:
        """Take note of a step; raises what went wrong with the last checkpoint.

        Raises:
            DivergedError: the run has; on every process alike.
        """
        broken = self._losses.see(
            step.step, step.total_steps, step.loss, step.grad_norm, step.learning_rate
        )
        if broken is not None:
            raise DivergedError(broken)
        self._stop |= stop
        self._due |= save
        self.state = self.state.model_copy(
            update={
                "loss": step.loss,
                "seconds": self.state.seconds + step.seconds,
                "losses": self._losses.state(),
            }
        )
        self._watch.after_step(step)
        self._checkpoints.check()
        if self._checkpoints.longest is not None:
            self._watch.has_saved(self._checkpoints.longest)
        if self._checkpoints.complete is not None:
            stalled = sum(self._checkpoints.stalled)
            self._watch.checkpointed(*self._checkpoints.complete, stalled)

    def pauses_at(self, done: int) -> bool:
        """Whether there is something to do after so many steps."""
        return self._stop or self._due or self._evaluates_at(done) or self._saves_at(done)

    def pause(self, done: int) -> bool:
        """Evaluate and save; False: the run has not become better for too long.

        Raises:
            StoppedError: some process was asked to stop; a checkpoint is complete.
        """
        if self._stop:
            self._watch.doing("Checkpointing")
            if self._checkpoints.saved != done:
                self._checkpoints.save(done, self.state)
            self._checkpoints.settle()
            raise StoppedError(f"asked to stop (SIGTERM); checkpoint of step {done} is saved")
        better = self._evaluates_at(done) and self.evaluate(done)
        # While the loss is suspect a checkpoint would be none to go back to: it comes later.
        if self._losses.healthy and (better or self._due or self._saves_at(done)):
            self._watch.doing("Checkpointing")
            self._checkpoints.save(done, self.state)
            self._due, self._saved_at = False, self._monotonic()
        patience = self._run.evaluation.early_stopping_patience
        self.stopped_early = (
            patience is not None and self.state.evaluations_without_gain >= patience
        )
        if self.stopped_early and self._gang.is_lead:
            logs.say(
                f"step {done}  ended early: no lower held-out loss than {self.state.best_loss:.4f} "
                f"(step {self.state.best_step}) in {patience} evaluations"
            )
        self._watch.doing("Training")
        return not self.stopped_early

    def evaluate(self, done: int) -> bool:
        """Evaluate now; whether the held-out loss is the lowest so far."""
        loss = self._evaluate()
        self.evaluated_at, self.last_evaluation = done, loss
        if loss is None:
            return False
        best = self.state.best_loss
        better = best is None or loss < best
        found = {"best_step": done, "best_loss": loss, "evaluations_without_gain": 0}
        missed = {"evaluations_without_gain": self.state.evaluations_without_gain + 1}
        self.state = self.state.model_copy(update=found if better else missed)
        return better

    def _evaluates_at(self, done: int) -> bool:
        every = self._run.evaluation.every_steps
        return every is not None and done % every == 0

    def _saves_at(self, done: int) -> bool:
        every = self._run.checkpoints.every_steps
        return every is not None and done % every == 0


def finish(course: Course, history: History, done: int) -> int | None:
    """After the last step: evaluate, and take the best weights where the last are not those.

    Returns:
        The step whose weights the model has now, if it is not `done`.
    """
    if course.evaluated_at != done:
        course.evaluate(done)
    history.checkpoints.settle()
    best = course.state.best_step
    if best is None or best == done:
        return None
    found = history.go_back(best)
    if found is None:
        logs.warn(f"the result is of the last step: the checkpoint of the best, {best}, is gone")
    return found


def facts_of(
    course: Course, task: Task, steps: int, best_step: int | None, resumed_from: int | None
) -> TrainFacts:
    """What is left for the status.

    Args:
        steps: Optimizer steps done, those of earlier attempts included.
        best_step: The step whose weights the result has, if they are not the last.
    """
    state = course.state
    if state.loss is None:
        raise InternalError("no step was done; this is a bug of the trainer")
    tokens = round(steps * task.run.training.global_batch_size * task.tokens_per_sequence)
    return TrainFacts(
        step=steps,
        total_steps=task.total_steps,
        loss=state.loss,
        eval_loss_before=state.eval_loss_before,
        eval_loss_after=course.last_evaluation if best_step is None else state.best_loss,
        retention_loss_before=state.retention_loss_before,
        best_step=best_step,
        stopped_early=course.stopped_early,
        resumed_from=resumed_from,
        tokens=tokens,
        tokens_per_second=tokens / state.seconds,
        duration_seconds=state.seconds,
    )

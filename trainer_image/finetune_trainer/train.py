"""Trains: `python -m finetune_trainer.train RUN_JSON`, one process per rank, under torchrun.

Reads model and data that prepare has left in the work directory, leaves `result`, and when all is
checked `train.json`. `finetune_trainer.launch` starts the processes of a pod.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from finetune_api.outcome import Outcome, PrepareFacts, TrainFacts
from finetune_api.run_config import (
    WORK_DATA,
    WORK_LOSSES,
    WORK_PREPARE_FACTS,
    WORK_RESULT,
    WORK_TRAIN_FACTS,
    RunConfig,
)
from finetune_trainer import logs
from finetune_trainer.errors import DivergedError, InternalError, TrainerError
from finetune_trainer.outcome_file import (
    ENV_TERMINATION_LOG,
    exit_code,
    failure_from,
    load_run,
    write_outcome,
)
from finetune_trainer.report import Estimate, NullReporter, Reporter, reporter_from
from finetune_trainer.stopping import StopRequest

if TYPE_CHECKING:
    from finetune_api.status import Activity
    from finetune_trainer.batches import Sequences
    from finetune_trainer.checkpoint.history import History
    from finetune_trainer.course import Course
    from finetune_trainer.engine import Engine
    from finetune_trainer.loop import LossLog, Step, Task
    from finetune_trainer.ranks import Gang

ENV_OUTCOME_DIRECTORY = "FINETUNE_OUTCOME_DIRECTORY"
"""Where every process leaves its outcome; set by launch, which reads them all."""

TRAINED_RUN = "train.run"
"""In the work directory: hash of the `run.json` that `result` and `train.json` belong to."""


@dataclass
class Watch:
    """Follows a run on one process: for the log, the reporter, the facts and a failure's step."""

    reporter: Reporter
    estimate: Estimate = field(default_factory=Estimate)
    log: LossLog | None = None
    """What rank 0 says; what the others keep to themselves."""
    step: int | None = None
    """Optimizer steps done, those of earlier attempts included."""

    def doing(self, activity: Activity) -> None:
        """What comes next on this process: every change passes through here."""
        self.reporter.update(activity=activity)

    def after_step(self, step: Step) -> None:
        """Take note of an optimizer step."""
        self.step = step.step
        self.estimate.add(step.seconds)
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

    def after_evaluation(self, loss: float, seconds: float) -> None:
        """Take note of the loss on the held-out examples."""
        self.estimate.evaluation_seconds = seconds
        self.reporter.update(eval_loss=loss)
        if self.log:
            self.log.evaluation(self.step or 0, loss)


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def train(run: RunConfig, gang: Gang, watch: Watch, stop: StopRequest | None = None) -> TrainFacts:
    """The whole stage on one process; all processes of the gang call it alike.

    Returns:
        The facts, the same on every process but for its own clock.
    """
    # torch and its friends take 10 s to import: the first report is out before that.
    from finetune_trainer.batches import Sequences
    from finetune_trainer.checkpoint.history import History
    from finetune_trainer.checkpoint.manifest import RunState
    from finetune_trainer.course import Course, facts_of
    from finetune_trainer.engine import build
    from finetune_trainer.loop import Task
    from finetune_trainer.result import save

    stop = stop or StopRequest()
    work = Path(run.work_dir)
    prepared = _prepared(work)
    data = Sequences.open(work / WORK_DATA / "train")
    held_out = Sequences.open(work / WORK_DATA / "eval") if prepared.eval_examples else None
    watch.reporter.update(total_steps=prepared.total_steps)
    if gang.is_lead:
        (work / WORK_TRAIN_FACTS).unlink(missing_ok=True)  # of an earlier run
    began = time.monotonic()
    engine = build(run, gang)
    if run.lora is None:  # writing a whole model takes about as long as reading it did
        watch.estimate.saving_seconds = time.monotonic() - began
    history = History(engine, run, gang, prepared)
    resumed = history.resume()
    first, state = (resumed.step, resumed.state) if resumed else (0, RunState())
    _open_log(watch, work, gang, prepared.total_steps, first)

    def measure() -> float | None:
        return _measure(engine, held_out, run, gang, watch)

    if resumed is None:
        state = RunState(eval_loss_before=measure())
    task = Task(engine, data, run, gang, prepared.total_steps, prepared.tokens / len(data))
    course = Course(run, gang, history.checkpoints, stop, state, watch, measure)
    stop.at_once = False
    best_step = _all_steps(task, first, course, history, watch)
    watch.reporter.update(activity="Saving", eta_seconds=watch.estimate.saving_seconds)
    save(engine, run, gang)
    resumed_from = resumed.step if resumed else None
    facts = facts_of(course, task, watch.step or first, best_step, resumed_from)
    if gang.is_lead:
        _leave(work, run, facts)
    gang.barrier()  # nobody says "done" before it is true
    engine.deepspeed.destroy()
    return facts


def _all_steps(
    task: Task, first: int, course: Course, history: History, watch: Watch
) -> int | None:
    """Train to the end; returns the step whose weights are there then, if not those of the last.

    Raises:
        DivergedError: the weights of the newest checkpoint, if there is one, are the result.
    """
    from finetune_trainer.course import finish
    from finetune_trainer.loop import train_steps
    from finetune_trainer.result import save

    watch.doing("Training")
    try:
        train_steps(task, first, course)
        return finish(course, history, watch.step or first)
    except DivergedError as exc:  # on all processes alike
        watch.doing("Saving")
        step = history.go_back()
        if step is None:
            raise
        save(task.engine, task.run, task.gang)
        raise DivergedError(f"{exc}; the checkpoint of step {step} is left as the result") from exc


def _open_log(watch: Watch, work: Path, gang: Gang, total_steps: int, first: int) -> None:
    from finetune_trainer.loop import LossLog

    if gang.is_lead:
        watch.log = LossLog(work / WORK_LOSSES, total_steps, logs.say, resumed_from=first)
    elif directory := os.environ.get(ENV_OUTCOME_DIRECTORY):
        # Only rank 0 speaks. The others keep their lines, for when one of them is killed.
        quiet = Path(directory) / f"{gang.rank}.log"
        losses = Path(directory) / f"{gang.rank}.jsonl"
        watch.log = LossLog(losses, total_steps, lambda line: _append(quiet, line))
    if first:
        watch.step = first
        watch.reporter.update(step=first)


def _measure(
    engine: Engine, held_out: Sequences | None, run: RunConfig, gang: Gang, watch: Watch
) -> float | None:
    """The loss on the held-out sequences, where there are any."""
    from finetune_trainer.evaluate import evaluate

    if held_out is None:
        return None
    watch.doing("Evaluating")
    began = time.monotonic()
    loss = evaluate(engine, held_out, gang, run.training.micro_batch_size)
    watch.after_evaluation(loss, time.monotonic() - began)
    return loss


def finished(run: RunConfig) -> TrainFacts | None:
    """What training left, if it is done already for exactly this run; else None."""
    work = Path(run.work_dir)
    try:
        if (work / TRAINED_RUN).read_text() != _hash(run) or not (work / WORK_RESULT).is_dir():
            return None
        return TrainFacts.model_validate_json((work / WORK_TRAIN_FACTS).read_bytes())
    except (OSError, ValidationError):
        return None


def _prepared(work: Path) -> PrepareFacts:
    try:
        return PrepareFacts.model_validate_json((work / WORK_PREPARE_FACTS).read_bytes())
    except (OSError, ValidationError) as exc:
        raise InternalError(f"what prepare leaves is missing or broken: {exc}") from exc


def _leave(work: Path, run: RunConfig, facts: TrainFacts) -> None:
    """`train.json` comes last and whole: who finds it may rely on all the rest."""
    (work / TRAINED_RUN).write_text(_hash(run))
    partial = work / (WORK_TRAIN_FACTS + ".partial")
    partial.write_text(facts.model_dump_json(by_alias=True, exclude_none=True))
    partial.replace(work / WORK_TRAIN_FACTS)


def _hash(run: RunConfig) -> str:
    return hashlib.sha256(run.model_dump_json().encode()).hexdigest()


def main(argv: list[str]) -> int:
    """Run one rank; returns its exit code, after its outcome is left."""
    rank = int(os.environ.get("RANK", "0"))
    if directory := os.environ.get(ENV_OUTCOME_DIRECTORY):
        os.environ[ENV_TERMINATION_LOG] = str(Path(directory) / f"{rank}.json")
    logs.set_up()
    # Libraries about their own future: nothing that the reader of a job's log can do.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    stop = StopRequest()
    stop.install()
    watch = Watch(NullReporter())
    try:
        run = load_run(argv, "train")
        if rank == 0:
            watch.reporter = reporter_from(os.environ, logs.warn, logs.say)
        facts = finished(run) or _in_gang(run, watch, stop)
    except (Exception, KeyboardInterrupt) as exc:
        failure = failure_from(exc, rank, watch.step)
        if failure.failure_class == "Internal" and not isinstance(exc, TrainerError):
            traceback.print_exception(exc, file=sys.stdout)
        logs.warn(f"rank {rank} failed ({failure.failure_class}): {failure.message}")
        write_outcome(Outcome(failure=failure))
        return int(exit_code(failure.failure_class))
    watch.reporter.update(activity="Done", eta_seconds=0)
    watch.reporter.close()
    write_outcome(Outcome(train=facts))
    return 0


def _in_gang(run: RunConfig, watch: Watch, stop: StopRequest) -> TrainFacts:
    os.environ["DS_ACCELERATOR"] = run.accelerator.lower()  # before deepspeed is imported
    from finetune_trainer.ranks import classified, join

    with classified(run):
        return train(run, join(run), watch, stop)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by the interpreter's own way: the ends of libraries wait for processes that are gone.
    os._exit(code)

"""Trains: `python -m finetune_trainer.train RUN_JSON`, one process per rank, under torchrun.

Reads model and data that prepare has left in the work directory, leaves `result`, and when all is
checked `train.json`. `finetune_trainer.launch` starts the processes of a pod.
"""

from __future__ import annotations

import gc
import hashlib
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from finetune_api.outcome import Outcome, PrepareFacts, TrainFacts
from finetune_api.run_config import (
    WORK_DATA,
    WORK_LOSSES,
    WORK_MODEL,
    WORK_PREPARE_FACTS,
    WORK_RESULT,
    WORK_RETENTION,
    WORK_TRAIN_FACTS,
    RunConfig,
)
from finetune_trainer import logs
from finetune_trainer.errors import DivergedError, InternalError, StoppedError, TrainerError
from finetune_trainer.fit import resolved_run
from finetune_trainer.outcome_file import (
    ENV_TERMINATION_LOG,
    exit_code,
    failure_from,
    load_run,
    write_outcome,
)
from finetune_trainer.report import NullReporter, reporter_from
from finetune_trainer.stacks import Shelf
from finetune_trainer.stopping import StopRequest
from finetune_trainer.tracking import Tracking
from finetune_trainer.watch import Measures, Watch
from finetune_trainer.watchdog import Watchdog

if TYPE_CHECKING:
    from finetune_trainer.checkpoint.history import History
    from finetune_trainer.engine import Engine
    from finetune_trainer.ranks import Gang

ENV_OUTCOME_DIRECTORY = "FINETUNE_OUTCOME_DIRECTORY"
"""Where every process leaves its outcome; set by launch, which reads them all."""

TRAINED_RUN = "train.run"
"""In the work directory: hash of the `run.json` that `result` and `train.json` belong to."""

_DEALT_OUT: Any = {
    **dict.fromkeys(("num_nodes", "num_proc_per_node", "zero_stage", "offload"), True),
    **dict.fromkeys(("auto", "resolved", "memory"), True),
    "training": {"micro_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"},
}
"""How the work is shared: another attempt may do it otherwise, and what is trained is trained."""


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def train(run: RunConfig, gang: Gang, watch: Watch, stop: StopRequest | None = None) -> TrainFacts:
    """The whole stage on one process; all processes of the gang call it alike.

    Returns:
        The facts, the same on every process but for its own clock.
    """
    # torch and its friends take 10 s to import: the first report is out before that.
    from finetune_trainer.checkpoint.history import History
    from finetune_trainer.checkpoint.manifest import RunState
    from finetune_trainer.course import Course, facts_of, finish
    from finetune_trainer.loop import Task, train_steps
    from finetune_trainer.plain import leave_verification

    stop = stop or StopRequest()
    work, prepared = Path(run.work_dir), prepared_facts(run)
    asked, run = run, resolved_run(run, prepared)
    watch.reporter.update(total_steps=prepared.total_steps)
    if gang.is_lead:
        (work / WORK_TRAIN_FACTS).unlink(missing_ok=True)  # of an earlier run
    watch.doing("Loading", _size(work / WORK_MODEL))
    data, measures = _load(run, gang, watch, prepared)
    gc.enable()
    gc.freeze()  # what was loaded stays to the end: no collection looks at it again
    engine = measures.engine
    history = History(engine, run, gang, prepared)
    resumed = history.resume()
    first = resumed.step if resumed else 0
    _open_log(watch, run, gang, prepared.total_steps, first)
    if resumed and resumed.step:
        _go_on(watch, resumed.step, resumed.state.seconds, prepared.total_steps)
    state = (
        resumed.state
        if resumed
        else RunState(
            eval_loss_before=measures.held_out_loss(),
            retention_loss_before=measures.retention_loss(),
        )
    )
    task = Task(engine, data, run, gang, prepared.total_steps, prepared.tokens / len(data))
    evaluate = measures.held_out_loss
    course = Course(run, gang, history.checkpoints, stop, state, watch, evaluate)
    stop.at_once = False
    watch.doing("Training")
    try:
        train_steps(task, first, course)
        best_step = finish(course, history, watch.step or first)
    except DivergedError as exc:
        raise _rolled_back(exc, history, engine, run, gang, watch) from exc
    after = measures.retention_loss(state.retention_loss_before)
    _save(engine, run, gang, watch)
    leave_verification(engine, run, gang, prepared.parameters)
    facts = facts_of(course, task, watch.step or first, best_step, first or None)
    if gang.is_lead:
        _leave(work, asked, facts.model_copy(update={"retention_loss_after": after}))
    gang.barrier()  # nobody says "done" before it is true
    engine.deepspeed.destroy()
    return facts.model_copy(update={"retention_loss_after": after})


def _load(run: RunConfig, gang: Gang, watch: Watch, prepared: PrepareFacts) -> tuple[Any, Measures]:
    """What is learned from; the engine, and what it is measured on."""
    from finetune_trainer.batches import Sequences
    from finetune_trainer.engine import build
    from finetune_trainer.objectives import objective_of

    objective, place = objective_of(run), Path(run.work_dir) / WORK_DATA
    data = objective.open(place / "train")
    held_out = objective.open(place / "eval") if prepared.eval_examples else None
    general = Sequences.open(place / WORK_RETENTION) if prepared.retention_examples else None
    began = time.monotonic()
    engine = build(run, gang)
    if run.lora is None:  # writing a whole model takes about as long as reading it did
        watch.estimate.saving_seconds = time.monotonic() - began
    return data, Measures(engine, run, gang, watch, held_out, general)


def _save(engine: Engine, run: RunConfig, gang: Gang, watch: Watch) -> None:
    from finetune_trainer.result import save

    watch.doing("Saving", _size(Path(run.work_dir) / WORK_MODEL))
    watch.reporter.update(eta_seconds=watch.estimate.saving_seconds)
    save(engine, run, gang)


def _rolled_back(
    exc: DivergedError, history: History, engine: Engine, run: RunConfig, gang: Gang, watch: Watch
) -> DivergedError:
    """Leave the last good checkpoint as the result, where there is one; what to raise."""
    step = history.go_back()
    if step is None:
        return exc
    _save(engine, run, gang, watch)
    return DivergedError(f"{exc}; the checkpoint of step {step} is left as the result")


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir() if path.is_file())


def _open_log(watch: Watch, run: RunConfig, gang: Gang, total_steps: int, first: int) -> None:
    from finetune_trainer.loop import LossLog

    if gang.is_lead:
        path = Path(run.work_dir) / WORK_LOSSES
        if run.tracking is not None:
            from finetune_trainer.trackers import WRITERS

            watch.tracking = Tracking(run, first, logs.warn, WRITERS)
        also = watch.tracking.take if watch.tracking else None
        watch.log = LossLog(path, total_steps, logs.say, resumed_from=first, also=also)
    elif directory := os.environ.get(ENV_OUTCOME_DIRECTORY):
        # Only rank 0 speaks. The others keep their lines, for when one of them is killed.
        quiet = Path(directory) / f"{gang.rank}.log"
        losses = Path(directory) / f"{gang.rank}.jsonl"
        watch.log = LossLog(losses, total_steps, lambda line: _append(quiet, line))


def _go_on(watch: Watch, first: int, seconds: float, total_steps: int) -> None:
    """After a resume the first report says where the run is, and when it will end.

    Args:
        first: Steps done before.
        seconds: That they took.
    """
    watch.step = first
    watch.estimate.go_on(seconds / first)
    remaining = watch.estimate.remaining(total_steps - first)
    watch.reporter.update(step=first, checkpoint_step=first, eta_seconds=remaining)


def finished(run: RunConfig) -> TrainFacts | None:
    """What training left, if it is done already for exactly this run; else None."""
    work = Path(run.work_dir)
    try:
        if (work / TRAINED_RUN).read_text() != _hash(run) or not (work / WORK_RESULT).is_dir():
            return None
        return TrainFacts.model_validate_json((work / WORK_TRAIN_FACTS).read_bytes())
    except (OSError, ValidationError):
        return None


def prepared_facts(run: RunConfig) -> PrepareFacts:
    """What prepare has left; raises InternalError."""
    try:
        path = Path(run.work_dir) / WORK_PREPARE_FACTS
        return PrepareFacts.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as exc:
        raise InternalError(f"what prepare leaves is missing or broken: {exc}") from exc


def _leave(work: Path, run: RunConfig, facts: TrainFacts) -> None:
    """`train.json` comes last and whole: who finds it may rely on all the rest."""
    (work / TRAINED_RUN).write_text(_hash(run))
    partial = work / (WORK_TRAIN_FACTS + ".partial")
    partial.write_text(facts.model_dump_json(by_alias=True, exclude_none=True))
    partial.replace(work / WORK_TRAIN_FACTS)


def _hash(run: RunConfig) -> str:
    return hashlib.sha256(run.model_dump_json(exclude=_DEALT_OUT).encode()).hexdigest()


def main(argv: list[str]) -> int:
    """Run one rank; returns its exit code, after its outcome is left."""
    rank = int(os.environ.get("RANK", "0"))
    if directory := os.environ.get(ENV_OUTCOME_DIRECTORY):
        os.environ[ENV_TERMINATION_LOG] = str(Path(directory) / f"{rank}.json")
    logs.set_up()
    # Libraries about their own future: nothing that the reader of a job's log can do.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    watchdog = Watchdog(rank, Path(directory) if directory else None).start()
    try:
        return _one_rank(argv, rank, Watch(NullReporter(), watchdog))
    finally:
        gc.enable()
        watchdog.stop()


def _one_rank(argv: list[str], rank: int, watch: Watch) -> int:
    stop = StopRequest()
    stop.install(rank)
    try:
        run = load_run(argv, "train")
        if rank == 0:
            watch.reporter = reporter_from(os.environ, logs.warn, logs.say)
        if watch.watchdog:
            watch.watchdog.heed(run.hang, Shelf.of(run), watch.stalled)
        facts = finished(run) or _in_gang(run, watch, stop)
    except (Exception, KeyboardInterrupt) as exc:
        failure = failure_from(exc, rank, watch.step)
        if failure.failure_class == "Internal" and not isinstance(exc, TrainerError):
            traceback.print_exception(exc, file=sys.stdout)
        logs.warn(f"rank {rank} failed ({failure.failure_class}): {failure.message}")
        write_outcome(Outcome(failure=failure))
        watch.close("Stopped" if isinstance(exc, StoppedError) else "Failed")
        return int(exit_code(failure.failure_class))
    watch.reporter.update(activity="Done", eta_seconds=0)
    watch.reporter.close()
    watch.close("Done")
    write_outcome(Outcome(train=facts))
    return 0


def _in_gang(run: RunConfig, watch: Watch, stop: StopRequest) -> TrainFacts:
    os.environ["DS_ACCELERATOR"] = run.accelerator.lower()  # before deepspeed is imported
    # Nothing here is compiled at run time. DeepSpeed decorates functions that training never calls
    # with torch.compile, and the compiler's import alone takes 2 s of every start.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    gc.disable()  # a million objects come by imports and none goes: an eighth of the time
    from finetune_trainer.ranks import classified, join

    with classified(run):
        gang = join(run)
    prepared = prepared_facts(run)
    with classified(resolved_run(run, prepared), prepared.estimate):
        return train(run, gang, watch, stop)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by the interpreter's own way: the ends of libraries wait for processes that are gone.
    os._exit(code)

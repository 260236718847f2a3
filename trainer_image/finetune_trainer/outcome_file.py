"""How a stage ends: its outcome in the termination message, its failure class as exit code.

    with stage("prepare") as finish:
        finish(Outcome(prepare=prepare(run)))

The kubelet reads the termination message from a file in the container (`TERMINATION_LOG`, by
default `/dev/termination-log`). Run by hand there is no such file, and the JSON goes to stderr.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from finetune_api.outcome import EXIT_CODES, ExitCode, Failure, FailureClass, Outcome
from finetune_api.run_config import RunConfig
from finetune_trainer import logs
from finetune_trainer.errors import ConfigurationError, InternalError, TrainerError

StageName = Literal["prepare", "train", "export"]

ENV_TERMINATION_LOG = "TERMINATION_LOG"
DEFAULT_TERMINATION_LOG = Path("/dev/termination-log")


def termination_log() -> Path | None:
    """The file to leave the outcome in; None where there is none."""
    named = os.environ.get(ENV_TERMINATION_LOG)
    if named:
        return Path(named)
    found = DEFAULT_TERMINATION_LOG
    return found if found.is_file() and os.access(found, os.W_OK) else None


def write_outcome(outcome: Outcome) -> None:
    """Leave the outcome for the operator, at most 4096 bytes.

    Written in place: the file is a mount of its own, so it cannot be replaced by renaming.
    """
    message, path = outcome.to_message(), termination_log()
    if path is None:
        print(message, file=sys.stderr, flush=True)
    else:
        path.write_text(message, encoding="utf-8")


def failure_class_of(exc: BaseException) -> FailureClass:
    """Whose problem an exception is."""
    if isinstance(exc, TrainerError):
        return exc.failure_class
    # torch's own class is known by its name, so that this module loads without torch.
    text = str(exc)
    if type(exc).__name__ == "OutOfMemoryError" or isinstance(exc, MemoryError):
        return "OutOfMemory"
    if isinstance(exc, RuntimeError) and ("out of memory" in text or "can't allocate" in text):
        return "OutOfMemory"
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Configuration"  # a retry would fill the same volume again
    if isinstance(exc, KeyboardInterrupt):
        return "Stopped"
    return "Internal"


def failure_from(exc: BaseException, rank: int | None = None, step: int | None = None) -> Failure:
    """An exception as the operator is told of it.

    Args:
        rank: Global rank of this process, where it is one of a gang.
        step: Optimizer steps done so far.
    """
    found = failure_class_of(exc)
    message = str(exc).strip() or type(exc).__name__
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        message = (
            f"no space left while writing {exc.filename or 'a file'}; ask for a larger volume "
            "(spec.storage.size of the profile) or make room on the output claim"
        )
    elif isinstance(exc, KeyboardInterrupt):
        message = str(exc) or "interrupted"
    elif not isinstance(exc, TrainerError):
        message = f"{type(exc).__name__}: {message}"
    return Failure(
        failure_class=found,
        message=message,
        rank=rank,
        step=step,
        time=time.time(),
        log_tail=logs.tail(),
    )


def exit_code(failure_class: FailureClass) -> ExitCode:
    """The exit code of a failure class; `Killed` has none, a process cannot report it itself."""
    return EXIT_CODES[failure_class]


@contextmanager
def stage(
    name: StageName, rank: int | None = None, stop_on_sigterm: bool = True
) -> Iterator[Callable[[Outcome], None]]:
    """Run a stage; call what it yields with the outcome when the work is done.

    A failure ends the process with the exit code of its class (`SystemExit`), after the outcome
    is written and a readable line printed; only an unforeseen failure prints a traceback.

    Args:
        rank: Global rank, for a stage that runs as a gang.
        stop_on_sigterm: End with class Stopped on SIGTERM. Process 1 of a container would ignore
            it otherwise. False where the stage handles it itself.
    """
    logs.set_up()
    logs.forget()
    if stop_on_sigterm:
        signal.signal(signal.SIGTERM, _stop)
    outcomes: list[Outcome] = []
    try:
        yield outcomes.append
        if not outcomes:
            raise InternalError(f"{name} ended without an outcome; this is a bug of the trainer")
    except (Exception, KeyboardInterrupt) as exc:
        failure = failure_from(exc, rank)
        if failure.failure_class == "Internal" and not isinstance(exc, InternalError):
            traceback.print_exception(exc)
        print(f"{name} failed ({failure.failure_class}): {failure.message}", file=sys.stderr)
        write_outcome(Outcome(failure=failure))
        raise SystemExit(int(exit_code(failure.failure_class))) from exc
    write_outcome(outcomes[-1])


def load_run(argv: list[str], name: StageName) -> RunConfig:
    """The run from the entry point's one argument, the path of `run.json`.

    Raises:
        ConfigurationError: the file is missing, or is not a complete run configuration.
    """
    if len(argv) != 1:
        raise ConfigurationError(f"usage: python -m finetune_trainer.{name} RUN_JSON")
    try:
        return RunConfig.model_validate_json(Path(argv[0]).read_bytes())
    except OSError as exc:
        raise ConfigurationError(f"cannot read the run configuration: {exc}") from exc
    except ValidationError as exc:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in e['loc']) or 'file'}: {e['msg']}"
            for e in exc.errors()
        )
        raise ConfigurationError(
            f"{argv[0]} is not a run configuration that this trainer understands: {problems}; "
            "operator and trainer image must be of the same release"
        ) from exc


def _stop(_signum: int, _frame: object) -> None:
    # Not an Exception, so that no `except Exception` around a library takes it for a failure.
    raise KeyboardInterrupt("asked to stop (SIGTERM)")

"""Which process of a pod failed first: the cause, not those that fell over it."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finetune_api.outcome import EXIT_CODES, ExitCode, Failure, FailureClass, Outcome
from finetune_trainer.supervise import SILENT
from finetune_trainer.watchdog import LOCK_SECONDS, STACKS

TAIL_LINES = 40
_CODES: dict[int, FailureClass] = {int(code): name for name, code in EXIT_CODES.items()}


@dataclass(frozen=True)
class Ended:
    """How a process, or a pod, failed."""

    failure: Failure
    exit_code: int
    """128 + the signal's number for a process that was killed."""


def failure_of(
    rank: int, code: int, seen: float, outcomes: Path, local_rank: int | None = None
) -> Ended:
    """What is known of one failed process.

    Args:
        code: As Python tells it: negative for a signal.
        seen: When its end was noticed, in seconds since the epoch.
        outcomes: Directory with the processes' outcomes and, under `logs`, their output.
        local_rank: Number of its log; default: as `rank`.
    """
    tail = log_tail(outcomes / "logs", rank if local_rank is None else local_rank)
    tail = tail or _kept(outcomes / f"{rank}.log")
    silent = _told(outcomes / SILENT.format(rank=rank))
    if silent:
        return Ended(silent.model_copy(update={"log_tail": tail}), int(ExitCode.HANG))
    told = _told(outcomes / f"{rank}.json")
    if told and code > 0:
        # What it printed comes before what it remembered: it includes the libraries' words.
        return Ended(told.model_copy(update={"log_tail": tail or told.log_tail}), code)
    found, message, exit_code = _stuck(outcomes, rank, code) or _untold(code, tail or "")
    failure = Failure(failure_class=found, message=message, rank=rank, time=seen, log_tail=tail)
    return Ended(failure, exit_code)


def _told(path: Path) -> Failure | None:
    try:
        outcome = Outcome.from_message(path.read_text(encoding="utf-8"))
    except OSError:
        return None
    return outcome.failure if outcome else None


def _stuck(outcomes: Path, rank: int, code: int) -> tuple[FailureClass, str, int] | None:
    """The watchdog's last resort: Python itself stood still, and faulthandler ended it with 1."""
    stacks = _kept(outcomes / STACKS.format(rank=rank)) if code == 1 else None
    if stacks is None:
        return None
    message = f"the process held Python's lock for {LOCK_SECONDS // 60} minutes; its stacks:"
    return "Hang", f"{message}\n{stacks}", int(ExitCode.HANG)


def _untold(code: int, tail: str) -> tuple[FailureClass, str, int]:
    """Class, message and exit code of a process that left no outcome."""
    if code >= 0:
        found = _CODES.get(code, "Internal")
        exit_code = code if code in _CODES else int(ExitCode.INTERNAL)
        return found, f"the process ended with exit code {code} and left no word", exit_code
    number = -code
    if number == signal.SIGABRT and "NCCL" in tail:
        # NCCL's watchdog ends the process from a thread of its own; Python cannot tell of it.
        if "timeout" in tail.lower():
            return "Hang", "NCCL gave up waiting for another worker", int(ExitCode.HANG)
        lost = "NCCL lost the connection to another worker"
        return "PeerLost", lost, int(ExitCode.PEER_LOST)
    name = signal.Signals(number).name
    message = f"the process was killed by signal {number} ({name})"
    if number == signal.SIGKILL:
        message += (
            "; most likely it used more memory than the pod's limit: raise spec.node.memory of the "
            "profile, or lower spec.training.microBatchSize"
        )
    return "Killed", message, 128 + number


def cause(ended: Iterable[Ended]) -> Ended:
    """The one that the others' failures follow from.

    A process that was killed cannot say so, and is noticed a little after its peers have lost it:
    so it comes first. Then the earliest with a reason of its own; a lost peer or a request to stop
    is never one, torchrun stops the rest of a pod itself.
    """
    found = list(ended)
    first_seen = min((e.failure.time for e in found if _by_signal(e)), default=0.0)

    def order(e: Ended) -> tuple[int, float]:
        if _by_signal(e) and e.failure.time <= first_seen + 1:
            return 0, e.failure.time
        effects: dict[FailureClass, int] = {"Killed": 4, "Stopped": 3, "PeerLost": 2}
        return effects.get(e.failure.failure_class, 1), e.failure.time

    return min(found, key=order)


def _by_signal(e: Ended) -> bool:
    return e.failure.failure_class == "Killed" and e.exit_code != 128 + signal.SIGTERM


def _kept(path: Path) -> str | None:
    """The last lines that a process other than rank 0 kept instead of printing them."""
    try:
        return "\n".join(path.read_text(encoding="utf-8").splitlines()[-TAIL_LINES:]) or None
    except OSError:
        return None


def log_tail(logs: Path, local_rank: int) -> str | None:
    """The last lines that a process printed, output before errors; None where there are none."""
    lines: list[str] = []
    for stream, most in (("stdout", TAIL_LINES), ("stderr", TAIL_LINES // 2)):
        for path in logs.glob(f"*/attempt_*/{local_rank}/{stream}.log"):
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 16_384))
                lines += file.read().decode(errors="replace").splitlines()[-most:]
    return "\n".join(lines) or None

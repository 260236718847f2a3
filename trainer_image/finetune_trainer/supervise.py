"""Launch's look at its processes: notices those that stand still and cannot say so themselves.

A process that is stopped, waits in the kernel, or whose interpreter is held by a library runs no
watchdog. Its peers notice in their collectives; where it has none, or all are still, this does.

| what its process does | how long it may, without a beat |
|---|---|
| stopped by a signal (state T) | `STOPPED_SECONDS`, at most half the budget of what it was doing |
| anything else | the budget of what it was doing, see `countdown` |

The time is counted by the ticks of this thread: a pod that was frozen as a whole has no one to
blame. The same thread touches the file that the pod's liveness probe looks at, as a pod of which
nothing runs can be noticed by its kubelet only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.outcome import Failure, Outcome
from finetune_api.run_config import ENV_HEARTBEAT
from finetune_trainer.heartbeat import Beat, beats
from finetune_trainer.stacks import Shelf
from finetune_trainer.watchdog import ASK, ASKED, print_past_locks

SILENT = "{rank}.silent"
"""In the directory of the outcomes: the outcome of a process that was ended from here."""
STOPPED_SECONDS = 60.0
"""Nobody stops a process for so long and means it to go on."""
TICK = 1.0
_ANSWER_SECONDS = 2.0


@dataclass
class Silence:
    """How long each process has left no beat, in seconds of this process's own time."""

    tick: float = TICK
    _counts: dict[int, int] = field(default_factory=dict)
    _quiet: dict[int, float] = field(default_factory=dict)

    def see(self, beat: Beat, elapsed: float) -> float:
        """Look at the last beat of a process; returns its seconds of silence.

        Args:
            elapsed: Since the last look. More than two ticks at once have not been lived through.
        """
        if self._counts.get(beat.rank) != beat.count:
            self._counts[beat.rank], self._quiet[beat.rank] = beat.count, 0.0
        else:
            self._quiet[beat.rank] += min(elapsed, 2 * self.tick)
        return self._quiet[beat.rank]


def verdict(beat: Beat, state: str, quiet: float, stopped: float = STOPPED_SECONDS) -> str | None:
    """What is wrong with a process that is silent; None: nothing yet.

    Args:
        state: The letter that the kernel has for it.
        quiet: Seconds without a beat.
        stopped: Longest time in state T.
    """
    if state == "T":
        allowed = min(stopped, beat.budget / 2)
        why = "its process was stopped by a signal (SIGSTOP)"
    elif state == "D":
        allowed = beat.budget
        why = "its process waits in the kernel: a volume or a device does not answer"
    else:
        allowed = beat.budget
        why = "its process runs no Python: a library holds the interpreter's lock"
    if quiet <= allowed:
        return None
    since = f"after step {beat.step}" if beat.step else "before the first step"
    return f"{why}; no sign of life for {allowed:.0f} s while {beat.activity.lower()}, {since}"


class Supervisor:
    """The thread. One in every launch."""

    def __init__(
        self,
        directory: Path,
        env: Mapping[str, str],
        stopped_seconds: float = STOPPED_SECONDS,
        tick: float = TICK,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Not started yet.

        Args:
            directory: Of the processes' outcomes and beats.
            env: May name the file for the liveness probe.
        """
        self._directory, self._stopped_seconds, self._tick = directory, stopped_seconds, tick
        named = env.get(ENV_HEARTBEAT)
        self._file = Path(named) if named else None
        self._monotonic = monotonic
        self._silence = Silence(tick)
        self._told: set[tuple[int, int]] = set()
        self._shelf: Shelf | None = None
        self._report_only = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervise", daemon=True)

    def start(self) -> Supervisor:
        """Begin: with the file for the probe, as there may be no process to look after yet."""
        self._touch()
        self._thread.start()
        return self

    def heed(self, report_only: bool, shelf: Shelf) -> None:
        """What the job says about hangs, and where stacks are kept."""
        self._report_only, self._shelf = report_only, shelf

    def stop(self) -> None:
        """Look no longer."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        last = self._monotonic()
        while not self._ended.wait(self._tick):
            now = self._monotonic()
            self._touch()
            for beat in beats(self._directory):
                self._look(beat, now - last)
            last = now

    def _touch(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.touch()

    def _look(self, beat: Beat, elapsed: float) -> None:
        quiet = self._silence.see(beat, elapsed)
        state = state_of_child(beat.pid)
        if state is None or (beat.rank, beat.count) in self._told:
            return
        why = verdict(beat, state, quiet, self._stopped_seconds)
        if why is None:
            return
        self._told.add((beat.rank, beat.count))
        if self._report_only:
            _say(f"rank {beat.rank} hangs: {why}; it is left alone (spec.hangPolicy.action)")
            return
        self._end(beat, why)

    def _end(self, beat: Beat, why: str) -> None:
        """Leave its outcome, with its stacks where they can be had, and kill it."""
        moment = time.time()
        stacks = self._stacks(beat)
        kept = self._shelf.keep(beat.rank, f"{why}\n\n{stacks}") if stacks and self._shelf else None
        failure = Failure(
            failure_class="Hang",
            message=f"{why}; its stacks are in {kept} of the work directory" if kept else why,
            rank=beat.rank,
            step=beat.step,
            time=moment,
        )
        path = self._directory / SILENT.format(rank=beat.rank)
        with contextlib.suppress(OSError):  # then it is known as killed
            path.write_text(Outcome(failure=failure).to_message(), encoding="utf-8")
        _say(f"stacks of rank {beat.rank}:\n{stacks}rank {beat.rank} hangs: {failure.message}")
        _signal(beat.pid, signal.SIGKILL)

    def _stacks(self, beat: Beat) -> str:
        """What the process writes when it is asked, which needs no Python. One that is stopped has
        to go on for that moment; it is killed right after."""
        file = self._directory / ASKED.format(rank=beat.rank)
        _signal(beat.pid, ASK)
        _signal(beat.pid, signal.SIGCONT)
        end, text = self._monotonic() + _ANSWER_SECONDS, ""
        while self._monotonic() < end:
            before = text
            self._ended.wait(0.1)
            with contextlib.suppress(OSError):
                text = file.read_text(encoding="utf-8", errors="replace")
            if text and text == before:  # all of it
                break
        return text


def state_of_child(pid: int) -> str | None:
    """The kernel's letter for the state of a process that this one has started; None: it is gone,
    or its number is another's by now."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
    except OSError:
        return None
    return state if int(parent) == os.getpid() and state not in "ZX" else None


def _say(text: str) -> None:
    # Not by logging: it is switched off while torchrun runs.
    print_past_locks(f"{text}\n")


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)

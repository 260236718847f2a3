"""Notices that a process no longer gets on, says where it is stuck, and ends it with 204.

A thread of every training process counts the seconds since the last sign of progress and compares
them with the budget of what the process is doing, see `countdown`. It counts its own ticks: time in
which the whole process did not run (SIGSTOP, a frozen pod, a suspended machine) is nobody's delay.
Where the job only wants a report (`spec.hangPolicy.action`), the process is left as it is, and told
of again when it has got on meanwhile.

A main thread that waits in C for ever has let go of Python's lock, so this thread runs. One that
holds the lock, or a process that is stopped, leaves no beats (`heartbeat`), which `launch` sees.
Without launch, faulthandler, whose thread needs no lock, ends the process after `LOCK_SECONDS`;
`cascade` knows it by the stacks that it leaves.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO

from finetune_api.outcome import ExitCode, Failure, Outcome
from finetune_api.run_config import HangConfig
from finetune_trainer.countdown import Activity, Countdown, Limits
from finetune_trainer.heartbeat import Heart
from finetune_trainer.outcome_file import write_outcome
from finetune_trainer.stacks import Shelf, all_stacks, waits_for_others

LOCK_SECONDS = 1800
"""Longest time without Python's lock; as long as a collective may take."""
STACKS = "{rank}.stacks"
"""In the directory of the outcomes: where faulthandler writes when Python itself is stuck."""
ASKED = "{rank}.asked"
"""In the same place: the stacks of a process that was sent ASK, even if its Python is stuck."""
ASK = signal.SIGUSR1
STALLED_SECONDS = 60.0
"""How often it is told for how long a process that is only reported has not got on."""
_TELL_SECONDS = 10.0
_MAIN_FRAMES = 12


class Watchdog:
    """The thread. One in every training process, from its start to its end."""

    def __init__(
        self,
        rank: int,
        directory: Path | None = None,
        limits: Limits | None = None,
        end: Callable[[Failure, str], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Not started yet.

        Args:
            directory: Of the processes' outcomes, see `launch`; None: run by hand.
            end: Called with the failure and all stacks; default: tell and end the process.
        """
        self.countdown = Countdown(limits or Limits())
        self._rank, self._directory = rank, directory
        self._end = end or leave
        self._monotonic = monotonic
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._stacks: IO[str] | None = None
        self._asked: IO[str] | None = None
        self._heart: Heart | None = None
        self._shelf: Shelf | None = None
        self._report_only = False
        self._stalled: Callable[[float | None], None] = lambda _: None
        self._told = 0.0

    def start(self) -> Watchdog:
        """Begin to watch, with the activity Starting."""
        if self._directory is not None:
            path = self._directory / STACKS.format(rank=self._rank)
            self._stacks = path.open("w", encoding="utf-8")
            path = self._directory / ASKED.format(rank=self._rank)
            self._asked = path.open("w", encoding="utf-8")
            # In C, at once, whatever holds Python's lock.
            faulthandler.register(ASK, file=self._asked, all_threads=True, chain=False)
            self._heart = Heart(self._directory, self._rank)
            self._heart.beat(self.countdown)
        self._arm()
        self._thread.start()
        return self

    def heed(
        self, policy: HangConfig, shelf: Shelf, stalled: Callable[[float | None], None]
    ) -> None:
        """Follow what the job says about hangs.

        Args:
            shelf: Where the stacks are kept.
            stalled: Told the seconds without progress of a process that is only reported, now and
                then, and None when it gets on again.
        """
        with self._lock:
            self.countdown.limits = Limits.of(policy)
            self._shelf, self._report_only, self._stalled = shelf, policy.report_only, stalled
        self._arm()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def begin(self, activity: Activity, size: int = 0) -> None:
        """As `Countdown.begin`."""
        with self._lock:
            self.countdown.begin(activity, size)

    def alive(self) -> None:
        """As `Countdown.alive`."""
        with self._lock:
            self.countdown.alive()

    def step_ended(self, step: int, seconds: float, steps: int = 1) -> None:
        """As `Countdown.step_ended`."""
        with self._lock:
            self.countdown.step_ended(step, seconds, steps)

    def _run(self) -> None:
        last = self._monotonic()
        armed = last
        while not self._stopped.wait(self.countdown.limits.tick):
            now = self._monotonic()
            if now - armed > LOCK_SECONDS / 10:
                self._arm()
                armed = now
            with self._lock:
                over = self.countdown.tick(now - last)
            last = now
            if self._heart is not None:
                with contextlib.suppress(OSError):
                    self._heart.beat(self.countdown)
            if over <= 0:
                self._gets_on()
            elif over > self.countdown.limits.grace or not waits_for_others():
                if not self._report_only:
                    self._end(*self._found())
                    break
                self._stays()
        if self._stacks is not None:
            faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        if self._report_only:
            faulthandler.cancel_dump_traceback_later()
        elif self._stacks is not None:
            faulthandler.dump_traceback_later(LOCK_SECONDS, exit=True, file=self._stacks)

    def _stays(self) -> None:
        """It hangs, and is to be left: say so once, and for how long now and then."""
        spent = self.countdown.spent
        if not self._told:
            say(*self._found())
        if not self._told or spent - self._told >= STALLED_SECONDS:
            self._told = spent
            self._stalled(spent)

    def _gets_on(self) -> None:
        if self._told:
            self._told = 0.0
            print_past_locks(f"rank {self._rank} gets on again\n")
            self._stalled(None)

    def _found(self) -> tuple[Failure, str]:
        """What is known of the hang, and all stacks, which are kept as well."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        stack = traceback.extract_stack(frame) if frame else traceback.StackSummary()
        where = f"{stack[-1].name} ({_short(stack[-1].filename)})" if stack else "no function"
        lines = "".join(traceback.format_list(stack[-_MAIN_FRAMES:]))
        main = f"main thread of rank {self._rank}:\n{lines}"
        message, stacks = self.countdown.message(where), all_stacks()
        kept = (
            self._shelf.keep(self._rank, f"{message}\n\n{stacks}\n{main}") if self._shelf else None
        )
        failure = Failure(
            failure_class="Hang",
            message=f"{message}, and {kept} of the work directory" if kept else message,
            rank=self._rank,
            step=self.countdown.step,
            time=time.time(),
            log_tail=main,
        )
        return failure, stacks


def say(failure: Failure, stacks: str) -> None:
    """Print the stacks and what is wrong."""
    print_past_locks(
        f"stacks of rank {failure.rank}:\n{stacks}\n{failure.log_tail}"
        f"rank {failure.rank} hangs: {failure.message}\n"
    )


def print_past_locks(text: str) -> None:
    """Not by print: the main thread may hold the lock of standard output. In a thread of its own:
    a pipe that nobody reads must not keep the watchdog."""

    def write() -> None:
        rest = text.encode(errors="replace")
        while rest:
            rest = rest[os.write(1, rest) :]

    teller = threading.Thread(target=write, name="watchdog-tell", daemon=True)
    teller.start()
    teller.join(_TELL_SECONDS)


def leave(failure: Failure, stacks: str) -> None:
    """Write the outcome, print the stacks, and end the process, whatever the main thread does."""
    # In a thread of its own, as the volume may be what hangs.
    teller = threading.Thread(target=write_outcome, args=[Outcome(failure=failure)], daemon=True)
    teller.start()
    teller.join(_TELL_SECONDS)
    say(failure, stacks)
    os._exit(int(ExitCode.HANG))


def _short(path: str) -> str:
    """The last parts of a file's path."""
    return "/".join(Path(path).parts[-3:])

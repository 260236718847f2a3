"""A request to stop while the main thread waits inside a library.

Python runs a signal's handler in the main thread, between two of its own instructions. While that
thread waits in C for other workers (torch's rendezvous, a process group that is being made), that
may be half an hour later, and the pod is killed long before. The signal itself is written at once
into Python's wake-up pipe, from which a thread reads here.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

from finetune_api.outcome import ExitCode, Failure, Outcome
from finetune_trainer import logs
from finetune_trainer.outcome_file import write_outcome

PATIENCE = 2.0
"""Seconds for the handler to run, where the main thread is only busy."""


class Unheard:
    """Ends the process at SIGTERM where nothing can be lost and the handler does not run."""

    def __init__(
        self, nothing_lost: Callable[[], bool], rank: int | None = None, patience: float = PATIENCE
    ) -> None:
        """Not started yet.

        Args:
            nothing_lost: Asked after `patience`: whether the process may end now.
            rank: Of the process; None: of a pod's launch.
        """
        self._nothing_lost, self._rank, self._patience = nothing_lost, rank, patience
        self._heard = threading.Event()

    def start(self) -> Unheard:
        """In the main thread."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._run, args=(reader,), name="unheard", daemon=True).start()
        return self

    def heard(self) -> None:
        """The handler runs: the main thread sees to the rest."""
        self._heard.set()

    def _run(self, reader: int) -> None:
        while data := os.read(reader, 64):
            if signal.SIGTERM not in data:
                continue
            if not self._heard.wait(self._patience) and self._nothing_lost():
                self._leave()

    def _leave(self) -> None:
        message = "asked to stop (SIGTERM) while the workers waited for each other: nothing is lost"
        logs.warn(message)
        failure = Failure(
            failure_class="Stopped", message=message, rank=self._rank, time=time.time()
        )
        write_outcome(Outcome(failure=failure))
        os._exit(int(ExitCode.STOPPED))


def has_children() -> bool:
    """Whether this process has any, also such that have ended and were not waited for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True

"""SIGTERM: ends a process at once while nothing can be lost, and is only noted while it trains."""

from __future__ import annotations

import signal

from finetune_trainer.errors import StoppedError
from finetune_trainer.unheard import Unheard


class StopRequest:
    """What SIGTERM does, by where the run is.

    Before the first step (starting, loading): the process ends at once. Between the first and the
    last step: noted here, and told to all processes with the next step's loss, so that all save the
    same step and end together. After the last step: the run is as good as done and goes on.
    """

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.asked = False
        self.at_once = True
        self._unheard: Unheard | None = None

    def install(self, rank: int | None = None) -> None:
        """Become the handler of SIGTERM; in the main thread."""
        signal.signal(signal.SIGTERM, self.on_signal)
        self._unheard = Unheard(lambda: self.at_once, rank).start()

    def on_signal(self, _signum: int, _frame: object) -> None:
        """Take note, or end.

        Raises:
            StoppedError: nothing is trained yet.
        """
        if self._unheard:
            self._unheard.heard()
        self.asked = True
        if self.at_once:
            raise StoppedError("asked to stop (SIGTERM) before the first step: nothing is lost")

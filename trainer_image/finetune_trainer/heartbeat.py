"""What every training process leaves each second, so that `supervise` can tell when one is still.

A process that is stopped, or whose interpreter stands still, cannot say so itself. The file is
written over in place, always with as many bytes: a full disk does not stop it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from finetune_trainer.countdown import Activity, Countdown

FILE = "{rank}.beat"
"""In the directory of the outcomes."""
_BYTES = 512


@dataclass(frozen=True)
class Beat:
    """One sign of life."""

    rank: int
    pid: int
    count: int
    """Of the beats so far: another number is a new sign."""
    activity: Activity
    step: int | None
    """The last one that ended."""
    budget: float
    """Seconds that what it does may take without getting on."""


_BEAT = TypeAdapter(Beat)


class Heart:
    """Leaves the beats of this process."""

    def __init__(self, directory: Path, rank: int) -> None:
        """Make the file; the first beat is still to come."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._file = os.open(directory / FILE.format(rank=rank), flags, 0o644)
        self._rank, self._count = rank, 0

    def beat(self, countdown: Countdown) -> None:
        """One more."""
        self._count += 1
        now = Beat(
            rank=self._rank,
            pid=os.getpid(),
            count=self._count,
            activity=countdown.activity,
            step=countdown.step,
            budget=countdown.budget,
        )
        os.pwrite(self._file, _BEAT.dump_json(now).ljust(_BYTES), 0)


def beats(directory: Path) -> list[Beat]:
    """The last of every process; one that is just being written is left out."""
    found = []
    for path in sorted(directory.glob(FILE.format(rank="*"))):
        try:
            found.append(_BEAT.validate_json(path.read_bytes()))
        except (OSError, ValidationError):
            continue
    return found

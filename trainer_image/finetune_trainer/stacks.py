"""Where the threads of a process stand, and keeping that for whoever looks later.

Logs go with their pods; what is kept here lies in the work directory:
`stacks/attempt-0/rank-1.txt`, a file for every process that hung, of the last attempts.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from finetune_api.run_config import ENV_ATTEMPT, WORK_STACKS, RunConfig

ATTEMPTS_KEPT = 10
"""Directories that are left; the oldest go."""
MAX_CHARACTERS = 1_000_000
"""Of one file."""
KEEP_SECONDS = 5.0
"""The volume may be what hangs: it is not waited for longer."""
_COLLECTIVES = ("torch/distributed/", "deepspeed/comm/")


@dataclass(frozen=True)
class Shelf:
    """Where the stacks of one attempt are kept."""

    work_dir: Path
    name: str
    """Of the attempt's directory."""

    @classmethod
    def of(cls, run: RunConfig) -> Shelf:
        """By the attempt that the operator tells of; run by hand, by the time."""
        attempt = os.environ.get(ENV_ATTEMPT)
        name = f"attempt-{attempt}" if attempt else time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        return cls(Path(run.work_dir), name)

    def keep(self, rank: int, text: str, seconds: float = KEEP_SECONDS) -> str | None:
        """Write what rank `rank` left, over what it left before in this attempt.

        Returns:
            Where, from the work directory; None: it could not be written in time.
        """
        file = Path(WORK_STACKS) / self.name / f"rank-{rank}.txt"
        done = threading.Event()

        def write() -> None:
            with contextlib.suppress(OSError):
                path = self.work_dir / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text[-MAX_CHARACTERS:], encoding="utf-8", errors="replace")
                self._clear()
                done.set()

        threading.Thread(target=write, name="stacks", daemon=True).start()
        return str(file) if done.wait(seconds) else None

    def _clear(self) -> None:
        found = [path for path in (self.work_dir / WORK_STACKS).iterdir() if path.is_dir()]
        for path in sorted(found, key=lambda p: p.stat().st_mtime)[:-ATTEMPTS_KEPT]:
            shutil.rmtree(path, ignore_errors=True)  # another process may do the same


def waits_for_others() -> bool:
    """Whether any thread of this process is in a collective: then another process is the cause."""

    def collective(frame: FrameType | None) -> bool:
        while frame is not None:
            if any(part in frame.f_code.co_filename for part in _COLLECTIVES):
                return True
            frame = frame.f_back
        return False

    return any(collective(frame) for frame in sys._current_frames().values())


def all_stacks() -> str:
    """The stacks of all threads, by faulthandler: it reads them without running any code."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read()

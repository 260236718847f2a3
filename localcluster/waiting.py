"""Waiting for conditions, and saying what was waited for when it does not come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from localcluster.layout import ClusterError


def last_lines(path: Path, count: int = 15) -> str:
    """Return the end of a log file, indented, with its name above."""
    if not path.exists():
        return f"  ({path} does not exist)"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200 * count))
        lines = file.read().decode(errors="replace").splitlines()[-count:]
    return "\n".join([f"last lines of {path}:", *(f"  {line}" for line in lines)])


def wait_for(
    what: str,
    condition: Callable[[], bool],
    *,
    timeout: float,
    logs: Sequence[Path] = (),
    alive: Callable[[], bool] = lambda: True,
    interval: float = 0.1,
) -> None:
    """Wait until a condition holds; fail when time is up or the process has died."""
    deadline = time.monotonic() + timeout
    while not condition():
        reason = ""
        if not alive():
            reason = "its process has ended"
        elif time.monotonic() > deadline:
            reason = f"gave up after {timeout:.0f} s"
        if reason:
            tails = "".join("\n" + last_lines(log) for log in logs)
            raise ClusterError(f"waited for {what}: {reason}{tails}")
        time.sleep(interval)

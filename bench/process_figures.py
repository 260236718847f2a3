"""What a process has used, by the kernel."""

from __future__ import annotations

import os
import re
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stolen_seconds() -> float:
    """Time so far that this machine's processors were ready and its host let them wait. The kernel
    takes it for work of whoever was running, so a figure with much of it is too high."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def megabytes(pid: int, field: str) -> float:
    """`VmRSS` or `VmHWM` of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return round(int(found[1]) * 1024 / 1e6, 1)

"""The programs that tests run (helm, promtool, kubectl), built from pinned sources once."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


@functools.cache
def tool(name: str) -> str:
    """Path of a program; the first call ever on a machine builds it, which takes minutes."""
    done = subprocess.run(
        [sys.executable, "-m", "localcluster", "tool", name],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"`python -m localcluster tool {name}` failed:\n{done.stderr}")
    return done.stdout.strip()


def run_tool(name: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program to its end; the caller looks at the return code."""
    return subprocess.run(
        [tool(name), *arguments], cwd=ROOT, input=stdin, capture_output=True, text=True
    )

"""Runs commands of the documentation as a reader does, against the API server of a test."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doc_commands import watches
from kube import eventually
from tools import ROOT, tool

PLUGIN = f"""#!/bin/sh
PYTHONPATH={ROOT}/api:{ROOT}/cli exec {sys.executable} -m finetune_cli "$@"
"""
"""What `make install-cli` makes, without an environment of its own."""


@dataclass(frozen=True)
class Shell:
    """Where the commands are run."""

    kubeconfig: Path
    directory: Path
    """For what they write, with a copy of what they name by paths from the top of the repository;
    `bin` in it has the command line."""

    def __post_init__(self) -> None:
        plugin = self.directory / "bin" / "kubectl-finetune"
        plugin.parent.mkdir(exist_ok=True)
        plugin.write_text(PLUGIN)
        plugin.chmod(0o755)

    def run(self, command: str) -> None:
        """To its end, which must be good."""
        if watches(command):
            self._watch(command)
        elif command.startswith("kubectl auth can-i "):  # a role holds a moment after it is bound
            eventually(command, lambda: self._ended(command).returncode == 0)
        else:
            done = self._ended(command)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    def _ended(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            **self._where(),
            capture_output=True,
            text=True,
            timeout=400,
        )

    def _watch(self, command: str) -> None:
        """Until it has shown something."""
        running = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            **self._where(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert running.stdout is not None
        try:
            assert running.stdout.readline().startswith("NAME")
        finally:
            running.terminate()
            running.communicate(timeout=30)

    def _where(self) -> dict[str, Any]:
        places = [self.directory / "bin", Path(sys.executable).parent]
        places += [Path(tool(name)).parent for name in ("kubectl", "helm")]
        path = os.pathsep.join([*map(str, places), os.environ["PATH"]])
        variables = {"PATH": path, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self.directory)}
        return {"cwd": self.directory, "env": os.environ | variables}

"""A real API server (with controller manager and scheduler, without nodes) for a test session.

In a test: `from apiserver import kubeconfig` makes the fixture known; mark the test `cluster`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tools import ROOT, run_tool

from localcluster import controlplane, tools
from localcluster.layout import Layout
from localcluster.processes import Processes


@contextmanager
def api_server() -> Iterator[Path]:
    """The kubeconfig of an administrator; the server is gone when the block ends."""
    directory = Path(tempfile.mkdtemp(prefix="finetune-api-"))
    try:
        up(directory)
        yield directory / "kubeconfig"
    finally:
        _localcluster("down", "--purge", "--dir", str(directory))
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def kubeconfig() -> Iterator[Path]:
    """One API server for all tests of a session."""
    with api_server() as path:
        yield path


def up(directory: Path) -> None:
    """Start whatever of the control plane in a directory does not run."""
    _localcluster("up", "--nodes", "0", "--dir", str(directory))


def stop_process(kubeconfig: Path, name: str) -> None:
    """Stop one process of the control plane; `up` starts it again."""
    Processes(Layout.of(kubeconfig.parent)).stop(name)


def hurry_controllers(kubeconfig: Path) -> None:
    """A controller manager without its limit of 20 requests a second, for many objects."""
    layout = Layout.of(kubeconfig.parent)
    program = tools.ensure(("kube-controller-manager",))["kube-controller-manager"]
    command = controlplane.controller_manager_command(program, layout)
    processes = Processes(layout)
    processes.stop("kube-controller-manager")
    faster = ["--kube-api-qps=2000", "--kube-api-burst=4000", "--concurrent-gc-syncs=50"]
    processes.start("kube-controller-manager", [*command, *faster])


def _localcluster(*arguments: str) -> None:
    command = [sys.executable, "-m", "localcluster", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"localcluster {' '.join(arguments)}:\n{done.stdout}{done.stderr}")


def kubectl(kubeconfig: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run kubectl as administrator (or, with `--as`, as somebody else)."""
    return run_tool("kubectl", "--kubeconfig", str(kubeconfig), *arguments, stdin=stdin)

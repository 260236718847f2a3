"""What the end-to-end tests share: the main job as `make demo` runs it, once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kube import Kube, kubeconfig

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(3000))


@pytest.fixture(scope="session")
def demo() -> dict[str, object]:
    """`make demo` run to its end: what it printed and the resource that it left."""
    command = [sys.executable, str(ROOT / "scripts" / "demo.py")]
    command += ["--cluster", os.environ.get("CLUSTER", "auto")]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]
    body = yaml.safe_load((ROOT / "build" / "demo" / "job.yaml").read_text())
    return {"printed": done.stdout, "job": body}


@pytest.fixture(scope="session")
def kube(demo: dict[str, object]) -> Kube:
    """The demonstration's cluster."""
    return Kube(kubeconfig())

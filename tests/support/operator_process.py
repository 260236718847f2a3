"""The real operator as a process of its own, against a real API server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import requests
import yaml
from kube import GROUP, Kube, eventually
from tls import self_signed

ROOT = Path(__file__).parents[2]
NAMESPACE = "finetune-system"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/finetune-operator"


def install_api(kube: Kube) -> None:
    """Our CRDs, and a default profile for CPU nodes."""
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        kube.create(crds, yaml.safe_load(path.read_text()))
    for plural in ("finetunejobs", "finetuneprofiles"):
        eventually(
            f"{plural} to be served", lambda p=plural: kube.call("GET", f"{GROUP}/{p}")[0] == 200
        )
    profile = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": {"name": "cpu"},
        "spec": {"default": True, "node": {"accelerator": "CPU", "gpusPerNode": 0}},
    }
    kube.create(f"{GROUP}/finetuneprofiles", profile)
    if kube.get(f"/api/v1/namespaces/{NAMESPACE}") is None:
        kube.namespace(NAMESPACE)


class Operator:
    """The real operator in a process, to be started and stopped at will. `settings` are variables
    without their prefix: `LEASE_SECONDS="4"`. Under its old identity it leads at once again."""

    def __init__(self, kubeconfig: Path, directory: Path, **settings: str) -> None:
        self_signed(directory)
        self.ca = directory / "ca.crt"
        self.progress_port, self.metrics_port = free_port(), free_port()
        self.log = directory / "operator.log"
        self.identity = settings.setdefault("IDENTITY", "operator")
        self._settings = {f"FINETUNE_{name}": value for name, value in settings.items()}
        self._kubeconfig, self._directory = kubeconfig, directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        self.begin()
        eventually(f"the operator to be ready (log: {self.log.read_text()})", self.is_ready, 60)

    def begin(self) -> None:
        """Start it."""
        environment = os.environ | {
            "KUBECONFIG": str(self._kubeconfig),
            "PYTHONPATH": f"{ROOT / 'api'}:{ROOT / 'operator'}",
            "FINETUNE_NAMESPACE": NAMESPACE,
            "FINETUNE_TRAINER_IMAGE": "example/trainer:1",
            "FINETUNE_PROGRESS_URL": f"https://127.0.0.1:{self.progress_port}",
            "FINETUNE_PROGRESS_PORT": str(self.progress_port),
            "FINETUNE_METRICS_PORT": str(self.metrics_port),
            "FINETUNE_BIND_ADDRESS": "127.0.0.1",
            "FINETUNE_TLS_DIR": str(self._directory),
            **self._settings,
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "finetune_operator"],
                env=environment,
                stdout=log,
                stderr=log,
                cwd=self._directory,
            )

    def is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        try:
            url = f"http://127.0.0.1:{self.metrics_port}/readyz"
            return requests.get(url, timeout=2).status_code == 200
        except (requests.ConnectionError, requests.Timeout):
            return False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 30) -> int:
        """The exit code, once it has ended by itself."""
        assert self._process is not None
        return self._process.wait(seconds)

    def page(self, name: str) -> tuple[int, str]:
        """`healthz` or `readyz`: status and text."""
        answer = requests.get(f"http://127.0.0.1:{self.metrics_port}/{name}", timeout=5)
        return answer.status_code, answer.text

    def stop(self, number: int = signal.SIGKILL) -> int:
        """End the process; the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(30)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def metrics(self) -> dict[str, float]:
        """Every sample by name and labels."""
        text = requests.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    def resident_bytes(self) -> int:
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port

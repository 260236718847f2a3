"""Variations of the example on a real cluster: applied, followed, disturbed."""

from __future__ import annotations

import copy
import re
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from demo_cluster import output, program
from kube import GROUP, Kube, eventually, kubeconfig

from finetune_api.names import LABEL_INDEX

ROOT = Path(__file__).parents[2]
JOBS = f"{GROUP}/namespaces/demo/finetunejobs"
EXAMPLE = yaml.safe_load((ROOT / "examples" / "01-first-job" / "job.yaml").read_text())
Json = dict[str, Any]


def run(kube: Kube, name: str, **spec: Any) -> str:
    """A variation of the example; replaces an earlier one of the name."""
    body = copy.deepcopy(EXAMPLE)
    body["metadata"]["name"] = name
    body["spec"].pop("output")
    body["spec"].update(spec)
    if kube.get(f"{JOBS}/{name}") is not None:
        kube.delete(f"{JOBS}/{name}?propagationPolicy=Foreground")
        eventually("the earlier job to be gone", lambda: kube.get(f"{JOBS}/{name}") is None, 120)
    kube.create(JOBS, body)
    return name


def failed(kube: Kube, name: str, seconds: float = 600) -> Json:
    """The failure of a job, once it has failed."""

    def ended() -> Json | None:
        status = kube.job("demo", name).get("status", {})
        assert status.get("phase") != "Succeeded"
        return status.get("lastFailure") if status.get("phase") == "Failed" else None

    found: Json = eventually(f"{name} to fail", ended, seconds)
    return found


def trained_until(kube: Kube, name: str, step: int) -> None:
    """Wait until so many steps are reported as done."""

    def training() -> Json | None:
        status = kube.job("demo", name).get("status", {})
        assert status.get("phase") != "Failed", status
        return status if ((status.get("progress") or {}).get("step") or 0) >= step else None

    eventually(f"step {step}", training, 900)


def logged_until(kube: Kube, name: str, step: int) -> None:
    """Wait until our trainer has logged a step in its first attempt: the status is up to 30 s
    behind, and a step may take one."""

    def training() -> bool:
        phase = kube.job("demo", name).get("status", {}).get("phase")
        assert phase not in ("Failed", "Exporting", "Succeeded"), f"{name} is {phase} already"
        done = steps_of(name, 0) if phase == "Running" else []
        return bool(done) and done[-1][0] >= step

    eventually(f"step {step}", training, 900)


def succeeded(kube: Kube, name: str, seconds: float = 900) -> Json:
    """The status of a job, once it has succeeded."""

    def ended() -> Json | None:
        status: Json = kube.job("demo", name).get("status", {})
        assert status.get("phase") != "Failed", status
        return status if status.get("phase") == "Succeeded" else None

    found: Json = eventually(f"{name} to succeed", ended, seconds)
    return found


def kubectl(*arguments: str) -> str:
    """What kubectl prints."""
    return output([program("kubectl"), "--kubeconfig", str(kubeconfig()), *arguments])


def python_in(pod: str, script: str) -> str:
    """Run a script in a worker; returns what it prints."""
    return kubectl("-n", "demo", "exec", pod, "--", "python", "-c", script)


def worker(kube: Kube, name: str, index: int, attempt: int = 0) -> Json:
    """A pod of an attempt."""
    return kube.pods("demo", f"{name}-train-{attempt}")[index]


def signal_rank(kube: Kube, name: str, index: int, signal: str) -> str:
    """Send a signal to the training process of a worker; the name of its pod."""
    pod: str = worker(kube, name, index)["metadata"]["name"]
    python_in(pod, SIGNAL_RANK.format(signal=signal))
    return pod


def fill_memory(kube: Kube, name: str, index: int) -> None:
    """Use up the memory of a worker by processes that are each smaller than its rank, so that the
    kernel takes the rank; they end with the container, and so does this call."""
    pod: str = worker(kube, name, index)["metadata"]["name"]
    command = [program("kubectl"), "--kubeconfig", str(kubeconfig()), "-n", "demo"]
    command += ["exec", pod, "--", "python", "-c", FILL_MEMORY]
    subprocess.run(command, timeout=300, capture_output=True)


def steps_of(name: str, attempt: int) -> list[tuple[int, float]]:
    """Steps that the first worker of an attempt has logged, and when (seconds since the epoch)."""
    # Of `job/NAME` kubectl takes any pod, and the other workers log no steps.
    first = f"batch.kubernetes.io/job-name={name}-train-{attempt},{LABEL_INDEX}=0"
    log = kubectl("-n", "demo", "logs", "--timestamps", "--tail=-1", "--selector", first)
    found = re.findall(r"^(\S+) .*step (\d+)/\d+  loss", log, re.MULTILINE)
    return [
        (int(step), datetime.fromisoformat(time[:19] + "Z").timestamp()) for time, step in found
    ]


def gone(kube: Kube, name: str, attempt: int = 0) -> bool:
    """Whether no worker of an attempt runs or may come to."""
    alive = [p["status"]["phase"] for p in kube.pods("demo", f"{name}-train-{attempt}")]
    return not {"Pending", "Running"} & set(alive)


SIGNAL_RANK = """
import os, signal, pathlib
for process in pathlib.Path("/proc").iterdir():
    if process.name.isdigit():
        try:
            command = (process / "cmdline").read_text()
        except OSError:
            continue
        if "\\0finetune_trainer.train\\0" in command:  # and not this very script
            os.kill(int(process.name), signal.{signal})
"""

FILL_MEMORY = """
import os, time
for _ in range(40):
    if os.fork() == 0:
        held = bytearray(os.urandom(1 << 20)) * 256
        time.sleep(600)
    time.sleep(0.5)
time.sleep(600)
"""

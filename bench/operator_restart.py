"""`make bench-restart`: an operator that starts among 1,000 running jobs, and what is left of 1,000
jobs that came and went. JSON in build/bench/operator-restart.json.

A real API server without nodes. Arguments: the number of jobs, and the parts to measure (`restart`,
`come_and_go`; default both; figures of the other part are kept). Requests are counted in the API
server's own audit log.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apiserver import api_server, hurry_controllers
from audit import AuditLog
from kube import GROUP, Kube, eventually
from operator_process import Operator, install_api
from process_figures import cpu_seconds, megabytes
from running_jobs import make_running_jobs, no_controllers

ROOT = Path(__file__).parents[1]
JOBS = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
PARTS = sys.argv[2:] or ["restart", "come_and_go"]
WAVE = 100
SELECTOR = "?limit=1&labelSelector=finetune-operator.io/job"
KINDS = (
    "/apis/batch/v1/jobs",
    "/api/v1/pods",
    "/api/v1/services",
    "/api/v1/configmaps",
    "/api/v1/persistentvolumeclaims",
    "/apis/networking.k8s.io/v1/networkpolicies",
)


def seconds_until(what: str, check: Callable[[], Any], started: float) -> float:
    """Seconds since `started` at which something is true, polled ten times a second."""
    eventually(what, check, 300)
    return round(time.monotonic() - started, 2)


def held(operator: Operator) -> float:
    """Entries in the operator's memory."""
    found = operator.metrics().items()
    return sum(v for name, v in found if name.startswith("finetune_operator_held"))


def restart(kubeconfig: Path, operator: Operator) -> dict[str, Any]:
    """Start it among running jobs."""
    asked = AuditLog(kubeconfig, "finetune-operator/")
    started = time.monotonic()
    operator.begin()
    done = f"looked at {JOBS} jobs"
    seconds = seconds_until("a round over all", lambda: done in operator.log.read_text(), started)
    cpu, memory = cpu_seconds(operator.pid), megabytes(operator.pid, "VmRSS")
    ready = seconds_until("the watches", operator.is_ready, started)
    # Kopf takes in what its watches list; idle is when half a second costs less than a tenth of it.
    before = [cpu_seconds(operator.pid), time.monotonic()]

    def is_idle() -> bool:
        now, used = time.monotonic(), cpu_seconds(operator.pid)
        if now - before[1] < 0.5:
            return False
        idle = used - before[0] < 0.1 * (now - before[1])
        before[:] = [used, now]
        return idle

    quiet = seconds_until("the operator to be idle", is_idle, started)
    return {
        "jobs": JOBS,
        "seconds_until_every_job_was_looked_at": seconds,
        "seconds_until_watches_are_up": ready,
        "seconds_until_idle": quiet,
        "reads": dict(Counter(asked.reads())),
        "writes": len(asked.writes()),
        "cpu_seconds": {"looked_at": round(cpu, 2), "idle": round(cpu_seconds(operator.pid), 2)},
        "memory_mb": {
            "looked_at": memory,
            "idle": megabytes(operator.pid, "VmRSS"),
            "peak": megabytes(operator.pid, "VmHWM"),
        },
    }


def is_clean(kube: Kube) -> bool:
    """Whether nothing that a job made exists."""
    return not any(kube.items(kind + SELECTOR) for kind in KINDS)


def come_and_go(kube: Kube, operator: Operator) -> dict[str, Any]:
    """Make jobs through the operator, and delete them; what is left."""
    memory = megabytes(operator.pid, "VmRSS")
    path = f"{GROUP}/namespaces/default/finetunejobs"
    started = time.monotonic()
    for first in range(0, JOBS, WAVE):
        for number in range(first, first + WAVE):
            body = {
                "apiVersion": "finetune-operator.io/v1alpha1",
                "kind": "FineTuneJob",
                "metadata": {"name": f"gone-{number}"},
                "spec": {
                    "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
                    "dataset": {"uri": "pvc://team-data/docs.jsonl"},
                },
            }
            kube.create(path, body)
        eventually(
            "a wave to be prepared",
            lambda: all(i.get("status", {}).get("phase") for i in kube.items(path)),
            120,
        )
        kube.delete(path)
    seconds_until("nothing to be left", lambda: is_clean(kube), started)
    seconds = seconds_until("nothing to be held", lambda: held(operator) == 0, started)
    return {
        "jobs": JOBS,
        "seconds": seconds,
        "objects_left": 0,
        "entries_held": held(operator),
        "memory_mb": {"before": memory, "after": megabytes(operator.pid, "VmRSS")},
    }


def main() -> None:
    """Measure, print, write."""
    with api_server() as kubeconfig, tempfile.TemporaryDirectory() as directory:
        kube = Kube(kubeconfig)
        install_api(kube)
        operator = Operator(kubeconfig, Path(directory))
        found = {}
        if "restart" in PARTS:
            with no_controllers(kubeconfig):
                made = time.monotonic()
                make_running_jobs(kubeconfig, "default", JOBS)
                print(f"{JOBS} jobs made in {time.monotonic() - made:.0f} s", flush=True)
                try:
                    found["restart"] = restart(kubeconfig, operator)
                finally:
                    operator.stop()
            kube.delete(f"{GROUP}/namespaces/default/finetunejobs")
        if "come_and_go" in PARTS:
            hurry_controllers(kubeconfig)
            eventually("the running jobs to be gone", lambda: is_clean(kube), 300)
            operator.start()
            try:
                found["come_and_go"] = come_and_go(kube, operator)
            finally:
                operator.stop()
    path = ROOT / "build" / "bench" / "operator-restart.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | found, indent=2) + "\n")
    print(path.read_text(), end="")


if __name__ == "__main__":
    main()

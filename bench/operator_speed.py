"""`make bench-operator`: how soon the operator acts, and what it costs. JSON in build/bench/.

A real API server, Job controller and operator; this program plays the kubelet.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import builders
from apiserver import api_server
from kube import GROUP, Kube
from operator_process import Operator, install_api

ROOT = Path(__file__).parents[1]
RUNS = 10


def apply(kube: Kube, name: str) -> None:
    """A job with two workers."""
    kube.create(
        f"{GROUP}/namespaces/default/finetunejobs",
        {
            "apiVersion": "finetune-operator.io/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": name},
            "spec": builders.SPEC | {"workers": {"numNodes": 2}},
        },
    )


def seconds_until_pods(kube: Kube, job: str, count: int) -> float:
    """Time until a Kubernetes Job has its pods, polled every 10 ms."""
    started = time.monotonic()
    while len(kube.pods("default", job)) < count:
        if time.monotonic() - started > 30:
            raise TimeoutError(f"no {count} pods of {job}")
        time.sleep(0.01)
    return time.monotonic() - started


def measure(kube: Kube, operator: Operator) -> dict[str, Any]:
    """One figure per question."""
    idle = operator.resident_bytes()
    to_prepare, to_workers = [], []
    for run in range(RUNS):
        name = f"job-{run}"
        apply(kube, name)
        to_prepare.append(seconds_until_pods(kube, f"{name}-prepare", 1))
        (prepare,) = kube.pods("default", f"{name}-prepare")
        kube.run(prepare)
        kube.end(prepare, 0, builders.OUTCOMES["prepare"].to_message())
        to_workers.append(seconds_until_pods(kube, f"{name}-train-0", 2))

    def spread(values: list[float]) -> dict[str, float]:
        values = sorted(values)
        return {
            "median": round(statistics.median(values), 3),
            "max": round(values[-1], 3),
        }

    return {
        "idle_memory_mb": round(idle / 1e6, 1),
        "memory_after_mb": round(operator.resident_bytes() / 1e6, 1),
        "apply_to_prepare_pod_seconds": spread(to_prepare),
        "prepare_end_to_both_workers_seconds": spread(to_workers),
        "jobs": RUNS,
    }


def main() -> None:
    """Measure, print, write."""
    with api_server() as kubeconfig, tempfile.TemporaryDirectory() as directory:
        kube = Kube(kubeconfig)
        install_api(kube)
        operator = Operator(kubeconfig, Path(directory))
        operator.start()
        try:
            found = measure(kube, operator)
        finally:
            operator.stop()
    path = ROOT / "build" / "bench" / "operator.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(path.read_text(), end="")


if __name__ == "__main__":
    main()

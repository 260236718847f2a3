"""A kubelet that runs nothing: every pod is said to be running and ready as soon as it is there, so
that what waits for a rollout goes on where there are no nodes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kube import Kube, now

Json = dict[str, Any]
LOOK_SECONDS = 0.2


@contextmanager
def pretended_kubelet(kubeconfig: Path, namespace: str) -> Iterator[None]:
    """For the pods of a namespace, while the block runs."""
    over = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        kube = Kube(kubeconfig)
        try:
            while not over.wait(LOOK_SECONDS):
                for pod in kube.items(f"/api/v1/namespaces/{namespace}/pods"):
                    if pod["status"]["phase"] == "Pending":
                        _ready(kube, pod)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)
    assert not failed, failed


def _ready(kube: Kube, pod: Json) -> None:
    kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    conditions = [{"type": k, "status": "True", "lastTransitionTime": now()} for k in kinds]
    containers = [
        {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": now()}},
        }
        for container in pod["spec"]["containers"]
    ]
    status = {"phase": "Running", "conditions": conditions, "containerStatuses": containers}
    path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
    code, answer = kube.call(
        "PATCH", f"{path}/status", {"status": status}, "application/merge-patch+json"
    )
    assert code in (200, 404, 409), answer  # it may be gone meanwhile

"""Many jobs in the middle of training, made directly: as if an operator and a kubelet had been
there, but in seconds. The controller manager must not run meanwhile: it would make pods itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import builders
from apiserver import stop_process, up
from kube import GROUP, Kube

from finetune_api.profile import FineTuneProfileSpec
from finetune_operator import names
from finetune_operator.controller import now
from finetune_operator.observe import observe
from finetune_operator.reconcile import Step, World, parse_job, step

Json = dict[str, Any]
PATHS = {
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
}
WORLD = World(
    settings=builders.SETTINGS,
    profiles={
        "cpu": FineTuneProfileSpec.parse(
            {"default": True, "node": {"accelerator": "CPU", "gpusPerNode": 0}}
        )
    },
    ca_cert="CA",
)


@contextmanager
def no_controllers(kubeconfig: Path) -> Iterator[None]:
    """Without controller manager."""
    stop_process(kubeconfig, "kube-controller-manager")
    try:
        yield
    finally:
        up(kubeconfig.parent)


def make_running_jobs(kubeconfig: Path, namespace: str, count: int) -> None:
    """Jobs `job-0` and on, of one worker each, with their ConfigMap, Kubernetes Jobs and pods."""
    local = threading.local()

    def make(number: int) -> None:
        if not hasattr(local, "kube"):
            local.kube = Kube(kubeconfig)
        _RunningJob(local.kube, namespace, f"job-{number}").make()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(make, range(count)))


class _RunningJob:
    def __init__(self, kube: Kube, namespace: str, name: str) -> None:
        self._kube, self._namespace, self._name = kube, namespace, name
        self._config_map: Json | None = None
        self._jobs: list[Json] = []
        self._pods: list[Json] = []
        spec = builders.SPEC | {"workers": {"numNodes": 1}}
        self._body = kube.create(
            f"{GROUP}/namespaces/{namespace}/finetunejobs",
            {
                "apiVersion": "finetune-operator.io/v1alpha1",
                "kind": "FineTuneJob",
                "metadata": {"name": name},
                "spec": spec,
            },
        )

    def make(self) -> None:
        self._children("Complete", "Succeeded", builders.OUTCOMES["prepare"].to_message())
        self._children("Active", "Running", "")
        self._body["status"]["progress"] = {
            "attempt": 0,
            "step": 10,
            "totalSteps": 40,
            "percent": 25,
            "loss": 2.5,
            "activity": "Training",
            "lastUpdateTime": now(),
        }
        while self._step().status is not None:
            pass
        progress = {"progress": self._body["status"].pop("progress")}
        assert self._body["status"]["phase"] == "Running", self._body["status"]
        self._apply_status(progress, names.PROGRESS_FIELD_OWNER)
        self._apply_status(self._body["status"], names.FIELD_OWNER)

    def _step(self) -> Step:
        """One pass over what is there, its status taken over."""
        job = parse_job(self._body)
        seen = observe(self._config_map, self._jobs, self._pods, job.uid)
        done = step(job, seen, WORLD, now())
        if done.status is not None:
            progress = self._body.get("status", {}).get("progress")
            more = {"progress": progress} if progress else {}
            self._body["status"] = done.status.to_json_dict() | more
        return done

    def _children(self, state: str, phase: str, message: str) -> None:
        """What the operator applies next, and what Job controller and kubelet make of it."""
        applied = next(done.apply for done in iter(self._step, None) if done.apply)
        for manifest in applied:
            if manifest["kind"] not in PATHS:
                continue  # a pass reads nothing of the others
            path = PATHS[manifest["kind"]].format(self._namespace)
            made = self._kube.create(path, manifest)
            if made["kind"] == "ConfigMap":
                self._config_map = made
                continue
            self._pods.append(self._pod(made, phase, message))
            self._jobs.append(self._kube.patch(*self._job_status(made, state)))

    def _job_status(self, job: Json, state: str) -> tuple[str, Json]:
        path = f"{PATHS['Job'].format(self._namespace)}/{job['metadata']['name']}/status"
        status: Json = {"startTime": now(), "active": 1, "ready": 1}
        if state == "Complete":
            time = now()
            condition = {"status": "True", "lastTransitionTime": time, "lastProbeTime": time}
            kinds = ("SuccessCriteriaMet", "Complete")
            status = {
                "startTime": time,
                "completionTime": time,
                "succeeded": 1,
                "completedIndexes": "0",
                "conditions": [{"type": kind, **condition} for kind in kinds],
            }
            if job["spec"].get("completionMode") != "Indexed":
                del status["completedIndexes"]
        return path, {"status": status}

    def _pod(self, job: Json, phase: str, message: str) -> Json:
        template, name = job["spec"]["template"], job["metadata"]["name"]
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": name,
            "uid": job["metadata"]["uid"],
            "controller": True,
        }
        labels = template["metadata"]["labels"] | {
            names.LABEL_INDEX: "0",
            "batch.kubernetes.io/job-name": name,
        }
        metadata = {"name": f"{name}-0-abcde", "labels": labels, "ownerReferences": [owner]}
        spec = template["spec"] | {"nodeName": "node-0"}
        path = f"/api/v1/namespaces/{self._namespace}/pods"
        made = self._kube.create(path, {"metadata": metadata, "spec": spec})
        if phase == "Running":
            self._kube.run(made)
        else:
            self._kube.end(made, 0, message)
        found = self._kube.get(f"{path}/{made['metadata']['name']}")
        assert found is not None
        return found

    def _apply_status(self, status: Json, owner: str) -> None:
        path = f"{GROUP}/namespaces/{self._namespace}/finetunejobs/{self._name}/status"
        body = {
            "apiVersion": "finetune-operator.io/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "status": status,
        }
        query = f"?fieldManager={owner}&force=true"
        code, answer = self._kube.call("PATCH", path + query, body, "application/apply-patch+yaml")
        assert code == 200, answer

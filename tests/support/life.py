"""One FineTuneJob's whole life against a real API server. The test plays the Job controller, the
kubelet and the clock, and the operator looks exactly when it is told to: so two lives differ only
by what was done to the operator, and nothing has to be waited for."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import builders
from faulty_cluster import Died, DyingCluster, StaleCluster
from kube import GROUP, Kube

from finetune_operator.cluster import ApiError, connect
from finetune_operator.controller import Controller
from finetune_operator.metrics import Metrics
from finetune_operator.names import run_config_map
from finetune_operator.objects import settings_digest

Json = dict[str, Any]
KINDS = {
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Service": "/api/v1/namespaces/{}/services",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "Pod": "/api/v1/namespaces/{}/pods",
}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z|\d\d:\d\d:\d\dZ")
PLAYED = "tests.finetune-operator.io/job-controller"
"""Who manages the Jobs: Kubernetes' own controller leaves them alone, and the test plays it."""


class PlayedJobs:
    """A cluster whose Jobs are left to the test."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)

    async def apply(self, manifest: Json) -> None:
        if manifest["kind"] == "Job":
            manifest = manifest | {"spec": manifest["spec"] | {"managedBy": PLAYED}}
        await self._cluster.apply(manifest)


class Life:
    """A job, and an operator that dies at one of its writes.

    Args:
        dies_at: Writes that are done before it dies; None: it lives.
    """

    def __init__(
        self, kube: Kube, kubeconfig: Path, namespace: str, name: str, dies_at: int | None = None
    ) -> None:
        self.kube, self.namespace, self.name = kube, namespace, name
        self.path = f"{GROUP}/namespaces/{namespace}/finetunejobs/{name}"
        self.writes: list[str] = []
        """What the operators have written, by object."""
        self.died = False
        self.ahead = timedelta(0)
        """How far the operator's clock is ahead of ours."""
        self._dies_at = dies_at
        self._loop = asyncio.new_event_loop()
        self._cluster: Any = PlayedJobs(self._loop.run_until_complete(connect(str(kubeconfig))))
        self.lag: int | None = None
        """Every look begins with a pass that sees the children as they were so many looks ago."""
        self._shown: list[Any] = []
        self.metrics = Metrics()

    def close(self) -> None:
        self._loop.run_until_complete(self._cluster.close())
        self._loop.close()

    # The operator.

    def look(self) -> None:
        """Passes until one writes nothing; after a death, those of another operator."""
        if self.lag is not None and len(self._shown) > self.lag:
            self._pass(StaleCluster(self._cluster, self._shown[-1 - self.lag]))
        for _ in range(12):
            if not self._pass(self._cluster):
                children = self._cluster.children(self.namespace, self.name)
                self._shown.append(self._loop.run_until_complete(children))
                return
        raise AssertionError(f"does not come to rest: {self.writes[-8:]}")

    def _pass(self, cluster: Any) -> bool:
        """Whether anything was written, or is still to be."""
        left = None if self._dies_at is None or self.died else self._dies_at - len(self.writes)
        cluster = DyingCluster(cluster, after=left)
        settings = builders.SETTINGS
        controller = Controller(cluster, settings, "CA", self.metrics, clock=self._now)  # type: ignore[arg-type]
        again: float | None = 0.0
        try:
            again = self._loop.run_until_complete(controller.reconcile((self.namespace, self.name)))
        except Died:
            self.died = True
        except ApiError as error:
            if error.code != 409:  # the queue would try again
                raise
        self.writes += cluster.writes
        return bool(cluster.writes) or again in (0.0, 0.1)

    def _now(self) -> str:
        return (datetime.now(UTC) + self.ahead).strftime("%Y-%m-%dT%H:%M:%SZ")

    # The Job controller and the kubelet.

    def run(self, stage: str) -> list[Json]:
        """The Job controller makes the pods of a stage, all run, and the operator sees it."""
        job = self._job(f"{self.name}-{stage}")
        made = [self._make_pod(job, index) for index in range(job["spec"]["completions"] or 1)]
        now = self._now()
        self._job_status(job, {"startTime": now, "active": len(made), "ready": len(made)})
        for pod in made:
            self.kube.run(pod)
        self.look()
        return made

    def end(self, stage: str, pods: list[Json], *ends: tuple[int, Any]) -> None:
        """The pods end, each with an exit code and what it says; their Job sums up."""
        for pod, (code, said) in zip(pods, ends, strict=True):
            self.kube.end(pod, code, said.to_message() if said else "")
        failed = sum(bool(code) for code, _ in ends)
        counts = {"active": 0, "ready": 0, "failed": failed, "succeeded": len(ends) - failed}
        job = self._job(f"{self.name}-{stage}")
        if failed:
            conditions = self._conditions("FailureTarget", "Failed")
            self._job_status(job, {**counts, "conditions": conditions})
        else:
            conditions = self._conditions("SuccessCriteriaMet", "Complete")
            done = {"completionTime": self._now(), "conditions": conditions}
            self._job_status(job, counts | done)

    def stop(self, stage: str, pods: list[Json]) -> None:
        """The pods of a stage that was suspended are gone."""
        job = self._job(f"{self.name}-{stage}")
        assert job["spec"]["suspend"] is True
        for pod in pods:
            self.kube.delete(f"{KINDS['Pod'].format(self.namespace)}/{pod['metadata']['name']}")
        stopped = {"active": 0, "ready": 0, "conditions": self._conditions("Suspended")}
        self._job_status(job, stopped)

    def _make_pod(self, job: Json, index: int) -> Json:
        template, name = job["spec"]["template"], job["metadata"]["name"]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "controller": True}
        metadata = {
            "name": f"{name}-{index}-abcde",
            "labels": template["metadata"]["labels"]
            | {"batch.kubernetes.io/job-completion-index": str(index)},
            "ownerReferences": [owner | {"uid": job["metadata"]["uid"]}],
        }
        # Nobody schedules it: there is no node, and the test says what becomes of it.
        spec = template["spec"] | {"schedulerName": "nobody"}
        path = KINDS["Pod"].format(self.namespace)
        return self.kube.create(path, {"metadata": metadata, "spec": spec})

    def _job(self, name: str) -> Json:
        found = self.kube.get(f"{KINDS['Job'].format(self.namespace)}/{name}")
        assert found is not None, f"no Job {name}"
        return found

    def _job_status(self, job: Json, status: Json) -> None:
        path = f"{KINDS['Job'].format(self.namespace)}/{job['metadata']['name']}/status"
        self.kube.patch(path, {"status": status})

    def _conditions(self, *types: str) -> list[Json]:
        held = {"status": "True", "reason": "Played", "message": "by the test"}
        now = self._now()
        times = {"lastTransitionTime": now, "lastProbeTime": now}
        return [{"type": type_, **held, **times} for type_ in types]

    def edit(self, **spec: Any) -> None:
        self.kube.patch(self.path, {"spec": spec})

    # What there is in the end.

    def end_state(self) -> Json:
        """Children and status, without what differs from life to life: names, uids, times."""
        body = self.kube.job(self.namespace, self.name)
        status = body["status"] | {"suspendedSeconds": "suspendedSeconds" in body["status"]}
        status.pop("phaseSeconds")
        # Of the settings that are there, which have the job's name and uid in them.
        name = run_config_map(self.name)
        settings = self.kube.get(f"/api/v1/namespaces/{self.namespace}/configmaps/{name}")
        assert settings is not None
        status["settingsDigest"] = status["settingsDigest"] == settings_digest(settings["data"])
        usage = status.get("usage", {})
        status["usage"] = {name: usage.get(name) for name in ("unit", "attempt", "holding")}
        children = {
            kind: sorted(self._plain(_essence(kind, item), body) for item in self.children(kind))
            for kind in KINDS
        }
        return {"status": json.loads(self._plain(status, body)), "children": children}

    def orphans(self) -> list[str]:
        """Children that would stay when the job goes: not owned by it, or by a Job of it."""
        found = {kind: self.children(kind) for kind in KINDS}
        owners = {self._uid()} | {job["metadata"]["uid"] for job in found["Job"]}
        return [
            item["metadata"]["name"]
            for items in found.values()
            for item in items
            if not owners & {o["uid"] for o in item["metadata"].get("ownerReferences", [])}
        ]

    def children(self, kind: str) -> list[Json]:
        selector = f"?labelSelector=finetune-operator.io/job={self.name}"
        return self.kube.items(KINDS[kind].format(self.namespace) + selector)

    def events(self) -> list[str]:
        """Reasons of the Events about the job, in the order of their making."""
        selector = f"?fieldSelector=involvedObject.kind=FineTuneJob,involvedObject.name={self.name}"
        found = self.kube.items(f"/api/v1/namespaces/{self.namespace}/events{selector}")
        made = sorted(found, key=lambda e: int(e["metadata"]["resourceVersion"]))
        return [e["reason"] for e in made]

    def _uid(self) -> str:
        return str(self.kube.job(self.namespace, self.name)["metadata"]["uid"])

    def _plain(self, value: Any, body: Json) -> str:
        text = json.dumps(value, sort_keys=True)
        text = text.replace(body["metadata"]["uid"], "UID").replace(self.namespace, "NAMESPACE")
        text = re.sub(rf"\b{self.name}\b", "NAME", text)
        text = re.sub(r"(NAME-[a-z]+(?:-\d+)*)-[a-z0-9]{5}\b", r"\1-SUFFIX", text)
        return TIME.sub("TIME", text)


def _essence(kind: str, item: Json) -> Json:
    """What the operator has asked for, and of pods what became of them."""
    found: Json = {"name": item["metadata"]["name"]}
    if kind == "Pod":
        return found | {"phase": item["status"]["phase"]}
    if kind == "ConfigMap":
        return found | {"data": item["data"]}
    if kind == "Job":
        spec = item["spec"]
        return found | {"suspend": spec["suspend"], "completions": spec["completions"]}
    return found

"""Kubernetes without nodes of its own making: Job controller, garbage collector, scheduler and
kubelets of the modelled cluster."""

from __future__ import annotations

from dataclasses import replace

import builders
from model_api import ModelApi
from model_objects import GRACE_SECONDS, Json, ModelJob, ModelPod

from finetune_api.outcome import Outcome

NODES = ("node-a", "node-b", "node-c")
CPU_RETRIES = 2


class ModelKubernetes:
    """What Kubernetes makes of the Jobs of one FineTuneJob, a step at a time."""

    def __init__(self, api: ModelApi, counts_stopped: bool = False) -> None:
        self.api = api
        self.counts_stopped = counts_stopped
        """The Job controller calls a suspended gang's stopped pods a failure (some releases do)."""
        self.at_once = 99
        """Pods of a Job that are made in one step."""
        self.count = 0
        """Pods ever made."""
        self.down: set[str] = set()
        self.full = False
        """No node takes another pod."""

    # The Job controller and the garbage collector.

    def controllers(self, choice: int = 1) -> None:
        """Every Job gets one step further; now and then the pods come one by one."""
        self.at_once = 1 if choice % 4 == 0 else 99
        for job in list(self.api.jobs.values()):
            self._sync(job)
        known = {job.uid for job in self.api.jobs.values()}
        for pod in self._pods():
            if pod.job_uid not in known:
                self._orphan(pod)

    def _sync(self, job: ModelJob) -> None:
        if job.state == "Active":
            job = self._count(job)
            pods = self._pods(job)
            done = {p.index for p in pods if p.phase == "Succeeded"}
            if job.failing:
                self._stop(pods)
                if not any(p.alive for p in pods):
                    self._put(replace(job, state="Failed", ended=self.api.clock))
            elif len(done) == job.size:
                self._put(replace(job, state="Complete", ended=self.api.clock))
            elif job.suspend:
                self._stop(pods)
                self._put(replace(job, acknowledged=True))
            else:
                started = self.api.clock if job.acknowledged or not job.started else job.started
                self._put(replace(job, acknowledged=False, started=started))
                self._create(job, pods, done)
        for pod in self._pods(job):
            if pod.deleted and not pod.alive:
                del self.api.pods[pod.name]

    def _count(self, job: ModelJob) -> ModelJob:
        """What its failed pods mean for a Job."""
        limit = 0 if job.stage == "train" else CPU_RETRIES
        failed = [p for p in self._pods(job) if p.phase == "Failed" and not p.counted]
        for pod in sorted(failed, key=lambda p: not self._action(job, p)):
            self._put_pod(replace(pod, counted=True))
            action = self._action(job, pod)
            if action == "Ignore" or (job.suspend and not self.counts_stopped):
                continue
            job = replace(job, failures=job.failures + 1)
            if action or job.failures > limit:
                why = action or "reached the backoff limit"
                job = replace(job, failing=job.failing or why)
        return self._put(job)

    def _create(self, job: ModelJob, pods: list[ModelPod], done: set[int]) -> None:
        taken = done | {p.index for p in pods if p.alive}
        template = job.manifest["spec"]["template"]
        for index in [i for i in range(job.size) if i not in taken][: self.at_once]:
            self.count += 1
            name = f"{job.name}-{index}-{self.count:05}"
            self.api.pods[name] = ModelPod(
                name=name,
                job=job.name,
                job_uid=job.uid,
                index=index,
                labels=template["metadata"]["labels"],
                not_on=_kept_off(template["spec"]),
            )

    def _action(self, job: ModelJob, pod: ModelPod) -> str:
        """By the Job's own failure policy: `Ignore`, why it fails at once, or nothing."""
        for index, rule in enumerate(job.manifest["spec"]["podFailurePolicy"]["rules"]):
            on_code = rule.get("onExitCodes", {}).get("values", [])
            on_condition = [c["type"] for c in rule.get("onPodConditions", [])]
            if pod.exit_code in on_code:
                return f"pod {pod.name} failed with exit code {pod.exit_code}"
            if pod.disrupted and on_condition == ["DisruptionTarget"]:
                why = f"Pod {pod.name} has condition DisruptionTarget matching rule {index}"
                return "Ignore" if rule["action"] == "Ignore" else why
        return ""

    def _orphan(self, pod: ModelPod) -> None:
        if not pod.alive:
            del self.api.pods[pod.name]
        else:
            self._delete(pod)

    def _delete(self, pod: ModelPod, **more: bool) -> ModelPod:
        """Tell a pod to go; once is enough."""
        if pod.leaves is None:
            pod = replace(pod, leaves=self.api.clock + GRACE_SECONDS)
        self._put_pod(replace(pod, **more))
        return pod

    def _stop(self, pods: list[ModelPod]) -> None:
        for pod in pods:
            if pod.alive:
                self._delete(pod)

    # The kubelets and the scheduler.

    def kubelets(self, choice: int = 0) -> None:
        """Every pod on a node that is up gets one step further."""
        for number, name in enumerate(list(self.api.pods)):
            pod = self.api.pods[name]
            if pod.node in self.down:
                continue
            if pod.deleted and pod.alive:
                if choice % 2:
                    self._cascade(pod)  # its peers notice before the Job controller does
                self._end(pod, 143, builders.failure("Stopped", "asked to stop", self.api.clock))
            elif pod.phase == "Pending" and pod.node is None:
                free = [n for n in NODES if n not in self.down and n not in pod.not_on]
                if self.full or not free:
                    self._put_pod(replace(pod, waiting="0/3 nodes are available"))
                else:
                    node = free[(choice + number) % len(free)]
                    clock = self.api.clock
                    self._put_pod(replace(pod, node=node, bound=clock, waiting=None))
            elif pod.phase == "Pending":
                self._put_pod(replace(pod, phase="Running", waiting=None))
                self._started(pod)

    def _cascade(self, dead: ModelPod) -> None:
        """The peers of a worker fail."""

    def _started(self, pod: ModelPod) -> None:
        """A pod has begun to run."""

    def _end(self, pod: ModelPod, code: int, said: Outcome | None = None, **more: str) -> None:
        phase = "Failed" if code else "Succeeded"
        ended = {"phase": phase, "exit_code": code, "said": said, "ended": self.api.clock}
        self._put_pod(replace(pod, **ended, **more))

    # Look-ups.

    def _pods(self, job: ModelJob | None = None) -> list[ModelPod]:
        found = self.api.pods.values()
        return [p for p in found if job is None or p.job_uid == job.uid]

    def _active(self, *stages: str) -> list[ModelJob]:
        return [j for j in self.api.jobs.values() if j.state == "Active" and j.stage in stages]

    def _running(self, job: ModelJob) -> list[ModelPod]:
        found = self._pods(job)
        return [p for p in found if p.phase == "Running" and p.node not in self.down]

    def _gang(self) -> list[ModelPod]:
        """The workers, if all of them run."""
        for job in self._active("train"):
            found = self._running(job)
            if len(found) == job.size and not any(p.deleted for p in found):
                return sorted(found, key=lambda p: p.index)
        return []

    def _one_of(self, pods: list[ModelPod], choice: int, *phases: str) -> ModelPod | None:
        found = [p for p in pods if p.phase in phases and not p.deleted]
        return found[choice % len(found)] if found else None

    def _put(self, job: ModelJob) -> ModelJob:
        self.api.jobs[job.name] = job
        return job

    def _put_pod(self, pod: ModelPod) -> None:
        self.api.pods[pod.name] = pod


def _kept_off(spec: Json) -> tuple[str, ...]:
    """Nodes that a pod's affinity rules out."""
    wanted = spec.get("affinity", {}).get("nodeAffinity", {})
    rule = wanted.get("requiredDuringSchedulingIgnoredDuringExecution", {})
    fields = [f for term in rule.get("nodeSelectorTerms", []) for f in term["matchFields"]]
    return tuple(name for field in fields for name in field["values"])

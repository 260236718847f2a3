"""Training, bad luck and people around one FineTuneJob. Each public method is one thing that can
happen; `choice` (any number) says to which pod, or how."""

from __future__ import annotations

import builders
from model_api import ModelApi
from model_kubernetes import NODES, ModelKubernetes
from model_objects import ModelPod

from finetune_api.progress import TrainerStatus
from finetune_operator import names
from finetune_operator.progress import Rejected, merge
from finetune_operator.reconcile import parse_job
from finetune_operator.usage import report_part, reported

TOTAL_STEPS = 40


class ModelWorld(ModelKubernetes):
    """Kubernetes, and what happens to it."""

    def __init__(self, api: ModelApi, counts_stopped: bool = False) -> None:
        super().__init__(api, counts_stopped)
        self.step = 0
        self.saved = 0
        """The last checkpoint's step: what a new attempt goes on from."""
        self.ran: set[int] = set()
        """Attempts whose workers all ran before the job was over."""
        self.excuses: set[str] = set()
        """What has happened that may end the job as failed."""

    def _started(self, pod: ModelPod) -> None:
        if pod.index == 0 and pod.labels[names.LABEL_STAGE] == "train":
            self.step = self.saved
        if "completionTime" not in self.api.status:
            self.ran |= {int(p.labels[names.LABEL_ATTEMPT]) for p in self._gang()}

    # Training, and the CPU stages.

    def work(self, choice: int = 0) -> None:
        """The gang takes some steps and reports; a CPU stage gets done."""
        gang = self._gang()
        if gang:
            self.step = min(TOTAL_STEPS, self.step + choice % 7)
            if choice % 3 == 0:
                self.saved = self.step
            self._report(gang[0])
        for job in self._active("prepare", "export"):
            for pod in self._running(job):
                if not pod.deleted:
                    self._end(pod, 0, builders.OUTCOMES[job.stage])

    def finish(self, choice: int = 0) -> None:
        """The gang reaches its last step."""
        gang = self._gang()
        for pod in gang:
            self._end(pod, 0, builders.OUTCOMES["train"] if pod.index == 0 else None)
        if gang:
            self.saved = TOTAL_STEPS

    def _report(self, pod: ModelPod) -> None:
        """As the operator's endpoint takes it."""
        attempt = int(pod.labels[names.LABEL_ATTEMPT])
        job = parse_job(self.api.body)
        if job.status.phase in ("Succeeded", "Failed") or attempt < (job.status.attempt or 0):
            return
        said = {"current_step": self.step, "total_steps": TOTAL_STEPS, "loss": 2.0}
        metrics = [{"name": name, "value": str(value)} for name, value in said.items()]
        report = TrainerStatus.parse(
            {"progressPercentage": 100 * self.step // TOTAL_STEPS, "metrics": metrics}
        )
        new = merge(job.status.progress, report, attempt, self.api.now())
        if new is not None and not isinstance(new, Rejected):
            call = self.api.apply_status(
                job.namespace,
                job.name,
                report_part(reported(job.status, new)),
                names.PROGRESS_FIELD_OWNER,
            )
            run(call)

    # Bad luck.

    def kill(self, choice: int) -> None:
        """A process dies of a signal; its peers notice some time later."""
        pod = self._one_of(self._pods(), choice, "Running")
        if pod:
            self.excuses.add("kill")
            self._end(pod, 137)
            self._cascade(pod)

    def memory(self, choice: int) -> None:
        pod = self._one_of(self._pods(), choice, "Running")
        if pod:
            self.excuses.add("user")
            self._end(pod, 137, reason="OOMKilled")
            self._cascade(pod)

    def user_error(self, choice: int) -> None:
        pod = self._one_of(self._pods(), choice, "Running")
        if pod:
            self.excuses.add("user")
            self._end(pod, 11, builders.failure("Data", "line 3: not JSON", self.api.clock))
            self._cascade(pod)

    def _cascade(self, dead: ModelPod) -> None:
        lost = builders.failure("PeerLost", "a peer is gone", self.api.clock + 1)
        for pod in self._pods():
            same = pod.job_uid == dead.job_uid and pod.phase == "Running"
            if same and pod.node not in self.down and pod.name != dead.name:
                self._end(pod, 205, lost)

    def drain(self, choice: int) -> None:
        """A node is drained: its pods are told to go, and are marked; their peers on other nodes
        may give up before them."""
        for pod in self._pods():
            if pod.node == NODES[choice % len(NODES)] and pod.alive:
                self.excuses.add("drain")
                self._delete(pod, disrupted=True)
                if choice % 2:
                    self._cascade(pod)

    def node_down(self, choice: int) -> None:
        """A node stops to answer; later its pods are marked, but nothing ends there."""
        node = NODES[choice % len(NODES)]
        if len(self.down) < len(NODES) - 1:
            self.down.add(node)
        elif node in self.down:
            self.drain(choice)

    def nodes_up(self, choice: int = 0) -> None:
        self.down.clear()
        self.full = False

    def cluster_full(self, choice: int) -> None:
        self.full = True

    def delete_pod(self, choice: int) -> None:
        pod = self._one_of(self._pods(), choice, "Running", "Pending")
        if pod:
            self.excuses.add("kill")
            self._delete(pod)

    def delete_job(self, choice: int) -> None:
        """Somebody deletes a Kubernetes Job of ours."""
        jobs = list(self.api.jobs.values())
        if jobs:
            self.excuses.add("kill")
            del self.api.jobs[jobs[choice % len(jobs)].name]

    def delete_config(self, choice: int) -> None:
        for key in list(self.api.others):
            if key[0] == "ConfigMap":
                self.excuses.add("config")
                del self.api.others[key]

    # People.

    def suspend(self, choice: int = 0) -> None:
        self.api.edit(suspend=True)

    def resume(self, choice: int = 0) -> None:
        self.api.edit(suspend=False)

    def deadline(self, choice: int) -> None:
        limit = (None, 60, 3600, 86_400)[choice % 4]
        if limit:
            self.excuses.add("deadline")
        field = ("activeDeadlineSeconds", "startupDeadlineSeconds")[choice // 4 % 2]
        self.api.edit(**{field: limit})

    def ttl(self, choice: int) -> None:
        limit = (None, 60, 3600)[choice % 3]
        both = {"succeeded": limit, "failed": limit} if limit else None
        self.api.edit(ttlSecondsAfterFinished=both)

    def edit(self, choice: int) -> None:
        """Something that only a job which has not started may change."""
        self.api.edit(training={"globalBatchSize": (32, 64)[choice % 2]})

    def profile(self, choice: int) -> None:
        image = f"example/finetune-trainer:{choice % 3}"
        self.api.profile_specs = {"standard": builders.PROFILE | {"image": image}}


def run(call: object) -> object:
    """A coroutine that never waits, to its end."""
    try:
        call.send(None)  # type: ignore[attr-defined]
    except StopIteration as done:
        return done.value
    raise AssertionError("the modelled cluster never waits")

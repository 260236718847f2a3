"""Jobs in many phases on a real API server with the real operator; the kubelet is played."""

from __future__ import annotations

import time
from typing import Any

import builders
from kube import GROUP, Kube, eventually

from finetune_api.outcome import Outcome
from finetune_operator import names

Json = dict[str, Any]
SPEC: Json = {
    "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
    "dataset": {"uri": "pvc://team-data/docs.jsonl"},
    "workers": {"numNodes": 2},
}


class Player:
    """Plays the kubelet and the trainer for the jobs of one namespace."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube, self.namespace = kube, namespace

    def submit(self, name: str, **spec: Any) -> None:
        body = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": "FineTuneJob"}
        body |= {"metadata": {"name": name}, "spec": SPEC | spec}
        self._kube.create(f"{GROUP}/namespaces/{self.namespace}/finetunejobs", body)

    def pods(self, job: str, count: int) -> list[Json]:
        """The pods of a stage's Kubernetes Job, once they are there."""

        def made() -> list[Json] | None:
            found = self._kube.pods(self.namespace, job)
            return found if len(found) == count else None

        found: list[Json] = eventually(f"{count} pods of {job}", made)
        return found

    def phase(self, name: str, wanted: str) -> Json:
        """The status, once the job has a phase."""

        def reached() -> Json | None:
            status: Json = self._kube.job(self.namespace, name).get("status", {})
            return status if status.get("phase") == wanted else None

        found: Json = eventually(f"{name} to be {wanted}", reached)
        return found

    def stage(self, job: str, count: int, outcome: str) -> None:
        """All pods of a stage run and end well."""
        for pod in self.pods(job, count):
            self._kube.run(pod)
            self._kube.end(pod, 0, builders.OUTCOMES[outcome].to_message())

    def train(self, name: str, step: int = 0, workers: int = 2, activity: str = "Training") -> None:
        """To a training that has reported a step of 40."""
        self.stage(f"{name}-prepare", 1, "prepare")
        for pod in self.pods(f"{name}-train-0", workers):
            self._kube.run(pod)
        self.phase(name, "Running")
        if step:
            self.report(name, step, activity)

    def report(self, name: str, step: int, activity: str = "Training") -> None:
        """Progress, as the operator writes it."""
        history = [{"step": s, "loss": round(1.0 + 2.4 * 0.93**s, 4)} for s in range(1, step + 1)]
        progress = {
            "attempt": 0,
            "step": step,
            "totalSteps": 40,
            "percent": step * 100 // 40,
            "etaSeconds": (40 - step) * 7,
            "loss": history[-1]["loss"],
            "learningRate": 2e-4,
            "tokensPerSecond": 812.5,
            "activity": activity,
            "lastUpdateTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "history": history,
        }
        path = f"{GROUP}/namespaces/{self.namespace}/finetunejobs/{name}/status"
        body = {
            "apiVersion": "finetune-operator.io/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": name, "namespace": self.namespace},
            "status": {"progress": progress},
        }
        query = f"?fieldManager={names.PROGRESS_FIELD_OWNER}&force=true"
        code, answer = self._kube.call("PATCH", path + query, body, "application/apply-patch+yaml")
        assert code == 200, answer

    def fail(self, name: str, outcome: Outcome, code: int) -> None:
        """The second worker fails, its peer loses it."""
        first, second = self.pods(f"{name}-train-0", 2)
        self._kube.end(second, code, outcome.to_message())
        lost = builders.failure("PeerLost", "lost rank 1", time.time() + 1, rank=0)
        self._kube.end(first, 205, lost.to_message())
        self.phase(name, "Failed")

    def succeed(self, name: str) -> None:
        """From training to the end."""
        self.stage(f"{name}-train-0", 2, "train")
        self.stage(f"{name}-export", 1, "export")
        self.phase(name, "Succeeded")


def many_phases(player: Player) -> None:
    """One job of every kind that people ask about."""
    player.submit("docs-assistant")
    player.submit("support-style", training={"learningRate": 1e-4})
    player.submit("code-review", training={"learningRate": 0.01})
    player.submit("translations")
    player.submit("triage", profile="h100")
    player.submit("summaries", suspend=True)
    player.train("docs-assistant", 26)
    player.train("support-style", 40, activity="Done")
    player.succeed("support-style")
    player.train("code-review", 9)
    words = "the loss is not a number at step 9; lower spec.training.learningRate"
    diverged = builders.failure("Diverged", words, time.time(), rank=1, logTail="step 9 loss nan")
    player.fail("code-review", diverged, 14)
    player.pods("translations-prepare", 1)
    player.phase("triage", "Pending")
    player.phase("summaries", "Suspended")

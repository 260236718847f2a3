"""A test that plays the kubelet for a job called `docs`, and reports as its pods would."""

from __future__ import annotations

from typing import Any

import builders
import requests
from kube import GROUP, Kube, eventually
from operator_process import Operator

from finetune_api.progress import audience, status_path

Json = dict[str, Any]


def apply(kube: Kube, namespace: str, **spec: Any) -> None:
    body = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "docs"},
        "spec": {
            "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
            "dataset": {"uri": "pvc://team-data/docs.jsonl"},
            "workers": {"numNodes": 2},
            **spec,
        },
    }
    kube.create(f"{GROUP}/namespaces/{namespace}/finetunejobs", body)


def pods(kube: Kube, namespace: str, job: str, count: int = 1) -> list[Json]:
    """The pods of a stage, once the Job controller has made them."""

    def found() -> list[Json] | None:
        made = kube.pods(namespace, job)
        return made if len(made) == count else None

    made: list[Json] = eventually(f"{count} pods of {job}", found)
    return made


def phase(kube: Kube, namespace: str, wanted: str, seconds: float = 30) -> Json:
    """The job, once it is in a phase."""

    def reached() -> Json | None:
        body = kube.job(namespace, "docs")
        return body if body.get("status", {}).get("phase") == wanted else None

    try:
        body: Json = eventually(f"phase {wanted}", reached, seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}; {kube.job(namespace, 'docs').get('status')}") from None
    return body


def to_training(kube: Kube, namespace: str) -> list[Json]:
    """Play prepare; the two training pods."""
    (prepare,) = pods(kube, namespace, "docs-prepare")
    kube.run(prepare)
    kube.end(prepare, 0, builders.OUTCOMES["prepare"].to_message())
    return pods(kube, namespace, "docs-train-0", 2)


def running(kube: Kube, namespace: str) -> list[Json]:
    """Play prepare and let both workers run; these."""
    workers = to_training(kube, namespace)
    for worker in workers:
        kube.run(worker)
    phase(kube, namespace, "Running")
    return workers


class Reporter:
    """A training pod's way to report: a token that the API server made for that pod and job."""

    def __init__(self, kube: Kube, operator: Operator, namespace: str, pod: Json) -> None:
        self._kube, self._operator, self._namespace = kube, operator, namespace
        self.token = self.make_token(audience(namespace, "docs"), pod)

    def make_token(self, wanted: str, pod: Json, seconds: int = 3600) -> str:
        """A real token, bound to a pod; 600 seconds are the least that the API server grants."""
        bound = {"kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"]}
        bound["uid"] = pod["metadata"]["uid"]
        account = f"/api/v1/namespaces/{self._namespace}/serviceaccounts/default"
        spec = {"audiences": [wanted], "boundObjectRef": bound, "expirationSeconds": seconds}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        token: str = self._kube.create(f"{account}/token", body)["status"]["token"]
        return token

    def post(self, body: Any, token: str | None = None, job: str = "docs") -> tuple[int, str]:
        """Status and message of the answer."""
        answer = self.send(body, token, job)
        return answer.status_code, answer.json().get("message", "")

    def send(self, body: Any, token: str | None = None, job: str = "docs") -> requests.Response:
        """The answer to a report."""
        url = f"https://127.0.0.1:{self._operator.progress_port}"
        return requests.post(
            url + status_path(self._namespace, job),
            data=body if isinstance(body, bytes) else None,
            json=None if isinstance(body, bytes) else body,
            headers={"Authorization": f"Bearer {token or self.token}"},
            verify=str(self._operator.ca),
            timeout=10,
        )


def report(percent: int, step: int, loss: float | str = 2.5) -> Json:
    """A report of 40 steps."""
    metrics = {"current_step": step, "total_steps": 40, "loss": loss, "tokens_per_second": 500}
    return {
        "trainerStatus": {
            "progressPercentage": percent,
            "estimatedRemainingSeconds": 60,
            "metrics": [{"name": k, "value": str(v)} for k, v in metrics.items()],
        }
    }

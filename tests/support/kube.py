"""A small synchronous client for tests, and the part of the kubelet that tests play themselves."""

from __future__ import annotations

import base64
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests
import yaml

ROOT = Path(__file__).parents[2]
Json = dict[str, Any]
GROUP = "/apis/finetune-operator.io/v1alpha1"


def kubeconfig() -> Path:
    """The cluster of the end-to-end tests: the one that KUBECONFIG names, else our own."""
    return Path(os.environ.get("KUBECONFIG", ROOT / ".cluster" / "kubeconfig"))


class Kube:
    """Requests by path, as an administrator."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server: str = cluster["server"]
        self._directory = tempfile.TemporaryDirectory()
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = self._file("ca", cluster["certificate-authority-data"])
        self._session.cert = (
            self._file("crt", user["client-certificate-data"]),
            self._file("key", user["client-key-data"]),
        )

    def _file(self, name: str, data: str) -> str:
        path = Path(self._directory.name) / name
        path.write_bytes(base64.b64decode(data))
        return str(path)

    def call(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, Json]:
        """HTTP status and body; a path that is not served (yet) is answered in plain text."""
        headers = {"Content-Type": content_type}
        data = None if body is None else json.dumps(body)
        answer = self._session.request(
            method, self.server + path, data=data, headers=headers, timeout=30
        )
        is_json = answer.headers.get("Content-Type", "").startswith("application/json")
        return answer.status_code, answer.json() if is_json else {"message": answer.text}

    def get(self, path: str) -> Json | None:
        code, body = self.call("GET", path)
        assert code in (200, 404), body
        return body if code == 200 else None

    def items(self, path: str) -> list[Json]:
        code, body = self.call("GET", path)
        assert code == 200, body
        found: list[Json] = body["items"]
        return found

    def watch(self, path: str) -> Iterator[Json]:
        """The events of one watch, until the API server ends it."""
        with self._session.get(self.server + path, stream=True, timeout=60) as answer:
            assert answer.status_code == 200, answer.text
            for line in answer.iter_lines(chunk_size=None):
                yield json.loads(line)

    def create(self, path: str, body: Json) -> Json:
        code, answer = self.call("POST", path, body)
        assert code == 201, answer
        return answer

    def delete(self, path: str) -> None:
        code, answer = self.call("DELETE", path)
        assert code in (200, 202), answer

    def patch(self, path: str, body: Json) -> Json:
        code, answer = self.call("PATCH", path, body, "application/merge-patch+json")
        assert code == 200, answer
        return answer

    def namespace(self, name: str, **labels: str) -> str:
        self.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        return name

    def job(self, namespace: str, name: str) -> Json:
        found = self.get(f"{GROUP}/namespaces/{namespace}/finetunejobs/{name}")
        assert found is not None
        return found

    def pods(self, namespace: str, job: str) -> list[Json]:
        """Pods of a Kubernetes Job, by index."""
        selector = f"?labelSelector=batch.kubernetes.io/job-name={job}"
        found = self.items(f"/api/v1/namespaces/{namespace}/pods{selector}")
        return sorted(found, key=lambda pod: pod["metadata"]["name"])

    # What a kubelet says of its pods.

    def run(self, pod: Json) -> None:
        self._pod_status(pod, "Running", {"running": {"startedAt": now()}})

    def end(self, pod: Json, exit_code: int, message: str = "") -> None:
        ended = {"exitCode": exit_code, "message": message, "finishedAt": now()}
        phase = "Failed" if exit_code else "Succeeded"
        self._pod_status(pod, phase, {"terminated": ended})

    def _pod_status(self, pod: Json, phase: str, state: Json) -> None:
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        container = pod["spec"]["containers"][0]
        status = {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": phase == "Running",
            "restartCount": 0,
            "state": state,
        }
        self.patch(f"{path}/status", {"status": {"phase": phase, "containerStatuses": [status]}})


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def eventually(what: str, check: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The first true answer of `check`; fails after a deadline with the last one."""
    end = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds} s: {what}; last: {found!r}"
        time.sleep(0.1)

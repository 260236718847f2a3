"""The operator's progress endpoint by itself, over TLS: `python progress_endpoint.py DIRECTORY`.

Real are the server, the intake and its rules; the cluster behind it has one job, whose token and
attempt are in files of DIRECTORY. Leaves there `ca.crt`, `port`, and a line of JSON for each report
that was taken (`taken.jsonl`) and for each that was refused (`refused.jsonl`).
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, cast

import builders
from aiohttp import web
from tls import self_signed

from finetune_api.progress import ENV_CA_CERT, ENV_TOKEN, ENV_URL, audience, status_path
from finetune_api.status import Progress
from finetune_operator.certificates import Certificates
from finetune_operator.cluster import ApiError, Caller, Cluster
from finetune_operator.controller import now
from finetune_operator.metrics import Key, Metrics
from finetune_operator.progress_server import ProgressEndpoint, progress_app, serve

Json = dict[str, Any]


class OneJob:
    """A cluster with the job `team-a/docs`, one pod of which may report."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._writes = directory, 0
        self._progress: Json = {}

    def _attempt(self) -> int:
        return int((self._directory / "attempt").read_text())

    def _version(self) -> int:
        """Another attempt is another version of the job."""
        return 1 + 1000 * self._attempt() + self._writes

    async def review_token(self, token: str, wanted: str) -> Caller | None:
        mine = (self._directory / "token").read_text()
        if (token, wanted) != (mine, audience("team-a", "docs")):
            return None
        return Caller("team-a", "docs-train", f"uid-{self._attempt()}")

    async def pod(self, namespace: str, name: str) -> Json:
        labels = {
            "finetune-operator.io/job": "docs",
            "finetune-operator.io/stage": "train",
            "finetune-operator.io/attempt": str(self._attempt()),
        }
        return {"metadata": {"uid": f"uid-{self._attempt()}", "labels": labels}}

    async def owns(self, namespace: str, pod: Json, uid: str) -> bool:
        return True

    async def job(self, namespace: str, name: str) -> Json:
        status = {"phase": "Running", "attempt": self._attempt(), **self._progress}
        body = builders.job_body(status=status)
        return body | {"metadata": body["metadata"] | {"resourceVersion": str(self._version())}}

    async def report_progress(
        self, namespace: str, name: str, part: Json, version: int, uid: str
    ) -> int:
        if version != self._version():
            raise ApiError(409, "the object has been modified")
        self._progress, self._writes = part, self._writes + 1
        return self._version()


class Written(Metrics):
    """Leaves what it is told in a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.lead()
        self._path = path

    def report(self, key: Key, progress: Progress) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(progress.to_json_dict()) + "\n")


async def run(directory: Path) -> None:
    """Serve until it is killed."""
    self_signed(directory)
    metrics = Written(directory / "taken.jsonl")
    endpoint = ProgressEndpoint(cast("Cluster", OneJob(directory)), metrics, now)
    app = progress_app(endpoint)

    async def note(_: web.Request, answer: web.StreamResponse) -> None:
        if answer.status != 200 and isinstance(answer, web.Response):
            with (directory / "refused.jsonl").open("a") as file:
                file.write(f"{answer.text}\n")

    app.on_response_prepare.append(note)
    runner = await serve(app, "127.0.0.1", 0, Certificates(directory).context)
    url = f"https://127.0.0.1:{runner.addresses[0][1]}{status_path('team-a', 'docs')}"
    found = {
        ENV_URL: url,
        ENV_CA_CERT: str(directory / "ca.crt"),
        ENV_TOKEN: str(directory / "token"),
    }
    (directory / "env.partial").write_text(json.dumps(found))
    (directory / "env.partial").rename(directory / "env.json")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1])))

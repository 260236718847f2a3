"""Reports that meet a job which changes meanwhile, on a leader and on a standby."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import aiohttp
import builders
import pytest

from finetune_api.progress import status_path
from finetune_operator.cluster import ApiError, Caller, Cluster
from finetune_operator.lease import LeaseLostError
from finetune_operator.metrics import Metrics
from finetune_operator.progress_server import CONFLICTS, ProgressEndpoint, progress_app, serve

Json = dict[str, Any]
REPORT = {
    "trainerStatus": {
        "progressPercentage": 25,
        "metrics": [{"name": "current_step", "value": "10"}],
    }
}


class Reported:
    """A cluster with one running job whose pod reports; `refusals` come before writes are taken."""

    def __init__(self, *refusals: Exception) -> None:
        self.refusals = list(refusals)
        self.versions: list[int] = []
        self.written: Json | None = None
        self.body = builders.job_body(status={"phase": "Running", "attempt": 0})

    async def review_token(self, token: str, audience: str) -> Caller:
        return Caller("team-a", "docs-train-0-0", "uid-pod")

    async def pod(self, namespace: str, name: str) -> Json:
        labels = {"finetune-operator.io/job": "docs", "finetune-operator.io/stage": "train"}
        return {"metadata": {"uid": "uid-pod", "labels": labels}}

    async def owns(self, namespace: str, pod: Json, uid: str) -> bool:
        return True

    async def job(self, namespace: str, name: str) -> Json:
        version = str(len(self.versions) + 7)
        return self.body | {"metadata": self.body["metadata"] | {"resourceVersion": version}}

    async def report_progress(self, namespace: str, name: str, part: Json, version: int) -> Json:
        self.versions.append(version)
        if self.refusals:
            raise self.refusals.pop(0)
        self.written = part["progress"]
        status = self.body["status"] | part
        return await self.job(namespace, name) | {"status": status}


def post(cluster: Reported, metrics: Metrics) -> int:
    """The HTTP status of one report."""

    async def run() -> int:
        endpoint = ProgressEndpoint(cast("Cluster", cluster), metrics, lambda: builders.NOW)
        runner = await serve(progress_app(endpoint), "127.0.0.1", 0)
        url = f"http://127.0.0.1:{runner.addresses[0][1]}{status_path('team-a', 'docs')}"
        headers = {"Authorization": "Bearer token"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=REPORT, headers=headers) as answer,
        ):
            code = answer.status
        await runner.cleanup()
        return code

    return asyncio.run(run())


def conflict() -> ApiError:
    return ApiError(409, "the object has been modified")


def test_a_report_that_meets_a_change_is_merged_anew_with_what_is_there_then() -> None:
    cluster = Reported(conflict(), conflict())
    assert post(cluster, Metrics()) == 200
    assert cluster.versions == [7, 8, 9]
    assert cluster.written is not None
    assert (cluster.written["step"], cluster.written["percent"]) == (10, 25)


def test_a_report_that_meets_changes_without_end_is_to_be_sent_again() -> None:
    cluster = Reported(*[conflict() for _ in range(CONFLICTS)])
    assert (post(cluster, Metrics()), cluster.written) == (503, None)


def test_a_former_leader_takes_no_report() -> None:
    cluster = Reported(LeaseLostError("not the leader (any more)"))
    assert (post(cluster, Metrics()), cluster.written) == (503, None)


@pytest.mark.parametrize("leads", [True, False])
def test_only_the_leader_shows_what_was_reported(leads: bool) -> None:
    metrics = Metrics()
    if leads:
        metrics.lead()
    assert post(Reported(), metrics) == 200
    assert (("team-a", "docs") in metrics.statuses()) is leads

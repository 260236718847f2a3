"""What a pass does when the API server says no: a cluster in memory that refuses on request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import builders
import pytest
from simulation import SimulatedCluster

from finetune_operator import names
from finetune_operator.cluster import ApiError, Cluster
from finetune_operator.controller import Controller
from finetune_operator.lease import LeaseLostError
from finetune_operator.metrics import Metrics

Json = dict[str, Any]
KEY = ("team-a", "docs")


class OneJob:
    """A cluster with one job, and resource versions for it."""

    def __init__(self) -> None:
        self.simulation = SimulatedCluster(builders.job_body(), builders.world())
        self.events: list[str] = []
        self.before_status: list[Exception] = []
        """Raised by the next writes of the status, instead of writing."""
        self.answer_is_lost = False

    @property
    def _metadata(self) -> Json:
        found: Json = self.simulation.body["metadata"]
        return found

    def someone_writes(self) -> None:
        self._metadata["resourceVersion"] = str(int(self._metadata["resourceVersion"]) + 1)

    async def job(self, namespace: str, name: str) -> Json:
        return self.simulation.body | {"metadata": dict(self._metadata)}

    async def run_config_map(self, namespace: str, job: str) -> Json | None:
        return self.simulation.objects.get(("ConfigMap", f"{job}-run"))

    async def children(self, namespace: str, job: str) -> tuple[list[Json], list[Json]]:
        jobs = [o for (kind, _), o in self.simulation.objects.items() if kind == "Job"]
        return jobs, self.simulation.pods

    async def events_about(self, namespace: str, uids: Sequence[str]) -> list[Json]:
        return []

    async def profiles(self) -> list[Json]:
        return [{"metadata": {"name": "standard"}, "spec": builders.PROFILE}]

    async def apply(self, manifest: Json) -> None:
        self.simulation._apply(manifest)

    async def apply_status(
        self, namespace: str, name: str, status: Json, owner: str, version: int
    ) -> Json:
        if self.before_status:
            raise self.before_status.pop(0)
        if str(version) != self._metadata["resourceVersion"]:
            raise ApiError(409, "the object has been modified")
        assert owner == names.FIELD_OWNER
        self.simulation.body["status"] = status
        self.someone_writes()
        if self.answer_is_lost:  # and was sent again: the first one has been taken
            raise ApiError(409, "the object has been modified")
        return await self.job(namespace, name)

    async def post_event(self, event: Json) -> None:
        self.events.append(event["reason"])


@pytest.fixture
def cluster() -> OneJob:
    return OneJob()


@pytest.fixture
def controller(cluster: OneJob) -> Controller:
    return Controller(cast("Cluster", cluster), builders.SETTINGS, "CA", Metrics())


def one_pass(controller: Controller) -> float | None:
    return asyncio.run(controller.reconcile(KEY))


def errors(controller: Controller) -> float | None:
    return controller.metrics.registry.get_sample_value("finetune_reconcile_errors_total")


def test_a_pass_over_a_job_that_changes_meanwhile_is_repeated_and_tells_nothing_before(
    cluster: OneJob, controller: Controller
) -> None:
    listed = cluster.profiles

    async def profiles() -> list[Json]:
        cluster.someone_writes()
        return await listed()

    cluster.profiles = profiles  # type: ignore[method-assign]
    with pytest.raises(ApiError, match="409"):
        one_pass(controller)
    assert cluster.events == []
    assert "status" not in cluster.simulation.body
    assert errors(controller) == 0, "nothing is wrong"
    cluster.profiles = listed  # type: ignore[method-assign]
    one_pass(controller)
    assert cluster.events == ["Preparing"]


def test_a_write_that_was_taken_although_its_answer_was_lost_is_followed_by_its_event(
    cluster: OneJob, controller: Controller
) -> None:
    cluster.answer_is_lost = True
    one_pass(controller)
    assert cluster.events == ["Preparing"]


def test_a_pause_that_the_api_server_asks_for_is_the_pause_until_the_next_pass(
    cluster: OneJob, controller: Controller
) -> None:
    cluster.before_status = [ApiError(429, "too many requests", 42.0)]
    assert (one_pass(controller), errors(controller)) == (42.0, 1)


def test_a_pass_that_fails_is_an_error_that_the_queue_hears_of(
    cluster: OneJob, controller: Controller
) -> None:
    cluster.before_status = [ApiError(500, "broken")]
    with pytest.raises(ApiError, match="500: broken"):
        one_pass(controller)
    assert errors(controller) == 1


def test_a_pass_that_may_not_write_any_more_ends_quietly(
    cluster: OneJob, controller: Controller
) -> None:
    cluster.before_status = [LeaseLostError("not the leader (any more): nothing is written")]
    assert (one_pass(controller), cluster.events, errors(controller)) == (None, [], 0)


def test_a_namespace_is_read_only_where_a_profile_chooses_by_its_labels(
    cluster: OneJob, controller: Controller
) -> None:
    asked: list[str] = []
    limits = {"namespaceSelector": {"matchLabels": {"tier": "gold"}}}

    async def profiles() -> list[Json]:
        return [{"metadata": {"name": "standard"}, "spec": builders.PROFILE | {"limits": limits}}]

    async def namespace_labels(namespace: str) -> Json:
        asked.append(namespace)
        return {"tier": "gold"} if len(asked) > 1 else {}

    cluster.namespace_labels = namespace_labels  # type: ignore[attr-defined]
    assert (one_pass(controller), asked) == (0.0, [])
    cluster.simulation.body.pop("status")
    cluster.profiles = profiles  # type: ignore[method-assign]
    assert (one_pass(controller), asked) == (30.0, ["team-a"])
    assert cluster.simulation.body["status"]["message"] == (
        "metadata.namespace is team-a, which profile 'standard' is not for "
        "(limits.namespaceSelector)"
    )
    assert (one_pass(controller), asked) == (0.0, ["team-a", "team-a"])


class Recorded(Cluster):
    """A cluster that answers one thing."""

    def __init__(self, answer: Json | ApiError) -> None:
        self.answer, self.sent = answer, []  # type: ignore[var-annotated]

    async def _request(self, method: str, path: str, *rest: Any, **more: Any) -> Json:  # type: ignore[override]
        self.sent.append((method, path, *rest))
        if isinstance(self.answer, ApiError):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "labels"),
    [
        ({"metadata": {"name": "team-a", "labels": {"tier": "gold"}}}, {"tier": "gold"}),
        ({"metadata": {"name": "team-a"}}, {}),
        (ApiError(404, "not found"), {}),
        (ApiError(403, "namespaced mode"), {}),
    ],
)
def test_a_namespace_that_may_not_be_read_has_no_labels_but_its_name(
    answer: Json | ApiError, labels: Json
) -> None:
    found = Recorded(answer)
    assert asyncio.run(found.namespace_labels("team-a")) == labels
    assert [sent[:2] for sent in found.sent] == [("GET", "/api/v1/namespaces/team-a")]


def test_what_is_stopped_leaves_its_queue_and_what_goes_on_stays_in_it() -> None:
    found = Recorded({})
    for stop in (True, False):
        asyncio.run(found.suspend_job("team-a", "docs-train-0", stop))
    assert [sent[3] for sent in found.sent] == [
        {
            "spec": {"suspend": True},
            "metadata": {"labels": {"kueue.x-k8s.io/queue-name": None}},
        },
        {"spec": {"suspend": False}},
    ]


def test_an_event_of_what_is_known_already_changes_nothing_that_is_shown(
    controller: Controller,
) -> None:
    """What this replica has written itself it has seen before the event comes."""

    def body(version: int, step: int) -> Json:
        moment = "2026-11-22T06:00:00Z"
        progress = {"attempt": 0, "step": step, "percent": step, "lastUpdateTime": moment}
        found = builders.job_body(status={"phase": "Running", "progress": progress})
        return found | {"metadata": found["metadata"] | {"resourceVersion": str(version)}}

    shown = []
    for version, step in ((7, 1), (7, 2), (6, 3), (8, 4)):
        controller.hear_job(body(version, step))
        status = controller.metrics.statuses()[KEY]
        shown.append(status.progress.step if status.progress else None)
    assert shown == [1, 1, 1, 4]

"""A round over all jobs: what it leaves alone, and what it hands to a pass of its own."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any, cast

import builders
from simulation import SimulatedCluster

from finetune_operator.cluster import ApiError, Cluster
from finetune_operator.controller import Controller
from finetune_operator.kube_api import Listing
from finetune_operator.metrics import Metrics
from finetune_operator.observe import observe, trim
from finetune_operator.rounds import Rounds

Json = dict[str, Any]
KEY = ("team-a", "docs")


class Lists:
    """The reads of a round, over what a simulation holds; it can do nothing else."""

    def __init__(self, simulation: SimulatedCluster, version: int = 100) -> None:
        self._simulation = simulation
        self.version = version
        self.asked: list[str] = []
        self.fails = False

    async def all_jobs(self, namespaces: tuple[str, ...]) -> Listing:
        self.asked.append("jobs")
        if self.fails:
            raise ApiError(503, "no answer from the API server")
        return Listing([self._simulation.body], self.version)

    async def all_children(self, namespaces: Any, trimmed: Any) -> tuple[Listing, Listing]:
        self.asked.append("children")
        jobs = [o for (kind, _), o in self._simulation.objects.items() if kind == "Job"]
        pods = self._simulation.pods
        return Listing(self._labelled(jobs), self.version), Listing(
            self._labelled(pods), self.version
        )

    def _labelled(self, items: list[Json]) -> list[Json]:
        """As the API server has them: with a namespace, and the label by which they are found."""
        found = [trim(item) for item in items]
        for item in found:
            label = {"finetune-operator.io/job": "docs"}
            labels = item["metadata"].get("labels", {}) | label
            item["metadata"] |= {"namespace": "team-a", "labels": labels}
        return found

    async def profiles(self) -> list[Json]:
        self.asked.append("profiles")
        return [{"metadata": {"name": "standard"}, "spec": builders.PROFILE}]

    async def run_config_map(self, namespace: str, job: str) -> Json | None:
        self.asked.append(f"config map of {job}")
        return self._simulation.objects.get(("ConfigMap", f"{job}-run"))


def operator(simulation: SimulatedCluster) -> tuple[Lists, Controller, Rounds]:
    lists = Lists(simulation)
    controller = Controller(cast("Cluster", lists), builders.SETTINGS, "CA", Metrics())
    return lists, controller, Rounds(controller)


def in_training() -> SimulatedCluster:
    simulation = SimulatedCluster(builders.job_body(), builders.world())
    simulation.settle()
    simulation.run("docs-prepare")
    simulation.finish("docs-prepare", builders.OUTCOMES["prepare"])
    simulation.settle()
    simulation.run("docs-train-0")
    simulation.settle()
    assert simulation.status.phase == "Running"
    return simulation


def test_a_job_for_which_nothing_is_to_be_done_is_seen_and_left_alone() -> None:
    lists, controller, rounds = operator(in_training())
    asyncio.run(rounds.go())
    assert lists.asked == ["jobs", "children", "profiles", "config map of docs"]
    assert (controller.queue.ready, len(controller.queue)) == (0, 1)  # later: do reports come?
    assert controller.metrics.statuses()[KEY].phase == "Running"


def test_a_job_for_which_something_is_to_be_done_gets_a_pass_that_reads_live() -> None:
    simulation = in_training()
    simulation.fail("docs-train-0", {0: builders.failure("Killed", "killed", 5.0)})
    _, controller, rounds = operator(simulation)
    asyncio.run(rounds.go())
    assert controller.queue.ready == 1


def test_a_finished_job_costs_nothing_but_its_place_in_the_list() -> None:
    simulation = SimulatedCluster(
        builders.job_body(status={"phase": "Succeeded"}), builders.world()
    )
    lists, controller, rounds = operator(simulation)
    asyncio.run(rounds.go())
    assert lists.asked == ["jobs", "children", "profiles"]
    assert (len(controller.queue), controller.metrics.statuses()[KEY].phase) == (0, "Succeeded")


def test_a_job_that_cannot_be_decided_on_does_not_stop_the_round() -> None:
    simulation = in_training()
    broken = copy.deepcopy(simulation.objects[("ConfigMap", "docs-run")])
    broken["data"]["snapshot.json"] = json.dumps({"not": "a snapshot"})
    simulation.objects[("ConfigMap", "docs-run")] = broken
    _, controller, rounds = operator(simulation)
    asyncio.run(rounds.go())
    assert controller.queue.ready == 1


def test_what_a_round_has_seen_is_known_by_its_resource_version() -> None:
    _, __, rounds = operator(in_training())
    assert not rounds.covers("pods", "1"), "before the first one nothing is"
    asyncio.run(rounds.go())
    assert [rounds.covers("pods", v) for v in ("99", "100", "101", None)] == [
        True,
        True,
        False,
        False,
    ]


def test_rounds_go_on_after_one_that_failed_and_when_a_watch_was_away() -> None:
    lists, controller, rounds = operator(in_training())

    async def run() -> None:
        lists.fails = True
        task = asyncio.create_task(rounds.run())
        await asyncio.wait_for(rounds.tried.wait(), 5)
        lists.fails = False
        rounds.want()
        while "profiles" not in lists.asked:
            await asyncio.wait_for(asyncio.sleep(0.01), 5)
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 10))
    assert lists.asked == ["jobs", "jobs", "children", "profiles", "config map of docs"]
    assert controller.metrics.statuses()[KEY].phase == "Running"


def test_what_is_left_out_of_lists_is_nothing_that_decisions_need() -> None:
    simulation = in_training()
    config_map = simulation.objects[("ConfigMap", "docs-run")]
    jobs = [o for (kind, _), o in simulation.objects.items() if kind == "Job"]
    small = observe(
        config_map, [trim(j) for j in jobs], [trim(p) for p in simulation.pods], builders.UID
    )
    assert small == observe(config_map, jobs, simulation.pods, builders.UID)
    assert len(small.stages) == 2
    assert "template" not in trim(jobs[0])["spec"]

"""A profile with a queue: Kueue holds the Kubernetes Job that trains until its turn comes."""

from __future__ import annotations

from typing import Any

import builders
from simulation import SimulatedCluster

LABEL = "kueue.x-k8s.io/queue-name"
JOB = ("Job", "docs-train-0")


class Queued(SimulatedCluster):
    """A cluster with Kueue: a new Job with a queue is suspended, as its webhook does it."""

    def _apply(self, manifest: dict[str, Any]) -> None:
        new = (manifest["kind"], manifest["metadata"]["name"]) not in self.objects
        super()._apply(manifest)
        if new and LABEL in manifest["metadata"].get("labels", {}):
            made = self.objects[JOB]
            made["spec"] = made["spec"] | {"suspend": True}
            made["status"] = {}
            self.pods = [p for p in self.pods if not p["metadata"]["name"].startswith(JOB[1])]

    def admit(self) -> None:
        """Its turn has come."""
        self.objects[JOB]["spec"]["suspend"] = False
        self.objects[JOB]["status"] = {"startTime": builders.NOW}
        self.pods += [builders.pod(JOB[1], index, "Pending") for index in range(2)]

    def leave_queue(self) -> None:
        """What `Cluster.suspend_job` does beside suspending."""
        self.objects[JOB]["metadata"]["labels"].pop(LABEL)


def queued(**spec: Any) -> Queued:
    """A job whose training waits in the queue."""
    profile = builders.PROFILE | {"placement": {"queue": "team-a"}}
    found = Queued(builders.job_body(spec=spec), builders.world(standard=profile))
    found.settle()
    found.finish("docs-prepare", builders.OUTCOMES["prepare"])
    found.settle()
    return found


def waiting(cluster: Queued) -> tuple[str | None, ...]:
    """Phase, and why it waits."""
    condition = next(c for c in cluster.status.conditions if c.type == "Waiting")
    return cluster.status.phase, condition.status, condition.reason, condition.message


def test_only_the_job_that_trains_is_in_the_queue() -> None:
    cluster = queued()
    with_queue = [n for (_, n), m in cluster.objects.items() if LABEL in m["metadata"]["labels"]]
    assert with_queue == ["docs-train-0"]
    assert cluster.objects[JOB]["metadata"]["labels"][LABEL] == "team-a"


def test_a_job_in_the_queue_waits_and_nobody_lets_it_go_on_but_the_queue() -> None:
    cluster = queued(startupDeadlineSeconds=60)
    words = "Job docs-train-0 waits in queue team-a"
    assert waiting(cluster) == ("Starting", "True", "Queued", words)
    cluster.clock = 10_000  # the time in the queue is not the workers' time to start
    cluster.settle()
    assert waiting(cluster) == ("Starting", "True", "Queued", words)
    assert cluster.objects[JOB]["spec"]["suspend"] is True
    cluster.clock = 20
    cluster.admit()
    cluster.run(JOB[1])
    cluster.settle()
    assert waiting(cluster)[0] == "Running"


def test_a_job_that_is_suspended_in_the_queue_leaves_it_and_comes_back_as_the_next_attempt() -> (
    None
):
    cluster = queued()
    cluster.suspend(True)
    cluster.operator_pass()
    cluster.leave_queue()
    cluster.settle()
    assert cluster.status.phase == "Suspended"
    cluster.suspend(False)
    cluster.settle()
    assert (cluster.status.phase, cluster.status.attempt) == ("Starting", 1)
    assert cluster.objects[("Job", "docs-train-1")]["metadata"]["labels"][LABEL] == "team-a"

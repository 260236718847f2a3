"""A suspended job goes on with another number of workers; the global batch stays."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import builders
import pytest
from simulation import SimulatedCluster

from finetune_api.outcome import Outcome, ResolvedTraining
from finetune_api.run_config import RunConfig
from finetune_api.status import Progress
from finetune_operator.reconcile import Step

PREPARED = builders.PREPARED.model_copy(
    update={
        "shape": builders.SHAPE,
        "resolved": ResolvedTraining(
            zero_stage=1,
            offload="None",
            micro_batch_size=2,
            gradient_accumulation_steps=1,
            gradient_checkpointing=False,
        ),
    }
)
SPEC = {"training": {"globalBatchSize": 32}}


def trained(
    prepared: Any = PREPARED, profile: dict[str, Any] | None = None, **spec: Any
) -> SimulatedCluster:
    """A job of 2 x 8 processes whose workers run."""
    world = builders.world(standard=builders.PROFILE | (profile or {}))
    cluster = SimulatedCluster(builders.job_body(spec=SPEC | spec), world)
    cluster.settle()
    cluster.finish("docs-prepare", Outcome(prepare=prepared))
    cluster.settle()
    cluster.run("docs-train-0")
    cluster.settle()
    return cluster


def suspended(cluster: SimulatedCluster, attempt: int = 0) -> SimulatedCluster:
    cluster.suspend(True)
    cluster.settle()
    cluster.stopped(f"docs-train-{attempt}")
    cluster.settle()
    return cluster


def workers(count: int) -> dict[str, Any]:
    return {"numNodes": count, "numProcPerNode": 8}


def told(cluster: SimulatedCluster, name: str) -> RunConfig:
    """The run as the stage is told of it, which mounts this ConfigMap."""
    return RunConfig.model_validate_json(cluster.objects["ConfigMap", name]["data"]["run.json"])


def pod_of(cluster: SimulatedCluster, job: str) -> dict[str, Any]:
    found: dict[str, Any] = cluster.objects["Job", job]["spec"]["template"]["spec"]
    return found


def mounted(cluster: SimulatedCluster, job: str) -> str:
    """The ConfigMap with `run.json` that a stage's pods mount."""
    volumes = {volume["name"]: volume for volume in pod_of(cluster, job)["volumes"]}
    name: str = volumes["run"]["configMap"]["name"]
    return name


def test_a_job_goes_on_at_half_the_size_with_the_same_global_batch() -> None:
    cluster = suspended(trained())
    before, writes = told(cluster, "docs-run"), len(cluster.writes)
    cluster.edit(workers=workers(1), suspend=False)
    cluster.settle()
    assert cluster.writes[writes:] == [
        "apply ConfigMap docs-run-1",
        "apply Service docs",
        "apply Job docs-train-1",
        "status Starting",
        "status Starting",
    ]
    after = told(cluster, "docs-run-1")
    training = before.training.model_copy(
        update={"micro_batch_size": 4, "gradient_accumulation_steps": 1}
    )
    assert after == before.model_copy(
        update={"num_nodes": 1, "training": training, "resolved": True}
    )
    job = cluster.objects["Job", "docs-train-1"]["spec"]
    env = {
        e["name"]: e.get("value") for e in pod_of(cluster, "docs-train-1")["containers"][0]["env"]
    }
    assert (job["completions"], job["parallelism"], env["PET_NNODES"]) == (1, 1, "1")
    assert mounted(cluster, "docs-train-1") == "docs-run-1"
    resolved = cluster.status.resolved
    assert resolved is not None
    assert (resolved.num_nodes, resolved.micro_batch_size) == (1, 4)
    assert cluster.events[-1] == (
        "Normal Resized: goes on with 1 workers in place of 2: micro-batch 4 x 1, ZeRO 1, "
        "offload None"
    )


def test_the_size_stays_for_restarts_and_for_export() -> None:
    cluster = suspended(trained())
    cluster.edit(workers=workers(1), suspend=False)
    cluster.settle()
    cluster.run("docs-train-1")
    cluster.settle()
    cluster.fail("docs-train-1", {0: builders.failure("Killed", "killed", 50.0, rank=0)})
    cluster.settle()
    cluster.clock += 30
    cluster.settle()
    assert cluster.objects["Job", "docs-train-2"]["spec"]["completions"] == 1
    assert told(cluster, "docs-run-2") == told(cluster, "docs-run-1")
    cluster.finish("docs-train-2", builders.OUTCOMES["train"])
    cluster.settle()
    assert mounted(cluster, "docs-export") == "docs-run-2"
    resolved = cluster.status.resolved
    assert resolved is not None
    assert (resolved.num_nodes, resolved.micro_batch_size) == (1, 4)


def test_a_job_that_is_given_its_first_size_back_decides_as_prepare_did() -> None:
    cluster = suspended(trained())
    cluster.edit(workers=workers(1), suspend=False)
    cluster.settle()
    suspended(cluster, 1)
    cluster.pods = [p for p in cluster.pods if "prepare" not in p["metadata"]["name"]]
    cluster.edit(workers=workers(2), suspend=False)
    cluster.settle()
    resolved = cluster.status.resolved
    assert resolved is not None
    assert (resolved.num_nodes, resolved.micro_batch_size) == (2, 2)
    assert told(cluster, "docs-run-2").training == told(cluster, "docs-run").training


def test_a_job_that_was_suspended_while_it_was_prepared_trains_at_the_new_size_at_once() -> None:
    cluster = SimulatedCluster(builders.job_body(spec=SPEC), builders.world())
    cluster.settle()
    cluster.suspend(True)
    cluster.settle()
    cluster.edit(workers=workers(4), suspend=False)
    cluster.settle()
    cluster.finish("docs-prepare", Outcome(prepare=PREPARED))
    cluster.settle()
    assert cluster.objects["Job", "docs-train-0"]["spec"]["completions"] == 4
    assert mounted(cluster, "docs-train-0") == "docs-run-0"


REFUSED: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "batch": (
        {},
        3,
        "InvalidBatchSize",
        "spec.training.globalBatchSize is 32, which 3 x 8 processes cannot share evenly; use 24 "
        "or 48",
    ),
    "micro-batch": (
        {"spec": {"training": {"globalBatchSize": 32, "microBatchSize": 2}}},
        4,
        "InvalidBatchSize",
        "spec.training.microBatchSize is 2, which does not divide a process's share of 1 "
        "(globalBatchSize 32 / 32 processes); use Auto or a divisor of it",
    ),
    "profile": (
        {"profile": {"limits": {"maxNodes": 2}}},
        4,
        "ExceedsProfile",
        "spec.workers.numNodes is 4; profile 'standard' allows at most 2 (limits.maxNodes)",
    ),
    "nothing known": (
        {"prepared": builders.PREPARED},
        1,
        "SizeUnknown",
        "the trainer image that prepared this job has not told the sizes of the model, so whether "
        "it fits on another number of nodes is not known; set spec.workers.numNodes to 2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_size_that_cannot_be_is_told_while_suspended_and_can_be_taken_back(case: str) -> None:
    changes, nodes, reason, message = REFUSED[case]
    cluster = suspended(
        trained(
            changes.get("prepared", PREPARED), changes.get("profile"), **changes.get("spec", {})
        )
    )
    said = len(cluster.events)
    cluster.edit(workers=workers(nodes))
    cluster.settle()
    validated = next(c for c in cluster.status.conditions if c.type == "Validated")
    assert (cluster.status.phase, validated.status, validated.reason) == (
        "Suspended",
        "False",
        reason,
    )
    assert cluster.status.message == f"suspended, and cannot go on: {message}"
    cluster.suspend(False)
    cluster.settle()
    assert cluster.status.phase == "Suspended"
    assert cluster.events[said:] == [
        f"Warning {reason}: suspended, and cannot go on: {message}",
        f"Warning {reason}: cannot go on: {message}; change spec.workers.numNodes together with "
        "spec.suspend: true, then set spec.suspend to false",
    ]
    assert ("Job", "docs-train-1") not in cluster.objects
    cluster.edit(workers=workers(2))
    cluster.settle()
    assert (cluster.status.phase, cluster.status.attempt) == ("Starting", 1)


def test_a_model_that_does_not_fit_on_fewer_nodes_is_refused_before_they_are_asked_for() -> None:
    """Full tuning: the optimizer's state is shared by all processes, 12 bytes for each number."""
    large = builders.SHAPE.model_copy(update={"parameters": 8_000_000_000})
    prepared = PREPARED.model_copy(update={"shape": large})
    node = {"node": {"gpusPerNode": 8, "gpuMemoryGiB": 32}}
    fixed = {"zero": {"stage": 2, "offload": "None"}, "method": {"tuning": "Full"}}
    cluster = suspended(trained(prepared, node, **fixed))
    cluster.edit(workers=workers(1))
    cluster.settle()
    message = cluster.status.message or ""
    assert message.startswith(
        "suspended, and cannot go on: spec.workers.numNodes is 1, and so training needs about "
    )
    assert message.endswith("; it was 2")


def test_the_same_size_is_no_other_size() -> None:
    cluster = suspended(trained())
    cluster.suspend(False)
    cluster.settle()
    assert mounted(cluster, "docs-train-1") == "docs-run"
    assert ("ConfigMap", "docs-run-1") not in cluster.objects


@pytest.mark.parametrize("k", range(5), ids=lambda k: f"after {k} writes")
def test_an_operator_that_dies_while_it_resizes_reaches_the_same_end(k: int) -> None:
    cluster = suspended(trained())
    cluster.edit(workers=workers(1), suspend=False)
    cluster.operator_pass(crash_after=k)
    cluster.settle()
    resolved = cluster.status.resolved
    assert resolved is not None
    assert (cluster.status.phase, cluster.status.attempt) == ("Starting", 1)
    assert (resolved.num_nodes, resolved.micro_batch_size, resolved.grace_period_seconds) == (
        1,
        4,
        600,
    )
    assert len([w for w in cluster.writes if w == "apply Job docs-train-1"]) == 1


def grace(progress: Progress | None, nodes: int = 2) -> int:
    """Of the pods of the attempt after a suspension."""
    cluster = trained()
    if progress is not None:
        cluster.body["status"]["progress"] = json.loads(json.dumps(progress.to_json_dict()))
    suspended(cluster)
    cluster.edit(workers=workers(nodes), suspend=False)
    cluster.settle()
    pod = pod_of(cluster, "docs-train-1")
    env = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
    seconds: int = pod["terminationGracePeriodSeconds"]
    resolved = cluster.status.resolved
    assert resolved is not None
    assert (env["FINETUNE_STOP_SECONDS"], resolved.grace_period_seconds) == (str(seconds), seconds)
    return seconds


@pytest.mark.parametrize(
    ("measured", "attempt", "nodes", "seconds"),
    [
        pytest.param(None, 0, 2, 600, id="nothing measured"),
        pytest.param(4.0, 7, 2, 600, id="measured by another attempt"),
        pytest.param(4.0, 0, 2, 60, id="never less than a minute"),
        pytest.param(100.0, 0, 2, 330, id="three times, and 30 s"),
        pytest.param(100.0, 0, 1, 630, id="half the workers write twice as much each"),
        pytest.param(100.0, 0, 4, 330, id="more workers may still meet a slow volume"),
        pytest.param(5000.0, 0, 2, 3600, id="never more than an hour"),
    ],
)
def test_the_time_to_save_follows_what_was_measured(
    measured: float | None, attempt: int, nodes: int, seconds: int
) -> None:
    progress = Progress(attempt=attempt, save_seconds=measured, last_update_time=builders.NOW)
    assert grace(progress, nodes) == seconds


def test_without_any_report_workers_get_ten_minutes_to_save() -> None:
    assert grace(None) == 600


def test_an_unchanged_job_writes_nothing() -> None:
    cluster = suspended(trained())
    cluster.edit(workers=workers(1), suspend=False)
    cluster.settle()
    assert replace(cluster.look(), requeue_after=None) == Step()

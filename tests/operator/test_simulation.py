"""A job's whole life, with an operator that restarts at every point."""

from __future__ import annotations

import builders
import pytest
from simulation import SimulatedCluster

from finetune_api.outcome import Estimate, Outcome, ResolvedTraining

STAGES = [("docs-prepare", "prepare"), ("docs-train-0", "train"), ("docs-export", "export")]


def live(cluster: SimulatedCluster) -> None:
    cluster.settle()
    for job, stage in STAGES:
        cluster.run(job)
        cluster.settle()
        cluster.finish(job, builders.OUTCOMES[stage])
        cluster.settle()


def test_a_job_goes_through_its_stages_and_writes_each_thing_once() -> None:
    cluster = SimulatedCluster(builders.job_body(), builders.world())
    live(cluster)
    assert cluster.writes == [
        "status Preparing",
        "apply ConfigMap docs-run",
        "apply PersistentVolumeClaim docs-work",
        "apply NetworkPolicy docs-prepare",
        "apply NetworkPolicy docs-train",
        "apply NetworkPolicy docs-export",
        "apply Job docs-prepare",
        "status Preparing",
        "status Preparing",
        "status Preparing",
        "apply Service docs",
        "apply Job docs-train-0",
        "status Starting",
        "status Starting",
        "status Running",
        "apply Job docs-export",
        "progress",
        "status Exporting",
        "status Exporting",
        "status Exporting",
        "status Succeeded",
    ]


def test_every_change_of_phase_is_an_event() -> None:
    cluster = SimulatedCluster(builders.job_body(), builders.world())
    live(cluster)
    assert cluster.events == [
        "Normal Preparing: model and data are being fetched, checked and tokenised",
        "Normal Starting: attempt 0, 2 x 8 processes: the workers are being started",
        "Normal Running: attempt 0, 2 x 8 processes: training",
        "Normal Exporting: attempt 0 is done at step 40 of 40: the result is being written and "
        "checked",
        "Normal Succeeded: the result is written and checked: 1000000 bytes in "
        "pvc://docs-work/output, held-out loss 4 before, 2 now; 16 s, 0 s of them suspended; "
        "attempts: 1, restarts: 0, disruptions: 0",
    ]


def live_with_one_crash(k: int) -> SimulatedCluster:
    """As `live`, but the operator dies after the k-th write of the job's life."""
    cluster = SimulatedCluster(builders.job_body(), builders.world())
    crashes = 0

    def settle() -> None:
        nonlocal crashes
        done = len(cluster.writes) + len(cluster.events)
        todo = len(cluster.writes_of(cluster.look()))
        while todo:
            crash = done <= k < done + todo and not crashes
            crashes += crash
            cluster.operator_pass(crash_after=k - done if crash else None)
            done = len(cluster.writes) + len(cluster.events)
            todo = len(cluster.writes_of(cluster.look()))

    settle()
    for job, stage in STAGES:
        cluster.run(job)
        settle()
        cluster.finish(job, builders.OUTCOMES[stage])
        settle()
    assert crashes == 1
    return cluster


@pytest.mark.parametrize("k", range(26), ids=lambda k: f"after {k} writes")
def test_an_operator_that_dies_anywhere_reaches_the_same_end(k: int) -> None:
    reference = SimulatedCluster(builders.job_body(), builders.world())
    live(reference)
    assert len(reference.writes) + len(reference.events) == 26
    cluster = live_with_one_crash(k)
    assert set(cluster.objects) == set(reference.objects)
    assert timeless(cluster) == timeless(reference)


def timeless(cluster: SimulatedCluster) -> dict[str, object]:
    """The status without the times of the passes."""
    found = cluster.status.to_json_dict()
    for field in ("startTime", "completionTime", "phaseTime", "phaseSeconds", "usage"):
        assert found.pop(field)
    for condition in found["conditions"]:
        assert condition.pop("lastTransitionTime")
    assert found["progress"].pop("lastUpdateTime")
    return found


def test_a_finished_job_is_final_even_when_its_children_vanish() -> None:
    cluster = SimulatedCluster(builders.job_body(), builders.world())
    live(cluster)
    cluster.objects.clear()
    cluster.pods.clear()
    assert not cluster.operator_pass()


def test_a_stage_that_is_done_is_not_run_again_when_its_job_vanishes() -> None:
    cluster = SimulatedCluster(builders.job_body(), builders.world())
    cluster.settle()
    cluster.finish("docs-prepare", builders.OUTCOMES["prepare"])
    cluster.settle()
    del cluster.objects[("Job", "docs-prepare")]
    cluster.pods = [p for p in cluster.pods if "train" in p["metadata"]["name"]]
    assert not cluster.operator_pass()
    assert cluster.status.phase == "Starting"


def end_unseen(cluster: SimulatedCluster, job: str) -> None:
    """A pod of a stage does its work and is drained away, while no operator looks."""
    cluster.finish(job, builders.OUTCOMES["export" if "export" in job else "prepare"])
    cluster.pods = [p for p in cluster.pods if not p["metadata"]["name"].startswith(f"{job}-")]
    cluster.settle()


def test_prepare_is_run_again_when_nobody_has_seen_how_it_ended() -> None:
    cluster = SimulatedCluster(builders.job_body(), builders.world())
    cluster.settle()
    end_unseen(cluster, "docs-prepare")
    assert cluster.events[1:] == [
        "Warning RunAgain: prepare is run again: nobody has seen how it ended, and its pod is gone"
    ]
    assert cluster.status.phase == "Preparing"
    cluster.finish("docs-prepare-1", builders.OUTCOMES["prepare"])
    cluster.settle()
    assert (cluster.status.phase, cluster.status.attempt) == ("Starting", 0)


def test_export_is_run_again_twice_and_then_fails_with_what_is_known() -> None:
    cluster = SimulatedCluster(builders.job_body(), builders.world())
    cluster.settle()
    for job, stage in STAGES[:-1]:
        cluster.run(job)
        cluster.finish(job, builders.OUTCOMES[stage])
        cluster.settle()
    for job in ("docs-export", "docs-export-1"):
        end_unseen(cluster, job)
        assert cluster.status.phase == "Exporting"
    end_unseen(cluster, "docs-export-2")
    assert (cluster.status.phase, cluster.status.message) == (
        "Failed",
        "the export pods ended without an error but left no proof of their work; the trainer "
        "image does not match this operator, or the pods were removed at once",
    )


def test_what_prepare_decides_and_expects_is_in_the_status_and_stays_there() -> None:
    decided = {
        "zero_stage": 3,
        "offload": "Optimizer",
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "gradient_checkpointing": True,
    }
    terms = ("parameters", "gradients", "optimizer", "activations", "logits", "buffers")
    needed = Estimate(**dict.fromkeys(terms, 2**30), total=6 * 2**30, host=7 * 2**30)
    facts = builders.PREPARED.model_copy(
        update={"resolved": ResolvedTraining.model_validate(decided), "estimate": needed}
    )
    cluster = SimulatedCluster(builders.job_body(), builders.world())
    cluster.settle()
    assert cluster.status.resolved is not None
    assert cluster.status.resolved.memory_gib is None
    cluster.finish("docs-prepare", Outcome(prepare=facts))
    cluster.settle()
    for _ in ("as prepare ended", "when its Job and pods are gone"):
        found = cluster.status.resolved
        assert found is not None
        assert found.model_dump(include=set(decided)) == decided
        assert found.memory_gib == 6.0
        cluster.objects.pop(("Job", "docs-prepare"), None)
        cluster.pods = [p for p in cluster.pods if "train" in p["metadata"]["name"]]
        cluster.run("docs-train-0")
        cluster.settle()


def test_a_changed_profile_does_not_touch_a_job_that_has_started() -> None:
    cluster = SimulatedCluster(builders.job_body(), builders.world())
    cluster.settle()
    cluster.world = builders.world(standard=builders.PROFILE | {"image": "example/other:2"})
    cluster.finish("docs-prepare", builders.OUTCOMES["prepare"])
    cluster.settle()
    train = cluster.objects[("Job", "docs-train-0")]
    image = train["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "example/finetune-trainer:1"


def test_a_job_waits_for_its_profile_and_starts_when_it_comes() -> None:
    body = builders.job_body(spec={"profile": "big"})
    cluster = SimulatedCluster(body, builders.world())
    cluster.settle()
    assert cluster.objects == {}
    assert cluster.events == [
        "Warning ProfileNotFound: spec.profile: there is no FineTuneProfile 'big'; "
        "existing: standard"
    ]
    cluster.world = builders.world(big=builders.PROFILE)
    cluster.settle()
    assert cluster.status.phase == "Preparing"

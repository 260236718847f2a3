"""Hangs as the operator sees them: what the job wants, dead pods, and reports that stop."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import builders
import pytest
from builders import event, failure, k8s_job, pod
from simulation import SimulatedCluster

from finetune_operator.explain import explain
from finetune_operator.observe import observe
from finetune_operator.pods import PROBE

TRAIN = "docs-train-0"
HUNG = failure("Hang", "no step has ended for 60 s after step 7", 5.0, rank=8)


def training(**spec: Any) -> SimulatedCluster:
    """A job whose workers run since second 8."""
    cluster = SimulatedCluster(builders.job_body(spec=spec), builders.world())
    cluster.settle()
    cluster.finish("docs-prepare", builders.OUTCOMES["prepare"])
    cluster.settle()
    cluster.run(TRAIN)
    at(cluster, 10)
    return cluster


def at(cluster: SimulatedCluster, second: int) -> None:
    """The operator looks once, at this second of the simulation."""
    cluster.clock = second - 1
    cluster.operator_pass()


@pytest.mark.parametrize("action", ["Restart", "Report"])
def test_a_hang_that_ended_an_attempt_is_followed_by_another(action: str) -> None:
    cluster = training(hangPolicy={"action": action})
    cluster.fail(TRAIN, {1: HUNG})
    at(cluster, 50)
    assert cluster.status.phase == "Restarting"


def test_a_hang_ends_the_job_where_that_is_the_policy() -> None:
    cluster = training(hangPolicy={"action": "Fail"})
    cluster.fail(TRAIN, {1: HUNG})
    at(cluster, 50)
    found = cluster.status.last_failure
    assert found is not None
    assert (cluster.status.phase, found.failure_class, found.rank, found.message) == (
        "Failed",
        "Hang",
        8,
        "no step has ended for 60 s after step 7; not started again: spec.hangPolicy.action is "
        "Fail",
    )
    restarts = cluster.status.restarts
    assert restarts is not None
    assert (restarts.counted, restarts.disruptions) == (1, 0)


def test_a_hang_of_workers_whose_peer_was_drained_is_a_disruption_whatever_the_policy() -> None:
    cluster = training(hangPolicy={"action": "Fail"})
    cluster.fail(TRAIN, {1: HUNG})
    drained = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]
    next(p for p in cluster.pods if p["metadata"]["name"].startswith(f"{TRAIN}-0"))["status"][
        "conditions"
    ] = drained
    at(cluster, 50)
    assert cluster.status.phase == "Restarting"


def probed(index: int, failures: int = 5) -> list[dict[str, Any]]:
    """What a kubelet leaves of a worker whose probe failed so often, and that was then stopped."""
    uid, words = f"uid-{TRAIN}-{index}", "Liveness probe failed: command timed out"
    return [
        event(uid, "Unhealthy", words, count=failures - 1),
        event(uid, "Unhealthy", "Liveness probe failed: "),
        event(uid, "Killing", "Stopping container trainer"),
    ]


@pytest.mark.parametrize(
    ("code", "message", "found"),
    [
        (137, "", "Hang"),
        (143, failure("Stopped", "asked to stop (SIGTERM)", 9.0), "Hang"),
        (205, failure("PeerLost", "peer lost", 9.0, rank=0), "Hang"),
        (11, failure("Data", "line 3", 9.0, rank=0), "Data"),  # it had a reason of its own
    ],
)
def test_a_worker_whose_liveness_probe_failed_has_hung(code: int, message: Any, found: str) -> None:
    dead = pod(TRAIN, 1, "Failed", message, code)
    jobs = [k8s_job(TRAIN, "train", state="Failed")]
    stage = observe(None, jobs, [dead], builders.UID, probed(1)).stage("train")
    assert stage is not None
    told = explain(stage, builders.LATER)
    assert (told.failure_class, told.rank, told.exit_code) == (
        found,
        0 if found == "Data" else 1,
        code,
    )
    if found == "Hang":
        assert told.message == (
            "pod docs-train-0-1-abcde was killed by its kubelet, as its liveness probe failed: its "
            "first process was stopped, or nothing in it ran"
        )


def test_a_probe_that_failed_now_and_then_explains_nothing() -> None:
    dead = pod(TRAIN, 1, "Failed", "", 137)
    jobs = [k8s_job(TRAIN, "train", state="Failed")]
    stage = observe(None, jobs, [dead], builders.UID, probed(1, failures=4)).stage("train")
    assert stage is not None
    assert explain(stage, builders.LATER).failure_class == "Killed"


def test_a_worker_that_was_killed_is_looked_up_once_and_costs_a_restart() -> None:
    cluster = training()
    cluster.kube_events = [
        event(f"uid-{TRAIN}-0", "Killing", "Stopping container trainer"),
        *probed(1),
    ]
    cluster.fail(TRAIN, {})
    for index, dead in enumerate(p for p in cluster.pods if TRAIN in p["metadata"]["name"]):
        ended = dead["status"]["containerStatuses"][0]["state"]["terminated"]
        ended.update(exitCode=(143, 137)[index], message="")
    at(cluster, 50)
    found, restarts = cluster.status.last_failure, cluster.status.restarts
    assert found is not None
    assert restarts is not None
    assert (found.failure_class, found.pod) == ("Hang", "docs-train-0-1-abcde")
    assert (restarts.counted, restarts.history[0].cause) == (1, "Platform")
    cluster.kube_events = []  # Events are gone after an hour; what was found out stays
    at(cluster, 51)
    assert cluster.status.last_failure == found


@pytest.mark.parametrize(("age", "healthy"), [(None, True), (5, True), (100, True), (130, False)])
def test_the_probe_fails_where_the_sign_of_life_is_old_and_wakes_a_launch_that_was_stopped(
    tmp_path: Path, age: float | None, healthy: bool
) -> None:
    file = tmp_path / "launch.alive"
    if age is not None:
        file.touch()
        os.utime(file, (time.time() - age, time.time() - age))
    launch = subprocess.Popen(["sleep", "1000"])
    try:
        launch.send_signal(signal.SIGSTOP)
        probe = PROBE.replace("kill -CONT 1;", f"kill -CONT {launch.pid};")
        assert probe != PROBE
        environment = os.environ | {"FINETUNE_HEARTBEAT": str(file)}
        done = subprocess.run(["sh", "-c", probe], env=environment, capture_output=True)
        assert (done.returncode == 0, done.stderr) == (healthy, b"")
        end = time.monotonic() + 10
        while (state(launch.pid) == "T") != healthy:
            assert time.monotonic() < end, f"launch is in state {state(launch.pid)}"
            time.sleep(0.02)
    finally:
        launch.kill()
        launch.wait()


def state(pid: int) -> str:
    """The kernel's letter."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def report(cluster: SimulatedCluster, second: int, attempt: int = 0, **more: Any) -> None:
    """The progress endpoint writes a report."""
    moment = f"2026-11-22T06:{second // 60:02}:{second % 60:02}Z"
    progress = {"attempt": attempt, "step": 5, "lastUpdateTime": moment} | more
    cluster.body["status"]["progress"] = progress


def reported(cluster: SimulatedCluster) -> tuple[str, str]:
    found = next(c for c in cluster.status.conditions if c.type == "ProgressReported")
    return found.status, found.reason


def test_training_whose_reports_stop_is_not_ended_and_says_so_by_time_alone() -> None:
    cluster = training()
    before = len(cluster.events)
    assert reported(cluster) == ("Unknown", "NotYet")
    report(cluster, 20)
    at(cluster, 20)
    assert reported(cluster) == ("True", "Reported")
    cluster.clock = 99
    assert cluster.look().requeue_after == 220.0
    at(cluster, 319)
    assert reported(cluster) == ("True", "Reported")
    at(cluster, 320)
    assert (cluster.status.phase, reported(cluster)) == ("Running", ("False", "NoReports"))
    assert not cluster.operator_pass()
    report(cluster, 400)
    at(cluster, 400)
    assert (cluster.status.phase, reported(cluster)) == ("Running", ("True", "Reported"))
    assert cluster.events[before:] == [
        "Warning NoReports: no report from the workers since 2026-11-22T06:00:20Z; training goes "
        "on: the workers end a hang themselves",
        "Normal Reported: the workers report how far they are",
    ]


def test_workers_that_never_report_are_told_of_too() -> None:
    cluster = training()
    at(cluster, 309)
    assert reported(cluster) == ("Unknown", "NotYet")
    at(cluster, 310)
    assert (cluster.status.phase, reported(cluster)) == ("Running", ("False", "NoReports"))


def test_what_an_operator_could_not_hear_is_not_held_against_the_workers() -> None:
    cluster = training()
    report(cluster, 20)
    listening = "2026-11-22T06:20:00Z"
    cluster.world = dataclasses.replace(cluster.world, listening_since=listening)
    at(cluster, 1201)
    assert reported(cluster) == ("True", "Reported")
    at(cluster, 1500)
    assert reported(cluster) == ("False", "NoReports")


def test_the_silence_of_an_attempt_is_not_that_of_the_next() -> None:
    cluster = training()
    report(cluster, 20)
    at(cluster, 400)
    assert reported(cluster) == ("False", "NoReports")
    cluster.fail(TRAIN, {1: HUNG})
    at(cluster, 410)
    assert reported(cluster) == ("Unknown", "NotTraining")
    at(cluster, 430)
    cluster.run("docs-train-1")
    at(cluster, 440)
    assert (cluster.status.attempt, reported(cluster)) == (1, ("Unknown", "NotYet"))
    at(cluster, 739)
    assert reported(cluster) == ("Unknown", "NotYet")
    report(cluster, 740, attempt=1)
    at(cluster, 740)
    assert reported(cluster) == ("True", "Reported")


def test_a_hang_that_is_only_reported_is_in_the_status_and_one_event() -> None:
    cluster = training(hangPolicy={"action": "Report"})
    before = len(cluster.events)
    said = (
        "the workers do not get on and are left alone (spec.hangPolicy.action is Report); where "
        "they stand is in the log of rank 0 and in stacks of the work directory"
    )
    report(cluster, 100, stalledSeconds=61)
    at(cluster, 100)
    assert (cluster.status.phase, cluster.status.message) == ("Running", said)
    report(cluster, 160, stalledSeconds=121)
    at(cluster, 160)
    report(cluster, 170)
    at(cluster, 170)
    assert (cluster.status.phase, cluster.status.message) == ("Running", "training")
    assert cluster.events[before:] == [f"Warning Stalled: {said}"]

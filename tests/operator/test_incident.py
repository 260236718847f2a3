"""The Events of a job that had a bad week, as `kubectl describe` shows them: in order, each with
the attempt, the step, the place and the number that explain it."""

from __future__ import annotations

from simulated_days import Simulation, parse

WEEK = (
    "flow 0, flow 0, flow 0, work 1, flow 0, flow 0, flow 0, work 9, "  # to step 2 of attempt 0
    "kill 1, flow 0, time 2, time 2, flow 0, flow 0, flow 0, work 10, "  # a rank dies; attempt 1
    "drain 0, flow 0, flow 0, time 1, flow 0, flow 0, flow 0, work 13, "  # a node goes; attempt 2
    "suspend 0, look 0, flow 0, flow 0, time 6, resume 0, flow 0, flow 0, flow 0, "  # attempt 3
    "deadline 0, finish 0, flow 0, flow 0, flow 0, flow 0, work 0, flow 0"
)


def test_the_events_of_a_whole_incident_are_its_report() -> None:
    found = Simulation(0)
    found.play(parse(WEEK))
    assert found.api.events == [
        "Normal Preparing: model and data are being fetched, checked and tokenised",
        "Normal Starting: attempt 0, 2 x 8 processes: the workers are being started",
        "Normal Running: attempt 0, 2 x 8 processes: training",
        "Warning Restarting: attempt 0 ended on rank 8 (node-c) at step 2, Killed: pod docs-"
        "train-0-1-00003 was killed by signal 9; restart 1, attempt 1 from 06:00:17Z",
        "Normal Starting: attempt 1, 2 x 8 processes: the workers are being started",
        "Normal Running: attempt 1, 2 x 8 processes: training",
        "Warning Restarting: attempt 1 ended on rank 0 (node-a) at step 5, Killed: pod docs-"
        "train-1-0-00004 was taken away by the platform (EvictionByEvictionAPI: drained); "
        "disruption 1, attempt 2 from 06:00:26Z",
        "Normal Starting: attempt 2, 2 x 8 processes: the workers are being started",
        "Normal Running: attempt 2, 2 x 8 processes: training",
        "Normal Suspended: attempt 2 at step 8 of 40: the workers save a checkpoint and end",
        "Normal Starting: after 3603 s suspended, attempt 3, 2 x 8 processes: the workers are"
        " being started",
        "Normal Running: attempt 3, 2 x 8 processes: training",
        "Normal Exporting: attempt 3 is done at step 40 of 40: the result is being written "
        "and checked",
        "Normal Succeeded: the result is written and checked: 1000000 bytes in pvc://team-"
        "models/docs, held-out loss 4 before, 2 now; 3640 s, 3603 s of them suspended; "
        "attempts: 4, restarts: 1, disruptions: 1",
    ]

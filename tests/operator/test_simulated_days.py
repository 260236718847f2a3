"""Hundreds of lives of a job, each with its own schedule of faults. One that goes wrong is printed
in its shortest form; `SEED=n pytest tests/operator/test_simulated_days.py` plays seed n again, and
`parse` plays what was printed."""

from __future__ import annotations

import os

import pytest
from simulated_days import Action, goes_wrong, parse, schedule, show, shrink, simulate

SEEDS = 200
IN_ONE_TEST = 10
SEED = os.environ.get("SEED")
SOON = 50
"""So many in `make check`, all of them in `make test`."""
GROUPS = [
    pytest.param(range(n, n + IN_ONE_TEST), marks=[pytest.mark.slow] if n >= SOON else [])
    for n in range(0, SEEDS, IN_ONE_TEST)
]


@pytest.mark.parametrize("seeds", [[int(SEED)]] if SEED else GROUPS, ids=lambda s: f"from {s[0]}")
def test_a_job_keeps_its_promises_whatever_happens(seeds: range | list[int]) -> None:
    for seed in seeds:
        wrong = goes_wrong(seed, schedule(seed))
        if wrong is not None:
            fewest = shrink(schedule(seed), lambda a, n=seed: goes_wrong(n, a) is not None)
            again = goes_wrong(seed, fewest)
            pytest.fail(f"SEED={seed}: {wrong}\nthe shortest: {show(fewest)}\n  -> {again}")


TO_RUNNING = "flow 0, flow 0, flow 0, work 1, flow 0, flow 0, flow 0, flow 0, "
"""Prepare is done, and both workers run."""
ONCE_WRONG = {
    "an attempt whose Kubernetes Job is deleted is over, and its number is not given again": (
        TO_RUNNING + "delete_job 1, flow 0, flow 0"
    ),
    "half a gang does not train": (
        "flow 0, flow 0, flow 0, work 1, flow 0, controllers 0, kubelets 0, kubelets 0, look 0"
    ),
    "a gang that has run has no deadline to start, also when its pods are being removed": (
        TO_RUNNING + "deadline 5, time 4, drain 0, drain 1, drain 2, look 0, time 2, look 0"
    ),
    "an attempt that was suspended has no deadline to start while its workers save": (
        TO_RUNNING + "deadline 5, time 4, suspend 0, look 0, resume 0, look 0"
    ),
    "an edit between two writes of the start is what runs": "crash 1, edit 1, look 0, flow 0",
    "an edit while a pass is under way is what runs": "racing_edit 1, look 0, flow 0",
    "a job that ends because its settings were deleted leaves no worker behind": (
        TO_RUNNING + "delete_config 0"
    ),
    "the next attempt waits until the Job controller knows that the last one is suspended": (
        "flow 0, flow 0, flow 0, work 1, controllers 0, look 0, suspend 0, look 0, resume 0, look 0"
    ),
    "an operator that died while it suspended does not say that the job trains": (
        TO_RUNNING + "suspend 0, crash 1, look 0"
    ),
    "an older list of children starts nothing and counts nothing": (
        TO_RUNNING + "kill 0, flow 0, stale 2, time 3, flow 0, stale 3, flow 0, stale 1, stale 0"
    ),
    "a drained worker whose peers give up before it is a disruption": TO_RUNNING
    + "drain 1, drain 3",
    "drained workers that are gone when the operator looks are a disruption": (
        TO_RUNNING + "drain 0, drain 2, drain 4, kubelets 0, controllers 1, look 0"
    ),
    "a job that ends on an older list leaves no worker behind": (
        "flow 539, delete_job 705, flow 152, flow 624, delete_config 602, stale 282"
    ),
    "drains of prepare spend none of its retries": (
        "flow 0, flow 0, flow 0, drain 0, drain 1, drain 2, flow 0, flow 0, flow 0, "
        "drain 0, drain 1, drain 2, flow 0, flow 0, flow 0, drain 0, drain 1, drain 2, flow 0, "
        "flow 0, flow 0, drain 0, drain 1, drain 2, flow 0, flow 0"
    ),
}
"""Schedules that have found something."""


@pytest.mark.parametrize("actions", ONCE_WRONG.values(), ids=ONCE_WRONG.keys())
@pytest.mark.parametrize("seed", [0, 1])
def test_what_once_went_wrong_goes_right(actions: str, seed: int) -> None:
    simulate(seed, parse(actions))


def test_a_seed_is_a_schedule() -> None:
    assert schedule(7) == schedule(7) != schedule(8)
    assert parse(show(schedule(7))) == schedule(7)


def test_a_failing_schedule_is_cut_down_to_what_makes_it_fail() -> None:
    needed = [Action("kill", 3), Action("crash", 1)]
    long = [*schedule(1), needed[0], *schedule(2), needed[1], *schedule(3)]
    wanted = [a for a in long if a in needed]
    assert shrink(long, lambda actions: all(a in actions for a in wanted)) == needed

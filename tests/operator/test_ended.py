"""Pods that have ended are remembered when they are gone."""

from __future__ import annotations

from typing import Any

import builders

from finetune_operator.ended import Ended
from finetune_operator.observe import pod_facts

KEY = ("team-a", "docs")
KILLED = builders.failure("Killed", "killed by signal 9", 5.0, rank=1)


def pod(index: int, phase: str, attempt: int = 0, **more: Any) -> dict[str, Any]:
    name = f"docs-train-{attempt}"
    found = builders.pod(name, index, phase, **more)
    found["metadata"]["labels"] |= {
        "finetune-operator.io/stage": "train",
        "finetune-operator.io/attempt": str(attempt),
    }
    return found


def names(pods: list[Any]) -> list[str]:
    return [found["metadata"]["name"] for found in pods]


def test_a_pod_that_ended_stays_and_one_that_ran_does_not() -> None:
    ended = Ended()
    both = [pod(0, "Running"), pod(1, "Failed", message=KILLED, exit_code=137)]
    assert ended.with_gone(KEY, "1", both) == both
    (gone,) = ended.with_gone(KEY, "1", [])
    assert pod_facts(gone) == pod_facts(both[1])


def test_one_that_is_still_there_is_there_once() -> None:
    ended = Ended()
    listed = [pod(0, "Failed", exit_code=1)]
    assert [ended.with_gone(KEY, "1", listed) for _ in range(2)] == [listed, listed]


def test_a_container_that_ended_is_enough() -> None:
    ended = Ended()
    told = pod(0, "Failed", exit_code=137)
    told["status"]["phase"] = "Running"
    ended.with_gone(KEY, "1", [told])
    (gone,) = ended.with_gone(KEY, "1", [])
    assert (pod_facts(gone).phase, pod_facts(gone).alive) == ("Failed", False)


def test_only_the_newest_attempt_is_kept() -> None:
    ended = Ended()
    ended.with_gone(KEY, "1", [pod(0, "Failed", 0, exit_code=1)])
    ended.with_gone(KEY, "1", [pod(0, "Failed", 1, exit_code=1), pod(0, "Failed", 0, exit_code=1)])
    assert (names(ended.with_gone(KEY, "1", [])), len(ended)) == (["docs-train-1-0-abcde"], 1)


def test_other_jobs_and_jobs_that_are_over_have_none() -> None:
    ended = Ended()
    ended.with_gone(KEY, "1", [pod(0, "Failed", exit_code=1)])
    assert ended.with_gone(("team-a", "other"), "1", []) == []
    ended.forget(KEY)
    assert (ended.with_gone(KEY, "1", []), len(ended)) == ([], 0)


def test_another_job_of_the_same_name_begins_with_nothing() -> None:
    ended = Ended()
    ended.with_gone(KEY, "1", [pod(0, "Failed", exit_code=1)])
    assert (ended.with_gone(KEY, "2", []), len(ended)) == ([], 0)

"""Which events about a job need a pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from finetune_operator.told import Told

KEY = ("team-a", "docs")
BODY: dict[str, Any] = {
    "metadata": {"uid": "1", "generation": 1, "resourceVersion": "7", "managedFields": [1]},
    "spec": {},
    "status": {
        "phase": "Running",
        "conditions": [{"type": "ProgressReported", "status": "True"}],
        "progress": {"attempt": 0, "step": 10, "activity": "Training", "history": [1]},
        "usage": {"unit": "GPU", "attempt": 0, "holding": 8, "heldSeconds": 80, "time": "1"},
    },
}


def changed(*path: str, value: Any) -> dict[str, Any]:
    body = copy.deepcopy(BODY)
    body["metadata"]["resourceVersion"] = "8"
    found = body
    for name in path[:-1]:
        found = found[name]
    found[path[-1]] = value
    return body


def test_the_first_event_is_news_and_its_repetition_is_not() -> None:
    told = Told()
    assert [told.news(KEY, "MODIFIED", BODY) for _ in range(2)] == [True, False]


@pytest.mark.parametrize("name", ["step", "loss", "percent", "history", "lastUpdateTime"])
def test_another_number_is_no_news(name: str) -> None:
    told = Told()
    told.news(KEY, "MODIFIED", BODY)
    assert not told.news(KEY, "MODIFIED", changed("status", "progress", name, value=[11]))


@pytest.mark.parametrize("activity", ["Saving", "Evaluating"])
def test_what_is_done_between_two_steps_is_no_news(activity: str) -> None:
    told = Told()
    told.news(KEY, "MODIFIED", BODY)
    after = changed("status", "progress", "activity", value=activity)
    assert not told.news(KEY, "MODIFIED", after)


@pytest.mark.parametrize("name", ["heldSeconds", "usefulSeconds", "badput", "costSoFar", "time"])
def test_the_account_counted_on_is_no_news(name: str) -> None:
    told = Told()
    told.news(KEY, "MODIFIED", BODY)
    assert not told.news(KEY, "MODIFIED", changed("status", "usage", name, value=[11]))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("metadata", "generation"), 2),
        (("metadata", "uid"), "2"),
        (("metadata", "deletionTimestamp"), "2026-11-22T06:00:00Z"),
        (("status", "phase"), "Restarting"),
        (("status", "progress", "attempt"), 1),
        (("status", "progress", "activity"), "Loading"),
        (("status", "progress", "activity"), "Done"),
        (("status", "progress", "activity"), None),
        (("status", "progress", "stalledSeconds"), 70),
        (("status", "usage", "holding"), 16),
        (("status", "usage", "attempt"), 1),
    ],
)
def test_everything_that_a_pass_looks_at_is_news(path: tuple[str, ...], value: Any) -> None:
    told = Told()
    told.news(KEY, "MODIFIED", BODY)
    assert told.news(KEY, "MODIFIED", changed(*path, value=value))


def test_a_report_is_news_where_none_was_heard() -> None:
    told, silent = Told(), changed("status", "conditions", value=[])
    assert [told.news(KEY, "MODIFIED", silent) for _ in range(2)] == [True, True]


def test_what_is_part_of_a_list_is_news_and_tells_nothing_of_the_status() -> None:
    told = Told()
    told.note(KEY, BODY)
    assert [told.news(KEY, None, BODY | {"status": {}}) for _ in range(2)] == [True, True]
    assert not told.news(KEY, "MODIFIED", BODY)


def test_what_a_pass_has_looked_at_is_no_news() -> None:
    told = Told()
    told.note(KEY, BODY)
    assert not told.news(KEY, "MODIFIED", changed("status", "progress", "step", value=11))
    assert told.news(KEY, "MODIFIED", changed("metadata", "generation", value=2))


def test_a_deleted_job_is_news_and_forgotten() -> None:
    told = Told()
    told.news(KEY, "ADDED", BODY)
    assert (told.news(KEY, "DELETED", BODY), len(told)) == (True, 0)

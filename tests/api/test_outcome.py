"""The termination message: what fits into 4096 bytes, and what is not ours."""

from __future__ import annotations

import builders
import pytest

from finetune_api.outcome import EXIT_CODES, FAILURE_CLASSES, Outcome


def test_a_success_reads_back() -> None:
    for outcome in builders.OUTCOMES.values():
        assert Outcome.from_message(outcome.to_message()) == outcome


@pytest.mark.parametrize("text", ["é" * 5000, "a" * 50_000, '"\\\n' * 3000])
def test_a_long_log_is_cut_at_its_beginning(text: str) -> None:
    said = builders.failure("Internal", "why", 1.0, rank=3, logTail=text + "the end")
    found = Outcome.from_message(said.to_message())
    assert len(said.to_message().encode()) <= 4096
    assert found is not None
    assert found.failure is not None
    assert (found.failure.message, found.failure.rank) == ("why", 3)
    assert (found.failure.log_tail or "").endswith("the end")
    assert len(found.failure.log_tail or "") > 300


def test_a_long_message_is_cut_at_its_end() -> None:
    said = builders.failure("Data", "the reason " * 1000, 1.0, logTail="x" * 9000)
    found = Outcome.from_message(said.to_message())
    assert len(said.to_message().encode()) <= 4096
    assert found is not None
    assert found.failure is not None
    assert found.failure.message.startswith("the reason the reason")


@pytest.mark.parametrize("text", [None, "", "Traceback ...", '{"other": 1}', "[]"])
def test_what_is_not_ours_is_no_outcome(text: str | None) -> None:
    assert Outcome.from_message(text) is None


def test_users_failures_are_below_128_and_the_platforms_above() -> None:
    users = {"Configuration", "Data", "Model", "OutOfMemory", "Diverged"}
    assert {c for c, code in EXIT_CODES.items() if code < 128} == users
    assert set(FAILURE_CLASSES) - set(EXIT_CODES) == {"Killed", "DeadlineExceeded"}

"""How a stage ends: exit code, termination message, one readable line."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_api.outcome import ExitCode, ExportFacts, FailureClass, Outcome
from finetune_trainer.errors import ConfigurationError, DataError, InternalError, ModelError
from finetune_trainer.logs import say
from finetune_trainer.outcome_file import failure_from, load_run, stage

FACTS = Outcome(export=ExportFacts(digest="sha256:" + "0" * 64, bytes=1, files=1, tensors=1))


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "termination-log"
    path.write_text("what was there before, and longer than what comes" * 100)
    monkeypatch.setenv("TERMINATION_LOG", str(path))
    return path


def test_facts_are_left_for_the_operator(log: Path) -> None:
    with stage("export") as finish:
        finish(FACTS)
    assert Outcome.from_message(log.read_text()) == FACTS


@pytest.mark.parametrize(
    ("error", "failure_class", "code", "message"),
    [
        (DataError("line 3"), "Data", 11, "line 3"),
        (ConfigurationError("too long"), "Configuration", 10, "too long"),
        (ModelError("gated"), "Model", 12, "gated"),
        (InternalError("lost"), "Internal", 203, "lost"),
        (ValueError("bug"), "Internal", 203, "ValueError: bug"),
        (MemoryError(), "OutOfMemory", 13, "MemoryError: MemoryError"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "OutOfMemory",
            13,
            "RuntimeError: DefaultCPUAllocator: can't allocate memory",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/w/model"),
            "Configuration",
            10,
            "no space left while writing /w/model; ask for a larger volume (spec.storage.size of "
            "the profile) or make room on the output claim",
        ),
    ],
)
def test_a_failure_ends_with_the_exit_code_of_its_class(
    log: Path, error: Exception, failure_class: FailureClass, code: int, message: str
) -> None:
    with pytest.raises(SystemExit) as caught, stage("prepare"):
        raise error
    outcome = Outcome.from_message(log.read_text())
    assert outcome is not None
    assert outcome.failure is not None
    found = (caught.value.code, outcome.failure.failure_class, outcome.failure.message)
    assert found == (code, failure_class, message)


def test_what_was_foreseen_is_told_in_one_line(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), stage("prepare"):
        raise DataError("d.jsonl line 3 is not JSON")
    assert capsys.readouterr().err == "prepare failed (Data): d.jsonl line 3 is not JSON\n"


def test_what_was_not_foreseen_is_told_with_a_traceback(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), stage("prepare"):
        raise ValueError("bug")
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):\n")
    assert printed.endswith("ValueError: bug\nprepare failed (Internal): ValueError: bug\n")


def test_the_last_forty_lines_go_along(log: Path) -> None:
    def work() -> None:
        for number in range(50):
            say(f"line {number}")
        raise DataError("x")

    with pytest.raises(SystemExit), stage("prepare"):
        work()
    outcome = Outcome.from_message(log.read_text())
    assert outcome is not None
    assert outcome.failure is not None
    assert outcome.failure.log_tail is not None
    lines = [line.split(" ", 1)[1] for line in outcome.failure.log_tail.splitlines()]
    assert lines == [f"line {number}" for number in range(10, 50)]


def test_a_stage_that_leaves_no_facts_has_failed(log: Path) -> None:
    with pytest.raises(SystemExit) as caught, stage("train"):
        pass
    assert caught.value.code == ExitCode.INTERNAL


def test_a_rank_says_who_it_is() -> None:
    failure = failure_from(DataError("x"), rank=3, step=7)
    assert (failure.rank, failure.step) == (3, 7)


def test_a_request_to_stop_ends_the_stage_as_stopped(log: Path) -> None:
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:  # as code around a library would
            pytest.fail("a library could take the request for an error of its own")

    with pytest.raises(SystemExit) as caught, stage("prepare"):
        work()
    outcome = Outcome.from_message(log.read_text())
    assert outcome is not None
    assert outcome.failure is not None
    assert (caught.value.code, outcome.failure.failure_class, outcome.failure.message) == (
        143,
        "Stopped",
        "asked to stop (SIGTERM)",
    )


def test_without_a_termination_log_the_outcome_is_printed() -> None:
    script = (
        "from finetune_trainer import outcome_file as o; from pathlib import Path\n"
        "o.DEFAULT_TERMINATION_LOG = Path('/nonexistent/log')\n"
        "from finetune_trainer.errors import DataError\n"
        "with o.stage('prepare'): raise DataError('x')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TERMINATION_LOG"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 11
    last = Outcome.from_message(done.stderr.splitlines()[-1])
    assert last is not None
    assert last.failure is not None
    assert last.failure.message == "x"


def test_a_run_file_of_another_release_is_refused_with_the_fields(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"schemaVersion": 2, "tuning": "Prompt"}')
    with pytest.raises(ConfigurationError) as caught:
        load_run([str(path)], "prepare")
    message = str(caught.value)
    assert "schemaVersion: Input should be 1; " in message
    assert "tuning: Input should be 'Full', 'LoRA' or 'QLoRA'; " in message
    assert message.endswith("; operator and trainer image must be of the same release")


@pytest.mark.parametrize("argv", [[], ["a", "b"]])
def test_a_stage_takes_one_argument(argv: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_run(argv, "prepare")
    assert str(caught.value) == "usage: python -m finetune_trainer.prepare RUN_JSON"

"""Only what was started by a cluster is ever taken for its process."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from localcluster.layout import ClusterError, Layout
from localcluster.processes import Identity, Processes, marked, parse_start_time, start_time
from localcluster.waiting import last_lines, wait_for

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.of(tmp_path)


def test_start_time_is_found_behind_a_name_with_spaces_and_parentheses() -> None:
    fields = ["S", *["0"] * 18, "4711", "0"]
    assert parse_start_time("12 (a) b (c)) " + " ".join(fields)) == 4711


def test_a_zombie_does_not_count_as_running() -> None:
    fields = ["Z", *["0"] * 18, "4711", "0"]
    assert parse_start_time("12 (gone) " + " ".join(fields)) is None


def test_a_pid_that_was_given_to_another_process_is_not_ours() -> None:
    started = start_time(os.getpid())
    assert started is not None
    assert Identity(os.getpid(), started).alive
    assert not Identity(os.getpid(), started + 1).alive


def test_a_process_is_started_once_found_and_stopped(layout: Layout) -> None:
    processes = Processes(layout)
    assert processes.start("sleeper", SLEEP)
    assert not processes.start("sleeper", SLEEP)
    assert processes.names() == ["sleeper"]
    identity = processes.find("sleeper")
    assert identity is not None
    assert os.getsid(identity.pid) == identity.pid
    processes.stop("sleeper")
    assert not identity.alive
    assert processes.names() == []


def test_a_stale_pid_file_does_not_stop_whoever_has_the_pid_now(layout: Layout) -> None:
    layout.run.mkdir(parents=True)
    note = {"pid": os.getpid(), "started": 1}
    (layout.run / "other.json").write_text(json.dumps(note))
    processes = Processes(layout)
    assert not processes.alive("other")
    processes.stop("other")  # would end this very test run
    assert processes.names() == []


def test_a_process_whose_pid_file_got_lost_is_replaced_not_doubled(layout: Layout) -> None:
    processes = Processes(layout)
    processes.start("sleeper", SLEEP)
    lost = processes.find("sleeper")
    assert lost is not None
    (layout.run / "sleeper.json").unlink()
    assert processes.start("sleeper", SLEEP)
    assert not lost.alive
    assert len(list(marked(layout.directory))) == 1
    processes.sweep()
    assert not processes.alive("sleeper")


def test_the_output_of_a_process_goes_to_its_log(layout: Layout) -> None:
    processes = Processes(layout)
    processes.start("talker", [sys.executable, "-c", "print('hello')"])
    log = layout.log("talker")
    wait_for("a line in the log", lambda: "hello" in log.read_text(), timeout=20)
    assert "hello" in last_lines(log)


def test_a_wait_that_fails_says_what_for_and_shows_the_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("first\nthe reason\n")
    with pytest.raises(ClusterError, match=r"(?s)waited for rain: gave up.*the reason"):
        wait_for("rain", lambda: False, timeout=0, logs=(log,))


def test_a_wait_ends_at_once_when_the_process_has_ended() -> None:
    began = time.monotonic()
    with pytest.raises(ClusterError, match="its process has ended"):
        wait_for("x", lambda: False, timeout=60, alive=lambda: False)
    assert time.monotonic() - began < 5

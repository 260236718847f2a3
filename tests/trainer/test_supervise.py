"""Launch notices a process that stands still and cannot say so, and says what is wrong with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune_api.outcome import ExitCode
from finetune_trainer.cascade import Ended, failure_of
from finetune_trainer.countdown import Countdown, Limits
from finetune_trainer.heartbeat import Beat, Heart, beats
from finetune_trainer.stacks import Shelf
from finetune_trainer.supervise import Silence, Supervisor, state_of_child, verdict

BEAT = Beat(rank=1, pid=2, count=9, activity="Training", step=7, budget=90.0)
SINCE = "while training, after step 7"


@pytest.mark.parametrize(
    ("state", "quiet", "said"),
    [
        ("T", 45.0, None),
        (
            "T",
            46.0,
            "its process was stopped by a signal (SIGSTOP); no sign of life for 45 s " + SINCE,
        ),
        ("D", 90.0, None),
        (
            "D",
            91.0,
            "its process waits in the kernel: a volume or a device does not answer; no sign of "
            "life for 90 s " + SINCE,
        ),
        (
            "R",
            91.0,
            "its process runs no Python: a library holds the interpreter's lock; no sign of life "
            "for 90 s " + SINCE,
        ),
        ("t", 89.0, None),  # somebody looks at it with a debugger
    ],
)
def test_a_silent_process_is_judged_by_its_state(
    state: str, quiet: float, said: str | None
) -> None:
    assert verdict(BEAT, state, quiet, stopped=60.0) == said


def test_time_in_which_the_whole_pod_did_not_run_is_nobodys_silence() -> None:
    silence = Silence(tick=1.0)
    ticks = [1.0, 1.0, 1.0, 3600.0, 1.0]
    assert [silence.see(BEAT, elapsed) for elapsed in ticks] == [0, 1, 2, 4, 5]


def test_a_new_beat_ends_the_silence() -> None:
    silence = Silence(tick=1.0)
    again = Beat(rank=1, pid=2, count=10, activity="Training", step=7, budget=90.0)
    assert [silence.see(beat, 1.0) for beat in (BEAT, BEAT, again, again)] == [0, 1, 0, 1]


def test_beats_are_read_as_they_were_left_and_a_torn_one_is_left_out(tmp_path: Path) -> None:
    count = Countdown(Limits(step=80.0))
    heart = Heart(tmp_path, 3)
    heart.beat(count)
    count.begin("Training")
    count.step_ended(5, 9.0)
    heart.beat(count)
    (tmp_path / "4.beat").write_text('{"rank": 4')
    mine = os.getpid()
    assert beats(tmp_path) == [
        Beat(rank=3, pid=mine, count=2, activity="Training", step=5, budget=90.0)
    ]


def test_a_process_that_is_not_ours_has_no_state() -> None:
    assert state_of_child(os.getppid()) is None


RANK = """
import sys, time
from pathlib import Path
from finetune_api.run_config import HangConfig
from finetune_trainer.countdown import Limits
from finetune_trainer.watchdog import Watchdog
dog = Watchdog(1, Path(sys.argv[1]), Limits(step=4.0, tick=0.05)).start()
dog.begin("Training")
dog.step_ended(5, 0.01)
time.sleep(0.3)  # a beat or more
print("ready", flush=True)
if sys.argv[2] == "lock":
    import ctypes
    ctypes.PyDLL(None).sleep(1000)  # keeps Python's lock
while True:
    time.sleep(0.05)
    dog.alive()
"""


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts a process with a watchdog, whose steps may take 4 s."""
    started: list[subprocess.Popen[bytes]] = []

    def start(how: str) -> subprocess.Popen[bytes]:
        env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-c", RANK, str(tmp_path), how]
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def supervisor(tmp_path: Path, report_only: bool = False) -> Supervisor:
    env = {"FINETUNE_HEARTBEAT": str(tmp_path / "alive")}
    found = Supervisor(tmp_path, env, stopped_seconds=1.0, tick=0.05)
    found.heed(report_only, Shelf(tmp_path / "work", "attempt-0"))
    return found.start()


@pytest.mark.parametrize(
    ("how", "words", "stack"),
    [
        (
            "stop",
            "its process was stopped by a signal (SIGSTOP); no sign of life for 1 s",
            'File "<string>"',
        ),
        (
            "lock",
            "its process runs no Python: a library holds the interpreter's lock; no sign of life "
            "for 4 s",
            'File "<string>", line 14 in <module>',
        ),
    ],
)
def test_a_process_that_stands_still_is_ended_with_its_stacks_and_known_as_a_hang(
    tmp_path: Path,
    rank: Callable[[str], subprocess.Popen[bytes]],
    how: str,
    words: str,
    stack: str,
) -> None:
    process = rank(how)
    if how == "stop":
        process.send_signal(signal.SIGSTOP)
    watching = supervisor(tmp_path)
    code = process.wait(60)
    watching.stop()
    assert code == -signal.SIGKILL
    ended = failure_of(1, code, 9.0, tmp_path)
    assert isinstance(ended, Ended)
    failure = ended.failure
    assert (failure.failure_class, failure.rank, failure.step) == ("Hang", 1, 5)
    assert ended.exit_code == int(ExitCode.HANG)
    assert failure.message == (
        f"{words} while training, after step 5; its stacks are in stacks/attempt-0/rank-1.txt of "
        "the work directory"
    )
    assert stack in (tmp_path / "work" / "stacks" / "attempt-0" / "rank-1.txt").read_text()


def test_a_process_that_runs_is_left_alone_and_the_file_for_the_probe_is_touched(
    tmp_path: Path, rank: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    process = rank("run")
    (tmp_path / "alive").touch()
    os.utime(tmp_path / "alive", (1, 1))
    watching = supervisor(tmp_path)
    time.sleep(2.0)  # longer than a process may be stopped
    watching.stop()
    assert process.poll() is None
    assert time.time() - (tmp_path / "alive").stat().st_mtime < 60


def test_a_process_that_is_only_reported_goes_on_when_it_may(
    tmp_path: Path,
    rank: Callable[[str], subprocess.Popen[bytes]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    process = rank("run")
    process.send_signal(signal.SIGSTOP)
    watching = supervisor(tmp_path, report_only=True)
    end = time.monotonic() + 30
    said = ""
    while "rank 1 hangs: its process was stopped" not in said:
        assert time.monotonic() < end, f"nothing was said: {said!r}"
        time.sleep(0.05)
        said += capfd.readouterr().out
    (before,) = beats(tmp_path)
    process.send_signal(signal.SIGCONT)
    while beats(tmp_path)[0].count <= before.count:
        assert time.monotonic() < end, "it does not go on"
        time.sleep(0.05)
    watching.stop()
    assert process.poll() is None
    assert "is left alone (spec.hangPolicy.action)" in said

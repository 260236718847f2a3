"""A process that no longer gets on ends itself, and says where it stood."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.outcome import ExitCode, Failure, Outcome
from finetune_api.run_config import HangConfig
from finetune_trainer.cascade import Ended, failure_of
from finetune_trainer.countdown import Countdown, Limits
from finetune_trainer.stacks import Shelf
from finetune_trainer.watchdog import Watchdog


def countdown(*steps: float, between: int = 1) -> Countdown:
    """In training, after steps that took so many seconds."""
    found = Countdown()
    found.begin("Training")
    for number, seconds in enumerate(steps, 1):
        found.step_ended(number * between, seconds, between)
    return found


@pytest.mark.parametrize(
    ("count", "budget"),
    [
        (countdown(), 600),
        (countdown(0.1, 0.2, 0.3), 60),
        (countdown(30.0, 9.0, 10.0, 9.5), 97.5),
        (countdown(*[100.0] * 5, *[8.0] * 50), 80),  # old steps are forgotten
        (countdown(9.0, 9.0, between=20), 261),  # the GPU is waited for every 20 steps only
    ],
)
def test_a_step_may_take_ten_times_the_median_and_never_less_than_a_minute(
    count: Countdown, budget: float
) -> None:
    assert count.budget == budget


@pytest.mark.parametrize(
    ("count", "budget"),
    [
        (countdown(), 600),  # the first step may take long, whatever is asked for
        (countdown(30.0, 30.0, 30.0), 20),
        (countdown(1.0, between=4), 80),
        (Countdown(activity="Loading"), 30),
        (Countdown(activity="Evaluating"), 40),
        (Countdown(activity="Checkpointing"), 50),
        (Countdown(activity="Saving"), 50),
        (Countdown(activity="Starting"), 2100),
    ],
)
def test_the_job_may_say_how_long_each_activity_takes(count: Countdown, budget: float) -> None:
    count.limits = Limits.of(
        HangConfig(
            training_seconds=20,
            loading_seconds=30,
            evaluating_seconds=40,
            checkpointing_seconds=50,
        )
    )
    assert count.budget == budget


def test_a_job_that_says_nothing_gets_the_budgets_of_the_watchdog() -> None:
    assert Limits.of(HangConfig()) == Limits()


@pytest.mark.parametrize(
    ("policy", "minutes"),
    [
        (HangConfig(), 30),
        (HangConfig(training_seconds=60), 30),
        (HangConfig(training_seconds=7200, loading_seconds=3600), 123),
        (HangConfig(report_only=True, training_seconds=60), 7 * 24 * 60),
    ],
)
def test_a_collective_outlives_what_the_watchdog_allows(policy: HangConfig, minutes: int) -> None:
    from finetune_trainer.ranks import MINUTE, patience

    assert patience(policy) == minutes * MINUTE


def test_every_activity_has_a_budget_of_its_own_and_all_of_it() -> None:
    count = countdown(1.0)
    budgets = []
    for activity, size in (
        ("Starting", 0), ("Loading", 16_000_000_000), ("Evaluating", 0), ("Checkpointing", 0),
        ("Saving", 2_000_000_000), ("Training", 0),
    ):  # fmt: skip
        count.tick(1.0)
        count.begin(activity, size)  # type: ignore[arg-type]
        budgets.append((activity, count.budget, count.spent))
    assert budgets == [
        ("Starting", 2100, 0),
        ("Loading", 1400, 0),
        ("Evaluating", 600, 0),
        ("Checkpointing", 600, 0),
        ("Saving", 700, 0),
        ("Training", 60, 0),
    ]


def test_time_in_which_the_process_did_not_run_does_not_count() -> None:
    count = countdown(1.0)
    assert [count.tick(1.0), count.tick(3600.0), count.tick(1.0)] == [-59, -57, -56]
    assert count.tick(56 + 1) == -54
    count.alive()
    assert count.spent == 0


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (countdown(3.0, 3.25), "no step has ended for 60 s after step 2, a step takes 3.1 s"),
        (countdown(), "the first step has not ended within 600 s"),
        (Countdown(activity="Loading"), "loading has not got on for 600 s before the first step"),
        (
            Countdown(activity="Evaluating", step=40),
            "evaluating has not got on for 600 s after step 40",
        ),
    ],
)
def test_the_message_says_what_was_being_done_and_where(count: Countdown, message: str) -> None:
    assert count.message("all_reduce (torch/distributed/c10d.py)") == (
        f"{message}; the process was in all_reduce (torch/distributed/c10d.py); a volume, a GPU or "
        "the network does not answer, or another worker does not: the log has the stacks of all "
        "threads"
    )


def test_a_failure_has_the_step_the_rank_and_the_stack_of_the_main_thread() -> None:
    told: list[tuple[Failure, str]] = []
    done = threading.Event()

    def end(failure: Failure, stacks: str) -> None:
        told.append((failure, stacks))
        done.set()

    dog = Watchdog(3, None, Limits(step=0.05, tick=0.01), end).start()
    dog.begin("Training")
    dog.step_ended(7, 0.001)
    assert done.wait(30)
    dog.stop()
    ((failure, stacks),) = told
    assert (failure.failure_class, failure.rank, failure.step) == ("Hang", 3, 7)
    assert "no step has ended for 0 s after step 7" in failure.message
    assert "in test_a_failure_has_the_step_the_rank" in (failure.log_tail or "")
    assert "test_watchdog.py" in stacks


def until(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Wait for what another thread or process brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def test_a_hang_that_is_only_reported_is_left_alone_and_told_again_the_next_time(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Limits, "of", lambda _: Limits(step=0.05, tick=0.01))
    stalled: list[float | None] = []
    ended: list[Failure] = []
    dog = Watchdog(3, None, Limits(tick=0.01), lambda failure, _: ended.append(failure)).start()
    dog.heed(HangConfig(report_only=True), Shelf(tmp_path, "attempt-2"), stalled.append)
    dog.begin("Training")
    for step in (7, 8):
        dog.step_ended(step, 0.001)
        until(lambda step=step: len(stalled) == 2 * step - 13, f"the hang after step {step}")
        dog.step_ended(step, 0.001)
        until(lambda step=step: len(stalled) == 2 * step - 12, "the end of the hang")
    dog.stop()
    assert ended == []
    assert [seconds is None for seconds in stalled] == [False, True, False, True]
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("rank 3 ")]
    assert [line.split(";")[0] for line in said] == [
        "rank 3 hangs: no step has ended for 0 s after step 7, a step takes 0.001 s",
        "rank 3 gets on again",
        "rank 3 hangs: no step has ended for 0 s after step 8, a step takes 0.001 s",
        "rank 3 gets on again",
    ]
    kept = (tmp_path / "stacks" / "attempt-2" / "rank-3.txt").read_text()
    assert "after step 8" in kept  # the last time it hung
    assert "test_watchdog.py" in kept


def test_the_stacks_are_kept_and_the_failure_says_where(tmp_path: Path) -> None:
    told: list[Failure] = []
    dog = Watchdog(1, None, Limits(tick=0.01), lambda failure, _: told.append(failure))
    dog.heed(HangConfig(), Shelf(tmp_path, "attempt-0"), lambda _: None)
    dog.countdown.limits = Limits(step=0.05, tick=0.01)
    dog.begin("Training")
    dog.step_ended(7, 0.001)
    dog.start()
    until(lambda: told, "the hang")
    dog.stop()
    assert told[0].message.endswith(
        "the log has the stacks of all threads, and stacks/attempt-0/rank-1.txt of the work "
        "directory"
    )
    kept = (tmp_path / "stacks" / "attempt-0" / "rank-1.txt").read_text()
    assert kept.startswith("no step has ended for 0 s after step 7")
    assert "Thread 0x" in kept
    assert "in test_the_stacks_are_kept_and_the_failure_says_where" in kept


def test_only_the_stacks_of_the_last_attempts_are_kept(tmp_path: Path) -> None:
    for attempt in range(13):
        place = Shelf(tmp_path, f"attempt-{attempt}")
        assert place.keep(0, "x" * 2_000_000) == f"stacks/attempt-{attempt}/rank-0.txt"
        os.utime(tmp_path / "stacks" / f"attempt-{attempt}", (attempt, attempt))
    left = {path.name for path in (tmp_path / "stacks").iterdir()}
    assert left == {f"attempt-{attempt}" for attempt in range(3, 13)}
    assert (tmp_path / "stacks" / "attempt-12" / "rank-0.txt").stat().st_size == 1_000_000


def test_a_volume_that_cannot_be_written_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "stacks").write_text("in the way")
    assert Shelf(tmp_path, "attempt-0").keep(0, "text", seconds=0.2) is None


def test_a_process_that_gets_on_is_left_alone() -> None:
    told: list[str] = []
    limits = Limits(step=2.0, first_step=2.0, tick=0.01)
    dog = Watchdog(0, None, limits, lambda failure, _: told.append(failure.message)).start()
    dog.begin("Training")
    for step in range(1, 60):
        dog.step_ended(step, 0.05)
        time.sleep(0.05)  # the work
    dog.stop()
    assert told == []


STUCK = """
import sys, threading
from pathlib import Path
from finetune_trainer import watchdog
if sys.argv[2] == "lock":
    watchdog.LOCK_SECONDS = 1
limits = watchdog.Limits(step=1.0, tick=0.05)
dog = watchdog.Watchdog(1, Path(sys.argv[1]), limits).start()
dog.begin("Training")
dog.step_ended(5, 0.01)
print("ready", flush=True)
if sys.argv[2] == "lock":
    import ctypes
    ctypes.PyDLL(None).sleep(1000)  # keeps Python's lock
elif sys.argv[2] == "pipe":
    while True:
        print("x" * 1000)  # nobody reads, and print holds the lock of standard output
else:
    threading.Lock().acquire(); lock = threading.Lock(); lock.acquire(); lock.acquire()
"""


def stuck(directory: Path, how: str) -> subprocess.Popen[bytes]:
    """A process with a watchdog that is stuck after step 5."""
    env = os.environ | {"TERMINATION_LOG": str(directory / "1.json")}
    env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(directory), how], env=env, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_a_main_thread_stuck_in_c_ends_with_204_and_all_stacks_in_the_log(tmp_path: Path) -> None:
    output, _ = stuck(tmp_path, "lock-of-a-thread").communicate(timeout=60)
    text = output.decode()
    outcome = Outcome.from_message((tmp_path / "1.json").read_text())
    assert outcome is not None
    assert outcome.failure is not None
    assert outcome.failure.failure_class == "Hang"
    assert text.startswith("stacks of rank 1:\nCurrent thread 0x")
    assert text.count("Thread 0x") >= 1
    assert text.splitlines()[-1].startswith(
        "rank 1 hangs: no step has ended for 1 s after step 5, a step takes 0.01 s; the process "
        "was in <module> (<string>); "
    )


def test_a_pipe_that_nobody_reads_does_not_keep_the_process(tmp_path: Path) -> None:
    process = stuck(tmp_path, "pipe")
    assert process.wait(60) == int(ExitCode.HANG)
    assert json.loads((tmp_path / "1.json").read_text())["failure"]["class"] == "Hang"


def test_a_process_that_keeps_pythons_lock_is_ended_and_known_by_its_stacks(
    tmp_path: Path,
) -> None:
    process = stuck(tmp_path, "lock")
    code = process.wait(60)
    ended = failure_of(1, code, 9.0, tmp_path)
    assert isinstance(ended, Ended)
    assert (ended.failure.failure_class, ended.exit_code) == ("Hang", 204)
    assert "held Python's lock" in ended.failure.message
    assert 'File "<string>"' in ended.failure.message


def test_a_process_that_was_stopped_for_longer_than_its_budget_goes_on(tmp_path: Path) -> None:
    process = stuck(tmp_path, "lock-of-a-thread")  # 1 s of budget
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.0)  # it must stay stopped for longer than the budget
    process.send_signal(signal.SIGCONT)
    continued = time.monotonic()
    assert process.wait(60) == int(ExitCode.HANG)  # it is stuck, but not for 2 s
    assert time.monotonic() - continued > 0.5

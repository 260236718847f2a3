"""A pod's processes, started and ended for real, and the one outcome that tells of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from training_builders import LORA, arrays, environment, run_config, write_work

from finetune_api.outcome import Failure, FailureClass, Outcome
from finetune_api.run_config import RunConfig
from finetune_trainer.cascade import Ended, cause, failure_of, log_tail
from finetune_trainer.errors import InternalError, PeerLostError
from finetune_trainer.launch import Pod, processors, threads_per_process, wait_for_name

ENDLESS = 20_000
"""Steps of a run that a test ends: minutes, while what it waits for takes seconds."""


@dataclass
class Worker:
    """One pod's launch."""

    process: subprocess.Popen[bytes]
    message: Path
    log: Path

    def end(self, seconds: float = 300) -> tuple[int, Outcome]:
        """Its exit code and termination message, when it has ended."""
        code = self.process.wait(seconds)
        text = self.message.read_text()
        assert len(text.encode()) <= 4096
        outcome = Outcome.from_message(text)
        assert outcome is not None, self.log.read_text()
        return code, outcome

    def child(self, rank: int) -> int:
        """Process id of one of its ranks."""
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if int(path.with_name("stat").read_text().rsplit(")", 1)[1].split()[1]) != (
                    self.process.pid
                ):
                    continue
                if f"RANK={rank}".encode() in path.read_bytes().split(b"\0"):
                    return int(path.parent.name)
            except OSError:
                continue
        raise AssertionError(f"rank {rank} does not run")


@pytest.fixture
def started() -> Iterator[list[Worker]]:
    """Workers that a test has started; none outlives it."""
    found: list[Worker] = []
    yield found
    for worker in found:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)


def start_pods(run: RunConfig, directory: Path, started: list[Worker]) -> list[Worker]:
    """A launch for every pod of the run, as the operator would start it."""
    (directory / "run.json").write_text(run.model_dump_json(by_alias=True))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = []
    for node in range(run.num_nodes):
        message, log = directory / f"message-{node}", directory / f"log-{node}"
        env = environment(
            PET_NNODES=str(run.num_nodes),
            PET_NPROC_PER_NODE=str(run.num_proc_per_node),
            PET_NODE_RANK=str(node),
            PET_MASTER_ADDR="localhost",
            PET_MASTER_PORT=str(port),
            TERMINATION_LOG=str(message),
            FINETUNE_ATTEMPT="3",
        )
        message.unlink(missing_ok=True)
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "finetune_trainer.launch", str(directory / "run.json")],
                env=env,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        found.append(Worker(process, message, log))
        started.append(found[-1])
    return found


def until(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    """Wait for a condition that real processes bring about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not {what} after {seconds} s"
        time.sleep(0.1)


def work_for(tmp_path: Path, steps: int) -> Path:
    work = tmp_path / "work"
    write_work(work, arrays(20, seed=1), arrays(4, seed=2), steps)
    return work


def steps_done(work: Path) -> int:
    path = work / "losses.jsonl"
    return path.read_text().count('"loss"') if path.exists() else 0


def test_two_pods_train_and_the_lead_tells_the_facts_and_a_second_start_is_short(
    tmp_path: Path, started: list[Worker]
) -> None:
    work = work_for(tmp_path, 5)
    run = run_config(work, num_nodes=2, zero_stage=2, tuning="LoRA", lora=LORA)
    lead, other = start_pods(run, tmp_path, started)
    assert lead.process.wait(300) == 0, lead.log.read_text()
    assert other.process.wait(60) == 0
    facts = json.loads((work / "train.json").read_text())
    assert json.loads(lead.message.read_text()) == {"train": facts}
    assert (facts["step"], facts["totalSteps"]) == (5, 5)
    assert not other.message.exists()
    lines = [line for line in lead.log.read_text().splitlines() if "step" in line]
    assert [line.split("step ", 1)[1].split("  ")[0] for line in lines] == [
        "0", "1/5", "2/5", "3/5", "4/5", "5/5", "5"
    ]  # fmt: skip
    assert "rank 1" not in other.log.read_text()  # nothing to say of its own
    written = (work / "losses.jsonl").stat().st_mtime_ns
    again = start_pods(run, tmp_path, started)
    assert [worker.end()[0] for worker in again] == [0, 0]
    assert json.loads(again[0].message.read_text()) == {"train": facts}
    assert (work / "losses.jsonl").stat().st_mtime_ns == written


def test_a_killed_rank_is_named_and_its_peer_only_says_that_it_lost_it(
    tmp_path: Path, started: list[Worker]
) -> None:
    work = work_for(tmp_path, ENDLESS)
    lead, other = start_pods(run_config(work, num_nodes=2), tmp_path, started)
    until(lambda: steps_done(work) >= 2, "training")
    os.kill(other.child(1), signal.SIGKILL)
    code, outcome = other.end()
    failure = outcome.failure
    assert failure is not None
    assert (code, failure.failure_class, failure.rank) == (137, "Killed", 1)
    assert "killed by signal 9 (SIGKILL)" in failure.message
    assert f"step 1/{ENDLESS}  loss " in (failure.log_tail or "")
    assert f"/{ENDLESS}  loss " not in other.log.read_text()
    code, outcome = lead.end()
    failure = outcome.failure
    assert failure is not None
    assert (code, failure.failure_class, failure.rank) == (205, "PeerLost", 0)
    assert failure.step is not None
    assert failure.step >= 2
    assert f"/{ENDLESS}  loss " in (failure.log_tail or "")
    last = lead.log.read_text().splitlines()[-1]
    assert "training failed on rank 0 (PeerLost)" in last


def test_a_run_that_diverges_ends_with_14_and_says_where_and_what_to_do(
    tmp_path: Path, started: list[Worker]
) -> None:
    run = run_config(work_for(tmp_path, 50), num_proc_per_node=2, learning_rate=1e30)
    (worker,) = start_pods(run, tmp_path, started)
    code, outcome = worker.end()
    failure = outcome.failure
    assert failure is not None
    assert (code, failure.failure_class) == (14, "Diverged")
    assert failure.message.startswith("training diverged at step 2 of 50: the ")
    assert failure.step == 1  # the last one that was sound
    assert "lower spec.training.learningRate" in failure.message
    log = worker.log.read_text()
    assert "Traceback" not in log
    assert "exitcode" not in log  # torchrun's own words
    assert log.splitlines()[-1].endswith(failure.message)


def steps_of_checkpoints(work: Path) -> list[int]:
    found = (work / "checkpoints").glob("step-*/COMMITTED")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


def test_a_stopped_pod_saves_and_ends_with_143_and_has_no_one_to_blame(
    tmp_path: Path, started: list[Worker]
) -> None:
    work = work_for(tmp_path, ENDLESS)
    (worker,) = start_pods(run_config(work, num_proc_per_node=2), tmp_path, started)
    until(lambda: steps_done(work) >= 1, "training")
    worker.process.send_signal(signal.SIGTERM)
    code, outcome = worker.end()
    failure = outcome.failure
    assert failure is not None
    assert (code, failure.failure_class, failure.rank) == (143, "Stopped", None)
    (step,) = steps_of_checkpoints(work)
    assert failure.message == f"asked to stop (SIGTERM); checkpoint of step {step} is saved"
    assert failure.step == step >= 1
    assert not (work / "train.json").exists()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_pod_that_waits_for_another_ends_at_once_when_it_is_asked_to_stop(
    tmp_path: Path, started: list[Worker]
) -> None:
    """torch waits in C, where Python's handlers do not run."""
    work = work_for(tmp_path, ENDLESS)
    waits, other = start_pods(run_config(work, num_nodes=2), tmp_path, started)
    other.process.kill()
    environ = Path(f"/proc/{waits.process.pid}/environ").read_text()
    port = int(environ.split("PET_MASTER_PORT=")[1].split("\0")[0])
    until(lambda: listens(port), "waiting for the other pod")
    waits.process.send_signal(signal.SIGTERM)
    code, outcome = waits.end(60)
    assert (code, outcome.failure and outcome.failure.message) == (
        143,
        "asked to stop (SIGTERM) while the workers waited for each other: nothing is lost",
    )


def test_a_rank_that_waits_for_another_ends_at_once_when_it_is_asked_to_stop(
    tmp_path: Path,
) -> None:
    run = run_config(work_for(tmp_path, ENDLESS), num_proc_per_node=2)
    (tmp_path / "run.json").write_text(run.model_dump_json(by_alias=True))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    message = tmp_path / "message"
    env = environment(
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TERMINATION_LOG=str(message),
    )
    command = [sys.executable, "-m", "finetune_trainer.train", str(tmp_path / "run.json")]
    process = subprocess.Popen(command, env=env)
    try:
        until(lambda: listens(port), "waiting for the other rank")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
    outcome = Outcome.from_message(message.read_text())
    assert outcome is not None
    assert outcome.failure is not None
    assert (outcome.failure.failure_class, outcome.failure.rank) == ("Stopped", 0)


def test_when_one_pod_is_stopped_the_others_save_the_same_step_and_end_too(
    tmp_path: Path, started: list[Worker]
) -> None:
    work = work_for(tmp_path, ENDLESS)
    run = run_config(work, num_nodes=2, zero_stage=2, tuning="LoRA", lora=LORA)
    pods = start_pods(run, tmp_path, started)
    until(lambda: steps_done(work) >= 2, "training")
    before = json.loads((work / "losses.jsonl").read_text().splitlines()[-1])["step"]
    os.kill(pods[1].child(1), signal.SIGTERM)
    for pod in pods:
        code, outcome = pod.end()
        assert outcome.failure is not None
        assert (code, outcome.failure.failure_class, outcome.failure.rank) == (143, "Stopped", None)
        (step,) = steps_of_checkpoints(work)
        assert step >= before
        assert outcome.failure.message.endswith(f"checkpoint of step {step} is saved")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_rank_that_is_stopped_is_named_even_where_it_has_no_peer(
    tmp_path: Path, started: list[Worker], processes: int
) -> None:
    work = work_for(tmp_path, ENDLESS)
    run = run_config(work, num_proc_per_node=processes, hang={"trainingSeconds": 10})
    (worker,) = start_pods(run, tmp_path, started)
    until(lambda: steps_done(work) >= 2, "training")
    last = processes - 1
    os.kill(worker.child(last), signal.SIGSTOP)
    code, outcome = worker.end(60)
    failure = outcome.failure
    assert failure is not None
    assert (code, failure.failure_class, failure.rank) == (204, "Hang", last)
    assert failure.step is not None
    assert failure.message == (
        "its process was stopped by a signal (SIGSTOP); no sign of life for 5 s while training, "
        f"after step {failure.step}; its stacks are in stacks/attempt-3/rank-{last}.txt of the "
        "work directory"
    )
    assert failure.step >= 2
    kept = (work / "stacks" / "attempt-3" / f"rank-{last}.txt").read_text()
    assert "finetune_trainer/loop.py" in kept


def test_a_stopped_rank_that_is_only_reported_goes_on_when_it_may(
    tmp_path: Path, started: list[Worker]
) -> None:
    work = work_for(tmp_path, ENDLESS)
    hang = {"trainingSeconds": 10, "reportOnly": True}
    (worker,) = start_pods(run_config(work, hang=hang), tmp_path, started)
    until(lambda: steps_done(work) >= 2, "training")
    rank = worker.child(0)
    os.kill(rank, signal.SIGSTOP)
    try:
        said = "rank 0 hangs: its process was stopped by a signal (SIGSTOP)"
        until(lambda: said in worker.log.read_text(), "reported", 60)
        before = steps_done(work)
    finally:
        os.kill(rank, signal.SIGCONT)
    until(lambda: steps_done(work) > before, "going on", 60)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end()[0] == 143


def ended(found: FailureClass, rank: int, at: float, code: int, message: str = "it broke") -> Ended:
    return Ended(Failure(failure_class=found, message=message, rank=rank, time=at), code)


@pytest.mark.parametrize(
    ("first", "others"),
    [
        (ended("Data", 1, 10.0, 11), [ended("PeerLost", 0, 9.0, 205)]),
        (ended("OutOfMemory", 2, 10.0, 13), [ended("OutOfMemory", 0, 10.5, 13)]),
        (ended("Killed", 1, 11.0, 137), [ended("Internal", 0, 10.5, 203)]),
        (ended("Killed", 3, 11.0, 139), [ended("PeerLost", 0, 10.5, 205)]),
        (ended("Internal", 1, 10.0, 203), [ended("Killed", 0, 12.0, 143)]),
        (ended("Internal", 1, 10.0, 203), [ended("Stopped", 0, 9.9, 143)]),
        (ended("PeerLost", 1, 10.0, 205), [ended("Stopped", 0, 9.9, 143)]),
        # Killed by torchrun itself, 15 s after it had asked: rank 2 is what it began with.
        (ended("Killed", 2, 10.0, 139), [ended("Killed", 0, 25.0, 137)]),
    ],
)
def test_the_cause_is_told_from_its_effects(first: Ended, others: list[Ended]) -> None:
    assert cause([first, *others]) == cause([*others, first]) == first


def outcomes(directory: Path, stdout: str = "", stderr: str = "") -> Path:
    logs = directory / "logs" / "run_x" / "attempt_0" / "0"
    logs.mkdir(parents=True)
    (logs / "stdout.log").write_text(stdout)
    (logs / "stderr.log").write_text(stderr)
    return directory


def test_a_process_that_left_word_is_quoted_with_what_it_printed(tmp_path: Path) -> None:
    told = Failure(failure_class="Data", message="line 3", rank=4, step=7, time=5.0, log_tail="x")
    (outcomes(tmp_path, "one\ntwo\n", "three\n") / "4.json").write_text(
        Outcome(failure=told).to_message()
    )
    found = failure_of(4, 11, 9.0, tmp_path, local_rank=0)
    assert found == Ended(told.model_copy(update={"log_tail": "one\ntwo\nthree"}), 11)


@pytest.mark.parametrize(
    ("code", "stderr", "expected"),
    [
        (-9, "", ("Killed", 137)),
        (-11, "", ("Killed", 139)),
        (-6, "[PG 0] ProcessGroupNCCL watchdog: ncclRemoteError", ("PeerLost", 205)),
        (-6, "NCCL Watchdog caught collective operation timeout", ("Hang", 204)),
        (-6, "free(): invalid pointer", ("Killed", 134)),
        (1, "ModuleNotFoundError", ("Internal", 203)),
        (13, "", ("OutOfMemory", 13)),
    ],
)
def test_a_process_that_left_no_word_is_judged_by_its_end(
    tmp_path: Path, code: int, stderr: str, expected: tuple[str, int]
) -> None:
    found = failure_of(0, code, 9.0, outcomes(tmp_path, stderr=stderr))
    assert (found.failure.failure_class, found.exit_code) == expected
    assert found.failure.log_tail == (stderr or None)


def test_only_the_end_of_a_long_log_is_kept(tmp_path: Path) -> None:
    lines = [f"line {i} " + "x" * 200 for i in range(10_000)]
    outcomes(tmp_path, "\n".join(lines))
    assert log_tail(tmp_path / "logs", 0) == "\n".join(lines[-40:])
    assert log_tail(tmp_path / "logs", 1) is None


class Name:
    """A name that resolves from the n-th question on, and a clock that sleeping moves."""

    def __init__(self, after: int) -> None:
        self.after, self.asked, self.now = after, 0, 0.0

    def resolve(self, host: str) -> None:
        self.asked += 1
        if self.asked <= self.after:
            raise socket.gaierror(-2, "Name or service not known")

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_the_name_of_worker_0_is_waited_for() -> None:
    name = Name(after=6)
    wait_for_name("x-train-0-0.x", name.resolve, name.sleep, lambda: name.now, seconds=60)
    assert (name.asked, name.now) == (7, 0.25 + 0.5 + 1 + 2 + 4 + 5)


def test_a_name_that_never_comes_is_a_lost_peer() -> None:
    name = Name(after=10**6)
    with pytest.raises(PeerLostError, match=r"worker 0 \(x\) has no address after 6[0-9] s"):
        wait_for_name("x", name.resolve, name.sleep, lambda: name.now, seconds=60)


def test_a_pod_without_variables_runs_everything_itself() -> None:
    run = run_config(Path("/work"), num_proc_per_node=2)
    assert Pod.from_env({}, run) == Pod(1, 2, 0, "127.0.0.1", 29500)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({}, "pod 0 is told of 1 x 1 processes, the run is for 2 x 1"),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "2"}, "pod 2 is told of"),
        ({"PET_NNODES": "two"}, "a PET_ variable is no number"),
        ({"PET_NNODES": "2", "PET_NPROC_PER_NODE": "4"}, "2 x 4 processes"),
    ],
)
def test_a_pod_that_does_not_fit_the_run_is_refused(env: dict[str, str], words: str) -> None:
    with pytest.raises(InternalError, match=words):
        Pod.from_env(env, run_config(Path("/work"), num_nodes=2))


@pytest.mark.parametrize(
    ("env", "accelerator", "processors", "threads"),
    [
        ({}, "CPU", 8.0, 4),
        ({}, "CPU", 1.5, 1),
        ({"OMP_NUM_THREADS": "3"}, "CPU", 8.0, 3),
        ({}, "CUDA", 96.0, 8),
    ],
)
def test_every_process_gets_its_part_of_the_processors(
    env: dict[str, Any], accelerator: str, processors: float, threads: int
) -> None:
    run = run_config(Path("/work"), num_proc_per_node=2, accelerator=accelerator)
    assert threads_per_process(env, run, processors) == threads


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu.max": "max 100000\n"}, 8.0),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8.0),
        ({"cpu.max": "9900000 100000\n"}, 8.0),
        ({}, 8.0),
    ],
)
def test_a_container_may_use_its_limit_and_not_the_whole_node(
    tmp_path: Path, files: dict[str, str], usable: float
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert processors(8, tmp_path) == usable

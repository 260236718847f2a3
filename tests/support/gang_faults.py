"""Gangs of two real ranks in which rank 1 comes to grief: `python -m gang_faults CASES_JSON`.

This process imports torch and DeepSpeed once and forks the ranks of every case, as importing takes
10 s. A fault strikes at a place in the training that rank 1 reaches by itself. What the ranks left
is written beside the cases: exit codes as Python tells them, and seconds until both had ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune_api.run_config import RunConfig

SECONDS = 120.0
"""A case that takes longer has failed; its ranks are killed."""


@dataclass(frozen=True)
class Fault:
    """What happens to rank 1, and where."""

    what: str
    """SIGKILL, SIGSTOP, sleep or memory."""
    where: str
    """step (the third), evaluation (the first) or barrier (at the end)."""


@dataclass(frozen=True)
class Ended:
    """What became of a case."""

    codes: list[int]
    """By rank; negative for a signal, and -9 where this program had to end it."""
    seconds: float
    """From the fault to the end of the last rank that ends by itself."""


def strike(fault: Fault, mark: Path) -> None:
    """Let it happen to this process."""
    mark.touch()
    if fault.what == "sleep":
        time.sleep(10 * SECONDS)
    elif fault.what == "memory":
        import torch

        torch.empty(1 << 60)
    else:
        os.kill(os.getpid(), getattr(signal, fault.what))


def set_trap(fault: Fault, mark: Path) -> None:
    """Put the fault where the training of this process will come by."""
    from finetune_trainer import evaluate
    from finetune_trainer.engine import Engine
    from finetune_trainer.ranks import Gang

    def before(owner: Any, name: str, count: int) -> None:
        original: Callable[..., Any] = getattr(owner, name)
        left = [count]

        def trapped(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                strike(fault, mark)
            return original(*args, **kwargs)

        setattr(owner, name, trapped)

    places: dict[str, tuple[Any, str, int]] = {
        "step": (Engine, "set_learning_rate", 3),
        "evaluation": (evaluate, "tensors", 1),
        "barrier": (Gang, "barrier", 1),
    }
    before(*places[fault.where])


class Told:
    """A reporter that passes on to the watchdog what training tells of itself."""

    def __init__(self, dog: Any) -> None:
        """`dog`: a `Watchdog`."""
        self._dog, self._last = dog, time.monotonic()

    def update(self, **changes: Any) -> None:
        """As `Reporter.update`."""
        if changes.get("activity") not in (None, "Done"):
            self._dog.begin(changes["activity"])
            self._last = time.monotonic()
        if "step" in changes:
            now = time.monotonic()
            self._dog.step_ended(changes["step"], now - self._last)
            self._last = now

    def close(self) -> None:
        """As `Reporter.close`."""


def rank_main(rank: int, run_json: Path, directory: Path, fault: Fault) -> int:
    """One rank: the trainer's own entry point, with small budgets of the watchdog."""
    from finetune_trainer import train
    from finetune_trainer.watchdog import Limits, Watchdog

    if rank == 1:
        set_trap(fault, directory / "struck")
    small = Limits(
        starting=60.0, transfer=60.0, evaluating=8.0, first_step=60.0, step=6.0, steps=1,
        grace=3.0, tick=0.1,
    )  # fmt: skip
    told = Told(Watchdog(rank, directory, small).start())
    vars(train).update(NullReporter=lambda: told, reporter_from=lambda *_: told)
    os.environ["TERMINATION_LOG"] = str(directory / f"{rank}.json")
    return train.main([str(run_json)])


def run_case(run: RunConfig, fault: Fault, directory: Path) -> Ended:
    """Fork both ranks and wait for their end."""
    directory.mkdir(parents=True)
    run_json = directory / "run.json"
    run_json.write_text(run.model_dump_json(by_alias=True))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                "FINETUNE_OUTCOME_DIRECTORY": str(directory),
            }  # fmt: skip
            logs = directory / "logs" / "run_x" / "attempt_0" / str(rank)
            logs.mkdir(parents=True)
            for stream, number in (("stdout", 1), ("stderr", 2)):
                os.dup2(os.open(logs / f"{stream}.log", os.O_WRONLY | os.O_CREAT), number)
            os._exit(rank_main(rank, run_json, directory, fault))
        pids.append(pid)
    # A stopped process does not end by itself, however long it gets.
    return _wait(pids, directory / "struck", 0 if fault.what == "SIGSTOP" else 10)


def _wait(pids: list[int], mark: Path, patience: float) -> Ended:
    codes: dict[int, int] = {}
    began, ended = time.monotonic(), 0.0
    while len(codes) < 2:
        for pid in set(pids) - set(codes):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
                ended = time.time()
        # As torchrun does: when one has failed, the others get a moment to tell, no more.
        late = ended and time.time() - ended > patience
        if late or time.monotonic() - began > SECONDS:
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return Ended([codes[pid] for pid in pids], round(ended - mark.stat().st_mtime, 1))


def main(file: str) -> None:
    """Run all cases of a file."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import peft

    from finetune_trainer import engine

    assert deepspeed
    assert peft
    assert engine
    cases = json.loads(Path(file).read_text())
    found = {
        name: asdict(run_case(RunConfig.model_validate(run), Fault(**fault), Path(directory)))
        for name, (run, fault, directory) in cases.items()
    }
    Path(file).with_suffix(".ended").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])

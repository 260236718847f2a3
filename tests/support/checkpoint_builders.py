"""Runs that are stopped, resumed and disturbed, by gangs of several sizes.

`python -m checkpoint_builders GANGS_JSON` imports torch and DeepSpeed once, which takes 10 s, and
then forks the processes of one gang after the other.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training_builders import environment

from finetune_api.run_config import RunConfig


@dataclass
class Scenario:
    """One attempt of one run."""

    run: RunConfig
    asked_after: int | None = None
    """Step after which one process is asked to stop, as by SIGTERM."""
    asked_rank: int = 0
    diverges_at: int | None = None
    """Step that all processes are told to take for a diverged one."""
    evaluations: list[float] | None = None
    """What evaluations are to give, instead of evaluating."""
    dies_at: int | None = None
    """Step whose checkpoint is half written when the process is killed (SIGKILL)."""
    tamper: dict[str, str] = field(default_factory=dict)
    """Before it starts: `flip` a byte of, or `delete`, files below `checkpoints`."""
    copies: list[str] = field(default_factory=list)
    """Work directories that get a copy of its own at the end."""

    @property
    def work(self) -> Path:
        """Its work directory."""
        return Path(self.run.work_dir)

    @property
    def losses(self) -> dict[int, float]:
        """Loss by step, as logged."""
        lines = (json.loads(line) for line in (self.work / "losses.jsonl").read_text().splitlines())
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    @property
    def ended(self) -> dict[str, Any]:
        """Class and message of a failure, or the facts; with what was logged."""
        found: dict[str, Any] = json.loads((self.work / "ended.json").read_text())
        return found

    @property
    def checkpoints(self) -> list[str]:
        """Names of what is in `checkpoints`."""
        place = self.work / "checkpoints"
        return sorted(p.name for p in place.iterdir()) if place.is_dir() else []


@dataclass
class Gang:
    """Processes that start together and do some scenarios in their order."""

    processes: int
    scenarios: list[Scenario]
    killed: bool = False
    """The last scenario kills it."""


def run_gangs(directory: Path, gangs: list[Gang], timeout: float = 1200) -> None:
    """Run all gangs, one after the other."""
    told = []
    for gang in gangs:
        scenarios = [asdict(s) | {"run": s.run.model_dump(mode="json")} for s in gang.scenarios]
        told.append({**vars(gang), "scenarios": scenarios})
    file = directory / "gangs.json"
    file.write_text(json.dumps(told))
    done = subprocess.run(
        [sys.executable, "-m", "checkpoint_builders", str(file)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def main(file: str) -> None:
    """The parent of all processes."""
    # What takes time to import is imported once; no thread and no connection comes of it.
    for name in ("train", "evaluate", "result", "checkpoint.history", "course"):
        importlib.import_module(f"finetune_trainer.{name}")
    for told in json.loads(Path(file).read_text()):
        gang = Gang(**told)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(gang.processes)}
        children = [_fork(gang, rank) for rank in range(gang.processes)]
        ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert ended == [-9 if gang.killed else 0] * gang.processes, ended


def _fork(gang: Gang, rank: int) -> int:
    child = os.fork()
    if child:
        return child
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    code = 1
    try:
        _rank(gang)
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _rank(told: Gang) -> None:
    from finetune_trainer.ranks import join

    gang = None
    for values in told.scenarios:
        data: Any = values
        scenario = Scenario(**data | {"run": RunConfig.model_validate(data["run"])})
        gang = gang or join(scenario.run)
        if gang.is_lead:
            _tamper(scenario)
        gang.barrier()
        ended = _one(scenario, gang)
        if gang.is_lead:
            (scenario.work / "ended.json").write_text(json.dumps(ended))
            for copy in scenario.copies:
                shutil.copytree(scenario.work, copy)
        gang.barrier()


def _tamper(scenario: Scenario) -> None:
    for name, how in scenario.tamper.items():
        path = scenario.work / "checkpoints" / name
        if how == "delete":
            path.unlink()
        else:
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)


def _dying(step: int) -> Any:
    """`write_shard` that writes half of one checkpoint, and then the process is killed."""
    from finetune_trainer.checkpoint import files

    def write(path: Path, parts: Any) -> Any:
        if path.parent.name != f"step-{step:08}":
            return files.write_shard(path, parts)
        found = files.write_shard(path, parts)
        with path.open("r+b") as file:
            file.truncate(found.bytes // 2)
        os.kill(os.getpid(), signal.SIGKILL)
        return found

    return write


def _one(scenario: Scenario, gang: Any) -> dict[str, Any]:
    from finetune_trainer import evaluate, logs, train
    from finetune_trainer.checkpoint import files, saving
    from finetune_trainer.errors import DivergedError, TrainerError
    from finetune_trainer.report import NullReporter
    from finetune_trainer.stopping import StopRequest

    stop = StopRequest()

    class Watch(train.Watch):
        def after_step(self, step: Any) -> None:
            super().after_step(step)
            if step.step == scenario.diverges_at:
                raise DivergedError(f"training diverged at step {step.step}")
            if step.step == scenario.asked_after and gang.rank == scenario.asked_rank:
                stop.on_signal(15, None)

    logs.set_up()
    logs.forget()
    original, answers = evaluate.measure, list(scenario.evaluations or [])
    if scenario.evaluations:
        evaluate.measure = lambda *args: (answers.pop(0), {})
    if scenario.dies_at:
        saving.write_shard = _dying(scenario.dies_at)
    try:
        facts = train.train(scenario.run, gang, Watch(NullReporter()), stop)
    except TrainerError as exc:
        return {"class": exc.failure_class, "message": str(exc), "log": logs.tail()}
    finally:
        evaluate.measure, saving.write_shard = original, files.write_shard
    return {"facts": facts.to_json_dict(), "log": logs.tail()}


if __name__ == "__main__":
    main(sys.argv[1])

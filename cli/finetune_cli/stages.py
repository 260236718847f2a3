"""The three stages of a job as processes of this machine: `run`.

The trainer is another program, with gigabytes of libraries of its own; it is started, never
imported. What a pod is told by its environment, these processes are told in the same way.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from finetune_api.names import MODULES, Stage
from finetune_api.outcome import Outcome
from finetune_api.run_config import RunConfig
from finetune_cli.exits import CliError, Exit

STAGES: tuple[Stage, ...] = ("prepare", "train", "export")
LOCALHOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a stage ended."""

    stage: Stage
    code: int
    seconds: float
    outcome: Outcome | None
    """Its facts or its failure; None: it left none that can be read."""


@dataclass(slots=True)
class Runner:
    """Runs stages, and passes on a wish to stop."""

    python: str
    run_json: Path
    config: RunConfig
    outcomes: Path
    """A directory for what the stages leave."""
    say: Callable[[str], None]
    output: int | None = None
    """File descriptor for what the stages print; None: standard output."""
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _asked: bool = False

    def run(self, stage: Stage) -> Ended:
        """One stage to its end; training has a process for every worker."""
        workers = self.config.num_nodes if stage == "train" else 1
        command = [self.python, "-m", MODULES[stage], str(self.run_json)]
        port, started = free_port(), time.monotonic()
        files = [self.outcomes / f"{stage}-{rank}.json" for rank in range(workers)]
        self.outcomes.mkdir(parents=True, exist_ok=True)
        for rank, file in enumerate(files):
            file.unlink(missing_ok=True)
            extra = environment(self.config, rank, port) | {"TERMINATION_LOG": str(file)}
            # A group of its own: Ctrl-C is ours, and the workers are asked to save.
            self._processes.append(
                subprocess.Popen(
                    command, env=os.environ | extra, stdout=self.output, start_new_session=True
                )
            )
        codes = self._wait()
        self._processes.clear()
        worst = next((code for code in codes if code not in (0, 205)), max(codes))
        told = [_outcome(file) for file in files]
        failed = [o for o in told if o is not None and o.failure is not None]
        return Ended(
            stage, worst, time.monotonic() - started, failed[0] if worst and failed else told[0]
        )

    def _wait(self) -> list[int]:
        """Exit codes; a process that died of a signal has 128 and its number, as in a pod.

        SIGTERM is heeded like Ctrl-C: the workers would outlive this program.
        """
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            while True:
                try:
                    codes = [process.wait() for process in self._processes]
                except KeyboardInterrupt:
                    self.stop()
                    continue
                return [128 - code if code < 0 else code for code in codes]
        finally:
            signal.signal(signal.SIGTERM, before)

    def stop(self) -> None:
        """Ask the workers to save and end; the second time they are killed."""
        self.say(
            "killed" if self._asked else "asked to stop; the workers save (Ctrl-C again: kill them)"
        )
        number = signal.SIGKILL if self._asked else signal.SIGTERM
        self._asked = True
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, number)


def environment(config: RunConfig, rank: int, port: int) -> dict[str, str]:
    """What a pod is told, for a process of this machine."""
    found = {
        "PET_NNODES": str(config.num_nodes),
        "PET_NPROC_PER_NODE": str(config.num_proc_per_node),
        "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": LOCALHOST,
        "PET_MASTER_PORT": str(port),
    }
    if config.accelerator == "CPU":
        found["DS_ACCELERATOR"] = "cpu"
    return found


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind((LOCALHOST, 0))
        port: int = found.getsockname()[1]
        return port


def check_trainer(python: str) -> None:
    """Whether a Python has the trainer.

    Raises:
        CliError: it does not, with what to do.
    """
    command = [python, "-c", "import finetune_trainer, torch, deepspeed, transformers, peft"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise CliError(f"--python {python}: {error.strerror}", Exit.USAGE) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise CliError(
            f"{python} cannot run the trainer ({last}); name a Python that can by --python, such "
            "as one with requirements/trainer.txt, api/ and trainer_image/ installed (docs/cli.md)"
        )


def write_config(config: RunConfig, base: Path) -> Path:
    """`run.json` below `base`, the same as of an earlier run if there was one.

    Raises:
        CliError: an earlier run there was of another job.
    """
    path, text = base / "run.json", config.model_dump_json(by_alias=True, indent=1) + "\n"
    try:
        before = RunConfig.model_validate_json(path.read_text()) if path.exists() else config
    except ValidationError:
        before = None
    if before != config:
        raise CliError(
            f"{base} holds another run, whose {path.name} differs: {_differences(before, config)}; "
            "take another --dir, or remove it"
        )
    base.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _differences(before: RunConfig | None, now: RunConfig) -> str:
    if before is None:
        return "it cannot be read"
    old, new = before.to_json_dict(), now.to_json_dict()
    return ", ".join(sorted(key for key in old | new if old.get(key) != new.get(key)))


def _outcome(path: Path) -> Outcome | None:
    return Outcome.from_message(path.read_text(encoding="utf-8")) if path.is_file() else None


def summary(config: RunConfig, ended: Sequence[Ended]) -> list[str]:
    """What a person wants to know at the end."""
    last = ended[-1]
    if last.code:
        failure = last.outcome.failure if last.outcome else None
        why = f"{failure.failure_class}: {failure.message}" if failure else "see above"
        return [f"{last.stage} ended with exit code {last.code}. {why}"]
    times = ", ".join(f"{e.stage} {e.seconds:.0f} s" for e in ended)
    facts = last.outcome.export if last.outcome else None
    found = [f"Succeeded: {times}"]
    if facts is not None and facts.eval_loss_before is not None:
        found.append(
            f"loss on held-out examples: {facts.eval_loss_before:.4g} before, "
            f"{facts.eval_loss_after:.4g} now"
        )
    return [*found, f"result: {config.output_dir}"]

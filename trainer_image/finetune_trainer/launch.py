"""Starts the training processes of one pod: `python -m finetune_trainer.launch RUN_JSON`.

torchrun's own engine runs them; around it: waiting for worker 0's name, a look at processes that
stand still (`supervise`), and at the end one outcome that names the process which failed first, and
not those that fell over it.

Reads `PET_NNODES`, `PET_NPROC_PER_NODE`, `PET_NODE_RANK`, `PET_MASTER_ADDR` and `PET_MASTER_PORT`,
the names of Kubeflow and torchrun. Without them all processes run on this machine.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.outcome import EXIT_CODES, ExitCode, Failure, Outcome
from finetune_api.run_config import RunConfig
from finetune_trainer import logs
from finetune_trainer.cascade import Ended, cause, failure_of
from finetune_trainer.errors import InternalError, PeerLostError, StoppedError
from finetune_trainer.outcome_file import failure_from, load_run, write_outcome
from finetune_trainer.stacks import Shelf
from finetune_trainer.supervise import Supervisor
from finetune_trainer.train import ENV_OUTCOME_DIRECTORY, finished
from finetune_trainer.unheard import Unheard, has_children

JOIN_SECONDS = 1800
"""How long the workers wait for each other: pulling the image may take one of them minutes."""
ENV_STOP_SECONDS = "FINETUNE_STOP_SECONDS"
STOP_SECONDS = 600
"""How long the processes get to save a checkpoint after SIGTERM, before they are killed. The real
limit is the pod's own grace period. (Those that outlive one that failed get torchrun's 30 s.)"""


@dataclass(frozen=True)
class Pod:
    """This pod's place in the gang."""

    num_nodes: int
    processes: int
    node_rank: int
    master_addr: str
    master_port: int

    @classmethod
    def from_env(cls, env: Mapping[str, str], run: RunConfig) -> Pod:
        """From the variables that the operator sets.

        Raises:
            InternalError: they are no numbers, or do not belong to this run.
        """
        try:
            pod = cls(
                num_nodes=int(env.get("PET_NNODES", "1")),
                processes=int(env.get("PET_NPROC_PER_NODE", str(run.num_proc_per_node))),
                node_rank=int(env.get("PET_NODE_RANK", "0")),
                master_addr=env.get("PET_MASTER_ADDR", "127.0.0.1"),
                master_port=int(env.get("PET_MASTER_PORT", "29500")),
            )
        except ValueError as exc:
            raise InternalError(f"a PET_ variable is no number: {exc}") from exc
        told, wanted = (pod.num_nodes, pod.processes), (run.num_nodes, run.num_proc_per_node)
        if told != wanted or not 0 <= pod.node_rank < pod.num_nodes:
            raise InternalError(
                f"pod {pod.node_rank} is told of {told[0]} x {told[1]} processes, the run is for "
                f"{wanted[0]} x {wanted[1]}"
            )
        return pod


def wait_for_name(
    host: str,
    resolve: Callable[[str], object],
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
    seconds: float = JOIN_SECONDS,
) -> None:
    """Wait until worker 0 has a name: DNS follows a new pod by some seconds.

    Raises:
        PeerLostError: it has none after `seconds`.
    """
    began, pause = monotonic(), 0.25
    while True:
        try:
            resolve(host)
            return
        except OSError as exc:
            waited = monotonic() - began
            if waited >= seconds:
                raise PeerLostError(
                    f"worker 0 ({host}) has no address after {waited:.0f} s; its pod was not "
                    f"started, or cluster DNS does not work: {exc}"
                ) from exc
            if pause == 0.25:
                logs.say(f"waiting for the name of worker 0, {host}")
        sleep(pause)
        pause = min(2 * pause, 5.0)


def threads_per_process(env: Mapping[str, str], run: RunConfig, processors: float) -> int:
    """Threads for torch in every process: all of the pod's processors, or the few a GPU needs."""
    if env.get("OMP_NUM_THREADS"):
        return int(env["OMP_NUM_THREADS"])
    share = max(1, int(processors / run.num_proc_per_node))
    return share if run.accelerator == "CPU" else min(share, 8)


def processors(available: int, cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Processors that this container may use: its CPU limit, which the kernel's count ignores.

    Args:
        available: The kernel's count.
        cgroup: Where the container's limits are, of version 2 or 1.
    """
    both, one = cgroup / "cpu.max", cgroup / "cpu"
    try:
        if both.exists():
            quota, period = both.read_text().split()
        else:
            quota = (one / "cpu.cfs_quota_us").read_text().strip()
            period = (one / "cpu.cfs_period_us").read_text()
    except OSError:
        return float(available)
    if quota in ("max", "-1"):
        return float(available)
    return min(float(available), int(quota) / int(period))


def start(pod: Pod, run: RunConfig, run_json: str, directory: Path) -> Ended | None:
    """Run this pod's processes to their end; None: all did what they had to.

    Every process leaves its outcome in `directory`, and its output, which is printed as well.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ[ENV_OUTCOME_DIRECTORY] = str(directory)
    usable = processors(len(os.sched_getaffinity(0)))
    os.environ["OMP_NUM_THREADS"] = str(threads_per_process(os.environ, run, usable))
    os.environ["HF_HUB_OFFLINE"] = "1"  # all there is to read is in the work directory
    config = LaunchConfig(
        min_nodes=pod.num_nodes,
        max_nodes=pod.num_nodes,
        nproc_per_node=pod.processes,
        run_id=run.uid,
        rdzv_backend="static",
        rdzv_endpoint=f"{pod.master_addr}:{pod.master_port}",
        rdzv_configs={"rank": pod.node_rank, "timeout": JOIN_SECONDS},
        max_restarts=0,  # a restart is the operator's: of the whole gang
        logs_specs=DefaultLogsSpecs(log_dir=str(directory / "logs"), tee=Std.ALL),
        log_line_prefix_template="[${rank}] ",
        shutdown_timeout=int(os.environ.get(ENV_STOP_SECONDS, STOP_SECONDS)),
    )
    arguments = ("-u", "-m", "finetune_trainer.train", run_json)
    logging.disable(logging.ERROR)  # torchrun's own words on failures: ours say more
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as exc:
        first = pod.node_rank * pod.processes
        ended = cause(
            failure_of(rank, found.exitcode, found.timestamp, directory, rank - first)
            for rank, found in exc.failures.items()
        )
        return _nobody(ended) if ended.failure.failure_class == "Stopped" else ended
    except SignalException as exc:
        return stopped(exc.sigval.name, directory, pod.processes)
    except DistError as exc:
        raise PeerLostError(
            f"worker 0 at {pod.master_addr}:{pod.master_port} cannot be reached: {exc}"
        ) from exc
    finally:
        logging.disable(logging.NOTSET)
    return None


def stopped(signal_name: str, directory: Path, processes: int) -> Ended | None:
    """How a pod ended that was asked to stop, by what its processes have left.

    None: they were done all the same. A process that could not save, because the volume is full,
    is told of: the next attempt would meet the same.
    """
    told = [Outcome.from_message(p.read_text(encoding="utf-8")) for p in directory.glob("*.json")]
    if sum(outcome is not None and outcome.train is not None for outcome in told) == processes:
        return None
    failures = [outcome.failure for outcome in told if outcome and outcome.failure]
    ended = [Ended(f, int(EXIT_CODES.get(f.failure_class, ExitCode.INTERNAL))) for f in failures]
    own = [e for e in ended if e.failure.failure_class not in ("Stopped", "PeerLost")]
    if own:
        return cause(own)
    for e in ended:
        if e.failure.failure_class == "Stopped":
            return _nobody(e)
    raise StoppedError(f"asked to stop ({signal_name}); no process could say that it has saved")


def _nobody(ended: Ended) -> Ended:
    """Stopping on request is no failure of one process: none is named."""
    return Ended(ended.failure.model_copy(update={"rank": None}), ended.exit_code)


def run_pod(argv: list[str], directory: Path, supervisor: Supervisor) -> Ended | None:
    """Everything but telling how it ended; on success the outcome is written by the lead pod."""
    run = load_run(argv, "train")
    supervisor.heed(run.hang.report_only, Shelf.of(run))
    pod = Pod.from_env(os.environ, run)
    facts = finished(run)
    if facts:
        logs.say("this run is trained already")
        write_outcome(Outcome(train=facts))
        return None
    wait_for_name(pod.master_addr, lambda host: socket.getaddrinfo(host, None))
    ended = start(pod, run, argv[0], directory)
    if ended is None and pod.node_rank == 0:
        told = Outcome.from_message((directory / "0.json").read_text(encoding="utf-8"))
        if told is None or told.train is None:
            raise InternalError("rank 0 ended well but left no facts; this is a bug of the trainer")
        write_outcome(told)
    return ended


def main(argv: list[str]) -> int:
    """Run this pod's part of the training; returns its exit code."""
    logs.set_up()
    unheard = Unheard(nothing_lost=lambda: not has_children())

    def stop(_signum: int, _frame: object) -> None:
        unheard.heard()
        raise StoppedError("asked to stop (SIGTERM)")

    signal.signal(signal.SIGTERM, stop)  # torch has its own as soon as there are processes
    unheard.start()
    with tempfile.TemporaryDirectory(prefix="train-", ignore_cleanup_errors=True) as directory:
        supervisor = Supervisor(Path(directory), os.environ).start()
        try:
            ended = run_pod(argv, Path(directory), supervisor)
        except (Exception, KeyboardInterrupt) as exc:
            failure = failure_from(exc)
            ended = Ended(failure, int(EXIT_CODES[failure.failure_class]))
        finally:
            supervisor.stop()
    if ended is None:
        return int(ExitCode.OK)
    write_outcome(Outcome(failure=ended.failure))
    logs.warn(_sentence(ended.failure))
    return ended.exit_code


def _sentence(failure: Failure) -> str:
    where = "" if failure.rank is None else f" on rank {failure.rank}"
    return f"training failed{where} ({failure.failure_class}): {failure.message}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

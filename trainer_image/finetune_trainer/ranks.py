"""The gang: this process's place in it, its device, and the few collectives of our own."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from finetune_api.fitting import advice, gib, parts
from finetune_api.outcome import Estimate
from finetune_api.run_config import HangConfig, RunConfig
from finetune_trainer.errors import (
    ConfigurationError,
    HangError,
    InternalError,
    OutOfMemoryError,
    PeerLostError,
)

MINUTE = timedelta(minutes=1)
TIMEOUT = 30 * MINUTE
"""How long a collective may take: longer than rank 0 takes to write a large model. Also the
shortest, whatever the job's hang policy: the watchdog is the one that ends a hang, and names it."""
LEFT_ALONE = timedelta(days=7)
"""Where a hang is only reported: a collective ends by itself in no time that matters."""

_PEER_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "Connection was likely closed",
    "failed to recv",
    "Failed to recv",
    "ncclRemoteError",
    "remote process exited",
)
_TOO_LONG = ("Timed out waiting", "timed out", "timeout")


@dataclass(frozen=True)
class Gang:
    """All training processes, as seen from one of them."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_lead(self) -> bool:
        """Rank 0 prints, reports and writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait for all processes."""
        dist.barrier()

    def tell(self, value: Any) -> Any:
        """Process 0's value, known to all."""
        found = [value]
        dist.broadcast_object_list(found, src=0)
        return found[0]

    def agree(self, problem: str | None) -> str | None:
        """What went wrong on any process (the lowest rank's words), known to all; else None.

        Without it the others would wait for a process that has already given up.
        """
        found: list[str | None] = [None] * self.world_size
        dist.all_gather_object(found, problem)
        return next((words for words in found if words is not None), None)


def check_device(run: RunConfig, local_rank: int) -> torch.device:
    """This process's device.

    Raises:
        ConfigurationError: the job asks for what the pod or the GPU does not have. There is no
            falling back to the CPU: a job would run a hundred times slower without a word.
    """
    if run.accelerator == "CPU":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigurationError(
            "the job is to run on GPUs but this pod sees none; the profile's spec.node must name "
            "the cluster's GPU resource (gpuResourceName) and nodes with a driver, or set its "
            "accelerator to CPU"
        )
    if local_rank >= torch.cuda.device_count():
        raise ConfigurationError(
            f"the pod has {torch.cuda.device_count()} GPUs but {run.num_proc_per_node} processes; "
            "set spec.workers.numProcPerNode to the number of GPUs"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    if run.training.precision == "BF16" and torch.cuda.get_device_capability(device) < (8, 0):
        raise ConfigurationError(
            f"{torch.cuda.get_device_name(device)} cannot compute in bfloat16; set "
            "spec.training.precision to FP32 or choose a profile with newer GPUs (Ampere or later)"
        )
    return device


def patience(policy: HangConfig) -> timedelta:
    """How long a collective may take by the job's hang policy."""
    if policy.report_only:
        return LEFT_ALONE
    wanted = (
        policy.training_seconds,
        policy.loading_seconds,
        policy.evaluating_seconds,
        policy.checkpointing_seconds,
    )
    return max([TIMEOUT, *(timedelta(seconds=s) + TIMEOUT / 10 for s in wanted if s)])


def join(run: RunConfig) -> Gang:
    """Connect to the other processes (NCCL between GPUs, gloo between CPUs).

    Needs the variables that torchrun sets, and `DS_ACCELERATOR` set before deepspeed is imported.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world_size != run.world_size:
        raise InternalError(
            f"{world_size} processes were started, but the run is for {run.world_size}"
        )
    device = check_device(run, int(os.environ["LOCAL_RANK"]))
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # DeepSpeed would compile an operator for all-reduce in shared memory, which only its inference
    # uses: without it neither the image nor a test needs a compiler.
    vars(deepspeed.ops)["__compatible_ops__"] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        deepspeed.init_distributed(
            dist_backend="nccl" if device.type == "cuda" else "gloo",
            timeout=patience(run.hang),
            verbose=False,
        )
    return Gang(rank, world_size, device)


@contextlib.contextmanager
def classified(run: RunConfig, needed: Estimate | None = None) -> Iterator[None]:
    """Turn what torch raises into errors that say whose problem it is.

    Args:
        run: What is being done.
        needed: What prepare estimated, to be shown where memory runs out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as exc:  # torch's own classes are RuntimeErrors
        text = str(exc)
        if isinstance(exc, torch.OutOfMemoryError | MemoryError) or "can't allocate" in text:
            raise OutOfMemoryError(memory_advice(run, needed)) from exc
        if lost_peer(exc):
            raise PeerLostError(
                f"the connection to another worker broke: {text.splitlines()[0][:200]}"
            ) from exc
        if waited_too_long(exc):
            raise HangError(
                f"another worker did not answer for {patience(run.hang) // MINUTE} minutes: "
                f"{text.splitlines()[0][:200]}"
            ) from exc
        raise


def lost_peer(exc: BaseException) -> bool:
    """Whether another process's end is what this error is about."""
    return _from_network(exc) and any(words in str(exc) for words in _PEER_GONE)


def waited_too_long(exc: BaseException) -> bool:
    """Whether a collective ran into its time limit."""
    return _from_network(exc) and any(words in str(exc) for words in _TOO_LONG)


def _from_network(exc: BaseException) -> bool:
    return isinstance(exc, dist.DistError) or "gloo" in str(exc) or "NCCL" in str(exc)


def memory_advice(run: RunConfig, needed: Estimate | None = None) -> str:
    """What to change when memory runs out, with what prepare estimated beside it."""
    what = "GPU" if run.accelerator == "CUDA" else "worker"
    expected = ""
    if needed is not None:
        expected = f" (prepare expected {gib(needed.total)}: {parts(needed)})"
    return (
        f"the model and its training state do not fit into the {what}'s memory{expected}; "
        f"in this order: {', '.join(advice(run))}"
    )

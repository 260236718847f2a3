"""One line of `watch` per job: what people want to know at a glance. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_api.status import TERMINAL_PHASES
from finetune_cli.jobs import Job, seconds, span

BARS = "▁▂▃▄▅▆▇█"
HARMLESS = ("Running", "Starting", "Finished")
"""Reasons of the condition `Waiting` that need no words."""
GANG_PHASES = ("Starting", "Running")
"""Phases in which the workers exist, and hold their GPUs."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one job."""

    namespace: str
    name: str
    phase: str
    attempt: int
    percent: int | None
    """Of the optimizer steps; None: training has not begun."""
    step: int | None
    total_steps: int | None
    loss: float | None
    losses: tuple[float, ...]
    """The loss curve, evenly thinned."""
    eta_seconds: int | None
    """Until training ends, from now on."""
    gpus: int | None
    """That it holds now; None: not known, as its profile cannot be read."""
    workers: str
    """Pods and processes of each, `2x8`."""
    says: str
    """What it waits for, does, or failed of."""
    over: bool

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


def row(job: Job, gpus_of: Mapping[str, int] | None, now: float) -> Row:
    """The line of a job.

    Args:
        gpus_of: GPUs of a node by profile, or None where profiles cannot be read.
        now: Seconds since the epoch.
    """
    status = job.status
    progress, known = status.progress, status.resolved
    nodes = known.num_nodes if known and known.num_nodes else job.spec.workers.num_nodes
    procs: object = known.num_proc_per_node if known else None
    trained = job.condition("Trained")
    done = trained is not None and trained.status == "True"
    return Row(
        namespace=job.namespace,
        name=job.name,
        phase=status.phase or "New",
        attempt=status.attempt or 0,
        percent=100 if done else progress.percent if progress else None,
        step=progress.step if progress else None,
        total_steps=(progress.total_steps if progress else None)
        or (known.total_steps if known else None),
        loss=progress.loss if progress else None,
        losses=tuple(point.loss for point in progress.history) if progress else (),
        eta_seconds=_eta(job, now),
        gpus=_gpus(job, nodes, gpus_of),
        workers=f"{nodes}x{procs or job.spec.workers.num_proc_per_node}",
        says=_says(job),
        over=status.phase in TERMINAL_PHASES,
    )


def _eta(job: Job, now: float) -> int | None:
    progress = job.status.progress
    if job.status.phase != "Running" or progress is None or progress.eta_seconds is None:
        return None
    return max(0, round(progress.eta_seconds - (now - seconds(progress.last_update_time))))


def _gpus(job: Job, nodes: int, gpus_of: Mapping[str, int] | None) -> int | None:
    known = job.status.resolved
    if job.status.phase not in GANG_PHASES:
        return 0
    if known is None or known.profile is None or gpus_of is None or known.profile not in gpus_of:
        return None
    return nodes * (known.num_proc_per_node or 0) if gpus_of[known.profile] else 0


def _says(job: Job) -> str:
    status = job.status
    if status.phase is None:
        return "the operator has not looked at it yet"
    if status.phase == "Failed" and status.last_failure is not None:
        return f"{status.last_failure.failure_class}: {status.last_failure.message}"
    if status.phase == "Succeeded" and status.output is not None:
        return status.output.uri
    waiting = job.condition("Waiting")
    if waiting is not None and waiting.status == "True" and waiting.reason not in HARMLESS:
        return _short(waiting.reason, waiting.message)
    progress = status.progress
    if status.phase == "Running" and progress is not None and progress.activity is not None:
        stalled = progress.stalled_seconds
        return f"does not get on for {span(stalled)}" if stalled else progress.activity.lower()
    return status.message or ""


def _short(reason: str, message: str) -> str:
    """One word and the words of whoever keeps it; the pod is named by `explain`."""
    if message.lower().startswith(reason.lower()):
        return message
    return f"{reason}: {message.rpartition(f'{reason}: ')[2]}"


def sparkline(values: Sequence[float], width: int) -> str:
    """A curve in one line of text, at most `width` characters; empty without values."""
    if len(values) > width:
        values = [values[i * (len(values) - 1) // (width - 1)] for i in range(width)]
    if not values:
        return ""
    low, high = min(values), max(values)
    if high == low:
        return BARS[0] * len(values)
    steps = len(BARS) - 1
    return "".join(BARS[round((value - low) / (high - low) * steps)] for value in values)


def line(found: Row) -> str:
    """The row as plain text."""
    parts = [found.key, found.phase]
    if found.percent is not None:
        parts.append(f"{found.percent} %")
    if found.step is not None:
        parts.append(f"step {found.step}/{found.total_steps or '?'}")
    if found.loss is not None:
        parts.append(f"loss {found.loss:.4g}")
    if found.eta_seconds is not None:
        parts.append(f"ETA {span(found.eta_seconds)}")
    if found.gpus:
        parts.append(f"{found.gpus} GPUs")
    return "  ".join(parts) + (f"  {found.says}" if found.says else "")


def changed(old: Row | None, new: Row) -> bool:
    """Whether there is something new for a person who reads lines: not the ticking of an ETA."""
    if old is None:
        return True
    return (old.phase, old.step, old.percent, old.says, old.attempt) != (
        new.phase,
        new.step,
        new.percent,
        new.says,
        new.attempt,
    )

"""Which pods' logs people mean. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.names import CONTAINER, LABEL_ATTEMPT, LABEL_INDEX, LABEL_STAGE
from finetune_cli.exits import CliError, Exit
from finetune_cli.jobs import Job

Json = dict[str, Any]
ORDER = {"prepare": 0, "train": 1, "export": 2}


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a job."""

    name: str
    stage: str
    attempt: int
    worker: int
    phase: str
    created: str

    @property
    def short(self) -> str:
        """What stands before its lines: `train-0/1` is worker 1 of attempt 0."""
        return f"train-{self.attempt}/{self.worker}" if self.stage == "train" else self.stage


@dataclass(frozen=True, slots=True)
class Wish:
    """Whose log is wanted; None: not said."""

    worker: int | None = None
    rank: int | None = None
    stage: str | None = None
    attempt: int | None = None
    all: bool = False
    failed: bool = False


def parse_pod(body: Json) -> Pod:
    """A pod as the API server returns it."""
    metadata = body["metadata"]
    labels = metadata.get("labels", {})
    return Pod(
        name=metadata["name"],
        stage=labels.get(LABEL_STAGE, ""),
        attempt=int(labels.get(LABEL_ATTEMPT, "0")),
        worker=int(labels.get(LABEL_INDEX, "0")),
        phase=body.get("status", {}).get("phase", "Unknown"),
        created=metadata.get("creationTimestamp", ""),
    )


def choose(job: Job, pods: Sequence[Pod], wish: Wish) -> list[Pod]:
    """The pods whose logs are meant; without a wish, rank 0 of what runs now or ran last.

    Raises:
        CliError: there is none such (any more).
    """
    mine = sorted(
        (pod for pod in pods if pod.stage in ORDER),
        key=lambda pod: (ORDER[pod.stage], pod.attempt, pod.created, pod.worker),
    )
    if not mine:
        raise CliError(f"{job.name} has no pods; {_why(job)}", Exit.NOT_FOUND)
    if wish.failed:
        return [_failed(job, mine)]
    found = [pod for pod in mine if wish.stage is None or pod.stage == wish.stage]
    found = [pod for pod in found if wish.attempt is None or pod.attempt == wish.attempt]
    worker = _worker(job, wish)
    if worker is not None:
        found = [pod for pod in found if pod.stage == "train" and pod.worker == worker]
    if not found:
        known = ", ".join(f"{pod.short} ({pod.name})" for pod in mine)
        raise CliError(f"no pod of {job.name} is that one; there are {known}", Exit.NOT_FOUND)
    last = found[-1]
    newest = [pod for pod in found if (pod.stage, pod.attempt) == (last.stage, last.attempt)]
    if wish.all:
        return newest
    # Of a CPU stage the last try counts, of a gang the worker that was asked for.
    return newest[-1:] if last.stage != "train" else newest[:1]


def _worker(job: Job, wish: Wish) -> int | None:
    """The worker of a rank."""
    if wish.rank is None:
        return wish.worker
    known = job.status.resolved
    if known is None or not known.num_proc_per_node:
        raise CliError(f"{job.name} has no ranks yet; {_why(job)}", Exit.NOT_FOUND)
    return wish.rank // known.num_proc_per_node


def _failed(job: Job, pods: Sequence[Pod]) -> Pod:
    failure = job.status.last_failure
    if failure is None:
        raise CliError(f"nothing of {job.name} has failed", Exit.NOT_FOUND)
    found = next((pod for pod in pods if pod.name == failure.pod), None)
    if found is None:
        tail = f"; its last lines were:\n{failure.log_tail}" if failure.log_tail else ""
        raise CliError(f"pod {failure.pod} is gone{tail}", Exit.NOT_FOUND)
    return found


def _why(job: Job) -> str:
    return f"its phase is {job.status.phase or 'New'}: {job.status.message or 'nothing is known'}"


def container_state(body: Json) -> str | None:
    """What the trainer's container of a pod waits for; None: its log can be read."""
    for status in body.get("status", {}).get("containerStatuses", []):
        if status["name"] == CONTAINER:
            waiting = status.get("state", {}).get("waiting")
            return None if waiting is None else str(waiting.get("reason") or "waiting")
    return None if body.get("status", {}).get("phase") in ("Succeeded", "Failed") else "Pending"

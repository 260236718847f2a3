"""A job with everything decided: what it was told, where it lies, how its next attempt starts."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.outcome import Estimate
from finetune_api.resolve import IN_A_POD, Paths, run_config
from finetune_api.run_config import RunConfig
from finetune_api.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Plan:
    """A job with everything decided."""

    namespace: str
    name: str
    uid: str
    snapshot: Snapshot
    """What the job started with."""
    run: RunConfig
    paths: Paths = IN_A_POD
    attempt: int | None = None
    """To train, whose size and placement this is; None: what the job started with."""
    config: str | None = None
    """ConfigMap with `run.json`, where it is not the one that the job started with."""
    estimate: Estimate | None = None
    """Of memory, where it is not the one of prepare."""
    grace_seconds: int = 600
    """For the workers to save when they are asked to stop."""
    not_on: tuple[str, ...] = ()
    """Nodes that the workers keep off."""


def make_plan(
    namespace: str, name: str, uid: str, snapshot: Snapshot, paths: Paths = IN_A_POD
) -> Plan:
    """Everything decided, from what the job started with."""
    run = run_config(namespace, name, uid, snapshot, paths)
    return Plan(namespace, name, uid, snapshot, run, paths)

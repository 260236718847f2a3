"""What an attempt may have otherwise than the one before: its size, its nodes, its time to save.

Everything else stays as the job started with it, see decision 0009.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from finetune_api.fitting import TooLarge, applied, decide
from finetune_api.outcome import PrepareFacts
from finetune_api.snapshot import Refused, Snapshot, check
from finetune_api.status import FineTuneJobStatus, Resolved, Restarts
from finetune_operator import names
from finetune_operator.deadlines import Wishes
from finetune_operator.decisions import SUSPENDED, Decision, Evidence, Hold, Start
from finetune_operator.nodes import excluded
from finetune_operator.observe import Observed
from finetune_operator.plan import Plan, make_plan

GRACE_SECONDS = 600
"""For the workers to save a checkpoint when they are asked to stop, where nothing was measured;
they end as soon as it is saved."""
LEAST_GRACE, MOST_GRACE = 60, 3600
SAVE_FACTOR = 3
"""A save may take so much longer than the longest one measured: all nodes of a drain save at a
time, and a volume that is shared is slower then."""
START_SECONDS = 30
"""For everything else: a signal that has to arrive, the end of processes."""


def settle_size(
    plan: Plan | Refused,
    old: FineTuneJobStatus,
    observed: Observed,
    decision: Decision,
    evidence: Evidence,
    wishes: Wishes,
    now: str,
) -> tuple[Plan | Refused, Decision]:
    """The plan of the attempt that starts, or has just started; a job that cannot go on at the size
    that it is to have stays suspended, and says why."""
    if isinstance(plan, Refused):
        return plan, decision
    known, train = found_out(old, evidence.prepare), observed.stage("train")
    size = old.resolved.num_nodes if old.resolved else None
    if isinstance(decision, Start) and decision.stage == "train":
        nodes = wishes.num_nodes or size or plan.run.num_nodes
        wanted = resize(plan, nodes, size, known or Resolved())
        if isinstance(wanted, Refused):
            return plan, _held(wanted)
        restarts = decision.restarts or old.restarts
        return _equipped(wanted, decision.attempt, restarts, old, now), decision
    if isinstance(decision, Hold) and decision.why == SUSPENDED and wishes.num_nodes:
        wanted = resize(plan, wishes.num_nodes, size, known)
        if isinstance(wanted, Refused):
            why = f"suspended, and cannot go on: {wanted.message}"
            return plan, Hold(stop=None, why=why, refused=wanted)
    if train is not None and train.attempt != old.attempt:
        # It was made by a pass that did not get to write the status: the Job tells its size.
        found = resize(plan, train.wanted, size, known or Resolved())
        if isinstance(found, Plan):
            return _equipped(found, train.attempt, old.restarts, old, now), decision
    if isinstance(decision, Start) and decision.stage == "export" and _resized(plan, old):
        config = names.attempt_config_map(plan.name, old.attempt or 0)
        return replace(plan, config=config), decision
    return plan, decision


def _held(refused: Refused) -> Hold:
    """A job that was to go on, at a size that it cannot have."""
    why = (
        f"cannot go on: {refused.message}; change spec.workers.numNodes together with "
        "spec.suspend: true, then set spec.suspend to false"
    )
    return Hold(stop=None, why=why, refused=refused)


def _equipped(
    wanted: Plan, attempt: int, restarts: Restarts | None, old: FineTuneJobStatus, now: str
) -> Plan:
    """`wanted` as the plan of an attempt."""
    return replace(
        wanted,
        attempt=attempt,
        config=names.attempt_config_map(wanted.name, attempt) if wanted.run.resolved else None,
        grace_seconds=grace_seconds(old, wanted.run.num_nodes),
        not_on=tuple(found.node for found in excluded(restarts, now)),
    )


def _resized(plan: Plan, old: FineTuneJobStatus) -> bool:
    """Whether the last attempt had another size than the job started with."""
    resolved = old.resolved
    return resolved is not None and resolved.num_nodes not in (None, plan.run.num_nodes)


def resize(plan: Plan, num_nodes: int, size: int | None, known: Resolved | None) -> Plan | Refused:
    """`plan`, made of what the job started with, for `num_nodes` worker pods.

    The global batch is kept: the processes' shares, and every `Auto` that concerns memory, are
    decided anew.

    Args:
        size: Worker pods of the last attempt; None: there was none.
        known: What prepare has found out; None: it is not done, and memory is not looked at yet.
    """
    if num_nodes == plan.run.num_nodes and size in (None, num_nodes):
        return plan
    spec = plan.snapshot.spec
    workers = spec.workers.model_copy(update={"num_nodes": num_nodes})
    wanted = spec.model_copy(update={"workers": workers})
    refused = check(wanted, plan.snapshot.profile_name, plan.snapshot.profile)
    if refused is not None:
        return refused
    snapshot = plan.snapshot.model_copy(update={"spec": wanted})
    resized = make_plan(plan.namespace, plan.name, plan.uid, snapshot, plan.paths)
    if known is None:
        return replace(resized, snapshot=plan.snapshot)
    return _fitted(resized, plan.snapshot, known)


def _fitted(resized: Plan, snapshot: Snapshot, known: Resolved) -> Plan | Refused:
    before = snapshot.spec.workers.num_nodes
    if known.shape is None:
        return Refused(
            "SizeUnknown",
            "the trainer image that prepared this job has not told the sizes of the model, so "
            f"whether it fits on another number of nodes is not known; set spec.workers.numNodes "
            f"to {before}",
        )
    found = decide(resized.run, known.shape, known.attention or "Masked")
    if isinstance(found, TooLarge):
        nodes = resized.run.num_nodes
        return Refused(
            "DoesNotFit",
            f"spec.workers.numNodes is {nodes}, and so {found.message}; it was {before}",
        )
    run = applied(resized.run, found.resolved).model_copy(update={"resolved": True})
    return replace(resized, snapshot=snapshot, run=run, estimate=found.estimate)


def found_out(old: FineTuneJobStatus, facts: PrepareFacts | None) -> Resolved | None:
    """What prepare has told: in this pass, or in an earlier one."""
    if facts is not None:
        return Resolved(shape=facts.shape, attention=facts.attention)
    resolved = old.resolved
    return resolved if resolved is not None and resolved.total_steps is not None else None


def grace_seconds(old: FineTuneJobStatus, num_nodes: int) -> int:
    """How long the workers of a new attempt get to save: by what the last attempt has measured.

    Args:
        num_nodes: Of the new attempt. Fewer have more to write each.
    """
    progress = old.progress
    if progress is None or progress.attempt != old.attempt or progress.save_seconds is None:
        return GRACE_SECONDS
    before = old.resolved.num_nodes if old.resolved and old.resolved.num_nodes else num_nodes
    measured = progress.save_seconds * max(1.0, before / num_nodes)
    return min(MOST_GRACE, max(LEAST_GRACE, ceil(SAVE_FACTOR * measured) + START_SECONDS))

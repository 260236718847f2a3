"""Events of a pass: what changed, each with the numbers that caused it."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.status import FineTuneJobStatus, Resolved
from finetune_operator.conditions import condition
from finetune_operator.decisions import Decision, Fail, Hold, Renew, Restart, Start, Wait, Watch
from finetune_operator.incidents import told
from finetune_operator.observe import PodFacts, seconds
from finetune_operator.reports import CONDITION
from finetune_operator.status import STALLED
from finetune_operator.waiting import HARMLESS


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes Event about the job."""

    type: str
    reason: str
    message: str


def events(old: FineTuneJobStatus, new: FineTuneJobStatus, decision: Decision) -> tuple[Event, ...]:
    """One for every change of phase, for every new reason to wait, every node to keep off, another
    size, and when reports stop, come again, or tell of a hang."""
    return (
        *_change(old, new, decision),
        *_kept_off(old, new),
        *_resized(old.resolved, new.resolved),
        *_waits(old, new, decision),
        *_heard(old, new),
    )


def lost_pod(pod: PodFacts, patience: int, now: str) -> Event:
    """A pod that a dead node does not let go is given up."""
    late = round(seconds(now) - seconds(pod.gone_by or now))
    return Event(
        "Warning",
        "PodForceDeleted",
        f"pod {pod.name} on node {pod.node} was still there {late} s after its time to end was "
        f"over at {pod.gone_by} (spec.restartPolicy.forceDeleteSeconds is {patience}): its node "
        "does not answer, or cannot end it",
    )


def _change(
    old: FineTuneJobStatus, new: FineTuneJobStatus, decision: Decision
) -> tuple[Event, ...]:
    message = new.message or ""
    refused = decision.refused if isinstance(decision, Wait | Hold) else None
    if refused is not None:
        return () if message == old.message else (Event("Warning", refused.reason, message),)
    if isinstance(decision, Start) and decision.stage != "train" and decision.attempt:
        return () if message == old.message else (Event("Warning", "RunAgain", message),)
    if isinstance(decision, Renew):
        return (Event("Normal", "Renewed", message),)
    if new.phase == old.phase or new.phase is None:
        return ()
    if isinstance(decision, Restart):
        return (Event("Warning", "Restarting", message),)
    if isinstance(decision, Fail):
        where = f" (pod {decision.failure.pod})" if decision.failure.pod else ""
        return (Event("Warning", "Failed", f"{decision.failure.failure_class}: {message}{where}"),)
    return (Event("Normal", new.phase, told(old, new)),)


def _kept_off(old: FineTuneJobStatus, new: FineTuneJobStatus) -> tuple[Event, ...]:
    known = {(found.node, found.until) for found in old.excluded_nodes}
    return tuple(
        Event("Warning", "NodeExcluded", f"node {found.node}, until {found.until}: {found.reason}")
        for found in new.excluded_nodes
        if (found.node, found.until) not in known
    )


def _resized(old: Resolved | None, new: Resolved | None) -> tuple[Event, ...]:
    if old is None or new is None or old.num_nodes in (None, new.num_nodes):
        return ()
    message = (
        f"goes on with {new.num_nodes} workers in place of {old.num_nodes}: micro-batch "
        f"{new.micro_batch_size} x {new.gradient_accumulation_steps}, ZeRO {new.zero_stage}, "
        f"offload {new.offload}"
    )
    return (Event("Normal", "Resized", message),)


def _waits(old: FineTuneJobStatus, new: FineTuneJobStatus, decision: Decision) -> tuple[Event, ...]:
    waits, before = condition(new, "Waiting"), condition(old, "Waiting")
    if not isinstance(decision, Watch) or waits is None or waits.status != "True":
        return ()
    if waits.reason in HARMLESS or (before is not None and before.reason == waits.reason):
        return ()
    return (Event("Warning", waits.reason, waits.message),)


def _heard(old: FineTuneJobStatus, new: FineTuneJobStatus) -> tuple[Event, ...]:
    found = []
    if new.message == STALLED and old.message != STALLED:
        found.append(Event("Warning", "Stalled", STALLED))
    before, heard = condition(old, CONDITION), condition(new, CONDITION)
    silent = before is not None and before.status == "False"
    if heard is not None and heard.status == "False" and not silent:
        found.append(Event("Warning", heard.reason, heard.message))
    if heard is not None and heard.status == "True" and silent:
        found.append(Event("Normal", heard.reason, heard.message))
    return tuple(found)

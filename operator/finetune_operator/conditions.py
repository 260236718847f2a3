"""The conditions of a job: what is done, what is not, and what has failed."""

from __future__ import annotations

from typing import Literal

from finetune_api.status import MAX_MESSAGE, Condition, FineTuneJobStatus
from finetune_operator.decisions import (
    Decision,
    Evidence,
    Fail,
    Hold,
    Restart,
    Resume,
    Start,
    Succeed,
    Wait,
    Watch,
)
from finetune_operator.names import Stage
from finetune_operator.observe import Observed, seconds
from finetune_operator.reports import CONDITION, Reports

Truth = Literal["True", "False", "Unknown"]


def is_done(status: FineTuneJobStatus, type_: str) -> bool:
    """Whether a condition is true."""
    found = condition(status, type_)
    return found is not None and found.status == "True"


def condition(status: FineTuneJobStatus, type_: str) -> Condition | None:
    """One of the conditions; None: it has never been written."""
    return next((c for c in status.conditions if c.type == type_), None)


def is_older(observed: Observed, status: FineTuneJobStatus) -> bool:
    """Whether the attempt that the status knows of is not among what was observed: its Kubernetes
    Job is gone, or the list is older than the status."""
    train = observed.stage("train")
    known = -1 if status.attempt is None else status.attempt
    return (train.attempt if train else -1) < known


def under_way(status: FineTuneJobStatus) -> Stage:
    """The stage that a job is at, by what is done."""
    if not is_done(status, "Prepared"):
        return "prepare"
    return "export" if is_done(status, "Trained") else "train"


def conditions(
    old: FineTuneJobStatus,
    generation: int,
    decision: Decision,
    evidence: Evidence,
    reports: Reports | None,
    message: str,
    now: str,
) -> list[Condition]:
    """Every type from the first pass on, `False` until it holds.

    Args:
        message: The phase in a sentence.
    """
    waiting = decision.refused if isinstance(decision, Wait | Hold | Fail) else None
    failure = decision.failure if isinstance(decision, Fail | Restart) else None
    final = isinstance(decision, Fail)
    succeeded = isinstance(decision, Succeed)
    prepared = is_done(old, "Prepared") or bool(evidence.prepare or evidence.fetched)
    trained = is_done(old, "Trained") or bool(evidence.train or evidence.ran)
    stage = failure.stage if failure else None

    def state(done: bool, name: str, verb: str) -> tuple[Truth, str, str]:
        if done:
            return "True", f"{verb}", f"{name} is done"
        if failure is not None and stage == name:
            return "False", failure.failure_class, failure.message
        if final:
            return "False", "NotReached", f"the job has failed before {name} was done"
        return "False", "NotYet", f"{name} is not done"

    wanted: list[tuple[str, Truth, str, str]] = [
        ("Validated", "False", waiting.reason, waiting.message)
        if waiting
        else ("Validated", "True", "Accepted", "the job fits its profile"),
        ("Prepared", *state(prepared, "prepare", "Prepared")),
        ("Trained", *state(trained, "train", "Trained")),
        ("Exported", *state(succeeded, "export", "Exported")),
        ("Complete", "True", "Succeeded", "the result is written and checked")
        if succeeded
        else ("Complete", "False", "HasFailed", "the job has failed: see the condition Failed")
        if final
        else ("Complete", "False", "NotYet", "the job is not done"),
        ("Failed", "True", failure.failure_class, failure.message)
        if failure and final
        else ("Failed", "False", "NoFailure", "nothing has failed"),
        ("Waiting", *_waiting(decision, message)),
        (CONDITION, *_reported(reports, now)),
    ]
    before = {c.type: c for c in old.conditions}
    return [
        _condition(before.get(type_), type_, status, reason, message, generation, now)
        for type_, status, reason, message in wanted
    ]


def _waiting(decision: Decision, message: str) -> tuple[Truth, str, str]:
    """What keeps the job from going on, in a word and a sentence."""
    match decision:
        case Wait(refused=refused):
            return "True", refused.reason, message
        case Watch(running=True):
            return "False", "Running", "all pods of the stage run"
        case Watch(reason=reason):
            return "True", reason, message
        case Start() | Resume():
            return "True", "Starting", message
        case Hold():
            return "True", "Suspended", message
        case Restart():
            return "True", "Restarting", message
    return "False", "Finished", "the job is over"


def _reported(reports: Reports | None, now: str) -> tuple[Truth, str, str]:
    if reports is None:
        return "Unknown", "NotTraining", "no training runs"
    if seconds(now) >= reports.due:
        words = (
            f"no report from the workers since {reports.since}; training goes on: the workers end "
            "a hang themselves"
        )
        return "False", "NoReports", words
    if reports.last is None:
        return "Unknown", "NotYet", "the workers have not reported yet"
    return "True", "Reported", "the workers report how far they are"


def _condition(
    before: Condition | None,
    type_: str,
    status: Truth,
    reason: str,
    message: str,
    generation: int,
    now: str,
) -> Condition:
    same = before is not None and before.status == status
    if type_ == "Waiting":  # since when for this reason is what people want to know
        same = same and before is not None and before.reason == reason
    return Condition(
        type=type_,
        status=status,
        reason=reason,
        message=message[:MAX_MESSAGE],
        last_transition_time=before.last_transition_time if before and same else now,
        observed_generation=generation,
    )

"""The conditions of a job: what is done, what is not, and what has failed."""

from __future__ import annotations

from typing import Literal

from finetune_api.status import MAX_MESSAGE, Condition, FineTuneJobStatus
from finetune_operator.decisions import Decision, Evidence, Fail, Hold, Restart, Succeed, Wait

Truth = Literal["True", "False", "Unknown"]


def is_done(status: FineTuneJobStatus, condition: str) -> bool:
    """Whether a condition is true."""
    return any(c.type == condition and c.status == "True" for c in status.conditions)


def conditions(
    old: FineTuneJobStatus, generation: int, decision: Decision, evidence: Evidence, now: str
) -> list[Condition]:
    """Every type from the first pass on, `False` until it holds."""
    waiting = decision.refused if isinstance(decision, Wait | Hold) else None
    failure = decision.failure if isinstance(decision, Fail | Restart) else None
    final = isinstance(decision, Fail)
    succeeded = isinstance(decision, Succeed)
    prepared = is_done(old, "Prepared") or evidence.prepare is not None
    trained = is_done(old, "Trained") or evidence.train is not None
    stage = failure.stage if failure else None

    def state(done: bool, name: str, verb: str) -> tuple[Truth, str, str]:
        if done:
            return "True", f"{verb}", f"{name} is done"
        if failure is not None and stage == name:
            return "False", failure.failure_class, failure.message
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
        else ("Complete", "False", "NotYet", "the job is not done"),
        ("Failed", "True", failure.failure_class, failure.message)
        if failure and final
        else ("Failed", "False", "NoFailure", "nothing has failed"),
    ]
    before = {c.type: c for c in old.conditions}
    return [
        _condition(before.get(type_), type_, status, reason, message, generation, now)
        for type_, status, reason, message in wanted
    ]


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
    return Condition(
        type=type_,
        status=status,
        reason=reason,
        message=message[:MAX_MESSAGE],
        last_transition_time=before.last_transition_time if before and same else now,
        observed_generation=generation,
    )

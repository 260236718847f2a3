"""What to do next: one pure decision from what is known and what is observed.

Early returns, in the order of a job's life. The status is the memory: a stage that it calls done
stays done, so children that vanish later are not made again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from finetune_api.outcome import (
    ExportFacts,
    Failure,
    FailureClass,
    Outcome,
    PrepareFacts,
    TrainFacts,
)
from finetune_api.status import FineTuneJobStatus, LastFailure, Restarts
from finetune_operator.deadlines import Due, Wishes, failure, job_due, startup_due
from finetune_operator.observe import Observed, PodFacts, StageFacts, seconds
from finetune_operator.plan import Plan, Refused
from finetune_operator.restarts import Enough, add, entry, judge

KILLED_CODES = range(129, 160)
"""Exit codes of a process that died of a signal."""
LOG_TAIL_LINES = 20
NO_WISHES = Wishes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Not startable: says why, and looks again when something changes."""

    refused: Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Make the objects of a stage that is not there yet."""

    stage: Literal["prepare", "train", "export"]
    attempt: int = 0
    restarts: Restarts | None = None
    """Where they have changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """A stage is under way."""

    facts: StageFacts
    running: bool
    """All its pods run."""
    why: str
    """What is going on, or what it waits for, in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Suspended, or on the way there."""

    stop: StageFacts | None
    """A stage that has to be told."""
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Let a stage go on that was told to stop."""

    stage: StageFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeed:
    """Everything is done and proven."""

    facts: ExportFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """The job is over."""

    failure: LastFailure
    restarts: Restarts | None = None
    """Where they have changed."""
    stop: StageFacts | None = None
    """A stage that still runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """An attempt has failed, and the next one is to come."""

    attempt: int
    """The one that failed."""
    failure: LastFailure
    restarts: Restarts
    at: float
    """When the next may start, in seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """It was over before: a finished job is final."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the stages left, as far as it is still to be seen."""

    prepare: PrepareFacts | None = None
    train: TrainFacts | None = None


Decision = Wait | Start | Watch | Hold | Resume | Restart | Succeed | Fail | Finished


def decide(
    plan: Plan | Refused,
    old: FineTuneJobStatus,
    observed: Observed,
    now: str,
    wishes: Wishes = NO_WISHES,
) -> tuple[Decision, Evidence]:
    """The next thing to do, and what was proven on the way."""
    decision, found = _go_on(plan, old, observed, now)
    if not isinstance(decision, Start | Watch | Resume | Restart):
        return decision, found
    if wishes.suspend:
        return _hold(old, observed), found
    active = next((s for s in observed.stages if s.state == "Active" and not s.suspended), None)
    passed = [due for due in deadlines(old, decision, wishes) if due.at <= seconds(now)]
    if passed:
        return Fail(failure=failure(passed[0], active, now), stop=active), found
    return decision, found


def deadlines(old: FineTuneJobStatus, decision: Decision, wishes: Wishes) -> list[Due]:
    """Those that a job which goes on like this has to keep."""
    found = [job_due(old, wishes)]
    if isinstance(decision, Watch) and decision.facts.stage == "train" and not decision.running:
        found.append(startup_due(decision.facts, wishes, decision.why))
    return [due for due in found if due is not None]


def _go_on(
    plan: Plan | Refused, old: FineTuneJobStatus, observed: Observed, now: str
) -> tuple[Decision, Evidence]:
    """What would be next if the job were not suspended."""
    if old.phase in ("Succeeded", "Failed"):
        return Finished(), Evidence()
    if observed.taken is not None:
        return Wait(refused=_name_taken(observed.taken)), Evidence()
    if isinstance(plan, Refused):
        return Wait(refused=plan), Evidence()
    if old.start_time is not None and observed.snapshot is None:
        return Fail(failure=_settings_gone(plan.name, now)), Evidence()

    prepare = observed.stage("prepare")
    facts = _outcome(prepare).prepare
    if not is_done(old, "Prepared"):
        if prepare is None:
            return Start(stage="prepare"), Evidence()
        if prepare.state == "Active":
            return _watch(prepare), Evidence()
        if prepare.state == "Failed" or facts is None:
            return Fail(failure=explain(prepare, now, plan.run.num_proc_per_node)), Evidence()
    found = Evidence(prepare=facts)

    train = observed.stage("train")
    trained = _outcome(train).train
    if not is_done(old, "Trained"):
        if train is None:
            return Start(stage="train", attempt=old.attempt or 0), found
        if train.suspended and trained is None:
            return _after_suspension(train), found
        if train.state == "Active":
            return _watch(train), found
        if train.state == "Failed" or trained is None or not trained.complete:
            return _again(plan, old, train, now), found
    found = Evidence(prepare=facts, train=trained)

    export = observed.stage("export")
    if export is None:
        return Start(stage="export"), found
    if export.state == "Active":
        return _watch(export), found
    result = _outcome(export).export
    if export.state == "Failed" or result is None:
        return Fail(failure=explain(export, now, plan.run.num_proc_per_node)), found
    return Succeed(facts=result), found


def _again(plan: Plan, old: FineTuneJobStatus, train: StageFacts, now: str) -> Decision:
    """After a failed attempt: the next one, now or later, or the end of the job."""
    before = old.restarts or Restarts()
    known = any(e.attempt == train.attempt for e in before.history) and old.last_failure
    # What an earlier pass has found out stays: pods and their words may be gone by now.
    failure = known or explain(train, now, plan.run.num_proc_per_node)
    restarts = add(before, entry(train, failure, old, now))
    verdict = judge(plan.snapshot.spec.restart_policy, restarts)
    if isinstance(verdict, Enough):
        user = restarts.history[-1].cause == "User"
        said = failure.message if user else f"{failure.message}; not started again: {verdict.why}"
        return Fail(failure=failure.model_copy(update={"message": said}), restarts=restarts)
    if train.alive or seconds(now) < verdict.at:
        return Restart(attempt=train.attempt, failure=failure, restarts=restarts, at=verdict.at)
    return Start(stage="train", attempt=train.attempt + 1, restarts=restarts)


def is_done(status: FineTuneJobStatus, condition: str) -> bool:
    """Whether a condition is true."""
    return any(c.type == condition and c.status == "True" for c in status.conditions)


def _outcome(stage: StageFacts | None) -> Outcome:
    """What a finished stage left: of training, rank 0's pod is the one that tells."""
    for pod in stage.pods if stage else ():
        if pod.phase == "Succeeded" and pod.outcome is not None and pod.outcome.failure is None:
            return pod.outcome
    return Outcome()


def _after_suspension(train: StageFacts) -> Decision:
    """Training goes on in a new attempt: from its checkpoint, and not counted as a restart."""
    if train.alive:
        why = "the workers of the last attempt are being stopped"
        return Watch(facts=train, running=False, why=why)
    return Start(stage="train", attempt=train.attempt + 1)


def _hold(old: FineTuneJobStatus, observed: Observed) -> Hold:
    """Stop what is active; once it is gone there is nothing to do."""
    active = [s for s in observed.stages if s.state == "Active" and not s.suspended]
    if active:
        words = (
            "the workers save a checkpoint and end" if active[0].stage == "train" else "stopping"
        )
        return Hold(stop=active[0], why=words)
    if any(s.alive for s in observed.stages):
        return Hold(stop=None, why=old.message or "stopping")
    return Hold(stop=None, why="suspended; set spec.suspend to false to go on")


def _watch(facts: StageFacts) -> Watch | Resume:
    """A pod that has ended was running: the phase does not go back while the Job sums up."""
    if facts.suspended:
        return Resume(stage=facts)
    pods = [pod for pod in facts.pods if not pod.deleted]
    waiting = next((pod for pod in pods if pod.waiting), None)
    pending = next((pod for pod in pods if pod.phase == "Pending"), None)
    failed = next((pod for pod in pods if pod.phase == "Failed"), None)
    if waiting is not None:
        return Watch(facts=facts, running=False, why=f"pod {waiting.name} waits: {waiting.waiting}")
    if not pods:
        return Watch(facts=facts, running=False, why="waiting for pods to be created")
    if pending is not None:
        return Watch(facts=facts, running=False, why=f"pod {pending.name} is being started")
    if failed is not None:
        return Watch(facts=facts, running=True, why=f"pod {failed.name} has failed")
    return Watch(facts=facts, running=True, why="")


def explain(stage: StageFacts, now: str, processes_per_pod: int = 1) -> LastFailure:
    """Who failed first, where, and why.

    When one rank dies, its peers fail in cascade: a lost peer is blamed only when nobody else is,
    and among the others the earliest counts.
    """
    failed = [pod for pod in stage.pods if pod.phase == "Failed" or pod.deleted]
    if not failed:
        return _nothing_left(stage, now)
    pod = min(failed, key=lambda p: (_is_cascade(p), _failed_at(p, now)))
    failure = pod.outcome.failure if pod.outcome else None
    rank = None
    if stage.stage == "train":
        rank = pod.index * processes_per_pod
    if failure is not None and failure.rank is not None:
        rank = failure.rank
    return LastFailure(
        failure_class=failure.failure_class if failure else _class(pod),
        stage=stage.stage,
        message=failure.message if failure else _message(pod),
        rank=rank,
        node=pod.node,
        pod=pod.name,
        exit_code=pod.exit_code,
        log_tail=_log_tail(pod, failure),
        time=now,
    )


def _is_cascade(pod: PodFacts) -> bool:
    failure = pod.outcome.failure if pod.outcome else None
    if failure is not None:
        return failure.failure_class in ("PeerLost", "Stopped")
    return pod.exit_code is None and not pod.deleted


def _failed_at(pod: PodFacts, now: str) -> float:
    if pod.outcome is not None and pod.outcome.failure is not None:
        return pod.outcome.failure.time
    return seconds(pod.finished or now)


def _class(pod: PodFacts) -> FailureClass:
    if pod.reason == "OOMKilled":
        return "OutOfMemory"
    if pod.reason == "Evicted" and not pod.disrupted:
        return "Configuration"
    if pod.deleted or pod.exit_code is None or pod.exit_code in KILLED_CODES:
        return "Killed"
    return "Internal"


def _message(pod: PodFacts) -> str:
    if pod.reason == "OOMKilled":
        return (
            f"pod {pod.name} used more memory than its limit; lower spec.training.microBatchSize "
            "or sequenceLength, or ask for a profile with more memory"
        )
    if pod.reason == "Evicted" and not pod.disrupted:
        return (
            f"pod {pod.name} was evicted: it used more local storage (/tmp and its log) than it "
            "may; ask for a profile whose nodes have more"
        )
    if pod.deleted and pod.exit_code is None:
        return f"pod {pod.name} was deleted"
    if pod.exit_code is not None and pod.exit_code in KILLED_CODES:
        return f"pod {pod.name} was killed by signal {pod.exit_code - 128}"
    why = f" ({pod.reason})" if pod.reason and pod.reason != "Error" else ""
    return f"pod {pod.name} failed with exit code {pod.exit_code}{why}"


def _log_tail(pod: PodFacts, failure: Failure | None) -> str | None:
    text = failure.log_tail if failure else pod.message
    if not text:
        return None
    return "\n".join(re.split(r"\r?\n", text.strip())[-LOG_TAIL_LINES:])


def _nothing_left(stage: StageFacts, now: str) -> LastFailure:
    if stage.state == "Complete":
        message = (
            f"the {stage.stage} pods ended without an error but left no proof of their work; "
            "the trainer image does not match this operator, or the pods were removed at once"
        )
    else:
        message = f"the {stage.stage} pods are gone: {stage.message or 'no reason given'}"
    return LastFailure(failure_class="Internal", stage=stage.stage, message=message, time=now)


def _name_taken(taken: str) -> Refused:
    return Refused(
        "NameTaken",
        f"{taken} exists and does not belong to this job; delete it, or use another job name",
    )


def _settings_gone(name: str, now: str) -> LastFailure:
    return LastFailure(
        failure_class="Killed",
        message=f"ConfigMap {name}-run, which holds what the job was started with, was deleted; "
        "apply the job again under another name",
        time=now,
    )

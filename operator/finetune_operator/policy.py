"""What to do next: one pure decision from what is known and what is observed.

Early returns, in the order of a job's life. The status is the memory: a stage that it calls done
stays done, so children that vanish later are not made again.
"""

from __future__ import annotations

from dataclasses import replace

from finetune_api.outcome import Outcome
from finetune_api.status import FineTuneJobStatus, LastFailure, Restarts
from finetune_operator.conditions import is_done
from finetune_operator.deadlines import Due, Wishes, failure, job_due, startup_due
from finetune_operator.decisions import (
    SUSPENDED,
    Decision,
    Evidence,
    Fail,
    Finished,
    Hold,
    Renew,
    Restart,
    Resume,
    Start,
    Succeed,
    Wait,
    Watch,
)
from finetune_operator.explain import explain
from finetune_operator.observe import Observed, StageFacts, seconds
from finetune_operator.plan import Plan, Refused
from finetune_operator.restarts import Enough, add, entry, judge
from finetune_operator.waiting import why

NO_WISHES = Wishes()


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
    if isinstance(decision, Watch) and waits_for_nodes(decision):
        return _without_nodes(decision, old, now), found
    return decision, found


def waits_for_nodes(watch: Watch) -> bool:
    """Whether workers have no node yet."""
    return watch.facts.stage == "train" and any(pod.node is None for pod in watch.facts.pods)


def _without_nodes(watch: Watch, old: FineTuneJobStatus, now: str) -> Watch | Renew:
    """What keeps off a node is fixed in the pods: when that ends, others have to be made."""
    if not old.excluded_nodes or watch.facts.suspended:
        return watch
    over = [found.node for found in old.excluded_nodes if seconds(found.until) <= seconds(now)]
    if over:
        why = f"started anew: {', '.join(over)} may be used again, and workers had no node"
        return Renew(stop=watch.facts, why=why)
    kept_off = ", ".join(f"{found.node} until {found.until}" for found in old.excluded_nodes)
    return replace(watch, why=f"{watch.why}; this job keeps off {kept_off}")


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
    spec = plan.snapshot.spec
    verdict = judge(spec.restart_policy, restarts)
    if spec.hang_policy.action == "Fail" and _hung(failure, restarts):
        verdict = Enough("spec.hangPolicy.action is Fail")
    if isinstance(verdict, Enough):
        user = restarts.history[-1].cause == "User"
        said = failure.message if user else f"{failure.message}; not started again: {verdict.why}"
        return Fail(failure=failure.model_copy(update={"message": said}), restarts=restarts)
    if train.alive or seconds(now) < verdict.at:
        return Restart(attempt=train.attempt, failure=failure, restarts=restarts, at=verdict.at)
    return Start(stage="train", attempt=train.attempt + 1, restarts=restarts)


def _hung(failure: LastFailure, restarts: Restarts) -> bool:
    """Whether the attempt ended by a hang of its own: a disruption may look like one."""
    return failure.failure_class == "Hang" and restarts.history[-1].cause == "Platform"


def _outcome(stage: StageFacts | None) -> Outcome:
    """What a finished stage left: of training, rank 0's pod is the one that tells."""
    for pod in stage.pods if stage else ():
        if pod.phase == "Succeeded" and pod.outcome is not None and pod.outcome.failure is None:
            return pod.outcome
    return Outcome()


def _after_suspension(train: StageFacts) -> Decision:
    """Training goes on in a new attempt: from its checkpoint, and not counted as a restart."""
    if train.alive:
        words = "the workers of the last attempt are being stopped"
        return Watch(facts=train, running=False, reason="Stopping", why=words)
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
    return Hold(stop=None, why=SUSPENDED)


def _watch(facts: StageFacts) -> Watch | Resume:
    """A pod that has ended was running: the phase does not go back while the Job sums up."""
    if facts.suspended:
        return Resume(stage=facts)
    waits = why(facts)
    if waits is not None:
        return Watch(facts=facts, running=False, reason=waits.reason, why=waits.message)
    failed = next((pod for pod in facts.there if pod.phase == "Failed"), None)
    return Watch(facts=facts, running=True, why=f"pod {failed.name} has failed" if failed else "")


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

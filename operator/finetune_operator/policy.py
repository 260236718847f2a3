"""What to do next: one pure decision from what is known and what is observed.

Early returns, in the order of a job's life. The status is the memory: a stage that it calls done
stays done, so children that vanish later are not made again.
"""

from __future__ import annotations

from dataclasses import replace

from finetune_api.outcome import Outcome
from finetune_api.snapshot import Refused
from finetune_api.status import FineTuneJobStatus, LastFailure, Restarts
from finetune_operator.conditions import is_done, is_older
from finetune_operator.deadlines import Due, Wishes, allowance_dues, failure, job_due, startup_due
from finetune_operator.decisions import (
    SUSPENDED,
    Begin,
    Decision,
    Evidence,
    Fail,
    Hold,
    Renew,
    Restart,
    Resume,
    Start,
    Succeed,
    Wait,
    Watch,
    refusal,
)
from finetune_operator.explain import explain
from finetune_operator.names import stage_job
from finetune_operator.observe import Observed, StageFacts, seconds
from finetune_operator.plan import Plan
from finetune_operator.restarts import Enough, add, entry, judge
from finetune_operator.waiting import why

NO_WISHES = Wishes()
MOST_REPEATS = 2
"""Of prepare or export, where nobody has seen how it ended."""


def decide(
    plan: Plan | Refused,
    old: FineTuneJobStatus,
    observed: Observed,
    now: str,
    wishes: Wishes = NO_WISHES,
) -> tuple[Decision, Evidence]:
    """The next thing to do, and what was proven on the way."""
    decision, found = _go_on(plan, old, observed, now)
    active = next((s for s in observed.stages if s.state == "Active" and not s.suspended), None)
    if isinstance(decision, Fail):
        return replace(decision, stop=active), found  # a job that is over holds nothing
    goes_on = isinstance(decision, Begin | Start | Watch | Resume | Restart)
    if wishes.suspend and (goes_on or isinstance(decision, Hold)):
        return _hold(observed), found
    if not goes_on:
        return decision, found
    passed = [due for due in deadlines(old, decision, wishes) if due.at <= seconds(now)]
    if passed:
        return Fail(failure=failure(passed[0], active, now), stop=active), found
    if isinstance(decision, Start) and observed.strays:
        return _strays(decision, observed), found
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
    found = [job_due(old, wishes), *allowance_dues(old, wishes)]
    if isinstance(decision, Start | Watch) and decision.late is not None:
        why = decision.why if isinstance(decision, Watch) else old.message or ""
        found.append(startup_due(decision.late, wishes, why))
    return [due for due in found if due is not None]


def _go_on(
    plan: Plan | Refused, old: FineTuneJobStatus, observed: Observed, now: str
) -> tuple[Decision, Evidence]:
    """What would be next if the job, which is not over, were not suspended."""
    if observed.taken is not None:
        return Wait(refused=_name_taken(observed.taken)), Evidence()
    if observed.refused is not None:
        said = f"the API server does not accept {observed.refused}"
        return Wait(refused=Refused("ObjectRefused", said)), Evidence()
    if isinstance(plan, Refused):
        return refusal(plan, now), Evidence()
    if old.start_time is None and observed.snapshot is None:
        return Begin(), Evidence()
    begun = old.stages or observed.stages or is_done(old, "Prepared")
    if begun and observed.snapshot is None:
        return Fail(failure=_settings_gone(plan.name, now)), Evidence()

    prepare = observed.stage("prepare")
    facts, fetched = _outcome(prepare).prepare, _outcome(prepare).fetch
    if not is_done(old, "Prepared"):
        if prepare is None:
            return Start(stage="prepare"), Evidence()
        if prepare.state == "Active":
            return _watch(prepare, old), Evidence()
        if _ended_unseen(prepare):
            return Start(stage="prepare", attempt=prepare.attempt + 1), Evidence()
        if prepare.state == "Failed" or (facts is None and fetched is None):
            return Fail(failure=explain(prepare, now, plan.run.num_proc_per_node)), Evidence()
    found = Evidence(prepare=facts, fetched=fetched)

    train = _newest_attempt(plan.name, old, observed)
    trained = _outcome(train).train
    if not is_done(old, "Trained"):
        if train is None:
            return Start(stage="train"), found
        own = plan.run.own_trainer
        if train.state != "Complete" or not (own or (trained and trained.complete)):
            return _training(plan, old, train, now), found
        found = replace(found, ran=own)
    found = replace(found, train=trained)

    export = observed.stage("export")
    if export is None:
        return Start(stage="export"), found
    if export.state == "Active":
        return _watch(export, old), found
    if _ended_unseen(export):
        return Start(stage="export", attempt=export.attempt + 1), found
    result = _outcome(export).export
    if export.state == "Failed" or result is None:
        return Fail(failure=explain(export, now, plan.run.num_proc_per_node)), found
    return Succeed(facts=result), found


def _ended_unseen(stage: StageFacts) -> bool:
    """Whether a stage of one pod has ended and left nobody to ask: a drain, say, has removed the
    pod while no operator looked. It comes to the same when it is run again."""
    return stage.state != "Active" and not stage.pods and stage.attempt < MOST_REPEATS


def _training(plan: Plan, old: FineTuneJobStatus, train: StageFacts, now: str) -> Decision:
    """An attempt is under way, or has ended without success.

    One that is disrupted, or of which a worker is removed by force, counts as over at once: the pod
    that tells of it is soon gone, and all its gang with it.
    """
    disrupted = any(pod.disrupted and (pod.deleted or not pod.alive) for pod in train.pods)
    taken = disrupted or any(pod.forced for pod in train.pods)
    if _is_known(old, train) or (taken and not train.suspended):
        return _again(plan, old, train, now)
    if train.suspended:
        return _after_suspension(train, old)
    return _watch(train, old) if train.state == "Active" else _again(plan, old, train, now)


def _again(plan: Plan, old: FineTuneJobStatus, train: StageFacts, now: str) -> Decision:
    """After a failed attempt: the next one, now or later, or the end of the job."""
    before = old.restarts or Restarts()
    known = _is_known(old, train) and old.last_failure
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


def _is_known(old: FineTuneJobStatus, train: StageFacts) -> bool:
    """Whether the status has the attempt as failed: then it is over, whatever a list that is older
    than the status shows."""
    history = old.restarts.history if old.restarts else []
    return any(e.attempt == train.attempt for e in history)


def _newest_attempt(name: str, old: FineTuneJobStatus, observed: Observed) -> StageFacts | None:
    """The newest attempt, also if somebody has deleted its Kubernetes Job: then it has failed, and
    its number is not given again."""
    if old.attempt is None or not is_older(observed, old):
        return observed.stage("train")
    return StageFacts(
        stage="train",
        attempt=old.attempt,
        state="Failed",
        suspended=False,
        start_time=None,
        completion_time=None,
        message=f"Kubernetes Job {stage_job(name, 'train', old.attempt)} was deleted",
        pods=observed.strays,
    )


def _strays(decision: Start, observed: Observed) -> Watch:
    """Two Jobs of a stage must not run side by side, also if the first was deleted by hand."""
    facts = StageFacts(
        stage=decision.stage,
        attempt=decision.attempt,
        state="Active",
        suspended=False,
        start_time=None,
        completion_time=None,
        message="",
        pods=observed.strays,
    )
    why = f"pod {observed.strays[0].name}, whose Kubernetes Job was deleted, is still being stopped"
    return Watch(facts=facts, running=False, why=why)


def _outcome(stage: StageFacts | None) -> Outcome:
    """What a finished stage left: of training, rank 0's pod is the one that tells."""
    for pod in stage.pods if stage else ():
        if pod.phase == "Succeeded" and pod.outcome is not None and pod.outcome.failure is None:
            return pod.outcome
    return Outcome()


def _after_suspension(train: StageFacts, old: FineTuneJobStatus) -> Decision:
    """Training goes on in a new attempt: from its checkpoint, and not counted as a restart.

    An attempt that the status calls `Starting` may have been stopped because its deadline to start
    had passed, by an operator that died before it could say so.
    """
    starting = old.phase == "Starting" and old.attempt == train.attempt
    late = train if starting else None
    if train.alive and starting:
        words = "the workers of the last attempt are being stopped"
        return Watch(facts=train, running=False, reason="Stopping", why=words, late=late)
    if train.alive:
        return Hold(stop=None, why="goes on when the workers of the last attempt have ended")
    return Start(stage="train", attempt=train.attempt + 1, late=late)


def _hold(observed: Observed) -> Hold:
    """Stop what is active; once it is gone there is nothing to do."""
    stop = next((s for s in observed.stages if s.state == "Active" and not s.suspended), None)
    left = stop or next((s for s in observed.stages if s.alive), None)
    if left is None and not observed.strays:
        return Hold(stop=None, why=SUSPENDED)
    if left is not None and left.stage == "train" and any(p.phase == "Running" for p in left.pods):
        return Hold(stop=stop, why="the workers save a checkpoint and end")
    return Hold(stop=stop, why="stopping")


def _watch(facts: StageFacts, old: FineTuneJobStatus) -> Watch | Resume:
    """A pod that has ended was running: a gang that has run does not go back to `Starting` while
    its Job sums up, and has no deadline to start."""
    if facts.suspended:
        return Resume(stage=facts)
    waits, ended = why(facts), _has_ended(facts)
    pending = any(pod.phase == "Pending" for pod in facts.pods)
    ran = old.phase == "Running" and old.attempt == facts.attempt and not pending
    if waits is not None and not ran:
        late = facts if facts.stage == "train" and not ended else None
        return Watch(facts=facts, running=False, reason=waits.reason, why=waits.message, late=late)
    there = f"{len(facts.pods)} of {facts.wanted} pods are there" if facts.missing else ""
    return Watch(facts=facts, running=not pending, why=ended or there)


def _has_ended(facts: StageFacts) -> str:
    """Which pod runs no more, or not for long; empty: none. Of a CPU stage another one may run."""
    if facts.stage != "train" and any(pod.phase == "Running" for pod in facts.pods):
        return ""
    failed = next((pod for pod in facts.pods if pod.phase == "Failed"), None)
    leaving = next((pod for pod in facts.pods if pod.deleted), None)
    if failed is not None:
        return f"pod {failed.name} has failed"
    if leaving is not None:
        return f"pod {leaving.name} is being removed"
    done = sum(pod.phase == "Succeeded" for pod in facts.pods)
    return f"{done} of {len(facts.pods)} pods are done" if done else ""


def _name_taken(taken: str) -> Refused:
    return Refused(
        "NameTaken",
        f"{taken} exists and does not belong to this job; delete it, or use another job name",
    )


def _settings_gone(name: str, now: str) -> LastFailure:
    return LastFailure(
        failure_class="Killed",
        message=f"ConfigMap {name}-run, which holds what the job was started with, was deleted or "
        "replaced; "
        "apply the job again under another name",
        time=now,
    )

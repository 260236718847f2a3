"""The new status, recomputed whole from the old one, the decision and what was observed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from finetune_api.outcome import FetchFacts, PrepareFacts, ResolvedTraining, TrainFacts
from finetune_api.run_config import RunConfig
from finetune_api.snapshot import Refused
from finetune_api.status import (
    MAX_MESSAGE,
    TERMINAL_PHASES,
    DatasetFacts,
    ExcludedNode,
    FineTuneJobStatus,
    OutputStatus,
    Phase,
    Resolved,
    Restarts,
    StageTimes,
)
from finetune_operator import own
from finetune_operator.conditions import conditions, is_older
from finetune_operator.decisions import (
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
)
from finetune_operator.names import STAGES
from finetune_operator.nodes import excluded
from finetune_operator.observe import Observed, seconds
from finetune_operator.plan import Plan
from finetune_operator.reports import reports, stalled

PHASE_OF_STAGE: dict[str, Phase] = {
    "prepare": "Preparing",
    "train": "Starting",
    "export": "Exporting",
}
STARTED = {
    "prepare": "model and data are being fetched, checked and tokenised",
    "train": "the workers are being started",
    "export": "the result is being written and checked",
}
AGAIN = "{0} is run again: nobody has seen how it ended, and its pod is gone"
STALLED = (
    "the workers do not get on and are left alone (spec.hangPolicy.action is Report); where they "
    "stand is in the log of rank 0 and in stacks of the work directory"
)


def reduce(
    old: FineTuneJobStatus,
    generation: int,
    plan: Plan | Refused,
    observed: Observed,
    decision: Decision,
    evidence: Evidence,
    now: str,
    listening_since: str | None = None,
) -> FineTuneJobStatus:
    """The status after this pass; `progress` is another writer's and left out.

    Args:
        listening_since: See `reports.reports`.
    """
    phase, message = _phase(old, decision)
    if stalled(old, decision):
        message = STALLED
    ended = phase in TERMINAL_PHASES
    heard = reports(old, decision, listening_since, now)
    begun = isinstance(decision, Begin | Start) or observed.snapshot is not None
    started = old.start_time or (now if begun else None)
    return FineTuneJobStatus(
        observed_generation=generation,
        phase=phase,
        message=message[:MAX_MESSAGE],
        conditions=conditions(old, generation, decision, evidence, heard, message, now),
        start_time=started,
        settings_digest=old.settings_digest,
        completion_time=now if ended else None,
        suspend_time=_suspend_time(old, phase, started, now),
        suspended_seconds=_suspended_seconds(old, phase, now),
        attempt=_attempt(old, decision, observed),
        excluded_nodes=_excluded(old, plan, decision, now),
        stages=_stage_times(old, observed),
        phase_seconds=_phase_seconds(old, phase, now),
        phase_time=old.phase_time if phase == old.phase else now,
        usage=old.usage,
        resolved=_resolved(old, plan, evidence.prepare, evidence.fetched),
        dataset=_dataset(evidence.prepare) or old.dataset,
        output=_output(old, plan, decision, evidence.train),
        restarts=_restarts(old, decision),
        last_failure=decision.failure if isinstance(decision, Fail | Restart) else old.last_failure,
    )


def _suspend_time(
    old: FineTuneJobStatus, phase: Phase, started: str | None, now: str
) -> str | None:
    if phase != "Suspended" or started is None:
        return None
    return old.suspend_time or now


def _suspended_seconds(old: FineTuneJobStatus, phase: Phase, now: str) -> int | None:
    """Counted when it goes on."""
    if old.suspend_time is None or phase == "Suspended":
        return old.suspended_seconds
    return (old.suspended_seconds or 0) + round(seconds(now) - seconds(old.suspend_time))


def _phase_seconds(old: FineTuneJobStatus, phase: Phase, now: str) -> dict[Phase, int]:
    """Counted when the phase is over."""
    if old.phase is None or old.phase_time is None or phase == old.phase:
        return old.phase_seconds
    spent = max(0, round(seconds(now) - seconds(old.phase_time)))
    return {**old.phase_seconds, old.phase: old.phase_seconds.get(old.phase, 0) + spent}


def _phase(old: FineTuneJobStatus, decision: Decision) -> tuple[Phase, str]:
    match decision:
        case Wait(refused=refused):
            return "Pending", refused.message
        case Begin():
            return "Preparing", STARTED["prepare"]
        case Start(stage=stage, attempt=attempt) if attempt and stage != "train":
            return PHASE_OF_STAGE[stage], AGAIN.format(stage)
        case Start(stage=stage):
            return PHASE_OF_STAGE[stage], STARTED[stage]
        case Watch(facts=facts, running=running, why=why):
            if facts.stage == "train" and running:
                return "Running", why or "training"
            return PHASE_OF_STAGE[facts.stage], why or STARTED[facts.stage]
        case Hold(why=why):
            return "Suspended", why
        case Renew(why=why):
            return "Starting", why
        case Resume(stage=facts):
            return PHASE_OF_STAGE[facts.stage], STARTED[facts.stage]
        case Restart():
            return "Restarting", _restarting(decision)
        case Succeed():
            return "Succeeded", "the result is written and checked"
        case Fail(failure=failure):
            return "Failed", failure.message
    return old.phase or "Pending", old.message or ""


def _restarting(decision: Restart) -> str:
    """What happened, and what comes when: an incident report in a line."""
    failure, last = decision.failure, decision.restarts.history[-1]
    who = "" if failure.rank is None else f" on rank {failure.rank}"
    where = f" ({failure.node})" if failure.node else ""
    where += "" if last.step is None else f" at step {last.step}"
    count = (
        f"disruption {decision.restarts.disruptions}"
        if last.cause == "Disruption"
        else f"restart {decision.restarts.counted}"
    )
    at = datetime.fromtimestamp(decision.at, UTC).strftime("%H:%M:%SZ")
    return (
        f"attempt {decision.attempt} ended{who}{where}, {failure.failure_class}: "
        f"{failure.message}; {count}, attempt {decision.attempt + 1} from {at}"
    )


def _restarts(old: FineTuneJobStatus, decision: Decision) -> Restarts | None:
    found = decision.restarts if isinstance(decision, Start | Restart | Fail) else None
    return found or old.restarts


def _excluded(
    old: FineTuneJobStatus, plan: Plan | Refused, decision: Decision, now: str
) -> list[ExcludedNode]:
    """Of the attempt under way; between two attempts, of the one to come."""
    starts = isinstance(plan, Plan) and plan.attempt is not None
    if starts or isinstance(decision, Restart):
        return excluded(_restarts(old, decision), now)
    return old.excluded_nodes


def _attempt(old: FineTuneJobStatus, decision: Decision, observed: Observed) -> int | None:
    if isinstance(decision, Start) and decision.stage == "train":
        return decision.attempt
    train = observed.stage("train")
    return old.attempt if train is None or is_older(observed, old) else train.attempt


def _stage_times(old: FineTuneJobStatus, observed: Observed) -> list[StageTimes]:
    known = {times.name: times for times in old.stages}
    for stage in STAGES:
        facts = observed.stage(stage)
        if facts is not None and facts.start_time is not None:
            known[stage] = StageTimes(
                name=stage, start_time=facts.start_time, completion_time=facts.completion_time
            )
    return [known[stage] for stage in STAGES if stage in known]


def _resolved(
    old: FineTuneJobStatus,
    plan: Plan | Refused,
    facts: PrepareFacts | None,
    fetched: FetchFacts | None,
) -> Resolved | None:
    if isinstance(plan, Refused):
        return old.resolved
    if plan.run.own_trainer:
        return _resolved_own(old.resolved or Resolved(), plan, fetched)
    before = old.resolved or Resolved()
    run, starts = plan.run, plan.attempt is not None
    num_nodes = run.num_nodes if starts else before.num_nodes or run.num_nodes
    of_prepare = facts if num_nodes == run.num_nodes and not run.resolved else None
    estimate = of_prepare.estimate if of_prepare else plan.estimate
    decided = _settled(run) if run.resolved else _known(run, before)
    if of_prepare and of_prepare.resolved:
        decided = of_prepare.resolved
    return Resolved(
        **_of_profile(plan),
        image=plan.snapshot.image,
        objective=run.objective,
        tuning=run.tuning,
        num_nodes=num_nodes,
        num_proc_per_node=run.num_proc_per_node,
        **decided.model_dump(),
        memory_gib=round(estimate.total / 2**30, 2) if estimate else before.memory_gib,
        grace_period_seconds=plan.grace_seconds if starts else before.grace_period_seconds,
        total_steps=facts.total_steps if facts else before.total_steps,
        model_revision=facts.model_revision if facts else before.model_revision,
        dataset_revision=facts.dataset_revision if facts else before.dataset_revision,
        long_examples=run.long_examples,
        checkpoint_minutes=run.checkpoints.every_minutes,
        output_uri=run.output_uri,
        parameters=facts.parameters if facts else before.parameters,
        shape=facts.shape if facts else before.shape,
        attention=facts.attention if facts else before.attention,
        max_restarts=plan.snapshot.spec.restart_policy.max_restarts,
    )


def _resolved_own(before: Resolved, plan: Plan, fetched: FetchFacts | None) -> Resolved:
    """Of a job with its own trainer: how it trains is not ours to say."""
    starts = plan.attempt is not None
    return Resolved(
        **_of_profile(plan),
        image=own.image(plan, "train"),
        num_nodes=plan.run.num_nodes if starts else before.num_nodes or plan.run.num_nodes,
        num_proc_per_node=plan.run.num_proc_per_node,
        grace_period_seconds=plan.grace_seconds if starts else before.grace_period_seconds,
        model_revision=fetched.model_revision if fetched else before.model_revision,
        dataset_revision=fetched.dataset_revision if fetched else before.dataset_revision,
        output_uri=plan.run.output_uri,
        parameters=fetched.parameters if fetched else before.parameters,
    )


def _of_profile(plan: Plan) -> dict[str, Any]:
    """What a job keeps of its profile."""
    retention = plan.snapshot.profile.retention
    return {
        "profile": plan.snapshot.profile_name,
        "defaults": plan.snapshot.defaults or None,
        "retention": retention if retention.to_json_dict() else None,
    }


def _known(run: RunConfig, before: Resolved) -> ResolvedTraining:
    """What has been decided so far: by prepare in an earlier pass, else by the plan."""
    if before.offload is not None:
        return ResolvedTraining.model_validate(
            {name: getattr(before, name) for name in ResolvedTraining.model_fields}
        )
    return _settled(run)


def _settled(run: RunConfig) -> ResolvedTraining:
    training = run.training
    return ResolvedTraining(
        zero_stage=run.zero_stage,
        offload=run.offload,
        micro_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        gradient_checkpointing=training.gradient_checkpointing,
    )


def _dataset(facts: PrepareFacts | None) -> DatasetFacts | None:
    if facts is None:
        return None
    total = facts.examples + facts.eval_examples
    return DatasetFacts(
        examples=facts.examples,
        eval_examples=facts.eval_examples,
        tokens=facts.tokens,
        trained_tokens=facts.trained_tokens,
        sequences=facts.sequences,
        duplicate_examples=facts.duplicate_examples,
        dropped_examples=facts.dropped_examples,
        split_examples=facts.split_examples,
        truncated_fraction=round(facts.truncated_examples / total, 4) if total else 0.0,
        packing_efficiency=round(facts.packing_efficiency, 4),
        lengths=facts.lengths,
        samples=facts.samples,
        format=facts.format,
    )


def _output(
    old: FineTuneJobStatus, plan: Plan | Refused, decision: Decision, train: TrainFacts | None
) -> OutputStatus | None:
    if not isinstance(decision, Succeed) or isinstance(plan, Refused):
        return old.output
    facts = decision.facts
    return OutputStatus(
        uri=plan.run.output_uri,
        digest=facts.digest,
        bytes=facts.bytes,
        eval_loss_before=train.eval_loss_before if train else facts.eval_loss_before,
        eval_loss_after=train.eval_loss_after if train else facts.eval_loss_after,
        retention_loss_before=train.retention_loss_before if train else None,
        retention_loss_after=train.retention_loss_after if train else None,
    )

"""`step`: one pass over one job. No I/O, no clock, no logging: everything it does is returned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from finetune_api.lifecycle import RestartPolicy
from finetune_api.limits import NAME_LABEL
from finetune_api.profile import FineTuneProfileSpec
from finetune_api.snapshot import Refused, make_snapshot
from finetune_api.status import TERMINAL_PHASES, FineTuneJobStatus, Progress
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_operator import names, objects
from finetune_operator.allowance import Allowance
from finetune_operator.conditions import under_way
from finetune_operator.deadlines import Wishes, ttl_due
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
    Wait,
    Watch,
)
from finetune_operator.events import Event, events, lost_pod
from finetune_operator.nodes import given_up, next_late, removable
from finetune_operator.observe import Observed, PodFacts, seconds
from finetune_operator.plan import Plan, make_plan
from finetune_operator.policy import deadlines, decide, waits_for_nodes
from finetune_operator.reports import reports
from finetune_operator.settings import Settings
from finetune_operator.sizing import settle_size
from finetune_operator.status import reduce
from finetune_operator.usage import with_usage
from finetune_operator.waiting import look_again

RETRY_SECONDS = 30.0
"""How often a job that cannot start is looked at, beside the events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A FineTuneJob as read from the API server."""

    namespace: str
    name: str
    uid: str
    generation: int
    version: int
    spec: FineTuneJobSpec | Refused
    status: FineTuneJobStatus

    @property
    def key(self) -> str:
        """How logs name it."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a pass needs beside the job and its children."""

    settings: Settings
    profiles: Mapping[str, FineTuneProfileSpec]
    ca_cert: str
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Labels of namespaces, where they were read; of every one its name is known."""
    listening_since: str | None = None
    """When this operator began to take progress reports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Everything that one pass does."""

    apply: tuple[objects.Manifest, ...] = ()
    suspend: Mapping[str, bool] = field(default_factory=dict)
    """Kubernetes Jobs to stop (True) or let go on (False), by name."""
    give_up: tuple[PodFacts, ...] = ()
    """Pods that a dead node does not let go: to be called failed."""
    force_delete: tuple[PodFacts, ...] = ()
    """Pods to remove when the status is written: why an attempt ended is seen in its pods."""
    delete: bool = False
    """The FineTuneJob itself: its time is over."""
    status: FineTuneJobStatus | None = None
    """To write; None: nothing changed."""
    progress: Progress | None = None
    """To write under the progress field owner: the last word on a training that has ended."""
    events: tuple[Event, ...] = field(default=())
    """To send after the status is written, and before the job is deleted."""
    requeue_after: float | None = None
    """Seconds."""


def parse_job(body: Mapping[str, Any]) -> Job:
    """Parse once, at the edge. The API server has validated by the CRD; what still does not fit
    (an older CRD in the cluster) becomes a reason, not an exception."""
    spec: FineTuneJobSpec | Refused
    try:
        spec = FineTuneJobSpec.parse(body["spec"])
    except ValidationError as error:
        spec = Refused("InvalidSpec", problems(error))
    metadata = body["metadata"]
    return Job(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        version=int(metadata["resourceVersion"]),
        spec=spec,
        status=FineTuneJobStatus.parse(body.get("status") or {}),
    )


def problems(error: ValidationError) -> str:
    """All problems in one line, with the names that people wrote."""
    return "; ".join(
        f"spec.{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
        for problem in error.errors()
    )


def step(job: Job, observed: Observed, world: World, now: str) -> Step:
    """One pass: decide, and say what follows."""
    if job.status.phase in TERMINAL_PHASES:
        return finished_step(job, now)
    plan = _plan(job, observed, world)
    wishes = _wishes(job, plan)
    decision, evidence = decide(plan, job.status, observed, now, wishes)
    digest = _digest(plan, observed, world) or job.status.settings_digest
    if isinstance(decision, Start) and digest != job.status.settings_digest:
        decision = Begin()  # the profile has changed since the job was said to start
    plan, decision = settle_size(plan, job.status, observed, decision, evidence, wishes, now)
    since = world.listening_since
    new = reduce(job.status, job.generation, plan, observed, decision, evidence, now, since)
    new = with_usage(job.status, new, plan, observed, decision, evidence, now)
    if isinstance(decision, Begin):
        new = new.model_copy(update={"settings_digest": digest})
    old = job.status.model_copy(update={"progress": None})
    changed = new != old
    last = _last_progress(job.status, new.attempt or 0, evidence, now)
    known = job.status.model_copy(update={"progress": last or job.status.progress})
    patience = _patience(plan)
    lost = given_up(observed, patience, now)
    told = events(known, new, decision) if changed else ()
    return Step(
        apply=_objects(plan, decision, observed, world),
        suspend=_suspend(job, decision, observed),
        give_up=lost,
        force_delete=removable(observed, patience, now),
        status=new if changed else None,
        progress=last,
        events=(*told, *(lost_pod(pod, patience, now) for pod in lost)),
        requeue_after=_look_again(
            job.status, decision, wishes, since, next_late(observed, patience, now), now
        ),
    )


def _digest(plan: Plan | Refused, observed: Observed, world: World) -> str | None:
    """Of the settings that the job would start with now; None: it has started, or cannot."""
    if isinstance(plan, Refused) or observed.snapshot is not None:
        return None
    return objects.settings_digest(objects.settings_of(plan, world.ca_cert))


def finished_step(job: Job, now: str) -> Step:
    """A finished job is final, whatever became of the children: only its TTL is left."""
    due = ttl_due(job.name, job.status, _wishes(job))
    if due is None:
        return Step()
    if due.at > seconds(now):
        return Step(requeue_after=due.at - seconds(now))
    return Step(delete=True, events=(Event("Normal", "TTLExpired", f"deleted: {due.message}"),))


def _wishes(job: Job, plan: Plan | Refused | None = None) -> Wishes:
    """What is wanted of a job now. Of its profile, a job that is over has only its status."""
    if isinstance(plan, Plan):
        snapshot = plan.snapshot
        allowance = Allowance.of(snapshot.profile_name, snapshot.profile)
        return Wishes.of(job.spec, snapshot.defaults, allowance)
    taken = job.status.resolved.defaults if job.status.resolved else None
    return Wishes.of(job.spec, taken or {})


def _patience(plan: Plan | Refused) -> int:
    policy = RestartPolicy() if isinstance(plan, Refused) else plan.snapshot.spec.restart_policy
    return policy.force_delete_seconds


def _suspend(job: Job, decision: Decision, observed: Observed) -> dict[str, bool]:
    if isinstance(decision, Hold | Fail | Renew) and decision.stop is not None:
        return {names.stage_job(job.name, decision.stop.stage, decision.stop.attempt): True}
    if isinstance(decision, Resume):
        return {names.stage_job(job.name, decision.stage.stage, decision.stage.attempt): False}
    stage = under_way(job.status)
    if isinstance(decision, Fail) and observed.stage(stage) is None:
        # It is gone, or the list is old: nobody looks again at a job that is over.
        attempt = (job.status.attempt or 0) if stage == "train" else 0
        return {names.stage_job(job.name, stage, attempt): True}
    return {}


def _look_again(
    old: FineTuneJobStatus,
    decision: Decision,
    wishes: Wishes,
    listening_since: str | None,
    late_at: float | None,
    now: str,
) -> float | None:
    """When time alone will change the decision."""
    if isinstance(decision, Wait):
        return RETRY_SECONDS
    if isinstance(decision, Begin):
        return 0.0
    moments = [] if late_at is None else [late_at]
    if isinstance(decision, Start | Watch | Resume | Restart):
        moments += [due.at for due in deadlines(old, decision, wishes)]
    if isinstance(decision, Restart):
        moments.append(decision.at)
    if isinstance(decision, Watch) and not decision.running:
        told = look_again(decision.facts, now)
        moments += [told] if told is not None else []
    if isinstance(decision, Watch) and waits_for_nodes(decision):
        moments += [seconds(found.until) for found in old.excluded_nodes]
    heard = reports(old, decision, listening_since, now)
    if heard is not None and heard.due > seconds(now):
        moments.append(heard.due)
    return max(1.0, min(moments) - seconds(now)) if moments else None


def _plan(job: Job, observed: Observed, world: World) -> Plan | Refused:
    if observed.snapshot is not None:
        return make_plan(job.namespace, job.name, job.uid, observed.snapshot)
    if isinstance(job.spec, Refused):
        return job.spec
    labels = {**world.namespaces.get(job.namespace, {}), NAME_LABEL: job.namespace}
    image = world.settings.trainer_image
    snapshot = make_snapshot(job.spec, dict(world.profiles), image, labels)
    if isinstance(snapshot, Refused):
        return snapshot
    return make_plan(job.namespace, job.name, job.uid, snapshot)


def _objects(
    plan: Plan | Refused, decision: Decision, observed: Observed, world: World
) -> tuple[objects.Manifest, ...]:
    if isinstance(plan, Refused) or not isinstance(decision, Start):
        return ()
    if decision.stage == "prepare":
        config = () if observed.snapshot else (objects.run_config_map(plan, world.ca_cert),)
        return (*config, *objects.preparing_objects(plan, decision.attempt, world.settings))
    if decision.stage == "train":
        return objects.training_objects(plan, decision.attempt, world.settings)
    return (objects.stage_job(plan, "export", decision.attempt, world.settings),)


def _last_progress(
    old: FineTuneJobStatus, attempt: int, evidence: Evidence, now: str
) -> Progress | None:
    """Rank 0's last report may be lost on the way; its termination message is not."""
    facts, before = evidence.train, old.progress
    if evidence.ran and before is not None and before.activity != "Done":
        # It says how far it was; that it is done, its exit codes say.
        done = {"percent": 100, "eta_seconds": 0, "activity": "Done", "stalled_seconds": None}
        return before.model_copy(update=done | {"last_update_time": now})
    if facts is None or (before is not None and before.activity == "Done"):
        return None
    known: dict[str, Any] = {}
    if before is not None:
        known = before.model_dump(exclude_none=True, exclude={"stalled_seconds"})
    known |= {
        "attempt": attempt,
        "step": facts.step,
        "total_steps": facts.total_steps,
        "percent": 100,
        "eta_seconds": 0,
        "loss": facts.loss,
        "tokens_per_second": facts.tokens_per_second,
        "activity": "Done",
        "last_update_time": now,
    }
    if facts.eval_loss_after is not None:
        known["eval_loss"] = facts.eval_loss_after
    return Progress(**known)

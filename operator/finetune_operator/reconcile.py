"""`step`: one pass over one job. No I/O, no clock, no logging: everything it does is returned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from finetune_api.profile import FineTuneProfileSpec
from finetune_api.status import FineTuneJobStatus, Progress
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_operator import names, objects
from finetune_operator.conditions import condition
from finetune_operator.deadlines import Wishes
from finetune_operator.decisions import (
    Decision,
    Evidence,
    Fail,
    Hold,
    Restart,
    Resume,
    Start,
    Wait,
    Watch,
)
from finetune_operator.observe import Observed, seconds
from finetune_operator.plan import Plan, Refused, make_plan, make_snapshot
from finetune_operator.policy import deadlines, decide
from finetune_operator.reports import CONDITION, reports
from finetune_operator.settings import Settings
from finetune_operator.status import STALLED, reduce
from finetune_operator.waiting import HARMLESS, look_again

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
    listening_since: str | None = None
    """When this operator began to take progress reports."""


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes Event about the job."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Everything that one pass does."""

    apply: tuple[objects.Manifest, ...] = ()
    suspend: Mapping[str, bool] = field(default_factory=dict)
    """Kubernetes Jobs to stop (True) or let go on (False), by name."""
    status: FineTuneJobStatus | None = None
    """To write; None: nothing changed."""
    progress: Progress | None = None
    """To write under the progress field owner: the last word on a training that has ended."""
    events: tuple[Event, ...] = field(default=())
    """To send after the status is written."""
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
    plan = _plan(job, observed, world)
    wishes = Wishes.of(job.spec)
    decision, evidence = decide(plan, job.status, observed, now, wishes)
    since = world.listening_since
    new = reduce(job.status, job.generation, plan, observed, decision, evidence, now, since)
    old = job.status.model_copy(update={"progress": None})
    changed = new != old
    return Step(
        apply=_objects(plan, decision, observed, world),
        suspend=_suspend(job.name, decision),
        status=new if changed else None,
        progress=_last_progress(job.status, evidence, now),
        events=_events(old, new, decision) if changed else (),
        requeue_after=_look_again(job.status, decision, wishes, since, now),
    )


def _suspend(name: str, decision: Decision) -> dict[str, bool]:
    if isinstance(decision, Hold | Fail) and decision.stop is not None:
        return {names.stage_job(name, decision.stop.stage, decision.stop.attempt): True}
    if isinstance(decision, Resume):
        return {names.stage_job(name, decision.stage.stage, decision.stage.attempt): False}
    return {}


def _look_again(
    old: FineTuneJobStatus,
    decision: Decision,
    wishes: Wishes,
    listening_since: str | None,
    now: str,
) -> float | None:
    """When time alone will change the decision."""
    if isinstance(decision, Wait):
        return RETRY_SECONDS
    if not isinstance(decision, Start | Watch | Resume | Restart):
        return None
    moments = [due.at for due in deadlines(old, decision, wishes)]
    if isinstance(decision, Restart):
        moments.append(decision.at)
    if isinstance(decision, Watch) and not decision.running:
        told = look_again(decision.facts, now)
        moments += [told] if told is not None else []
    heard = reports(old, decision, listening_since, now)
    if heard is not None and heard.due > seconds(now):
        moments.append(heard.due)
    return max(1.0, min(moments) - seconds(now)) if moments else None


def _plan(job: Job, observed: Observed, world: World) -> Plan | Refused:
    if observed.snapshot is not None:
        return make_plan(job.namespace, job.name, job.uid, observed.snapshot)
    if isinstance(job.spec, Refused):
        return job.spec
    snapshot = make_snapshot(job.spec, dict(world.profiles), world.settings.trainer_image)
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
        return (*config, *objects.preparing_objects(plan, world.settings))
    if decision.stage == "train":
        return objects.training_objects(plan, decision.attempt, world.settings)
    return (objects.stage_job(plan, "export", 0, world.settings),)


def _last_progress(old: FineTuneJobStatus, evidence: Evidence, now: str) -> Progress | None:
    """Rank 0's last report may be lost on the way; its termination message is not."""
    facts, before = evidence.train, old.progress
    if facts is None or (before is not None and before.activity == "Done"):
        return None
    known: dict[str, Any] = {"attempt": old.attempt or 0}
    if before is not None:
        known = before.model_dump(exclude_none=True, exclude={"stalled_seconds"})
    known |= {
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


def _events(
    old: FineTuneJobStatus, new: FineTuneJobStatus, decision: Decision
) -> tuple[Event, ...]:
    """One for every change of phase, for every new reason to wait, and when reports stop, come
    again, or tell of a hang."""
    return (*_phase_events(old, new, decision), *_side_events(old, new, decision))


def _phase_events(
    old: FineTuneJobStatus, new: FineTuneJobStatus, decision: Decision
) -> tuple[Event, ...]:
    message = new.message or ""
    if isinstance(decision, Wait):
        if message == old.message:
            return ()
        return (Event("Warning", decision.refused.reason, message),)
    if new.phase == old.phase or new.phase is None:
        return ()
    if isinstance(decision, Restart):
        return (Event("Warning", "Restarting", message),)
    if isinstance(decision, Fail):
        where = f" (pod {decision.failure.pod})" if decision.failure.pod else ""
        return (Event("Warning", "Failed", f"{decision.failure.failure_class}: {message}{where}"),)
    return (Event("Normal", new.phase, message),)


def _side_events(
    old: FineTuneJobStatus, new: FineTuneJobStatus, decision: Decision
) -> tuple[Event, ...]:
    found = []
    waits = condition(new, "Waiting")
    if isinstance(decision, Watch) and waits is not None and waits.status == "True":
        before = condition(old, "Waiting")
        same = before is not None and before.reason == waits.reason
        if waits.reason not in HARMLESS and not same:
            found.append(Event("Warning", waits.reason, waits.message))
    if new.message == STALLED and old.message != STALLED:
        found.append(Event("Warning", "Stalled", STALLED))
    before, heard = condition(old, CONDITION), condition(new, CONDITION)
    silent = before is not None and before.status == "False"
    if heard is not None and heard.status == "False" and not silent:
        found.append(Event("Warning", heard.reason, heard.message))
    if heard is not None and heard.status == "True" and silent:
        found.append(Event("Normal", heard.reason, heard.message))
    return tuple(found)

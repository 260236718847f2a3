"""What a job has held and what became of that time: pure arithmetic over moments that others saw.

The account is in the status and nowhere else, and it is written only with something else: with a
change of the job, or with a report. In between it is `holding` times the seconds since `time`
more, which a scrape adds. So no time is lost with an operator, and none is written because it
passed. Every number only grows. The difficulty is what a second of training was worth: that turns
out at the next checkpoint (useful) or at the end of the attempt (lost).
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from finetune_api.snapshot import Refused
from finetune_api.status import TERMINAL_PHASES, FineTuneJobStatus, Progress
from finetune_api.usage import Kind, Usage
from finetune_operator.conditions import is_done
from finetune_operator.decisions import Decision, Evidence, Fail, Hold, Renew, Restart, Start
from finetune_operator.holding import holding
from finetune_operator.observe import Observed, PodFacts, StageFacts, seconds
from finetune_operator.plan import Plan

REASON_OF: dict[Kind, str] = {
    "StartUp": "start_up",
    "Restarting": "restart",
    "Ending": "restart",
}
"""Where held time goes at once; that of `Training` waits."""


def advance(usage: Usage, before: Progress | None, after: Progress | None, now: str) -> Usage:
    """The account until `now`, when nothing has happened but that the workers may have reported.

    Args:
        before: The progress that `usage` knows.
        after: The newest one.
    """
    passed = max(0.0, seconds(now) - seconds(usage.time))
    found = _spend(usage, passed * usage.holding)
    found = found.model_copy(update={"time": _later(usage.time, now)})
    if after is not None and after is not before and after.attempt == usage.attempt:
        known = before if before is not None and before.attempt == usage.attempt else None
        found = _reported(found, known, after)
    return _priced(found, after)


def reported(status: FineTuneJobStatus, progress: Progress) -> FineTuneJobStatus:
    """The status with what was reported, and with the account until then."""
    found: dict[str, Progress | Usage] = {"progress": progress}
    if status.usage is not None:
        moment = progress.last_update_time
        found["usage"] = advance(status.usage, status.progress, progress, moment)
    return status.model_copy(update=found)


def report_part(status: FineTuneJobStatus) -> dict[str, Any]:
    """The part of a status that is written when a report comes."""
    part = {"progress": status.progress, "usage": status.usage}
    return {name: of.to_json_dict() for name, of in part.items() if of is not None}


def with_usage(
    old: FineTuneJobStatus,
    new: FineTuneJobStatus,
    plan: Plan | Refused,
    observed: Observed,
    decision: Decision,
    evidence: Evidence,
    now: str,
) -> FineTuneJobStatus:
    """`new` with the account until `now`, if it is to be written anyway, or if the workers have
    begun or ended to hold something.

    Args:
        old: With the progress, which `new` does not have.
        new: As `status.reduce` returns it.
    """
    before = old.usage or _opened(plan, new, now)
    if before is None:
        return new
    after = _account(before, old, new, plan, observed, decision, evidence, now)
    changed = new != old.model_copy(update={"progress": None}) or _kind(before) != _kind(after)
    return new.model_copy(update={"usage": after}) if changed else new


def _opened(plan: Plan | Refused, new: FineTuneJobStatus, now: str) -> Usage | None:
    """The empty account of a job that has started."""
    if isinstance(plan, Refused) or new.start_time is None:
        return None
    profile = plan.snapshot.profile
    unit = "GPU" if profile.node.gpus_per_node else "Worker"
    return _priced(Usage(unit=unit, price=profile.price, time=now), None)


def _kind(usage: Usage) -> tuple[object, ...]:
    return usage.attempt, usage.counts_as, usage.holding == 0


def _account(
    usage: Usage,
    old: FineTuneJobStatus,
    new: FineTuneJobStatus,
    plan: Plan | Refused,
    observed: Observed,
    decision: Decision,
    evidence: Evidence,
    now: str,
) -> Usage:
    train = observed.stage("train")
    if train is not None and train.attempt < (usage.attempt or 0):
        train = None  # the Kubernetes Job of the newest attempt was deleted
    if train is not None and train.attempt != usage.attempt:
        usage = _entered(usage, old, train.attempt, now)
    if usage.attempt is None:
        return _priced(usage.model_copy(update={"time": _later(usage.time, now)}), None)
    progress = old.progress
    mine = progress if progress is not None and progress.attempt == usage.attempt else None
    pods = train.pods if train is not None else observed.strays
    share = plan.run.num_proc_per_node if isinstance(plan, Plan) and usage.unit == "GPU" else 1
    line = holding(pods, usage.holding // share, usage.time, now)
    trained = evidence.train is not None or is_done(old, "Trained")
    next_one = _starts_another(decision, usage.attempt)
    over = isinstance(decision, Restart | Fail | Hold | Renew) or next_one
    end = seconds(now)
    if over and not trained and usage.counts_as != "Ending":
        end = _ended_at(pods, line.start, end)
    usage = _spend(usage, share * line.between(line.start, end))
    if over and not trained and usage.counts_as != "Ending":
        usage = _hung(usage, _failure(decision), mine, end, share * line.at(line.start))
        usage = usage.model_copy(update={"counts_as": "Ending"})
        usage = _spend(usage, share * line.between(end, seconds(now)))
    final = next_one or new.phase in TERMINAL_PHASES
    left = 0 if final else share * line.at(seconds(now))
    usage = usage.model_copy(update={"holding": left, "time": _later(usage.time, now)})
    if trained or (usage.counts_as == "Ending" and not left):
        usage = _settled(usage, useful=trained or _was_saved(pods, mine))
    return _priced(_queued(usage, pods, train, old, new), mine, over=final or trained)


def _entered(usage: Usage, old: FineTuneJobStatus, attempt: int, now: str) -> Usage:
    """A new attempt: of the one before nothing is left open."""
    failed = {entry.attempt for entry in old.restarts.history} if old.restarts else set()
    kind: Kind = "Restarting" if attempt - 1 in failed else "StartUp"
    if usage.holding:  # its end was not seen
        usage = advance(usage, old.progress, old.progress, now)
    usage = _settled(usage, useful=False)
    return usage.model_copy(update={"attempt": attempt, "counts_as": kind, "holding": 0})


def _starts_another(decision: Decision, attempt: int) -> bool:
    """Whether the next attempt is to be made."""
    return isinstance(decision, Start) and decision.stage == "train" and decision.attempt > attempt


def _ended_at(pods: Sequence[PodFacts], start: float, now: float) -> float:
    """When an attempt that is over began to end: with the first worker that failed."""
    failed = [seconds(p.finished) for p in pods if p.exit_code and p.finished is not None]
    return min(max(start, min(failed, default=now)), now)


def _failure(decision: Decision) -> str | None:
    """The class of the failure that ended an attempt."""
    if isinstance(decision, Restart | Fail):
        return decision.failure.failure_class
    if isinstance(decision, Start) and decision.restarts is not None:
        return decision.restarts.history[-1].failure_class
    return None


def _spend(usage: Usage, amount: float) -> Usage:
    """So many seconds more of what is held now."""
    more = round(amount)
    if not more:
        return usage
    badput, field = usage.badput, REASON_OF.get(usage.counts_as)
    if field is not None:
        badput = badput.model_copy(update={field: getattr(badput, field) + more})
    held = usage.held_seconds + more
    return usage.model_copy(update={"held_seconds": held, "badput": badput})


def _move(usage: Usage, field: str, amount: float) -> Usage:
    """Say of training that waited for it what it was worth; not more than there is."""
    more = min(usage.pending, max(0, int(amount)))
    if not more:
        return usage
    if field == "useful_seconds":
        return usage.model_copy(update={field: usage.useful_seconds + more})
    badput = usage.badput.model_copy(update={field: getattr(usage.badput, field) + more})
    return usage.model_copy(update={"badput": badput})


def _reported(usage: Usage, before: Progress | None, after: Progress) -> Usage:
    """What the workers say: that they train, how long they stood still, what is saved."""
    if usage.counts_as in ("StartUp", "Restarting") and _trains(after):
        usage = usage.model_copy(update={"counts_as": "Training"})
    stalls = [p.checkpoint_stalled_seconds or 0.0 if p else 0.0 for p in (before, after)]
    usage = _move(usage, "checkpoint_stall", (stalls[1] - stalls[0]) * usage.holding)
    hangs = [p.stalled_seconds or 0 if p else 0 for p in (before, after)]
    usage = _move(usage, "hang", (hangs[1] - hangs[0]) * usage.holding)
    base = before.checkpoint_step if before else None
    saved = after.checkpoint_step
    if saved is None or saved == base or (base is not None and saved < base):
        return usage
    done, steps = saved - (base or 0), (after.step or saved) - (base or 0)
    return _move(usage, "useful_seconds", usage.pending * min(1.0, done / max(1, steps)))


def _trains(progress: Progress) -> bool:
    """Whether the first step, or the evaluation before it, has begun. An image that does not tell
    what it does tells its steps."""
    if progress.activity is None:
        return bool(progress.step)
    return progress.activity != "Loading"


def _hung(usage: Usage, failure: str | None, mine: Progress | None, end: float, held: int) -> Usage:
    """An attempt that has ended by a hang did not get on since its last step."""
    if failure != "Hang" or mine is None or mine.step_time is None:
        return usage
    return _move(usage, "hang", (end - seconds(mine.step_time)) * held)


def _was_saved(pods: Sequence[PodFacts], mine: Progress | None) -> bool:
    """Whether the last step is in a checkpoint. Workers that end because they were asked to say so
    by their outcome: it comes after the checkpoint, and no report does."""
    failures = [pod.outcome.failure for pod in pods if pod.outcome is not None]
    if any(f is not None and f.failure_class == "Stopped" and f.step is not None for f in failures):
        return True
    return mine is not None and mine.step is not None and mine.checkpoint_step == mine.step


def _settled(usage: Usage, *, useful: bool) -> Usage:
    """Nothing more will be heard of an attempt."""
    return _move(usage, "useful_seconds" if useful else "lost_steps", usage.pending)


def _queued(
    usage: Usage,
    pods: Sequence[PodFacts],
    train: StageFacts | None,
    old: FineTuneJobStatus,
    new: FineTuneJobStatus,
) -> Usage:
    """Once an attempt runs, it is known when its last worker got a node."""
    if new.phase != "Running" or old.phase == "Running" or train is None:
        return usage
    bound = [seconds(pod.bound) for pod in pods if pod.bound is not None]
    if train.start_time is None or not bound:
        return usage
    waited = max(0, round(max(bound) - seconds(train.start_time)))
    return usage.model_copy(update={"queue_seconds": usage.queue_seconds + waited})


def _later(one: str, other: str) -> str:
    return max(one, other, key=seconds)


def _priced(usage: Usage, progress: Progress | None, *, over: bool = False) -> Usage:
    """With what follows from the seconds: GPU-hours and costs."""
    of_gpus = usage.held_seconds if usage.unit == "GPU" else 0
    found = usage.model_copy(update={"gpu_hours": round(of_gpus / 3600, 4)})
    if usage.price is None:
        return found
    per_second = Decimal(usage.price.per_gpu_hour) / 3600
    cost = _amount(of_gpus * per_second)
    estimate = cost if over else max(cost, usage.estimated_cost or cost, key=Decimal)
    if (
        not over
        and usage.unit == "GPU"
        and progress is not None
        and progress.eta_seconds is not None
    ):
        to_come = progress.eta_seconds * usage.holding
        estimate = _amount((of_gpus + to_come) * per_second)
    return found.model_copy(update={"cost_so_far": cost, "estimated_cost": estimate})


def _amount(value: Decimal) -> str:
    return str(value.quantize(Decimal("0.01"), ROUND_HALF_UP))

"""What becomes of a progress report: pure rules over the report and what was known before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from finetune_api import progress as wire
from finetune_api.progress import TrainerStatus
from finetune_api.status import MAX_HISTORY, Activity, HistoryPoint, Progress
from finetune_operator.observe import seconds

WRITE_SECONDS = 30.0
"""From one write of numbers to the next, at least: however often a job reports."""

Worth = Literal["Nothing", "Numbers", "Transition"]
"""Of a write. A transition is what people and the next pass wait for; it is written at once."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why a report is not taken: an HTTP status, a sentence, and when to try again."""

    code: int
    message: str
    retry_after: float | None = None


def merge(
    old: Progress | None, report: TrainerStatus, attempt: int, now: str
) -> Progress | Rejected:
    """What is known after this report.

    Args:
        old: What was known before, perhaps of an earlier attempt.
    """
    problem = report.problem()
    if problem is not None:
        return Rejected(422, problem)
    mine = old if old is not None and old.attempt == attempt else None
    step = _whole(report, wire.CURRENT_STEP)
    if mine is not None and mine.step is not None and step is not None and step < mine.step:
        return Rejected(422, f"{wire.CURRENT_STEP} went back from {mine.step} to {step}")
    pace = old.seconds_per_step if old is not None else None
    return _progress(mine, report, attempt, step, pace, now)


def worth(written: Progress | None, new: Progress) -> Worth:
    """What a write of `new` would tell that the last one did not."""
    if written is None or written.attempt != new.attempt:
        return "Transition"
    if new.activity != written.activity or (new.percent == 100) != (written.percent == 100):
        return "Transition"
    if (new.stalled_seconds is None) != (written.stalled_seconds is None):
        return "Transition"
    passed = seconds(new.last_update_time) - seconds(written.last_update_time)
    return "Numbers" if passed >= WRITE_SECONDS else "Nothing"


def newer(one: Progress | None, other: Progress | None) -> Progress | None:
    """The one that knows more; points of the loss curve that only the other has are added."""
    if one is None or other is None:
        return one or other
    first, second = sorted((one, other), key=_age)
    if first.attempt != second.attempt or not first.history:
        return second
    points = {point.step: point for point in (*first.history, *second.history)}
    history = [points[step] for step in sorted(points)]
    while len(history) > MAX_HISTORY:
        history = _thinned(history)
    return second if history == second.history else second.model_copy(update={"history": history})


def _age(progress: Progress) -> tuple[int, int, float]:
    return progress.attempt, progress.step or 0, seconds(progress.last_update_time)


def _progress(
    old: Progress | None,
    report: TrainerStatus,
    attempt: int,
    step: int | None,
    pace: float | None,
    now: str,
) -> Progress:
    def number(name: str, before: float | None) -> float | None:
        value = report.number(name)
        return before if value is None else _short(value)

    before = old or Progress(attempt=attempt, last_update_time=now)
    total = _whole(report, wire.TOTAL_STEPS)
    new_step = before.step if step is None else step
    new_total = before.total_steps if total is None else total
    first, since = before.first_step, before.first_step_time
    if first is None and new_step:
        first, since = new_step, now
    pace = _pace(first, since, new_step, now) or before.seconds_per_step or pace
    return Progress(
        attempt=attempt,
        step=new_step,
        total_steps=new_total,
        epoch=number(wire.CURRENT_EPOCH, before.epoch),
        percent=max(before.percent, report.progress_percentage or 0),
        step_time=before.step_time if new_step == before.step else now,
        **_checkpoint(before, report, now),
        eta_seconds=_eta(before, report, new_step, new_total, pace),
        seconds_per_step=pace,
        first_step=first,
        first_step_time=since,
        loss=number(wire.LOSS, before.loss),
        eval_loss=number(wire.EVAL_LOSS, before.eval_loss),
        learning_rate=number(wire.LEARNING_RATE, before.learning_rate),
        grad_norm=number(wire.GRAD_NORM, before.grad_norm),
        tokens_per_second=number(wire.TOKENS_PER_SECOND, before.tokens_per_second),
        save_seconds=number(wire.SAVE_SECONDS, before.save_seconds),
        activity=_activity(report) or before.activity,
        # Not from before: who gets on again does not name it.
        stalled_seconds=_whole(report, wire.STALLED_SECONDS),
        last_update_time=now,
        history=_history(before.history, new_step, report.number(wire.LOSS)),
    )


def _pace(first: int | None, since: str | None, step: int | None, now: str) -> float | None:
    """Measured seconds per step; None: not two steps yet."""
    if first is None or since is None or step is None or step <= first:
        return None
    passed = seconds(now) - seconds(since)
    return _short(passed / (step - first)) if passed >= 1 else None


def _eta(
    before: Progress, report: TrainerStatus, step: int | None, total: int | None, pace: float | None
) -> int | None:
    """Our own trainer knows its evaluations and the time of saving, and names its activity. Other
    senders count all steps as theirs (transformers' `KubeflowCallback` divides the time since its
    start by them), which is far too little after a resume: theirs only until we have measured."""
    said = report.estimated_remaining_seconds
    if said == 0 or report.text(wire.ACTIVITY) is not None or pace is None:
        return before.eta_seconds if said is None else said
    if step is None or total is None or report.progress_percentage == 100:
        return before.eta_seconds if said is None else said
    # A resumed run says where it is with its first step; until then nothing is known of the rest.
    return round(pace * max(0, total - step)) if step else before.eta_seconds


def _checkpoint(before: Progress, report: TrainerStatus, now: str) -> dict[str, Any]:
    """What is known of checkpoints; the time is that of the first report of one."""
    step = _whole(report, wire.CHECKPOINT_STEP)
    same = step is None or step == before.checkpoint_step
    taken = report.number(wire.CHECKPOINT_SECONDS)
    stalled = report.number(wire.CHECKPOINT_STALLED_SECONDS)
    known = before.checkpoint_stalled_seconds
    return {
        "checkpoint_step": before.checkpoint_step if same else step,
        "checkpoint_time": before.checkpoint_time if same else now,
        "checkpoint_seconds": before.checkpoint_seconds if taken is None else _short(taken),
        "checkpoint_stalled_seconds": known
        if stalled is None
        else max(known or 0.0, round(stalled, 3)),
    }


def _whole(report: TrainerStatus, name: str) -> int | None:
    value = report.number(name)
    return None if value is None else int(value)


def _short(value: float) -> float:
    """Six digits: what people read in a column, and no more than a report is exact to."""
    return float(f"{value:.6g}")


def _activity(report: TrainerStatus) -> Activity | None:
    return report.text(wire.ACTIVITY)  # type: ignore[return-value]


def _history(
    before: list[HistoryPoint], step: int | None, loss: float | None
) -> list[HistoryPoint]:
    """Append, and when full drop every second point: evenly thinned, the newest kept."""
    if loss is None or step is None or (before and before[-1].step >= step):
        return before
    points = [*before, HistoryPoint(step=step, loss=round(loss, 6))]
    return _thinned(points) if len(points) > MAX_HISTORY else points


def _thinned(points: list[HistoryPoint]) -> list[HistoryPoint]:
    return points[::-1][::2][::-1]

"""What becomes of a progress report: pure rules over the job's status and the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_api import progress as wire
from finetune_api.progress import TrainerStatus
from finetune_api.status import MAX_HISTORY, Activity, HistoryPoint, Progress
from finetune_operator.observe import seconds

MIN_SECONDS = 2.0
"""Never write more often than this, but for a change of activity."""
MAX_SECONDS = 30.0
"""Write at least this often while reports come."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why a report is not taken: an HTTP status and a sentence."""

    code: int
    message: str


def merge(
    old: Progress | None, report: TrainerStatus, attempt: int, now: str
) -> Progress | Rejected | None:
    """The progress to write; None: nothing worth a write yet."""
    if old is not None and old.attempt != attempt:
        old = None
    step = _whole(report.number(wire.CURRENT_STEP))
    if old is not None and old.step is not None and step is not None and step < old.step:
        return Rejected(422, f"{wire.CURRENT_STEP} went back from {old.step} to {step}")
    new = _progress(old, report, attempt, step, now)
    return new if _worth_writing(old, new) else None


def _progress(
    old: Progress | None, report: TrainerStatus, attempt: int, step: int | None, now: str
) -> Progress:
    def number(name: str, before: float | None) -> float | None:
        value = report.number(name)
        return before if value is None else _short(value)

    before = old or Progress(attempt=attempt, last_update_time=now)
    loss = number(wire.LOSS, before.loss)
    percent = report.progress_percentage
    stalled = _whole(report.number(wire.STALLED_SECONDS))
    activity = report.text(wire.ACTIVITY)
    new_step = before.step if step is None else step
    return Progress(
        attempt=attempt,
        step=new_step,
        total_steps=_whole(number(wire.TOTAL_STEPS, before.total_steps)),
        epoch=number(wire.CURRENT_EPOCH, before.epoch),
        percent=max(before.percent, before.percent if percent is None else percent),
        step_time=before.step_time if new_step == before.step else now,
        **_checkpoint(before, report, now),
        eta_seconds=report.estimated_remaining_seconds
        if report.estimated_remaining_seconds is not None
        else before.eta_seconds,
        loss=loss,
        eval_loss=number(wire.EVAL_LOSS, before.eval_loss),
        learning_rate=number(wire.LEARNING_RATE, before.learning_rate),
        grad_norm=number(wire.GRAD_NORM, before.grad_norm),
        tokens_per_second=number(wire.TOKENS_PER_SECOND, before.tokens_per_second),
        save_seconds=_seconds(number(wire.SAVE_SECONDS, before.save_seconds)),
        activity=_activity(activity) or before.activity,
        stalled_seconds=stalled,  # not from before: who gets on again does not name it
        last_update_time=now,
        history=_history(before.history, new_step, report.number(wire.LOSS)),
    )


def _checkpoint(before: Progress, report: TrainerStatus, now: str) -> dict[str, Any]:
    """What is known of checkpoints; the time is that of the first report of one."""
    step = _whole(report.number(wire.CHECKPOINT_STEP))
    same = step is None or step == before.checkpoint_step
    taken = _seconds(report.number(wire.CHECKPOINT_SECONDS))
    stalled = _seconds(report.number(wire.CHECKPOINT_STALLED_SECONDS))
    known = before.checkpoint_stalled_seconds
    return {
        "checkpoint_step": before.checkpoint_step if same else step,
        "checkpoint_time": before.checkpoint_time if same else now,
        "checkpoint_seconds": before.checkpoint_seconds if taken is None else _short(taken),
        "checkpoint_stalled_seconds": known
        if stalled is None
        else max(known or 0.0, round(stalled, 3)),
    }


def _worth_writing(old: Progress | None, new: Progress) -> bool:
    if old is None or new.activity != old.activity:
        return True
    if (new.stalled_seconds is None) != (old.stalled_seconds is None):
        return True
    passed = seconds(new.last_update_time) - seconds(old.last_update_time)
    if passed < MIN_SECONDS:
        return False
    return new.percent != old.percent or passed >= MAX_SECONDS


def _whole(value: float | None) -> int | None:
    return None if value is None or not 0 <= value < 2**53 else int(value)


def _seconds(value: float | None) -> float | None:
    """What the status takes; a number out of bounds is none of ours."""
    return value if value is not None and 0 <= value <= 1e6 else None


def _short(value: float) -> float:
    """Six digits: what people read in a column, and no more than a report is exact to."""
    return float(f"{value:.6g}")


def _activity(text: str | None) -> Activity | None:
    return text if text in wire.ACTIVITIES else None  # type: ignore[return-value]


def _history(
    before: list[HistoryPoint], step: int | None, loss: float | None
) -> list[HistoryPoint]:
    """Append, and when full drop every second point: evenly thinned, the newest kept."""
    if loss is None or step is None or (before and before[-1].step >= step):
        return before
    points = [*before, HistoryPoint(step=step, loss=round(loss, 6))]
    return points[::-1][::2][::-1] if len(points) > MAX_HISTORY else points

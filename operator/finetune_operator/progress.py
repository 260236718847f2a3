"""What becomes of a progress report: pure rules over the report and what was known before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from finetune_api import progress as wire
from finetune_api.progress import TrainerStatus
from finetune_api.status import MAX_HISTORY, HistoryPoint, Progress
from finetune_operator.observe import seconds
from finetune_operator.rate import Rate

WRITE_SECONDS = 30.0
"""From one write of a job's numbers to the next, at least: however often it reports."""
NUMBERS = Rate(burst=10, per_second=10)
"""Writes of numbers, of all jobs together: a write costs the API server 20 to 40 ms of a processor.
So from 300 jobs on each is written less often (of a thousand: every 100 seconds)."""

OVERDUE_SECONDS = 200.0
"""After which numbers are written however many jobs there are: whoever looks at a status takes five
minutes without a report for silence (`reports.SILENCE_SECONDS`)."""

FIELDS = {
    wire.CURRENT_EPOCH: "epoch",
    wire.LOSS: "loss",
    wire.EVAL_LOSS: "eval_loss",
    wire.LEARNING_RATE: "learning_rate",
    wire.GRAD_NORM: "grad_norm",
    wire.TOKENS_PER_SECOND: "tokens_per_second",
    wire.SAVE_SECONDS: "save_seconds",
}
"""Metrics that a field of the progress repeats."""

Numbers = Mapping[str, float]
"""Of a report, by the names on the wire."""
Worth = Literal["Nothing", "Numbers", "Overdue", "Transition"]
"""Of a write. Numbers wait for their turn among all jobs; a transition is what people and the next
pass wait for, and is written at once."""


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
    numbers = report.numbers()
    step = _whole(numbers, wire.CURRENT_STEP)
    if mine is not None and mine.step is not None and step is not None and step < mine.step:
        return Rejected(422, f"{wire.CURRENT_STEP} went back from {mine.step} to {step}")
    before = mine or Progress(attempt=attempt, last_update_time=now)
    pace = old.seconds_per_step if old is not None else None
    return _progress(before, report, numbers, pace, now)


def pause(jobs: int) -> float:
    """Seconds between two writes of the numbers of one of so many jobs, at least. A little less
    than its share of `NUMBERS`: who is due waits for a turn, but not behind those that had one."""
    return min(max(WRITE_SECONDS, 0.9 * jobs / NUMBERS.per_second), OVERDUE_SECONDS)


def worth(written: Progress | None, new: Progress, jobs: int) -> Worth:
    """What a write of `new` would tell that the last one did not.

    Args:
        jobs: How many report.
    """
    if written is None or written.attempt != new.attempt:
        return "Transition"
    if new.activity != written.activity or (new.percent == 100) != (written.percent == 100):
        return "Transition"
    if (new.stalled_seconds is None) != (written.stalled_seconds is None):
        return "Transition"
    passed = seconds(new.last_update_time) - seconds(written.last_update_time)
    if passed >= OVERDUE_SECONDS:
        return "Overdue"
    return "Numbers" if passed >= pause(jobs) else "Nothing"


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
    before: Progress, report: TrainerStatus, numbers: Numbers, pace: float | None, now: str
) -> Progress:
    """What a report does not name stays as it was. Not validated once more: `problem` has looked at
    what is new, and two hundred reports a second are merged."""
    step = _whole(numbers, wire.CURRENT_STEP, before.step)
    total = _whole(numbers, wire.TOTAL_STEPS, before.total_steps)
    first, since = before.first_step, before.first_step_time
    if first is None and step:
        first, since = step, now
    pace = _pace(first, since, step, now) or before.seconds_per_step or pace
    activity = report.activity
    found: dict[str, Any] = {
        field: _short(numbers[name]) for name, field in FIELDS.items() if name in numbers
    }
    found |= {
        "step": step,
        "total_steps": total,
        "percent": max(before.percent, report.progress_percentage or 0),
        "step_time": before.step_time if step == before.step else now,
        "eta_seconds": _eta(before, report, step, total, pace),
        "seconds_per_step": pace,
        "first_step": first,
        "first_step_time": since,
        "activity": activity or before.activity,
        # Not from before: who gets on again does not name it.
        "stalled_seconds": _whole(numbers, wire.STALLED_SECONDS),
        "last_update_time": now,
        "history": _history(before.history, step, numbers.get(wire.LOSS)),
    }
    return before.model_copy(update=found | _checkpoint(before, numbers, now))


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
    if said == 0 or report.activity is not None or pace is None:
        return before.eta_seconds if said is None else said
    if step is None or total is None or report.progress_percentage == 100:
        return before.eta_seconds if said is None else said
    # A resumed run says where it is with its first step; until then nothing is known of the rest.
    if not step:
        return before.eta_seconds
    return min(round(pace * max(0, total - step)), wire.MAX_WHOLE)


def _checkpoint(before: Progress, numbers: Numbers, now: str) -> dict[str, Any]:
    """What is said of checkpoints; the time is that of the first report of one."""
    found: dict[str, Any] = {}
    step = _whole(numbers, wire.CHECKPOINT_STEP)
    if step is not None and step != before.checkpoint_step:
        found |= {"checkpoint_step": step, "checkpoint_time": now}
    if wire.CHECKPOINT_SECONDS in numbers:
        found["checkpoint_seconds"] = _short(numbers[wire.CHECKPOINT_SECONDS])
    if wire.CHECKPOINT_STALLED_SECONDS in numbers:
        stalled = round(numbers[wire.CHECKPOINT_STALLED_SECONDS], 3)
        found["checkpoint_stalled_seconds"] = max(before.checkpoint_stalled_seconds or 0.0, stalled)
    return found


def _whole(numbers: Numbers, name: str, otherwise: int | None = None) -> int | None:
    value = numbers.get(name)
    return otherwise if value is None else int(value)


def _short(value: float) -> float:
    """Six digits: what people read in a column, and no more than a report is exact to."""
    return float(f"{value:.6g}")


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

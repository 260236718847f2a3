"""What Events say beside the status's message: which attempt, how far, how long. Read one after the
other, by `kubectl describe`, they are the report of what happened to a job."""

from __future__ import annotations

from finetune_api.status import FineTuneJobStatus
from finetune_operator.observe import seconds


def told(old: FineTuneJobStatus, new: FineTuneJobStatus) -> str:
    """The sentence for a change of phase.

    Args:
        old: With the progress, which `new` does not have.
    """
    message = new.message or ""
    match new.phase:
        case "Preparing":
            return f"{_after_pause(old, new)}{message}"
        case "Starting":
            return f"{_after_pause(old, new)}attempt {new.attempt}, {_size(new)}: {message}"
        case "Running":
            return f"attempt {new.attempt}, {_size(new)}: {message}"
        case "Suspended" if new.attempt is not None:
            return f"attempt {new.attempt}{_step(old)}: {message}"
        case "Exporting":
            return f"{_after_pause(old, new)}attempt {new.attempt} is done{_step(old)}: {message}"
        case "Succeeded":
            return f"{message}: {_result(new)}; {_account(new)}"
    return message


def _after_pause(old: FineTuneJobStatus, new: FineTuneJobStatus) -> str:
    if old.suspend_time is None:
        return ""
    pause = (new.suspended_seconds or 0) - (old.suspended_seconds or 0)
    return f"after {pause} s suspended, "


def _size(new: FineTuneJobStatus) -> str:
    known = new.resolved
    if known is None or known.num_nodes is None:
        return "its workers"
    return f"{known.num_nodes} x {known.num_proc_per_node} processes"


def _step(old: FineTuneJobStatus) -> str:
    """The last step that was reported, of whichever attempt."""
    progress = old.progress
    if progress is None or progress.step is None:
        return ""
    of = f" of {progress.total_steps}" if progress.total_steps is not None else ""
    return f" at step {progress.step}{of}"


def _result(new: FineTuneJobStatus) -> str:
    found = new.output
    if found is None:
        return "no output is known"
    losses = ""
    if found.eval_loss_before is not None and found.eval_loss_after is not None:
        losses = (
            f", held-out loss {found.eval_loss_before:.4g} before, {found.eval_loss_after:.4g} now"
        )
    return f"{found.bytes} bytes in {found.uri}{losses}"


def _account(new: FineTuneJobStatus) -> str:
    """What it took."""
    restarts = new.restarts
    took = seconds(new.completion_time or "") - seconds(new.start_time or "")
    return (
        f"{took:.0f} s, {new.suspended_seconds or 0} s of them suspended; "
        f"attempts: {(new.attempt or 0) + 1}, restarts: {restarts.counted if restarts else 0}, "
        f"disruptions: {restarts.disruptions if restarts else 0}"
    )

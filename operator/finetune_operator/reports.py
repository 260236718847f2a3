"""Whether the workers' reports still come: said in a condition, and never a reason to end anything.

The trainer reports at least once a minute, also while nothing changes. When no report comes, the
way to the operator may be broken while training goes on; a training that hangs is ended by its
workers, which need no operator for that.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.status import FineTuneJobStatus
from finetune_operator.decisions import Decision, Watch
from finetune_operator.observe import seconds

SILENCE_SECONDS = 300.0
"""Without a report, after which it is said: five times what the trainer needs at most."""
CONDITION = "ProgressReported"


@dataclass(frozen=True, slots=True)
class Reports:
    """What is known of the reports of a training that runs."""

    last: str | None
    """When the last report of this attempt was written; None: there was none."""
    since: str
    """From when on no report has come; not before this operator could hear one."""

    @property
    def due(self) -> float:
        """When the silence is too long, in seconds since the epoch."""
        return seconds(self.since) + SILENCE_SECONDS


def reports(
    status: FineTuneJobStatus, decision: Decision, listening_since: str | None, now: str
) -> Reports | None:
    """Those of the attempt that runs; None: no training runs.

    Args:
        status: The one before this pass, with the progress.
        listening_since: When this operator began to take reports: what came before, and nobody
            took, is not held against the workers. None: always.
    """
    if not isinstance(decision, Watch) or decision.facts.stage != "train" or not decision.running:
        return None
    progress = status.progress
    mine = progress is not None and progress.attempt == decision.facts.attempt
    last = progress.last_update_time if progress is not None and mine else None
    moments = [last, _running_since(status) or now, listening_since]
    return Reports(last, max((m for m in moments if m is not None), key=seconds))


def stalled(status: FineTuneJobStatus, decision: Decision) -> bool:
    """Whether the workers report that they do not get on, and are to be left alone."""
    progress = status.progress
    return (
        isinstance(decision, Watch)
        and decision.running
        and progress is not None
        and progress.attempt == decision.facts.attempt
        and progress.stalled_seconds is not None
    )


def _running_since(status: FineTuneJobStatus) -> str | None:
    for condition in status.conditions:
        if condition.type == "Waiting" and condition.reason == "Running":
            return condition.last_transition_time
    return None

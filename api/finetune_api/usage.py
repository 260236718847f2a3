"""`FineTuneJob.status.usage`: what a job has held, and what became of that time."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import ApiModel
from finetune_api.price import Price

Whole = Annotated[int, Field(ge=0, le=9_007_199_254_740_991)]
Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"}, max_length=64)]
Amount = Annotated[str, StringConstraints(max_length=32, pattern=r"^[0-9]+\.[0-9]{2}$")]

Kind = Literal["StartUp", "Training", "Ending", "Restarting"]


class Badput(ApiModel):
    """Held time that brought the training nothing, in seconds times GPUs (or workers)."""

    start_up: Whole = 0
    """From the first node to the first step: images, imports, loading. After a failure it is
    `restart`."""

    lost_steps: Whole = 0
    """Steps since the last checkpoint of an attempt that failed: they are done again."""

    checkpoint_stall: Whole = 0
    """Training stood still for a checkpoint."""

    hang: Whole = 0
    """Training did not get on, from its last step to the end of the attempt."""

    restart: Whole = 0
    """From the failure of an attempt until its last worker was gone, and the start-up of the next;
    also the end of an attempt that was suspended."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.start_up + self.lost_steps + self.checkpoint_stall + self.hang + self.restart


class Usage(ApiModel):
    """What the workers held until `time`: GPUs, or where a job has none the workers themselves.

    `heldSeconds` is the sum of `usefulSeconds`, everything in `badput`, and the time since the last
    checkpoint, of which nobody can say yet whether it will have been useful.
    """

    unit: Literal["GPU", "Worker"]
    """What a second is counted of: one GPU that is held for a second counts as 1."""

    held_seconds: Whole = 0
    """Seconds from a worker's binding to a node to its end, times `unit`."""

    useful_seconds: Whole = 0
    """The part that brought the training forward, evaluations included; counted when a checkpoint
    or the end of the training has made it last."""

    badput: Badput = Badput()
    """The part that did not, by reason."""

    queue_seconds: Whole = 0
    """Seconds that the attempts waited until all their workers had a node."""

    gpu_hours: Annotated[float, Field(ge=0)] = 0.0
    """GPU-hours held; 0 for a job without GPUs."""

    price: Price | None = None
    """Of the profile, as it was when the job started."""

    cost_so_far: Amount | None = None
    """`gpuHours` times the price."""

    estimated_cost: Amount | None = None
    """What it will have cost when training ends as `progress.etaSeconds` says."""

    attempt: Whole | None = None
    """The attempt that `holding` is of."""

    holding: Whole = 0
    """GPUs (or workers) held at `time`."""

    counts_as: Kind = "StartUp"
    """What the time that is held now is counted as. `Training` is useful or lost, which turns out
    later; `Ending` (an attempt that is over) and `Restarting` (the start-up after a failure) are
    `badput.restart`."""

    time: Moment
    """Until when it is counted: a change of the job, or its last written report."""

    @property
    def pending(self) -> int:
        """Seconds of training that no checkpoint has made last yet."""
        return self.held_seconds - self.useful_seconds - self.badput.total

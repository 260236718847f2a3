"""The part of a job's spec that says how a run is watched, kept and started again."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from finetune_api.base import ApiModel, rule, rules
from finetune_api.sources import Retention


class Evaluation(ApiModel):
    """Measuring beside training. The held-out part is measured before and after in any case."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.earlyStoppingPatience) || has(self.everySteps)",
                "spec.evaluation.earlyStoppingPatience counts evaluations; set "
                "spec.evaluation.everySteps too",
                ".earlyStoppingPatience",
            ),
        )
    )

    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Measure the loss on the held-out part after every so many optimizer steps, too; the
    checkpoint with the lowest one is the result. Default: only before and after."""

    early_stopping_patience: Annotated[int, Field(ge=1, le=1000)] | None = None
    """End training, as done, after so many evaluations in a row without a lower loss."""

    retention: Retention | None = None
    """General text that the model should not forget; its loss is reported before and after."""


class Checkpoints(ApiModel):
    """What a run that is interrupted goes on from."""

    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Save after every so many optimizer steps."""

    every_minutes: Annotated[int, Field(ge=1, le=10_080)] | None = None
    """Save when so many minutes have passed since the last one. Default: 15, where `everySteps`
    is not given either."""

    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """Newest checkpoints that are kept; the one with the lowest held-out loss is kept beside
    them."""

    resume: Literal["Auto", "Never"] = "Auto"
    """`Auto` goes on from the last valid checkpoint, `Never` starts from the beginning."""


class RestartPolicy(ApiModel):
    """How often training may start again. What is the user's to mend (a wrong setting, bad data,
    too little memory, divergence) ends the job at once."""

    max_restarts: Annotated[int, Field(ge=0, le=1000)] = 3
    """Failures of the platform (a worker killed, a lost connection, a hang) after which training
    goes on from the last checkpoint; also how many attempts in a row may get no further."""

    window_seconds: Annotated[int, Field(ge=60, le=31_536_000)] | None = None
    """Count only failures of the last so many seconds, for long runs. Default: all."""

    max_disruptions: Annotated[int, Field(ge=0, le=10_000)] = 100
    """Disruptions (preemption, drain, eviction, a lost node) after which training goes on; they do
    not count as restarts."""

    force_delete_seconds: Annotated[int, Field(ge=0, le=86_400)] = 120
    """Remove a pod of the job by force when it is still there so many seconds after its time to end
    was over: its node is dead or cut off, and the next attempt waits for it."""


class TtlSecondsAfterFinished(ApiModel):
    """When a finished job is deleted, by how it ended. What it made goes with it, but for the
    result: a TTL never deletes that."""

    succeeded: Annotated[int, Field(ge=0, le=315_360_000)] | None = None
    """Seconds after success. Needs `spec.output`: the job's own claim goes with the job. Default:
    it is kept."""

    failed: Annotated[int, Field(ge=0, le=315_360_000)] | None = None
    """Seconds after failure; its checkpoints go too, unless the profile has a `workClaim`. Default:
    it is kept."""


HangSeconds = Annotated[int, Field(ge=10, le=604_800)]


class HangPolicy(ApiModel):
    """What happens to a training that no longer gets on. Its workers notice it themselves; a job
    whose reports are lost goes on."""

    action: Literal["Restart", "Fail", "Report"] = "Restart"
    """`Restart`: end the attempt, and go on from the last checkpoint in a new one (it counts as a
    restart). `Fail`: end the job. `Report`: let the workers wait, and only say so. In each case
    the stacks of the processes are kept, in the log and in `stacks` of the work directory."""

    training_seconds: HangSeconds | Literal["Auto"] = "Auto"
    """Longest time from one optimizer step to the next. `Auto`: 10 times the median step, and at
    least 60. The first step may take 600 in any case."""

    loading_seconds: HangSeconds | None = None
    """Longest time for loading the model and the data. Default: 600, and what reading the model
    takes at 20 MB per second."""

    evaluating_seconds: HangSeconds | None = None
    """Longest time from one evaluated batch to the next. Default: 600."""

    checkpointing_seconds: HangSeconds | None = None
    """Longest time for writing a checkpoint or the result. Default: 600, and what writing it takes
    at 20 MB per second."""

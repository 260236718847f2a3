"""What Prometheus is told of jobs: a table of pure functions over one status each.

`docs/metrics.md` is made from this table. Values that grow are gauges where a later look may
correct them (a worker that had ended before anybody saw it): to `rate()` a counter that goes back
has begun anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from finetune_api.outcome import FAILURE_CLASSES
from finetune_operator.job_values import (
    BADPUT_REASONS,
    WAITING_REASONS,
    Seen,
    Values,
    badput,
    checkpoint_age,
    cost,
    finished,
    goodput,
    is_held,
    progress,
    restarts,
    restarts_left,
    since_report,
    used,
    waiting,
)


@dataclass(frozen=True, slots=True)
class JobMetric:
    """One family with the labels `namespace` and `job`."""

    name: str
    kind: Literal["gauge", "counter"]
    text: str
    values: Callable[[Seen], Values]
    labels: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    """All values of the last label; empty: told in `text`."""
    when: str = "while it trains"
    """For how long a job has this series."""


ALWAYS = "as long as it exists"
UNITS = ("GPU", "Worker")
JOB_METRICS: tuple[JobMetric, ...] = (
    JobMetric("finetune_job_step", "gauge", "Optimizer steps done.", progress("step")),
    JobMetric(
        "finetune_job_total_steps", "gauge", "Optimizer steps in all.", progress("total_steps")
    ),
    JobMetric(
        "finetune_job_progress_percent", "gauge", "Steps done, in percent.", progress("percent")
    ),
    JobMetric(
        "finetune_job_eta_seconds",
        "gauge",
        "Estimated seconds until training ends.",
        progress("eta_seconds"),
    ),
    JobMetric(
        "finetune_job_loss", "gauge", "Training loss of the last logged step.", progress("loss")
    ),
    JobMetric(
        "finetune_job_eval_loss", "gauge", "Last loss on the held-out part.", progress("eval_loss")
    ),
    JobMetric(
        "finetune_job_learning_rate",
        "gauge",
        "Learning rate of the last logged step.",
        progress("learning_rate"),
    ),
    JobMetric(
        "finetune_job_grad_norm",
        "gauge",
        "Global gradient norm before clipping.",
        progress("grad_norm"),
    ),
    JobMetric(
        "finetune_job_tokens_per_second",
        "gauge",
        "Tokens trained on per second, over all workers.",
        progress("tokens_per_second"),
    ),
    JobMetric(
        "finetune_job_seconds_since_report",
        "gauge",
        "Seconds since the last report that is known here: under 90 where all is well, under 270 "
        "where more than 300 jobs report.",
        since_report,
        when="while it is Running",
    ),
    JobMetric(
        "finetune_job_checkpoint_age_seconds",
        "gauge",
        "Seconds since the last complete checkpoint, or since training began.",
        checkpoint_age,
        when="while it is Running",
    ),
    JobMetric(
        "finetune_job_checkpoint_duration_seconds",
        "gauge",
        "Seconds that the last checkpoint took; training goes on meanwhile.",
        progress("checkpoint_seconds"),
    ),
    JobMetric(
        "finetune_job_stalled_seconds",
        "gauge",
        "For how long the workers have not got on, where a hang is only reported.",
        progress("stalled_seconds"),
        when="while it hangs",
    ),
    JobMetric(
        "finetune_job_waiting_seconds",
        "gauge",
        "Since when the job waits for the same reason.",
        waiting,
        ("reason",),
        (*WAITING_REASONS, "Other"),
        "while it waits",
    ),
    JobMetric(
        "finetune_job_restarts",
        "counter",
        "Attempts that failed and were followed by another, or by the end of the job.",
        restarts,
        ("cause",),
        ("Platform", "Disruption"),
        ALWAYS,
    ),
    JobMetric(
        "finetune_job_restarts_left",
        "gauge",
        "Failures of the platform that spec.restartPolicy.maxRestarts still allows.",
        restarts_left,
        when="until it is over",
    ),
    JobMetric(
        "finetune_job_hangs",
        "counter",
        "Attempts that ended because they did not get on.",
        lambda job: [((), job.status.restarts.hangs if job.status.restarts else 0)],
        when=ALWAYS,
    ),
    JobMetric(
        "finetune_job_holding",
        "gauge",
        "GPUs that the job holds now, or its workers where it has no GPUs.",
        used(is_held),
        ("unit",),
        UNITS,
        ALWAYS,
    ),
    JobMetric(
        "finetune_job_held_seconds",
        "gauge",
        "Seconds that GPUs were held, summed over them: 3600 are a GPU-hour.",
        used(lambda usage: usage.held_seconds),
        ("unit",),
        UNITS,
        ALWAYS,
    ),
    JobMetric(
        "finetune_job_useful_seconds",
        "gauge",
        "The part of the held seconds whose training a checkpoint or the end has made last.",
        used(lambda usage: usage.useful_seconds),
        ("unit",),
        UNITS,
        ALWAYS,
    ),
    JobMetric(
        "finetune_job_badput_seconds",
        "gauge",
        "The part of the held seconds that brought the training nothing.",
        badput,
        ("unit", "reason"),
        BADPUT_REASONS,
        ALWAYS,
    ),
    JobMetric(
        "finetune_job_goodput_ratio",
        "gauge",
        "Held time that was not badput; training since the last checkpoint counts as good.",
        goodput,
        when="once it has held something",
    ),
    JobMetric(
        "finetune_job_cost",
        "gauge",
        "Cost so far, by the price of the profile.",
        cost(lambda usage: usage.cost_so_far),
        ("currency",),
        when="where its profile has a price",
    ),
    JobMetric(
        "finetune_job_estimated_cost",
        "gauge",
        "What it will have cost when training ends.",
        cost(lambda usage: usage.estimated_cost),
        ("currency",),
        when="where its profile has a price",
    ),
    JobMetric(
        "finetune_job_finished_timestamp_seconds",
        "gauge",
        "When the job ended, and how: Succeeded or the class of its failure.",
        finished,
        ("outcome",),
        ("Succeeded", *FAILURE_CLASSES),
        "when it is over",
    ),
)

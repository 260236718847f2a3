"""The alert rules: each a symptom that somebody has to act on, with an entry in docs/runbook.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

RUNBOOK = "docs/runbook.md"
"""Replaced by the chart's `monitoring.prometheusRule.runbook`, where that says another place."""
JOB = "{{ $labels.namespace }}/{{ $labels.job }}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One rule."""

    name: str
    expr: str
    lasting: str
    """For how long it must hold."""
    severity: str
    summary: str
    description: str


ALERTS = (
    Alert(
        name="FineTuneJobHangs",
        expr="finetune_job_stalled_seconds > 0 or increase(finetune_job_hangs_total[1h]) > 0",
        lasting="0m",
        severity="warning",
        summary=f"{JOB} hangs, or an attempt of it has ended by a hang.",
        description="The workers did not get on. Their stacks are in the log and on the volume.",
    ),
    Alert(
        name="FineTuneJobDiverged",
        expr='time() - finetune_job_finished_timestamp_seconds{outcome="Diverged"} < 3600',
        lasting="0m",
        severity="warning",
        summary=f"{JOB} has diverged.",
        description="The loss became infinite or grew; the last good checkpoint is the result.",
    ),
    Alert(
        name="FineTuneRestartBudgetNearlySpent",
        expr=(
            "finetune_job_restarts_left <= 1 and on (namespace, job) "
            'finetune_job_restarts_total{cause="Platform"} > 0'
        ),
        lasting="0m",
        severity="warning",
        summary=f"{JOB} fails for good with one of its next failures.",
        description="{{ $value }} more failures of the platform are allowed by maxRestarts.",
    ),
    Alert(
        name="FineTuneJobWaitsTooLong",
        expr="finetune_job_waiting_seconds > 3600",
        lasting="5m",
        severity="warning",
        summary=f"{JOB} waits for {{{{ $value | humanizeDuration }}}}: {{{{ $labels.reason }}}}.",
        description="What it waits for, in the words of who keeps it, is in its message.",
    ),
    Alert(
        name="FineTuneFailureRateHigh",
        expr=(
            '(count(time() - finetune_job_finished_timestamp_seconds{outcome!="Succeeded"} < 86400)'
            " / count(time() - finetune_job_finished_timestamp_seconds < 86400)) > 0.5"
            " and count(time() - finetune_job_finished_timestamp_seconds < 86400) >= 4"
        ),
        lasting="10m",
        severity="warning",
        summary="{{ $value | humanizePercentage }} of the jobs that ended within a day failed.",
        description="One bad job fails by itself; many at a time have a cause in common.",
    ),
    Alert(
        name="FineTuneCheckpointStale",
        expr="finetune_job_checkpoint_age_seconds > 7200",
        lasting="5m",
        severity="warning",
        summary=f"{JOB} has saved nothing for {{{{ $value | humanizeDuration }}}}.",
        description="With the next failure all training since then is lost.",
    ),
    Alert(
        name="FineTuneGoodputLow",
        expr=(
            "finetune_job_goodput_ratio < 0.5 and on (namespace, job) "
            "finetune_job_holding > 0 and on (namespace, job) finetune_job_held_seconds > 3600"
        ),
        lasting="15m",
        severity="warning",
        summary=f"{JOB} uses {{{{ $value | humanizePercentage }}}} of the time that it holds GPUs.",
        description="What the rest goes to is on its dashboard, and in status.usage.badput.",
    ),
    Alert(
        name="FineTuneOperatorDeaf",
        expr=(
            "max by (instance, resource) (finetune_operator_watch_silence_seconds) > 120 or "
            "finetune_operator_queue_age_seconds > 300"
        ),
        lasting="1m",
        severity="critical",
        summary="The operator hears nothing, or does not get to what it has heard.",
        description="Jobs train on; nothing is started, restarted or finished meanwhile.",
    ),
    Alert(
        name="FineTuneNoLeader",
        expr="absent(finetune_operator_leader) or sum(finetune_operator_leader) < 1",
        lasting="2m",
        severity="critical",
        summary="No operator leads.",
        description="Jobs train on; nothing is started, restarted or finished meanwhile.",
    ),
)


def rules() -> dict[str, Any]:
    """As a file of rules for Prometheus, and as the `spec` of a PrometheusRule."""
    return {"groups": [{"name": "finetune-operator", "rules": [_rule(a) for a in ALERTS]}]}


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": f"{RUNBOOK}#{alert.name.lower()}",
        },
    }

"""The dashboard of all jobs: every panel is a question, with the queries that answer it."""

from __future__ import annotations

from panels import Panel

NS = 'namespace=~"$namespace"'
RATE = "[$__rate_interval]"


def _quantiles(name: str, by: str = "") -> dict[str, str]:
    legend = f" {{{{{by}}}}}" if by else ""
    labels = f"le, {by}" if by else "le"
    return {
        f"{words}{legend}": f"histogram_quantile({q}, sum by ({labels}) ({name}_bucket))"
        for q, words in ((0.5, "half within"), (0.9, "nine of ten within"))
    }


FLEET: dict[str, list[Panel]] = {
    "Now": [
        Panel(
            kind="stat",
            title="How many jobs are in each phase?",
            text="All jobs of the chosen namespaces, finished ones until they are deleted.",
            queries={"{{phase}}": f"sum by (phase) (finetune_jobs{{{NS}}})"},
            width=18,
            height=5,
        ),
        Panel(
            kind="stat",
            title="How many GPUs are held now?",
            text="By workers that have a node, whether they train or not.",
            queries={"GPUs": f'sum(finetune_job_holding{{{NS}, unit="GPU"}})'},
            width=6,
            height=5,
        ),
        Panel(
            kind="table",
            title="Which jobs train, and when will they end?",
            text="As their workers report. Goodput is the part of the held time that was not lost.",
            queries={
                "Percent": f"finetune_job_progress_percent{{{NS}}}",
                "ETA": f"finetune_job_eta_seconds{{{NS}}}",
                "Loss": f"finetune_job_loss{{{NS}}}",
                "Tokens/s": f"finetune_job_tokens_per_second{{{NS}}}",
                "Goodput": f"finetune_job_goodput_ratio{{{NS}}}",
            },
            units={"ETA": "s", "Percent": "percent", "Goodput": "percentunit"},
            width=24,
            height=9,
        ),
        Panel(
            kind="table",
            title="Which jobs wait, for what and since when?",
            text="By the condition Waiting; the words of the scheduler are in the job's message.",
            queries={"Waits for": f"finetune_job_waiting_seconds{{{NS}}}"},
            unit="s",
            width=24,
            height=7,
            may_be_empty=True,
        ),
    ],
    "GPU-hours": [
        Panel(
            kind="timeseries",
            title="How much of the held time is good?",
            text="1 is all of it; training since the last checkpoint counts until it is lost.",
            queries={
                "{{namespace}}": (
                    f"1 - sum by (namespace) (finetune_job_badput_seconds{{{NS}}})"
                    f" / (sum by (namespace) (finetune_job_held_seconds{{{NS}}}) > 0)"
                )
            },
            unit="percentunit",
        ),
        Panel(
            kind="timeseries",
            title="What were GPU-hours lost to?",
            text="Of the jobs that exist: start-up, lost steps, checkpoints, hangs and restarts.",
            queries={
                "{{reason}}": (
                    f'sum by (reason) (finetune_job_badput_seconds{{{NS}, unit="GPU"}}) / 3600'
                )
            },
            unit="h",
        ),
        Panel(
            kind="timeseries",
            title="Who has used how many GPU-hours?",
            text="By the jobs that exist.",
            queries={
                "{{namespace}}": (
                    f'sum by (namespace) (finetune_job_held_seconds{{{NS}, unit="GPU"}}) / 3600'
                )
            },
            unit="h",
        ),
        Panel(
            kind="stat",
            title="What have these jobs cost, and what will they have cost?",
            text="By the prices of their profiles; without a price there is nothing here.",
            queries={
                "{{currency}} so far": f"sum by (currency) (finetune_job_cost{{{NS}}})",
                "{{currency}} in the end": (
                    f"sum by (currency) (finetune_job_estimated_cost{{{NS}}})"
                ),
            },
            width=12,
            height=5,
        ),
        Panel(
            kind="stat",
            title="How many seconds were useful, of those that were held?",
            text="Useful is what a checkpoint or the end of the training has made last.",
            queries={
                "useful": f"sum(finetune_job_useful_seconds{{{NS}}})",
                "held": f"sum(finetune_job_held_seconds{{{NS}}})",
            },
            unit="s",
            width=12,
            height=5,
        ),
    ],
    "Waiting and failing": [
        Panel(
            kind="timeseries",
            title="How long do jobs wait for their GPUs?",
            text="From the start of an attempt until all its workers have a node, all namespaces.",
            queries=_quantiles("finetune_job_queue_wait_seconds"),
            unit="s",
        ),
        Panel(
            kind="timeseries",
            title="How long do jobs stay in each phase?",
            text="Of the phases that jobs which exist have left, all namespaces.",
            queries=_quantiles("finetune_job_phase_seconds", "phase"),
            unit="s",
        ),
        Panel(
            kind="timeseries",
            title="How did the jobs end that ended within a day?",
            text="Succeeded, or by the class of the failure.",
            queries={
                "{{outcome}}": (
                    "count by (outcome) (time() - "
                    f"finetune_job_finished_timestamp_seconds{{{NS}}} < 86400)"
                )
            },
        ),
        Panel(
            kind="timeseries",
            title="What makes attempts fail?",
            text="Restarts of the jobs that exist by cause, and hangs among them.",
            queries={
                "{{cause}}": f"sum by (cause) (finetune_job_restarts_total{{{NS}}})",
                "hangs": f"sum(finetune_job_hangs_total{{{NS}}})",
            },
        ),
        Panel(
            kind="table",
            title="Which jobs have the fewest restarts left?",
            text="Failures of the platform that spec.restartPolicy.maxRestarts still allows.",
            queries={"Left": f"bottomk(10, finetune_job_restarts_left{{{NS}}})"},
            width=16,
        ),
    ],
    "Operator": [
        Panel(
            kind="timeseries",
            title="How long does the operator take to decide and act?",
            text="One pass over one job, requests to the API server included.",
            queries={
                words: (
                    f"histogram_quantile({q}, sum by (le) "
                    "(rate(finetune_reconcile_seconds_bucket[$__rate_interval])))"
                )
                for q, words in ((0.5, "half within"), (0.99, "99 of 100 within"))
            },
            unit="s",
            may_be_empty=True,
        ),
        Panel(
            kind="timeseries",
            title="How much does the operator do, and does it fail?",
            text="Passes, and those that failed and are tried again.",
            queries={
                "passes": "sum(rate(finetune_reconcile_seconds_count[$__rate_interval]))",
                "failed": "sum(rate(finetune_reconcile_errors_total[$__rate_interval]))",
            },
            unit="ops",
        ),
        Panel(
            kind="timeseries",
            title="Does the operator keep up?",
            text="Passes that are due, and for how long the oldest is.",
            queries={
                "due": "sum(finetune_operator_queue_depth)",
                "seconds": "max(finetune_operator_queue_age_seconds)",
            },
        ),
        Panel(
            kind="timeseries",
            title="What does the API server answer?",
            text="Requests by verb and HTTP status; 503 is also no answer.",
            queries={
                "{{verb}} {{code}}": (
                    "sum by (verb, code) (rate(finetune_api_requests_total[$__rate_interval]))"
                )
            },
            unit="reqps",
        ),
        Panel(
            kind="timeseries",
            title="Does the operator hear of changes?",
            text="Seconds since something came over a watch; a bookmark comes every minute.",
            queries={"{{resource}}": "max by (resource) (finetune_operator_watch_silence_seconds)"},
            unit="s",
        ),
        Panel(
            kind="timeseries",
            title="Do progress reports arrive?",
            text="By HTTP status of the answer.",
            queries={"{{code}}": f"sum by (code) (rate(finetune_progress_reports_total{RATE}))"},
            unit="reqps",
            may_be_empty=True,
        ),
        Panel(
            kind="timeseries",
            title="Which replica leads?",
            text="1 is the one that does.",
            queries={"{{instance}}": "finetune_operator_leader"},
        ),
        Panel(
            kind="timeseries",
            title="Does the operator keep what it no longer needs?",
            text="Entries in memory: they follow the number of jobs.",
            queries={"{{what}}": "sum by (what) (finetune_operator_held)"},
        ),
    ],
}

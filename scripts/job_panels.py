"""The dashboard of one job: every panel is a question, with the queries that answer it."""

from __future__ import annotations

from panels import Panel

ONE = 'namespace="$namespace", job="$job"'

JOB: dict[str, list[Panel]] = {
    "Where it is": [
        Panel(
            kind="stat",
            title="How far is it?",
            text="Steps done of all steps.",
            queries={"": f"finetune_job_progress_percent{{{ONE}}}"},
            unit="percent",
            width=6,
            height=5,
        ),
        Panel(
            kind="stat",
            title="When will its training end?",
            text="By the median time of its last 50 steps.",
            queries={"": f"finetune_job_eta_seconds{{{ONE}}}"},
            unit="s",
            width=6,
            height=5,
        ),
        Panel(
            kind="stat",
            title="How many GPUs does it hold?",
            text="Or workers, for a job without GPUs.",
            queries={"{{unit}}": f"finetune_job_holding{{{ONE}}}"},
            width=6,
            height=5,
        ),
        Panel(
            kind="stat",
            title="What does it wait for, and since when?",
            text="Nothing, when all its workers run.",
            queries={"{{reason}}": f"finetune_job_waiting_seconds{{{ONE}}}"},
            unit="s",
            width=6,
            height=5,
            may_be_empty=True,
        ),
    ],
    "Training": [
        Panel(
            kind="timeseries",
            title="Does the loss fall?",
            text="Training loss of the last logged step.",
            queries={"loss": f"finetune_job_loss{{{ONE}}}"},
            width=12,
        ),
        Panel(
            kind="timeseries",
            title="Does it also get better on data that it has not seen?",
            text="Loss on the held-out part.",
            queries={"loss": f"finetune_job_eval_loss{{{ONE}}}"},
            width=12,
        ),
        Panel(
            kind="timeseries",
            title="Does it still move?",
            text="Steps done, of all.",
            queries={
                "done": f"finetune_job_step{{{ONE}}}",
                "in all": f"finetune_job_total_steps{{{ONE}}}",
            },
        ),
        Panel(
            kind="timeseries",
            title="How fast does it train?",
            text="Tokens per second over all workers.",
            queries={"tokens/s": f"finetune_job_tokens_per_second{{{ONE}}}"},
        ),
        Panel(
            kind="timeseries",
            title="Is the training stable?",
            text="Global gradient norm before clipping.",
            queries={"norm": f"finetune_job_grad_norm{{{ONE}}}"},
        ),
        Panel(
            kind="timeseries",
            title="Where in its schedule is the learning rate?",
            text="Of the last logged step.",
            queries={"rate": f"finetune_job_learning_rate{{{ONE}}}"},
        ),
        Panel(
            kind="timeseries",
            title="Do its reports still come, and does it hang?",
            text="Seconds since the last written report, and without progress where that is told.",
            queries={
                "since a report": f"finetune_job_seconds_since_report{{{ONE}}}",
                "without progress": f"finetune_job_stalled_seconds{{{ONE}}}",
            },
            unit="s",
        ),
        Panel(
            kind="timeseries",
            title="How much would be lost if it failed now?",
            text="Age of the last checkpoint, and how long that took.",
            queries={
                "age": f"finetune_job_checkpoint_age_seconds{{{ONE}}}",
                "took": f"finetune_job_checkpoint_duration_seconds{{{ONE}}}",
            },
            unit="s",
        ),
    ],
    "What it takes": [
        Panel(
            kind="timeseries",
            title="Where did its GPU time go?",
            text="Useful training, and what was lost to what; hours, for a job without GPUs too.",
            queries={
                "useful": f"finetune_job_useful_seconds{{{ONE}}} / 3600",
                "{{reason}}": f"finetune_job_badput_seconds{{{ONE}}} / 3600",
            },
            unit="h",
            width=12,
        ),
        Panel(
            kind="stat",
            title="How good is its goodput?",
            text="Held time that was not lost.",
            queries={"": f"finetune_job_goodput_ratio{{{ONE}}}"},
            unit="percentunit",
            width=6,
        ),
        Panel(
            kind="stat",
            title="What has it cost, and what will it have cost?",
            text="By the price of its profile.",
            queries={
                "{{currency}} so far": f"finetune_job_cost{{{ONE}}}",
                "{{currency}} in the end": f"finetune_job_estimated_cost{{{ONE}}}",
            },
            width=6,
        ),
        Panel(
            kind="timeseries",
            title="How many GPU-hours has it used?",
            text="From each worker's node to its end.",
            queries={"GPU-hours": f'finetune_job_held_seconds{{{ONE}, unit="GPU"}} / 3600'},
            unit="h",
        ),
        Panel(
            kind="timeseries",
            title="How often did it start again, and how often may it?",
            text="Restarts by cause, hangs among them, and what maxRestarts still allows.",
            queries={
                "{{cause}}": f"finetune_job_restarts_total{{{ONE}}}",
                "hangs": f"finetune_job_hangs_total{{{ONE}}}",
                "left": f"finetune_job_restarts_left{{{ONE}}}",
            },
        ),
        Panel(
            kind="stat",
            title="How and when did it end?",
            text="Nothing, while it has not.",
            queries={"{{outcome}}": f"finetune_job_finished_timestamp_seconds{{{ONE}}} * 1000"},
            unit="dateTimeAsIso",
            may_be_empty=True,
        ),
    ],
}

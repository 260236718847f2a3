"""The Kubeflow trainer-status protocol: how rank 0 tells how far it is.

`POST` of `{"trainerStatus": {...}}` with a bearer token; Hugging Face's `KubeflowCallback`
(transformers >= 5.4) speaks it too. Metrics are names and values as text; the names below are
those of that callback plus our own. What else a sender names (TRL alone has dozens) is its own
business: it is read past, and nothing of it is kept.
"""

from __future__ import annotations

import math
from typing import Annotated, get_args

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.base import GROUP, VERSION, ApiModel
from finetune_api.status import Activity

ENV_URL = "KUBEFLOW_TRAINER_SERVER_URL"
ENV_CA_CERT = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
ENV_TOKEN = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # noqa: S105 (a name, no secret)
"""Path of a file with the token; it is renewed, so read it before every use."""

TOKEN_SECONDS = 3600
MAX_BODY = 65_536

ACTIVITIES: tuple[str, ...] = get_args(Activity)

CURRENT_STEP = "current_step"
TOTAL_STEPS = "total_steps"
CURRENT_EPOCH = "current_epoch"
LOSS = "loss"
EVAL_LOSS = "eval_loss"
LEARNING_RATE = "learning_rate"
GRAD_NORM = "grad_norm"
TOKENS_PER_SECOND = "tokens_per_second"
STALLED_SECONDS = "stalled_seconds"
SAVE_SECONDS = "save_seconds"
CHECKPOINT_STEP = "checkpoint_step"
CHECKPOINT_SECONDS = "checkpoint_seconds"
CHECKPOINT_STALLED_SECONDS = "checkpoint_stalled_seconds"
ACTIVITY = "activity"

MAX_WHOLE = 2**53 - 1
"""Largest whole number that every reader of JSON takes for the same."""
BOUNDS: dict[str, tuple[float, float]] = {
    CURRENT_STEP: (0, MAX_WHOLE),
    TOTAL_STEPS: (0, MAX_WHOLE),
    CURRENT_EPOCH: (0, 1e6),
    LOSS: (-1e9, 1e9),
    EVAL_LOSS: (-1e9, 1e9),
    LEARNING_RATE: (0, 1e6),
    GRAD_NORM: (0, 1e30),
    TOKENS_PER_SECOND: (0, 1e15),
    STALLED_SECONDS: (0, 1e9),
    SAVE_SECONDS: (0, 1e6),
    CHECKPOINT_STEP: (0, MAX_WHOLE),
    CHECKPOINT_SECONDS: (0, 1e6),
    CHECKPOINT_STALLED_SECONDS: (0, 1e6),
}
"""The numbers that are taken, and what they can be."""
WHOLE = (CURRENT_STEP, TOTAL_STEPS, CHECKPOINT_STEP)


def status_path(namespace: str, name: str) -> str:
    """Path of a job's progress endpoint."""
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/finetunejobs/{name}/status"


def audience(namespace: str, name: str) -> str:
    """Audience of the token that may report on this one job."""
    return f"{GROUP}/{VERSION}/namespaces/{namespace}/finetunejobs/{name}/status"


class Metric(ApiModel):
    """One number, as text."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    value: Annotated[str, StringConstraints(max_length=256)]


class TrainerStatus(ApiModel):
    """One report. Fields of other writers that we do not know are ignored."""

    model_config = ConfigDict(extra="ignore")

    progress_percentage: Annotated[int, Field(ge=0, le=100)] | None = None
    estimated_remaining_seconds: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    metrics: Annotated[list[Metric], Field(max_length=256)] | None = None
    last_updated_time: Annotated[str, StringConstraints(max_length=64)] | None = None

    def problem(self) -> str | None:
        """What is wrong with a metric whose name is ours, in a sentence; None: nothing."""
        known: set[str] = set()
        for metric in self.metrics or []:
            if metric.name not in BOUNDS and metric.name != ACTIVITY:
                continue
            if metric.name in known:
                return f"{metric.name} is there twice"
            known.add(metric.name)
            wrong = _wrong(metric)
            if wrong is not None:
                return f"{metric.name} {wrong}"
        return None

    def numbers(self) -> dict[str, float]:
        """What is reported under the names of `BOUNDS`, of a report without a `problem`."""
        return {m.name: float(m.value) for m in self.metrics or [] if m.name in BOUNDS}

    @property
    def activity(self) -> Activity | None:
        """What it does, of a report without a `problem`; only our own trainer says it."""
        for metric in self.metrics or []:
            if metric.name == ACTIVITY:
                return metric.value  # type: ignore[return-value]
        return None


def _wrong(metric: Metric) -> str | None:
    if metric.name == ACTIVITY:
        return None if metric.value in ACTIVITIES else f"is none of {', '.join(ACTIVITIES)}"
    try:
        value = float(metric.value)
    except ValueError:
        return "is not a number"
    if not math.isfinite(value):
        return "is not finite"
    low, high = BOUNDS[metric.name]
    if not low <= value <= high:
        return f"is not between {low:g} and {high:g}"
    if metric.name in WHOLE and value != int(value):
        return "is not a whole number"
    return None


class ProgressBody(ApiModel):
    """The body of a `POST`."""

    model_config = ConfigDict(extra="ignore")

    trainer_status: TrainerStatus

"""The Kubeflow trainer-status protocol: how rank 0 tells how far it is.

`POST` of `{"trainerStatus": {...}}` with a bearer token; Hugging Face's `KubeflowCallback`
(transformers >= 5.4) speaks it too. Metrics are names and values as text; the names below are
those of that callback plus our own.
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


def status_path(namespace: str, name: str) -> str:
    """Path of a job's progress endpoint."""
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/finetunejobs/{name}/status"


def audience(namespace: str, name: str) -> str:
    """Audience of the token that may report on this one job."""
    return f"{GROUP}/{VERSION}/namespaces/{namespace}/finetunejobs/{name}/status"


class Metric(ApiModel):
    """One number, as text."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    value: Annotated[str, StringConstraints(max_length=64)]


class TrainerStatus(ApiModel):
    """One report. Fields of other writers that we do not know are ignored."""

    model_config = ConfigDict(extra="ignore")

    progress_percentage: Annotated[int, Field(ge=0, le=100)] | None = None
    estimated_remaining_seconds: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    metrics: Annotated[list[Metric], Field(max_length=256)] | None = None
    last_updated_time: Annotated[str, StringConstraints(max_length=64)] | None = None

    def number(self, name: str) -> float | None:
        """The finite number reported under `name`; None where there is none."""
        for metric in self.metrics or []:
            if metric.name == name:
                try:
                    value = float(metric.value)
                except ValueError:
                    return None
                return value if math.isfinite(value) else None
        return None

    def text(self, name: str) -> str | None:
        """The text reported under `name`."""
        return next((m.value for m in self.metrics or [] if m.name == name), None)


class ProgressBody(ApiModel):
    """The body of a `POST`."""

    model_config = ConfigDict(extra="ignore")

    trainer_status: TrainerStatus

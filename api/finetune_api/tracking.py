"""`spec.tracking`: where else the numbers of a training go, beside the status and Prometheus."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.base import ApiModel, rule, rules
from finetune_api.sources import LocalObjectReference

Tracker = Literal["TensorBoard", "MLflow", "WandB"]
REMOTE: tuple[Tracker, ...] = ("MLflow", "WandB")
"""Those that talk to a server: the first worker may then go out (NetworkPolicy
`<job>-tracking`)."""
SECRET_KEYS = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "WANDB_API_KEY",
    "WANDB_BASE_URL",
    "WANDB_ENTITY",
)
"""Variables of the libraries that the Secret may have, where the profile does not set them."""


ProjectName = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
]


class Tracking(ApiModel):
    """Where else the numbers of a training go: to the libraries that your team looks at already.
    They never slow or end the training: what a server does not take costs one line in the log."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.reportTo.all(t, self.reportTo.exists_one(u, u == t))",
                "spec.tracking.reportTo: name each of TensorBoard, MLflow and WandB once",
                ".reportTo",
            ),
        )
    )

    report_to: Annotated[list[Tracker], Field(min_length=1, max_length=3)]
    """`TensorBoard`: files in the directory `tracking/tensorboard` of the job's claim. `MLflow`,
    `WandB`: to their servers, by the first worker, where the profile allows it."""

    project: ProjectName | None = None
    """Project (WandB) or experiment (MLflow). Default: the job's namespace. The run in it has the
    job's name, and stays the same one when training starts again."""

    secret_ref: LocalObjectReference | None = None
    """Secret with the variables of the libraries: `WANDB_API_KEY`, `MLFLOW_TRACKING_URI`,
    `MLFLOW_TRACKING_TOKEN`, `MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_PASSWORD`,
    `WANDB_BASE_URL`, `WANDB_ENTITY`. Without `WANDB_API_KEY` WandB writes files
    (`tracking/wandb`), for `wandb sync`."""

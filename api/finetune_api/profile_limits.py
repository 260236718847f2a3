"""What jobs of a profile may ask for at most, and what they may use at all.

`limits.py` compares a job with it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.base import ApiModel, rule, rules
from finetune_api.price import Money
from finetune_api.tracking import Tracker

Pattern = Annotated[
    str, StringConstraints(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9._:/@*-]+$")
]
"""A text in which `*` stands for any characters, `/` included."""
Patterns = Annotated[list[Pattern], Field(min_length=1, max_length=64)]
LabelText = Annotated[str, StringConstraints(max_length=253)]


class SelectorRequirement(ApiModel):
    """One requirement, as in a Kubernetes label selector."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "(self.operator in ['In', 'NotIn']) == (size(self.values) > 0)",
                "spec.limits.namespaceSelector.matchExpressions: In and NotIn need values, Exists "
                "and DoesNotExist have none",
                ".values",
            ),
        )
    )

    key: Annotated[str, StringConstraints(min_length=1, max_length=317)]
    """Label."""

    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How its value is compared."""

    values: Annotated[list[LabelText], Field(max_length=64)] = []
    """Values, with `In` and `NotIn`."""


class NamespaceSelector(ApiModel):
    """Namespaces by their labels; all requirements must hold."""

    match_labels: Annotated[dict[str, LabelText], Field(max_length=32)] = {}
    """Labels that the namespace must have; its name is the label `kubernetes.io/metadata.name`."""

    match_expressions: Annotated[list[SelectorRequirement], Field(max_length=32)] = []
    """Further requirements, such as `{key: kubernetes.io/metadata.name, operator: In, values:
    [team-a, team-b]}`."""


class ProfileLimits(ApiModel):
    """The most that a job of this profile may ask for, and what it may use. A list that is not
    given allows everything; in its patterns `*` stands for any characters."""

    max_nodes: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Largest `spec.workers.numNodes`."""

    max_gpus: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Most GPUs of a job: workers times processes per worker."""

    max_duration_seconds: Annotated[int, Field(ge=1, le=315_360_000)] | None = None
    """Largest `spec.activeDeadlineSeconds`, and the deadline of jobs that name none: a job that has
    been active for so long is ended as failed. The time while it is suspended does not count."""

    max_gpu_hours: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """GPU-hours after which a job is ended as failed, all its attempts together."""

    max_cost: Money | None = None
    """Cost, by `spec.price`, after which a job is ended as failed, such as "5000"."""

    models: Patterns | None = None
    """Models (`spec.model.uri`), such as `hf://meta-llama/*` or `pvc://*`."""

    datasets: Patterns | None = None
    """Datasets (`spec.dataset.uri` and `spec.evaluation.retention.uri`)."""

    objectives: (
        Annotated[
            list[Literal["SFT", "CPT", "DPO", "KTO", "ORPO"]], Field(min_length=1, max_length=5)
        ]
        | None
    ) = None
    """Values of `spec.method.objective`; a job's own trainer is not bound by it."""

    tunings: (
        Annotated[list[Literal["Full", "LoRA", "QLoRA"]], Field(min_length=1, max_length=3)] | None
    ) = None
    """Values of `spec.method.tuning`; a job's own trainer is not bound by it."""

    report_to: Annotated[list[Tracker], Field(max_length=3)] = ["TensorBoard"]
    """Values of `spec.tracking.reportTo`. With `MLflow` or `WandB` the first worker of such a job
    may connect to public addresses, where else workers reach each other only."""

    namespace_selector: NamespaceSelector | None = None
    """Namespaces whose jobs may use this profile. Default: all."""

    service_accounts: Patterns | None = None
    """Values of `spec.serviceAccountName`. Default: none; jobs run as what `spec.pods` names."""

    remote_code: bool = False
    """Run Python code that comes with a model (`auto_map` in its `config.json`) in the pods of the
    job, with all that they may read and write. Off: such models are refused."""

    own_trainer: bool = False
    """Jobs may bring their own image, command and environment (`spec.trainer`). Off: they fail at
    once."""

    trainer_images: Patterns | None = None
    """Images (`spec.trainer.image`) of jobs that bring their own trainer."""


class ProfileRetention(ApiModel):
    """How long finished jobs are kept at most, in seconds; a job's own
    `spec.ttlSecondsAfterFinished` may be shorter. What lies outside the job's own claim stays."""

    succeeded: Annotated[int, Field(ge=0, le=315_360_000)] | None = None
    """After success, where the result lies outside the job's own claim `<job>-work`: a result is
    never deleted. Default: no limit."""

    failed: Annotated[int, Field(ge=0, le=315_360_000)] | None = None
    """After failure; the checkpoints go too, unless there is a `workClaim`. Default: no limit."""

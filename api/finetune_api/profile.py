"""`FineTuneProfile`: what hardware jobs get; cluster-scoped, written by the platform team."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.base import API_VERSION, ApiModel, rule, rules
from finetune_api.tracking import Tracker

Quantity = Annotated[
    str,
    StringConstraints(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"),
]
LabelValue = Annotated[str, StringConstraints(max_length=253)]
ResourceName = Annotated[
    str, StringConstraints(min_length=1, max_length=253, pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")
]


class Node(ApiModel):
    """The shape of one worker pod."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.accelerator != 'CUDA' || self.gpusPerNode >= 1",
                "spec.node.gpusPerNode must be at least 1 where spec.node.accelerator is CUDA; "
                "set it to the GPUs of a node, or set accelerator: CPU",
                ".gpusPerNode",
            ),
        )
    )

    accelerator: Literal["CUDA", "CPU"] = "CUDA"
    """What computes. With `CUDA` a worker that sees no GPU fails at once; with `CPU` training runs
    on the processor even where GPUs are requested (tests and demonstrations)."""

    gpus_per_node: Annotated[int, Field(ge=0, le=64)] = 8
    """GPUs of one node: the most that one worker pod can ask for."""

    gpu_resource_name: ResourceName = "nvidia.com/gpu"
    """Name of the GPU resource."""

    gpu_memory_gib: Annotated[int, Field(ge=1, le=4096)] | None = Field(None, alias="gpuMemoryGiB")
    """Memory of one GPU in GiB, such as 80. With it, a job that cannot fit is refused before it
    holds a GPU, and every `Auto` that concerns memory is decided."""

    cpu: Quantity = "8"
    """CPU request of a worker pod."""

    memory: Quantity = "64Gi"
    """Memory request and limit of a worker pod."""

    shared_memory: Quantity = "16Gi"
    """Size of `/dev/shm` in a worker pod; counts as its memory."""


class CpuStages(ApiModel):
    """The pods that prepare and export: no GPU."""

    cpu: Quantity = "2"
    """CPU request."""

    memory: Quantity = "16Gi"
    """Memory request and limit."""


class Toleration(ApiModel):
    """Same as in a pod."""

    key: LabelValue | None = None
    """Taint key; empty with `Exists` tolerates all."""

    operator: Literal["Exists", "Equal"] = "Equal"
    """How `value` is compared."""

    value: LabelValue | None = None
    """Taint value."""

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; empty: all."""

    toleration_seconds: Annotated[int, Field(ge=0, le=86_400)] | None = None
    """How long a `NoExecute` taint is tolerated."""


class Placement(ApiModel):
    """Where worker pods run."""

    node_selector: Annotated[dict[str, LabelValue], Field(max_length=32)] = {}
    """Labels that a node must have."""

    tolerations: Annotated[list[Toleration], Field(max_length=32)] = []
    """Taints that worker pods tolerate."""

    scheduler_name: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Scheduler of the worker pods. Default: the cluster's."""


class Storage(ApiModel):
    """The volume with prepared data, checkpoints and result."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.workClaim) || !has(self.storageClassName)",
                "spec.storage.workClaim and spec.storage.storageClassName exclude each other; "
                "remove one: an existing claim already has its class",
            ),
        )
    )

    storage_class_name: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Storage class of the claim `<job>-work`. Default: the cluster's default class."""

    size: Quantity = "200Gi"
    """Size of the claim `<job>-work`."""

    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"
    """`ReadWriteOnce` works only where all workers of a job run on one node."""

    work_claim: Annotated[str, StringConstraints(min_length=1, max_length=253)] | None = None
    """Use this existing claim of the job's namespace, in a directory per job, in place of a new
    claim; nothing in it is deleted with the job."""


class ProfileLimits(ApiModel):
    """The most that a job of this profile may ask for."""

    max_nodes: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Largest `spec.workers.numNodes`."""

    remote_code: bool = False
    """Run Python code that comes with a model (`auto_map` in its `config.json`) in the pods of the
    job, with all that they may read and write. Off: such models are refused."""

    report_to: Annotated[list[Tracker], Field(max_length=3)] = ["TensorBoard"]
    """What jobs may have in `spec.tracking.reportTo`. With `MLflow` or `WandB` the first worker of
    such a job may connect to any address, where else workers reach each other only."""

    own_trainer: bool = False
    """Jobs may bring their own image, command and environment (`spec.trainer`). Off: they fail at
    once."""


class Price(ApiModel):
    """What a GPU costs, for the estimates in the status; nobody is charged by it."""

    per_gpu_hour: Annotated[
        str, StringConstraints(max_length=16, pattern=r"^[0-9]{1,9}(\.[0-9]{1,6})?$")
    ]
    """Price of one GPU for an hour, such as "2.50"."""

    currency: Annotated[str, StringConstraints(max_length=3, pattern=r"^[A-Z]{3}$")] = "EUR"
    """Currency, by ISO 4217."""


class FineTuneProfileSpec(ApiModel):
    """What a job of this profile runs on. A job keeps what it started with: later edits do not
    touch it."""

    default: bool = False
    """Used by jobs that name no profile. At most one profile may be the default."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Trainer image. Default: the one that the operator was installed with."""

    node: Node = Node()
    """The shape of one worker pod."""

    cpu_stages: CpuStages = CpuStages()
    """The pods that prepare and export."""

    placement: Placement = Placement()
    """Where worker pods run."""

    storage: Storage = Storage()
    """The volume with prepared data, checkpoints and result."""

    price: Price | None = None
    """What a GPU costs: with it, the status of a job has its cost so far and an estimate."""

    limits: ProfileLimits = ProfileLimits()
    """The most that a job may ask for."""

    env: Annotated[
        dict[str, Annotated[str, StringConstraints(max_length=1024)]], Field(max_length=64)
    ] = {}
    """Environment of the trainer's containers, such as `NCCL_SOCKET_IFNAME` or `HTTPS_PROXY`."""


class FineTuneProfile(ApiModel):
    """What hardware fine-tuning jobs get, and how much of it."""

    model_config = ConfigDict(extra="allow")

    api_version: Literal["finetune-operator.io/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: Literal["FineTuneProfile"] = "FineTuneProfile"
    spec: FineTuneProfileSpec = FineTuneProfileSpec()
    """What a job of this profile runs on."""

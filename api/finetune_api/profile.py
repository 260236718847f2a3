"""`FineTuneProfile`: what hardware jobs get; cluster-scoped, written by the platform team."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from finetune_api.base import API_VERSION, ApiModel, rule, rules
from finetune_api.defaults import checked_defaults
from finetune_api.price import Price
from finetune_api.profile_limits import ProfileLimits, ProfileRetention
from finetune_api.sources import ObjectName

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
            rule(
                "self.extraResources.all(name, name.matches('^([a-z0-9.-]+/[A-Za-z0-9._-]+|"
                "hugepages-[0-9]+[KMGT]i)$') && name != self.gpuResourceName)",
                "spec.node.extraResources: names are those of extended resources, such as rdma/hca,"
                " or hugepages-2Mi; CPU, memory and GPUs have fields of their own",
                ".extraResources",
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

    extra_resources: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    """Further resources of a worker pod, such as `{rdma/hca: "1"}`, `{vpc.amazonaws.com/efa: "4"}`
    or `{hugepages-2Mi: 5120Mi}`: requests and limits."""

    runtime_class_name: Annotated[str, StringConstraints(max_length=253)] | None = None
    """RuntimeClass of the worker pods."""

    annotations: Annotated[
        dict[str, Annotated[str, StringConstraints(max_length=1024)]], Field(max_length=16)
    ] = {}
    """Annotations of the worker pods, such as `k8s.v1.cni.cncf.io/networks` for a further
    network."""


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


class Together(ApiModel):
    """All workers of a job within one domain."""

    topology_key: Annotated[str, StringConstraints(min_length=1, max_length=317)]
    """Label of nodes whose value is the domain, such as `topology.kubernetes.io/zone` or the label
    of a rack."""

    required: bool = False
    """Wait until one domain has room for all. Off: as close as there is room."""


class TopologySpread(ApiModel):
    """Same as in a pod, over the workers of one attempt."""

    topology_key: Annotated[str, StringConstraints(min_length=1, max_length=317)]
    """Label of nodes whose value is the domain, such as `kubernetes.io/hostname`."""

    max_skew: Annotated[int, Field(ge=1, le=1024)] = 1
    """How many workers a domain may have more than another one."""

    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = "DoNotSchedule"
    """What happens where that is not possible."""


class Placement(ApiModel):
    """Where worker pods run."""

    node_selector: Annotated[dict[str, LabelValue], Field(max_length=32)] = {}
    """Labels that a node must have."""

    tolerations: Annotated[list[Toleration], Field(max_length=32)] = []
    """Taints that worker pods tolerate."""

    scheduler_name: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Scheduler of the worker pods. Default: the cluster's."""

    priority_class_name: Annotated[str, StringConstraints(max_length=253)] | None = None
    """PriorityClass of the worker pods."""

    queue: Annotated[str, StringConstraints(max_length=63)] | None = None
    """Kueue's LocalQueue, in the job's namespace: the label `kueue.x-k8s.io/queue-name` of the
    Kubernetes Job that trains, which then waits until Kueue lets it go on."""

    together: Together | None = None
    """Put the workers of a job close to each other, for example into one rack."""

    topology_spread: Annotated[list[TopologySpread], Field(max_length=8)] = []
    """Spread the workers of a job, for example one on a node."""


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

    cache_claim: ObjectName | None = None
    """Keep what is fetched from the Hub on this existing claim of the job's namespace, so that the
    next job does not fetch it again. All jobs of the namespace share it: who can change a job's
    model in it can change it for the others. ReadWriteMany, where jobs run at the same time."""


class Pods(ApiModel):
    """What all pods of a job have; the objects are those of the job's namespace."""

    service_account_name: ObjectName | None = None
    """Service account of the pods, for example for a cloud identity. They get no token for the API
    server. Default: the namespace's `default`."""

    image_pull_secrets: Annotated[list[ObjectName], Field(max_length=16)] = []
    """Names of the Secrets that pull the images."""


class FineTuneProfileSpec(ApiModel):
    """What a job of this profile runs on. A job keeps what it started with: later edits do not
    touch it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.limits.maxCost) || has(self.price)",
                "spec.limits.maxCost needs spec.price; set spec.price.perGpuHour or remove it",
                ".limits.maxCost",
            ),
        )
    )

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
    """The most that a job may ask for, and what it may use."""

    retention: ProfileRetention = ProfileRetention()
    """How long finished jobs are kept at most."""

    pods: Pods = Pods()
    """What all pods of a job have."""

    defaults: Annotated[dict[str, Any], AfterValidator(checked_defaults)] = {}
    """A part of a job's spec: what a job that says nothing of a field gets. What a job says itself
    wins, and a default that does not go together with it is left out. `status.resolved.defaults`
    has what a job took."""

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

"""What people can do about a failure or a reason to wait: sentences, each a thing to try."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from finetune_api.outcome import FailureClass
from finetune_cli.jobs import Job

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Advice(Generic[T]):
    """What something means, and what to try. `{program}`, `{name}` and `{namespace}` stand for
    themselves."""

    meaning: str
    tries: tuple[str, ...] = ()
    depends: Callable[[T], list[str]] | None = None
    """What to try first, by the job or by the words of whoever keeps it."""

    def on(self, subject: T) -> list[str]:
        """Things to try, in this order."""
        return [*(self.depends(subject) if self.depends else []), *self.tries]


AGAIN = (
    "then submit it under another name, as the spec of a job that has started is fixed: "
    "`{program} submit FILE --name NEW`"
)
ANEW = "submit it again under another name: `{program} submit FILE --name NEW`"
WAIT = ("nothing to do but wait: `{program} watch {name} -n {namespace}`",)


def _model(job: Job) -> list[str]:
    uri = job.spec.model.uri
    if uri.startswith("hf://") and job.spec.model.secret_ref is None:
        return [
            f"check spec.model.uri ({uri}); for a private or gated model name a Secret with the "
            "key `token` in spec.model.secretRef",
        ]
    return [f"check spec.model.uri ({uri}) and what lies there"]


def _out_of_memory(job: Job) -> list[str]:
    """What is not done yet, cheapest first."""
    spec, known = job.spec, job.status.resolved
    micro = known.micro_batch_size if known else None
    found = []
    if spec.training.micro_batch_size != "Auto":
        found.append("set spec.training.microBatchSize: Auto")
    elif micro is not None and micro > 1:
        found.append(f"set spec.training.microBatchSize: {micro // 2} (it was {micro})")
    if not (known and known.gradient_checkpointing):
        found.append("set spec.training.gradientCheckpointing: Always")
    found.append(f"lower spec.training.sequenceLength (it is {spec.training.sequence_length})")
    if spec.method.tuning == "Full":
        found.append("train an adapter: spec.method.tuning: LoRA or QLoRA")
    elif spec.method.tuning == "LoRA":
        found.append("keep the base model in 4 bits: spec.method.tuning: QLoRA")
    if not (known and known.zero_stage == 3) and spec.method.tuning != "QLoRA":
        found.append("shard the weights: spec.zero.stage: 3")
    if spec.zero.offload == "None":
        found.append("let it use the node's memory: spec.zero.offload: Auto")
    return found


def _diverged(job: Job) -> list[str]:
    training = job.spec.training
    return [
        "look at the loss: `{program} plot {name} -n {namespace}`",
        f"lower spec.training.learningRate (it is {training.learning_rate:g}), by 2 to 10 times",
        f"or warm up for longer: spec.training.warmupFraction (it is {training.warmup_fraction:g})",
        "if it diverged at once, look at the data of the first steps: status.dataset.samples",
    ]


def _deadline(job: Job) -> list[str]:
    spec, found = job.spec, []
    if spec.startup_deadline_seconds is not None:
        found.append(
            f"if its workers did not start: raise spec.startupDeadlineSeconds (it is "
            f"{spec.startup_deadline_seconds}), or take away what they waited for"
        )
    if spec.active_deadline_seconds is not None:
        found.append(
            f"if it was training: raise spec.activeDeadlineSeconds (it is "
            f"{spec.active_deadline_seconds}), or give it more workers"
        )
    if spec.active_deadline_seconds is None and spec.startup_deadline_seconds is None:
        found.append("its profile limits how long a job may be active: ask your platform team")
    return found


def _node(job: Job) -> list[str]:
    node = job.status.last_failure.node if job.status.last_failure else None
    return [f"see what happened to its node: `kubectl describe node {node}`"] if node else []


FAILURES: dict[FailureClass, Advice[Job]] = {
    "Configuration": Advice(
        "A setting of the job is wrong; the same run would fail again.",
        (
            "change what the message names, and check it: `{program} validate FILE`",
            AGAIN,
        ),
    ),
    "Data": Advice(
        "The data cannot be used as they are; the same run would fail again.",
        ("mend what the message names in the data of spec.dataset.uri", AGAIN),
    ),
    "Model": Advice(
        "The model could not be fetched or used; the same run would fail again.", (AGAIN,), _model
    ),
    "OutOfMemory": Advice(
        "It needs more memory than it has; the same run would fail again.",
        ("or ask your platform team for a profile with more memory", AGAIN),
        _out_of_memory,
    ),
    "Diverged": Advice(
        "The training diverged: its loss was no number any more, or jumped. The same run would "
        "diverge again.",
        (AGAIN,),
        _diverged,
    ),
    "Stopped": Advice(
        "Its workers were asked to stop, by the platform or by somebody.",
        ("see who stopped its pods: `kubectl get events -n {namespace}`", ANEW),
        _node,
    ),
    "Internal": Advice(
        "Something in the software or the platform failed that should not.",
        (
            "if it is a fault of finetune-operator, report it with the output of "
            "`{program} explain {name} -n {namespace} -o yaml`",
            ANEW,
        ),
    ),
    "Hang": Advice(
        "The training no longer got on, and was ended.",
        (
            "read where every rank stood: the stacks are in the log, and in `stacks` of the work "
            "directory",
            "if it was only slow, raise the budget that the message names in spec.hangPolicy",
            "if it hung in a collective, have the network between the nodes checked",
            ANEW,
        ),
    ),
    "PeerLost": Advice(
        "A worker lost the connection to another one, and none had a reason of its own.",
        (
            "have the network between the nodes checked; where nodes have several networks, the "
            "profile's env must name one: NCCL_SOCKET_IFNAME",
            ANEW,
        ),
    ),
    "Killed": Advice(
        "A process was killed from outside, without a word of its own.",
        (
            "see whether somebody deleted its pods, or the node ran out of memory: "
            "`kubectl get events -n {namespace}`",
            ANEW,
        ),
        _node,
    ),
    "AllowanceUsedUp": Advice(
        "It has used what its profile lets a job use.",
        (
            "see what its time went to: `kubectl get ftj {name} -n {namespace} -o yaml` "
            "(status.usage)",
            "train for fewer steps, or ask your platform team for a profile that allows more",
        ),
    ),
    "DeadlineExceeded": Advice("It did not keep a deadline of its spec.", (AGAIN,), _deadline),
}
"""What each failure class means, and what to try."""


def _unschedulable(message: str) -> list[str]:
    """By the scheduler's own words."""
    words, found = message.lower(), []
    if "insufficient" in words:
        found.append(
            "wait until others end, or ask for less: fewer spec.workers.numNodes, another "
            "spec.profile"
        )
    if "taint" in words:
        found.append("the profile must tolerate the nodes' taints: spec.placement.tolerations")
    if "affinity" in words or "selector" in words:
        found.append(
            "no node has the labels that the profile asks for: spec.placement.nodeSelector"
        )
    if "were unschedulable" in words:
        found.append("nodes are closed for new pods: `kubectl get nodes`")
    if "no nodes available" in words:
        found.append("the cluster has no node at all: `kubectl get nodes`")
    return found or ["look at the nodes: `kubectl get nodes`, `kubectl describe node NODE`"]


PROFILES = "see which profiles there are: `kubectl get finetuneprofiles`"
EDIT = "`kubectl edit ftj {name} -n {namespace}` (it has not started, so it may be changed)"
CLAIMS = "look at the claims: `kubectl get pvc -n {namespace}`"

WAITS: dict[str, Advice[str]] = {
    "ProfileNotFound": Advice(
        "its profile does not exist", (PROFILES, f"set spec.profile: {EDIT}")
    ),
    "NoDefaultProfile": Advice(
        "it names no profile, and there is no default one",
        (PROFILES, f"set spec.profile: {EDIT}"),
    ),
    "AmbiguousProfile": Advice(
        "it names no profile, and there are several default ones",
        (PROFILES, f"set spec.profile: {EDIT}"),
    ),
    "ExceedsProfile": Advice(
        "it asks for more than its profile allows",
        (f"lower the field that the message names, or set another spec.profile: {EDIT}", PROFILES),
    ),
    "ForbiddenByProfile": Advice(
        "it uses what its profile does not allow",
        (f"use what the message lists, or set another spec.profile: {EDIT}", PROFILES),
    ),
    "OwnTrainerForbidden": Advice(
        "it brings a trainer of its own, which its profile does not allow",
        ("ask the platform team for a profile with limits.ownTrainer, or leave spec.trainer out",),
    ),
    "InvalidBatchSize": Advice(
        "its batch cannot be shared by its processes", (f"set what the message proposes: {EDIT}",)
    ),
    "InvalidSpec": Advice(
        "the operator cannot read its spec",
        (
            f"change the field that the message names: {EDIT}",
            "the CRDs in the cluster may be older or newer than the operator: have the chart's "
            "CRDs applied",
        ),
    ),
    "NameTaken": Advice(
        "an object that it has to make exists already, and is not its own",
        ("delete the object that the message names, or submit the job under another name",),
    ),
    "ObjectRefused": Advice(
        "the API server does not accept an object that the job needs",
        (
            "the message has its reason: where it is a quota, see what uses it: `kubectl describe "
            "quota -n {namespace}`; where it is a policy of the cluster, ask the platform team",
        ),
    ),
    "SizeUnknown": Advice(
        "whether it fits on another number of workers is not known",
        ("set spec.workers.numNodes back: `kubectl edit ftj {name} -n {namespace}`",),
    ),
    "DoesNotFit": Advice(
        "it does not fit into the memory of that number of workers",
        ("set another spec.workers.numNodes: `kubectl edit ftj {name} -n {namespace}`",),
    ),
    "QuotaExceeded": Advice(
        "the namespace's quota has no room for its pods",
        (
            "see what uses it: `kubectl describe quota -n {namespace}`; its pods are made as soon "
            "as there is room",
            "or submit it under another name with fewer spec.workers.numNodes",
        ),
    ),
    "PodsRefused": Advice(
        "the API server refuses its pods",
        (
            "the message names who refuses (PodSecurity, a LimitRange, a webhook): show it to your "
            "platform team",
        ),
    ),
    "Unschedulable": Advice("no node has room for a pod of it", (), _unschedulable),
    "Queued": Advice(
        "its turn in the queue has not come",
        ("see what is before it, and the quota: `kubectl get workloads -n {namespace}`",),
    ),
    "SchedulingGated": Advice(
        "somebody holds its pods back",
        (
            "a queue such as Kueue lets them go in their turn; who it is: `kubectl get pods "
            "-n {namespace} -l finetune-operator.io/job={name} -o yaml` (schedulingGates)",
        ),
    ),
    "Volume": Advice(
        "a volume is not ready",
        (
            CLAIMS,
            "a claim that the manifest names must exist in the job's namespace; one that stays "
            "Pending needs a storage class that can make it: `kubectl describe pvc -n {namespace}`",
        ),
    ),
    "ImagePull": Advice(
        "its image cannot be pulled",
        (
            "have the image's name and the nodes' right to pull it checked: spec.image of its "
            "profile, or trainer.image of the Helm chart",
        ),
    ),
    "CreateContainerConfigError": Advice(
        "a Secret or ConfigMap that its pods need is missing",
        ("make the object that the message names, in namespace {namespace}",),
    ),
    "Starting": Advice("its pods are being made, or start; nothing is wrong so far", WAIT),
    "Stopping": Advice("the workers of the last attempt are still being stopped", WAIT),
    "Restarting": Advice("an attempt has failed, and the next one comes by itself", WAIT),
    "Suspended": Advice(
        "it is suspended", ("let it go on: `{program} resume {name} -n {namespace}`",)
    ),
}
"""What each reason of the condition `Waiting` means, and what to try. Others are the kubelet's own
words."""

UNKNOWN_WAIT: Advice[str] = Advice(
    "the kubelet cannot start a pod of it",
    (
        "look at the pods: `kubectl describe pods -n {namespace} "
        "-l finetune-operator.io/job={name}`",
    ),
)

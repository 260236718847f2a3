"""Jobs and what their profile says of them: one table, asked of the operator's own check and of the
API server's policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

NAMESPACES: dict[str, dict[str, str]] = {
    "profile-gold": {"team": "a", "tier": "gold"},
    "profile-plain": {},
}
"""Namespaces and their labels, beside their name."""
SPEC: Json = {
    "model": {"uri": "hf://meta-llama/Llama-3.2-1B"},
    "dataset": {"uri": "pvc://team-data/docs.jsonl"},
}
IMAGE = "registry.example/team-a/trainer@sha256:" + "a" * 64
OWN: Json = {"trainer": {"image": IMAGE}}


@dataclass(frozen=True, slots=True)
class Case:
    """A job, its profile, and what is said of it; nothing: it may start."""

    job: Json
    profile: Json
    reason: str = ""
    says: str = ""
    namespace: str = "profile-plain"


def exceeds(says: str, job: Json, **profile: Any) -> Case:
    """A job that asks for more than there is."""
    return Case(job, profile, "ExceedsProfile", says)


def forbids(says: str, job: Json, limits: Json, **more: Any) -> Case:
    """A job that uses what it may not."""
    return Case(job, {"limits": limits}, "ForbiddenByProfile", says, **more)


def allows(job: Json, namespace: str = "profile-plain", **profile: Any) -> Case:
    """A job that may start."""
    return Case(job, profile, namespace=namespace)


def selector(*expressions: Json, **labels: str) -> Json:
    """Limits that choose namespaces."""
    return {"namespaceSelector": {"matchLabels": labels, "matchExpressions": list(expressions)}}


def requirement(key: str, operator: str, *values: str) -> Json:
    """One requirement of a selector."""
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


def workers(nodes: int, procs: int | str = "Auto", batch: int = 64) -> Json:
    """The size of a job."""
    size = {"numNodes": nodes, "numProcPerNode": procs}
    return {"workers": size, "training": {"globalBatchSize": batch}}


NOT_FOR_IT = "metadata.namespace is {}, which profile 'p' is not for (limits.namespaceSelector)"
MODEL = "spec.model.uri is hf://meta-llama/Llama-3.2-1B; profile 'p' allows {} (limits.models)"

CASES: dict[str, Case] = {
    "nothing is limited": allows({}),
    "files for TensorBoard leave nothing open": allows({"tracking": {"reportTo": ["TensorBoard"]}}),
    "a server that the profile names": allows(
        {"tracking": {"reportTo": ["MLflow", "TensorBoard"]}},
        limits={"reportTo": ["TensorBoard", "MLflow"]},
    ),
    "a server that it does not name": forbids(
        "spec.tracking.reportTo is TensorBoard, WandB; profile 'p' allows TensorBoard "
        "(limits.reportTo)",
        {"tracking": {"reportTo": ["TensorBoard", "WandB"]}},
        {},
    ),
    "no reports at all": forbids(
        "spec.tracking.reportTo is TensorBoard; profile 'p' allows none (limits.reportTo)",
        {"tracking": {"reportTo": ["TensorBoard"]}},
        {"reportTo": []},
    ),
    "as many nodes as there may be": allows(workers(2), limits={"maxNodes": 2}),
    "a node too many": exceeds(
        "spec.workers.numNodes is 4; profile 'p' allows at most 2 (limits.maxNodes)",
        workers(4),
        limits={"maxNodes": 2},
    ),
    "a node too many by the profile's own default": exceeds(
        "spec.workers.numNodes is 4; profile 'p' allows at most 2 (limits.maxNodes)",
        {},
        limits={"maxNodes": 2},
        defaults={"workers": {"numNodes": 4}},
    ),
    "what the job says before the default": allows(
        workers(2), limits={"maxNodes": 2}, defaults={"workers": {"numNodes": 4}}
    ),
    "more processes than GPUs": exceeds(
        "spec.workers.numProcPerNode is 16; a node of profile 'p' has 8 GPUs (node.gpusPerNode)",
        workers(1, 16),
    ),
    "more processes than GPUs on the processor": allows(
        workers(1, 16), node={"accelerator": "CPU", "gpusPerNode": 0}
    ),
    "too many GPUs": exceeds(
        "spec.workers asks for 4 x 8 = 32 GPUs; profile 'p' allows at most 16 (limits.maxGpus)",
        workers(4),
        limits={"maxGpus": 16},
    ),
    "as many GPUs by fewer processes": allows(workers(4, 4), limits={"maxGpus": 16}),
    "GPUs of a profile without": allows(
        workers(4, 4), limits={"maxGpus": 1}, node={"accelerator": "CPU", "gpusPerNode": 0}
    ),
    "a deadline that is too long": exceeds(
        "spec.activeDeadlineSeconds is 7200; profile 'p' allows at most 3600 "
        "(limits.maxDurationSeconds)",
        {"activeDeadlineSeconds": 7200},
        limits={"maxDurationSeconds": 3600},
    ),
    "no deadline, where there is a longest": allows({}, limits={"maxDurationSeconds": 3600}),
    "a model of the list": allows({}, limits={"models": ["hf://a/*", "hf://meta-llama/*"]}),
    "a model that is not of the list": forbids(
        MODEL.format("hf://Qwen/*, pvc://*"), {}, {"models": ["hf://Qwen/*", "pvc://*"]}
    ),
    "a pattern is the whole name": forbids(
        MODEL.format("hf://meta-llama/Llama, lama"),
        {},
        {"models": ["hf://meta-llama/Llama", "lama"]},
    ),
    "a dot is a dot": forbids(
        MODEL.format("hf://meta-llama/Llama-3.2.1B"),
        {},
        {"models": ["hf://meta-llama/Llama-3.2.1B"]},
    ),
    "a star is any characters": allows({}, limits={"models": ["hf://*/Llama-*-1B"]}),
    "a dataset that is not of the list": forbids(
        "spec.dataset.uri is pvc://team-data/docs.jsonl; profile 'p' allows hf://team-a/* "
        "(limits.datasets)",
        {},
        {"datasets": ["hf://team-a/*"]},
    ),
    "a retention set that is not of the list": forbids(
        "spec.evaluation.retention.uri is hf://other/text; profile 'p' allows pvc://* "
        "(limits.datasets)",
        {"evaluation": {"retention": {"uri": "hf://other/text"}}},
        {"datasets": ["pvc://*"]},
    ),
    "a retention set of the list": allows(
        {"evaluation": {"retention": {"uri": "pvc://other/text"}}}, limits={"datasets": ["pvc://*"]}
    ),
    "an objective that is not of the list": forbids(
        "spec.method.objective is DPO; profile 'p' allows SFT, CPT (limits.objectives)",
        {"method": {"objective": "DPO"}},
        {"objectives": ["SFT", "CPT"]},
    ),
    "the usual objective is not of the list": forbids(
        "spec.method.objective is SFT; profile 'p' allows DPO (limits.objectives)",
        {},
        {"objectives": ["DPO"]},
    ),
    "the profile's objective": allows(
        {}, limits={"objectives": ["DPO"]}, defaults={"method": {"objective": "DPO"}}
    ),
    "a tuning that is not of the list": forbids(
        "spec.method.tuning is Full; profile 'p' allows LoRA, QLoRA (limits.tunings)",
        {"method": {"tuning": "Full"}},
        {"tunings": ["LoRA", "QLoRA"]},
    ),
    "methods do not bind another trainer": allows(
        {**OWN, "method": {"tuning": "Full"}},
        limits={"ownTrainer": True, "tunings": ["LoRA"], "objectives": ["DPO"]},
    ),
    "a trainer of its own": Case(
        OWN,
        {},
        "OwnTrainerForbidden",
        "spec.trainer: profile 'p' lets no job bring its own trainer (limits.ownTrainer is "
        "false); remove it, or use a profile that allows it",
    ),
    "a trainer of its own, allowed": allows(OWN, limits={"ownTrainer": True}),
    "an image of the list": allows(
        OWN, limits={"ownTrainer": True, "trainerImages": ["registry.example/team-a/*"]}
    ),
    "no image, where there is a list": allows(
        {"trainer": {"args": ["x"]}}, limits={"ownTrainer": True, "trainerImages": ["none"]}
    ),
    "an image that is not of the list": forbids(
        f"spec.trainer.image is {IMAGE}; profile 'p' allows registry.example/team-b/* "
        "(limits.trainerImages)",
        OWN,
        {"ownTrainer": True, "trainerImages": ["registry.example/team-b/*"]},
    ),
    "a service account": forbids(
        "spec.serviceAccountName is cloud; profile 'p' allows none (limits.serviceAccounts)",
        {"serviceAccountName": "cloud"},
        {},
    ),
    "a service account that is not of the list": forbids(
        "spec.serviceAccountName is cloud; profile 'p' allows tune-* (limits.serviceAccounts)",
        {"serviceAccountName": "cloud"},
        {"serviceAccounts": ["tune-*"]},
    ),
    "a service account of the list": allows(
        {"serviceAccountName": "tune-a"}, limits={"serviceAccounts": ["tune-*"]}
    ),
    "a namespace with the label": allows({}, "profile-gold", limits=selector(tier="gold")),
    "a namespace without the label": forbids(
        NOT_FOR_IT.format("profile-plain"), {}, selector(tier="gold")
    ),
    "a namespace with another value": forbids(
        NOT_FOR_IT.format("profile-gold"), {}, selector(tier="silver"), namespace="profile-gold"
    ),
    "a namespace by name": allows(
        {},
        "profile-gold",
        limits=selector(requirement("kubernetes.io/metadata.name", "In", "x", "profile-gold")),
    ),
    "a namespace by another name": forbids(
        NOT_FOR_IT.format("profile-plain"),
        {},
        selector(requirement("kubernetes.io/metadata.name", "In", "x", "profile-gold")),
    ),
    "a value that may not be": forbids(
        NOT_FOR_IT.format("profile-gold"),
        {},
        selector(requirement("tier", "NotIn", "gold", "silver")),
        namespace="profile-gold",
    ),
    "no value is not one that may not be": allows(
        {}, limits=selector(requirement("tier", "NotIn", "gold"))
    ),
    "a label that must be there": forbids(
        NOT_FOR_IT.format("profile-plain"), {}, selector(requirement("tier", "Exists"))
    ),
    "a label that must not be there": forbids(
        NOT_FOR_IT.format("profile-gold"),
        {},
        selector(requirement("tier", "DoesNotExist")),
        namespace="profile-gold",
    ),
    "a batch that the profile's GPUs cannot share": Case(
        {"workers": {"numNodes": 3}},
        {},
        "InvalidBatchSize",
        "spec.training.globalBatchSize is 32, which 3 x 8 processes cannot share evenly; use 24 "
        "or 48",
    ),
    "a batch smaller than the processes": Case(
        {"training": {"globalBatchSize": 4}},
        {},
        "InvalidBatchSize",
        "spec.training.globalBatchSize is 4, which 1 x 8 processes cannot share evenly; use 8",
    ),
    "a batch of the profile": allows(
        {"workers": {"numNodes": 3}}, defaults={"training": {"globalBatchSize": 48}}
    ),
    "a micro-batch that does not divide the share": Case(
        {"training": {"microBatchSize": 3}},
        {},
        "InvalidBatchSize",
        "spec.training.microBatchSize is 3, which does not divide a process's share of 4 "
        "(globalBatchSize 32 / 8 processes); use Auto or a divisor of it",
    ),
    "preferences without an objective for them": Case(
        {"dataset": {"uri": "pvc://team-data/docs.jsonl", "format": "Preference"}},
        {},
        "InvalidSpec",
        "spec.dataset.format is Preference, and spec.method.objective is SFT: Preference and DPO, "
        "KTO or ORPO belong together; change one",
    ),
    "preferences with the profile's objective": allows(
        {"dataset": {"uri": "pvc://team-data/docs.jsonl", "format": "Preference"}},
        defaults={"method": {"objective": "DPO"}},
    ),
    "all that is wrong at once": Case(
        {**workers(4), "method": {"tuning": "Full"}},
        {"limits": {"maxNodes": 2, "maxGpus": 16, "tunings": ["LoRA"]}},
        "ForbiddenByProfile",
        "spec.method.tuning is Full; profile 'p' allows LoRA (limits.tunings); "
        "spec.workers.numNodes is 4; profile 'p' allows at most 2 (limits.maxNodes); "
        "spec.workers asks for 4 x 8 = 32 GPUs; profile 'p' allows at most 16 (limits.maxGpus)",
    ),
    "a default that does not go with the job": Case(
        {"dataset": {"uri": "pvc://team-data/docs.jsonl", "format": "Chat"}},
        {"limits": {"objectives": ["SFT"]}, "defaults": {"method": {"objective": "SFT"}}},
    ),
}

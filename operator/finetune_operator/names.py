"""Names, labels and paths: spelled here, or in `finetune_api.names` where others need them too."""

from __future__ import annotations

from finetune_api.names import (
    CLAIMS_DIR,
    CONFIGMAP_DIR,
    CONTAINER,
    LABEL_ATTEMPT,
    LABEL_INDEX,
    LABEL_JOB,
    LABEL_STAGE,
    WORK_MOUNT,
    Stage,
    work_claim,
)

__all__ = [
    "CLAIMS_DIR",
    "CONFIGMAP_DIR",
    "CONTAINER",
    "LABEL_ATTEMPT",
    "LABEL_INDEX",
    "LABEL_JOB",
    "LABEL_STAGE",
    "WORK_MOUNT",
    "Stage",
    "work_claim",
]

STAGES: tuple[Stage, ...] = ("prepare", "train", "export")
"""In their order."""
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
"""Kueue's: it holds a Kubernetes Job that has it by `spec.suspend` until its turn comes."""
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"

FIELD_OWNER = "finetune-operator"
PROGRESS_FIELD_OWNER = "finetune-operator-progress"

MINE = f"{LABEL_JOB},{LABEL_MANAGED_BY}={FIELD_OWNER}"
"""Label selector of the children of any job."""

MASTER_PORT = 29500

RUN_DIR = "/etc/finetune/run"
RUN_JSON = f"{RUN_DIR}/run.json"
TOKEN_DIR = "/var/run/secrets/kubeflow/trainer"  # noqa: S105 (a path)
FILES_DIR = "/etc/finetune/files"
CACHE_DIR = "/var/finetune/cache"
TMP_DIR = "/tmp"  # noqa: S108 (a volume of the pod's own)


def run_config_map(job: str) -> str:
    """ConfigMap with the run's settings."""
    return f"{job}-run"


def attempt_config_map(job: str, attempt: int) -> str:
    """ConfigMap with the settings of an attempt that has another size than the job started with."""
    return f"{job}-run-{attempt}"


def service(job: str) -> str:
    """Headless Service over rank 0."""
    return job


def network_policy(job: str, stage: Stage) -> str:
    """NetworkPolicy of the pods of a stage."""
    return f"{job}-{stage}"


def stage_job(job: str, stage: Stage, attempt: int) -> str:
    """Kubernetes Job of a stage; the others than training are rarely run more than once."""
    return f"{job}-{stage}-{attempt}" if attempt or stage == "train" else f"{job}-{stage}"


def master_host(job: str, attempt: int) -> str:
    """Name of rank 0's pod in the cluster's DNS, from pods of the same namespace."""
    return f"{stage_job(job, 'train', attempt)}-0.{service(job)}"

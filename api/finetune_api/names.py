"""Names, labels and paths that more than the operator knows: spelled here and nowhere else."""

from __future__ import annotations

from typing import Literal

from finetune_api.base import GROUP

Stage = Literal["prepare", "train", "export"]

LABEL_JOB = f"{GROUP}/job"
LABEL_STAGE = f"{GROUP}/stage"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_INDEX = "batch.kubernetes.io/job-completion-index"

MODULES: dict[Stage, str] = {
    "prepare": "finetune_trainer.prepare",
    "train": "finetune_trainer.launch",
    "export": "finetune_trainer.export",
}
"""What runs in a stage: `python -m MODULE RUN_JSON`."""

CONTAINER = "trainer"
USER = 65532
"""User and group of every container of a job, and owner of what it writes."""

WORK_MOUNT = "/var/finetune/work"
CLAIMS_DIR = "/var/finetune/claims"
CONFIGMAP_DIR = "/var/finetune/configmaps"


def work_claim(job: str) -> str:
    """Claim with prepared data and result."""
    return f"{job}-work"

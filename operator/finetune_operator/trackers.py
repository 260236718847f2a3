"""What `spec.tracking` changes in a job's objects; the trainer does the rest."""

from __future__ import annotations

from typing import Any

from finetune_api.run_config import WORK_TRACKING
from finetune_api.tracking import SECRET_KEYS
from finetune_operator import names
from finetune_operator.names import Stage
from finetune_operator.plan import Plan

Manifest = dict[str, Any]


def variables(plan: Plan, stage: Stage) -> list[Manifest]:
    """For the libraries: their secrets, and directories that can be written.

    Prepare has them too: it finds out what is missing before a GPU is held. What the profile sets
    is the platform team's choice, and a variable must not stand twice in a container.
    """
    wanted = plan.snapshot.spec.tracking
    if wanted is None or stage == "export":
        return []
    found: list[Manifest] = []
    if wanted.secret_ref is not None:
        for key in (key for key in SECRET_KEYS if key not in plan.snapshot.profile.env):
            ref = {"name": wanted.secret_ref.name, "key": key, "optional": True}
            found.append({"name": key, "valueFrom": {"secretKeyRef": ref}})
    if "WandB" in wanted.report_to:
        found += [
            {"name": "WANDB_DIR", "value": f"{plan.run.work_dir}/{WORK_TRACKING}"},
            *(
                {"name": f"WANDB_{kind}_DIR", "value": f"{names.TMP_DIR}/wandb"}
                for kind in ("CACHE", "CONFIG", "DATA")
            ),
        ]
    return found

"""What a job's own trainer (`spec.trainer`) changes in the pods that train; see decision 0013."""

from __future__ import annotations

from typing import Any

from finetune_api import run_config as wire
from finetune_api.own_trainer import OwnTrainer
from finetune_operator import names
from finetune_operator.names import Stage
from finetune_operator.plan import Plan

Manifest = dict[str, Any]


def _trainer(plan: Plan, stage: Stage) -> OwnTrainer | None:
    return plan.snapshot.spec.trainer if stage == "train" else None


def image(plan: Plan, stage: Stage) -> str:
    """Of the pods of a stage."""
    own = _trainer(plan, stage)
    return (own.image if own else None) or plan.snapshot.image


def command(plan: Plan, stage: Stage) -> Manifest | None:
    """What the container runs; None: what is built in."""
    own = _trainer(plan, stage)
    if own is None:
        return None
    given = {"command": list(own.command), "args": list(own.args)}
    return {name: words for name, words in given.items() if words}


def variables(plan: Plan, stage: Stage) -> list[Manifest]:
    """The job's own, and where its script finds what prepare has fetched."""
    own = _trainer(plan, stage)
    if own is None:
        return []
    found: list[Manifest] = []
    for variable in own.env:
        ref = variable.secret_key_ref
        value: Manifest = {"value": variable.value or ""}
        if ref is not None:
            value = {"valueFrom": {"secretKeyRef": {"name": ref.name, "key": ref.key}}}
        found.append({"name": variable.name, **value})
    work = plan.run.work_dir
    places = {
        wire.ENV_MODEL_DIR: f"{work}/{wire.WORK_MODEL}",
        wire.ENV_DATASET_DIR: f"{work}/{wire.WORK_DATASET}",
        wire.ENV_RESULT_DIR: f"{work}/{wire.WORK_RESULT}",
        wire.ENV_CHECKPOINT_DIR: f"{work}/{wire.WORK_CHECKPOINTS}",
        wire.ENV_RUN: names.RUN_JSON,
    }
    return found + [{"name": name, "value": value} for name, value in places.items()]


def files(plan: Plan, stage: Stage) -> str | None:
    """The ConfigMap with its script."""
    own = _trainer(plan, stage)
    return own.files_from if own else None

"""What is written beside the numbers, and the hash that says whether a checkpoint fits a run."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError

from finetune_api.base import ApiModel
from finetune_api.outcome import PrepareFacts
from finetune_api.run_config import RunConfig
from finetune_trainer.health import WatchState

MANIFEST = "manifest.json"
COMMITTED = "COMMITTED"
DIRECTORY = re.compile(r"step-(\d{8})")
"""Names of checkpoints; whatever is called otherwise is not ours and is left alone."""
SET_ASIDE = "other-"
"""Before the name of a checkpoint that this run cannot go on from; gone with our first one."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^rank-[0-9]{5}\.safetensors$")]

_NOT_LEARNED = {"micro_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"}
"""Of the training numbers: how the work is dealt out, not what comes of it."""


class ShardFile(ApiModel):
    """What one process wrote."""

    name: FileName
    bytes: int
    sha256: Sha256


class ShardRecord(ApiModel):
    """`rank-00000.json`: one process has done its part, or cannot."""

    attempt: str
    """Drawn anew by every start of the gang: a file of an earlier one is never taken for ours."""
    file: ShardFile | None = None
    problem: str | None = None
    """Why there is no file: process 0 need not wait for it."""


class RunState(ApiModel):
    """What the loop remembers beside weights and moments."""

    loss: float | None = None
    """Training loss of the last step."""
    seconds: float = 0.0
    """In training steps so far, over all attempts whose checkpoints were used."""
    eval_loss_before: float | None = None
    retention_loss_before: float | None = None
    best_step: int | None = None
    """Step with the lowest held-out loss so far; where evaluations are made during training."""
    best_loss: float | None = None
    evaluations_without_gain: int = 0
    """Since `best_step`: for early stopping."""
    losses: WatchState = WatchState()
    """What the judgement of the next losses needs."""


class Position(ApiModel):
    """Where the run is in its data: the next batch is a pure function of these (`step_rows`)."""

    sequences: int
    """Taken so far, over all epochs."""
    seed: int
    """Of the order."""


class RandomState(ApiModel):
    """Generators are seeded from these at every step, see `seeds`: there is no state to keep."""

    rule: Literal["sha256(seed/step/rank)"] = "sha256(seed/step/rank)"
    seed: int


class Manifest(ApiModel):
    """`manifest.json`."""

    version: Literal[1] = 1
    step: Annotated[int, Field(ge=1)]
    """Optimizer steps done."""
    identity: dict[str, str]
    """See `identity`."""
    world_size: int
    zero_stage: int
    position: Position
    random: RandomState
    optimizer_steps: int
    """AdamW's own counter, for its bias correction."""
    state: RunState
    files: Annotated[list[ShardFile], Field(min_length=1)]


def identity(run: RunConfig, prepared: PrepareFacts) -> dict[str, str]:
    """Hashes of all that determines what is learned, by subject.

    Not of the number of processes, the micro-batch, ZeRO and offloading, checkpoints and
    evaluations: those may change from one attempt to the next.
    """
    told = run.model_dump(mode="json", exclude={"model": {"path"}, "dataset": {"path"}})
    facts = prepared.model_dump(mode="json")
    training = {k: v for k, v in told["training"].items() if k not in _NOT_LEARNED}
    subjects: dict[str, Any] = {
        "model": [told["model"], facts["parameters"], facts["model_revision"]],
        "data": [
            *(told[k] for k in ("dataset", "dataset_format", "long_examples", "eval_fraction")),
            *(facts[k] for k in ("dataset_revision", "examples", "tokens", "trained_tokens")),
            facts["sequences"],
        ],
        "method": [told[k] for k in ("objective", "preference", "tuning", "lora")],
        "training": [training, facts["total_steps"]],
    }
    return {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
        for name, value in subjects.items()
    }


def directory_name(step: int) -> str:
    """Name of the checkpoint after `step` optimizer steps."""
    return f"step-{step:08}"


def read_committed(directory: Path) -> Manifest | str:
    """The manifest of a checkpoint that was completed, or why there is none that counts."""
    try:
        marker = (directory / COMMITTED).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return f"it was never completed (no {COMMITTED})"
    except (OSError, UnicodeDecodeError) as exc:
        return f"its {COMMITTED} cannot be read ({exc})"
    try:
        text = (directory / MANIFEST).read_bytes()
        if hashlib.sha256(text).hexdigest() != marker:
            return f"its {MANIFEST} is not the one that was committed"
        found = Manifest.model_validate_json(text)
    except (OSError, ValidationError) as exc:
        return f"its {MANIFEST} cannot be read ({str(exc).splitlines()[0]})"
    if directory_name(found.step) != directory.name or len(found.files) != found.world_size:
        return f"its {MANIFEST} does not belong to it"
    return found


def differences(found: dict[str, str], wanted: dict[str, str]) -> str | None:
    """Why a checkpoint of identity `found` is not one of this run; None where it is."""
    other = [name for name in wanted if found.get(name) != wanted[name]]
    return f"it was made with another {' and '.join(other)}" if other else None

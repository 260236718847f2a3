"""What is learned: how batches are made, which loss they have, what it is divided by.

The loop, the evaluation and the engine ask an `Objective`, and know nothing of tokens or pairs.
This file imports nothing heavy: prepare reads it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_api.run_config import PREFERENCES, RunConfig
from finetune_trainer.errors import InternalError

if TYPE_CHECKING:
    from finetune_trainer.objectives.base import Objective


def objective_of(run: RunConfig) -> Objective[Any]:
    """The objective of a run."""
    if run.objective not in PREFERENCES:
        from finetune_trainer.objectives.supervised import Supervised

        return Supervised()
    if run.preference is None:
        raise InternalError(f"the run has objective {run.objective} but no preference settings")
    from finetune_trainer.objectives.paired import Dpo, Orpo
    from finetune_trainer.objectives.unpaired import Kto

    settings, prepared = run.preference, needs_reference(run)
    if run.objective == "DPO":
        return Dpo(settings, prepared)
    return Kto(settings, prepared) if run.objective == "KTO" else Orpo(settings)


def needs_reference(run: RunConfig) -> bool:
    """Whether prepare computes what the base model says to the data.

    With an adapter the base model is there while training: the adapter switched off.
    """
    return run.objective in ("DPO", "KTO") and run.tuning == "Full"

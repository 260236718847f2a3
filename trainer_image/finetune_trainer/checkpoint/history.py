"""All that a run does with its checkpoints: go on from one, save them, and go back to one."""

from __future__ import annotations

from pathlib import Path

from finetune_api.outcome import PrepareFacts
from finetune_api.run_config import WORK_CHECKPOINTS, RunConfig
from finetune_trainer import logs
from finetune_trainer.checkpoint.fragments import Owned, restore
from finetune_trainer.checkpoint.manifest import Manifest, identity
from finetune_trainer.checkpoint.resuming import newest
from finetune_trainer.checkpoint.retention import set_aside
from finetune_trainer.checkpoint.saving import Checkpoints, new_attempt
from finetune_trainer.engine import Engine
from finetune_trainer.ranks import Gang


class History:
    """The checkpoints of one run, on one process; all processes call everything alike."""

    def __init__(self, engine: Engine, run: RunConfig, gang: Gang, prepared: PrepareFacts) -> None:
        """Look at nothing yet."""
        self._run, self._gang = run, gang
        self._directory = Path(run.work_dir) / WORK_CHECKPOINTS
        self._identity = identity(run, prepared)
        self._owned = Owned(engine, gang)
        self.checkpoints = Checkpoints(self._owned, run, gang, self._identity, new_attempt(gang))
        told = run.checkpoints
        if told.every_steps or told.every_minutes or run.evaluation.every_steps:
            self.checkpoints.prepare()

    def resume(self) -> Manifest | None:
        """Go on from the newest valid checkpoint, where there is one and it is wanted.

        Whatever else lies in the way of those to come is cleared away.
        """
        if self._gang.is_lead:
            self.checkpoints.take_over()
        found = None
        if self._run.checkpoints.resume:
            found = newest(self._directory, self._identity, self._gang)
        if self._gang.is_lead:
            set_aside(self._directory, found.directory.name if found else None)
        if found is None:
            return None
        manifest = found.manifest
        restore(self._owned, found.files, manifest.optimizer_steps)
        if self._gang.is_lead:
            logs.say(
                f"going on from the checkpoint of step {manifest.step} (written by "
                f"{manifest.world_size} processes, ZeRO {manifest.zero_stage})"
            )
        return manifest

    def go_back(self, step: int | None = None) -> int | None:
        """Load weights, and nothing else, from a checkpoint: for a result, not to train on.

        Args:
            step: Of which step; None: the newest that is valid.

        Returns:
            The step; None: there is none, and the weights are as they were.
        """
        self.checkpoints.settle()
        found = newest(self._directory, self._identity, self._gang, step)
        if found is None:
            return None
        restore(self._owned, found.files, None)
        return found.manifest.step

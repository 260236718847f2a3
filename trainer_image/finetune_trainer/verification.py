"""What export will prove the result by: the losses of a few examples with the final weights.

Training computes them with its own engine, export with nothing but the files and transformers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from finetune_api.artefact import Verification
from finetune_api.run_config import WORK_DATA, WORK_VERIFICATION, RunConfig
from finetune_trainer.batches import IGNORED, Sequences, micro_batch
from finetune_trainer.engine import Engine
from finetune_trainer.losses import tensors
from finetune_trainer.ranks import Gang
from finetune_trainer.spans import as_rows, choose


@torch.no_grad()
def leave_verification(engine: Engine, run: RunConfig, gang: Gang, parameters: int) -> None:
    """Write `verify.json`; by all processes, with the weights that are the result.

    Args:
        parameters: Of the whole model.
    """
    data_directory = Path(run.work_dir) / WORK_DATA
    split = "eval" if (data_directory / "eval").is_dir() else "train"
    data = Sequences.open(data_directory / split)
    spans = choose(data, parameters)
    rows = as_rows(data, spans)
    losses = torch.zeros(len(spans), dtype=torch.float64, device=gang.device)
    engine.deepspeed.eval()
    # One example at a time, each on one process; all go round alike, as ZeRO-3 wants it.
    for first in range(0, len(spans), gang.world_size):
        mine = first + gang.rank
        real = mine < len(spans)
        batch = micro_batch(rows, np.array([mine if real else 0]), real, engine.flat)
        loss = engine.deepspeed(**tensors(batch, gang.device)).double()
        if real:
            losses[mine] = loss
    engine.deepspeed.train()
    found = gang.sum(losses).tolist()
    if gang.is_lead:
        learned = (rows.targets(np.arange(len(spans))) != IGNORED).sum(axis=1)
        told = Verification(
            split=split,
            examples=spans,
            losses=found,
            learned=[int(count) for count in learned],
            precision=run.training.precision,
        )
        _write(Path(run.work_dir) / WORK_VERIFICATION, told)


def _write(path: Path, told: Verification) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(told.model_dump_json(by_alias=True))
    partial.replace(path)

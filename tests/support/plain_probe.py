"""Ranks that train cases and then measure plain text: `python -m plain_probe CASES_JSON WORK`.

`WORK` is a prepared work directory with a run in `run.json`. Its loss on the held-out part is
measured by an engine whose objective is another one, and left in `WORK/text_loss.json`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import training_builders


def main(cases: str, work: Path) -> None:
    """One rank."""
    training_builders.main(cases)
    import torch
    import torch.distributed as dist

    from finetune_api.run_config import RunConfig
    from finetune_trainer import engine as engines
    from finetune_trainer.batches import Sequences
    from finetune_trainer.plain import leave_verification, text_loss
    from finetune_trainer.ranks import Gang

    class Other(torch.nn.Module):
        """Any other objective's module."""

        def __init__(self, model: Any, base: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, **batch: Any) -> Any:
            raise AssertionError("the objective's own loss was asked for")

    vars(engines).update(SummedLoss=Other, check_separation=lambda *_: None)
    run = RunConfig.model_validate_json((work / "run.json").read_bytes())
    gang = Gang(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    engine = engines.build(run, gang)
    data = Sequences.open(work / "data/eval")
    batches: list[int] = []
    loss = text_loss(engine, data, gang, 2, lambda: batches.append(1))
    leave_verification(engine, run, gang, 140_000)
    if gang.is_lead:
        found = {"loss": loss, "batches": len(batches), "training": engine.deepspeed.training}
        (work / "text_loss.json").write_text(json.dumps(found))
    gang.barrier()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    os._exit(0)

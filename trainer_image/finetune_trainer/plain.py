"""The loss of plain text by an engine, whatever its objective: of the retention set, and of the
examples that the result is proven by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from finetune_api.artefact import Verification
from finetune_api.run_config import WORK_DATA, WORK_VERIFICATION, RunConfig
from finetune_trainer.batches import IGNORED, Sequences, micro_batch
from finetune_trainer.engine import Engine
from finetune_trainer.errors import DivergedError
from finetune_trainer.losses import SummedLoss, tensors
from finetune_trainer.proof_examples import batch_of, choose, examples_of
from finetune_trainer.ranks import Gang


@contextmanager
def plain_loss(engine: Engine) -> Iterator[None]:
    """Within it the engine's forward pass gives the summed cross entropy of a `MicroBatch`.

    By the same module, since DeepSpeed's hooks on it gather what ZeRO-3 has sharded.
    """
    module, model = engine.deepspeed.module, engine.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    engine.deepspeed.eval()
    try:
        if not isinstance(module, SummedLoss):
            module.forward = SummedLoss(model, base).forward
        with torch.no_grad():
            yield
    finally:
        vars(module).pop("forward", None)
        engine.deepspeed.train()


def text_loss(
    engine: Engine,
    data: Sequences,
    gang: Gang,
    micro: int,
    alive: Callable[[], None] = lambda: None,
) -> float:
    """The mean loss in nats over all learned tokens of `data`, the same on every process.

    Args:
        alive: Called after every batch, for the watchdog.

    Raises:
        DivergedError: it is not a finite number.
    """
    summed = torch.zeros(2, dtype=torch.float64, device=gang.device)
    with plain_loss(engine):
        for start in range(0, len(data), gang.world_size * micro):
            first = start + gang.rank * micro
            rows = np.arange(first, min(first + micro, len(data)))
            real = rows.size > 0  # ZeRO-3: all processes do the same number of forward passes
            batch = micro_batch(data, rows if real else np.zeros(1, np.int64), real, engine.flat)
            summed[0] += engine.deepspeed(**tensors(batch, gang.device)).double()
            summed[1] += int(np.count_nonzero(batch.targets != IGNORED))
            alive()
    loss, tokens = gang.sum(summed).tolist()
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss on the retention set is {loss}; the weights are no longer usable: lower "
            "spec.training.learningRate"
        )
    return float(loss / max(1.0, tokens))


def leave_verification(engine: Engine, run: RunConfig, gang: Gang, parameters: int) -> None:
    """Write `verify.json`; by all processes, with the weights that are the result.

    Args:
        parameters: Of the whole model.
    """
    data = Path(run.work_dir) / WORK_DATA
    held_out = (data / "eval").is_dir()
    split = Sequences.open(data / ("eval" if held_out else "train"))
    examples = choose(examples_of(split), parameters)
    losses = torch.zeros(len(examples), dtype=torch.float64, device=gang.device)
    with plain_loss(engine):
        for start in range(0, len(examples), gang.world_size):
            mine = start + gang.rank
            real = mine < len(examples)
            batch = batch_of(examples[mine if real else 0], counted=real)
            loss = engine.deepspeed(**tensors(batch, gang.device)).double()
            if real:
                losses[mine] = loss
    found = gang.sum(losses).tolist()
    if gang.is_lead:
        told = Verification(
            held_out=held_out,
            examples=[
                example.model_copy(update={"loss": loss})
                for example, loss in zip(examples, found, strict=True)
            ],
            precision=run.training.precision,
        )
        path = Path(run.work_dir) / WORK_VERIFICATION
        partial = path.with_name(path.name + ".partial")
        partial.write_text(told.model_dump_json(by_alias=True))
        partial.replace(path)

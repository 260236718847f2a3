"""What a `run.json` written by hand can get wrong: what the operator's admission refuses.

Also what only the container shows: whether its directories can be written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from finetune_api.run_config import PREFERENCES, RunConfig
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.tracking import check_tracking


def check_run(run: RunConfig) -> None:
    """Refuse settings that contradict each other or make no sense; names them all.

    Raises:
        ConfigurationError: what to change in `run.json`.
    """
    problems = [*_sizes(run), *_rates(run), *_method(run)]
    if problems:
        raise ConfigurationError("; ".join(problems))
    check_tracking(run)


def check_directories(run: RunConfig) -> None:
    """Make the work directory; refuse one that cannot be written, and such an output.

    The output may be on a volume that only export mounts; then nothing can be said yet.
    """
    work, output = Path(run.work_dir), Path(run.output_dir)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(
            f"the work directory {work} cannot be made: {exc.strerror or exc}; correct workDir, or "
            "the rights of the volume"
        ) from exc
    if not os.access(work, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"the work directory {work} cannot be written; correct the rights of the volume"
        )
    found = next((path for path in (output, *output.parents) if path.exists()), output)
    if not found.is_dir():
        raise ConfigurationError(
            f"the output directory {output} cannot be made: {found} is a file; "
            "choose another spec.output.uri"
        )
    if found in (output, output.parent) and not os.access(found, os.W_OK | os.X_OK):
        # This stage may have the same claim mounted for reading only.
        if os.statvfs(found).f_flag & os.ST_RDONLY:
            return
        raise ConfigurationError(
            f"the output directory {output} cannot be written; correct the rights of the volume, "
            "or choose another spec.output.uri"
        )


def _sizes(run: RunConfig) -> Iterator[str]:
    told = run.training
    counts = {
        "globalBatchSize": told.global_batch_size,
        "microBatchSize": told.micro_batch_size,
        "gradientAccumulationSteps": told.gradient_accumulation_steps,
    }
    for name, value in counts.items():
        if value < 1:
            yield f"training.{name} is {value}; it must be at least 1"
    for name, value in (("numNodes", run.num_nodes), ("numProcPerNode", run.num_proc_per_node)):
        if value < 1:
            yield f"{name} is {value}; it must be at least 1"
    product = told.micro_batch_size * told.gradient_accumulation_steps * run.world_size
    if product != told.global_batch_size:
        yield (
            f"training.globalBatchSize is {told.global_batch_size}, but microBatchSize x "
            f"gradientAccumulationSteps x processes is {told.micro_batch_size} x "
            f"{told.gradient_accumulation_steps} x {run.world_size} = {product}; make them equal"
        )
    if told.sequence_length < 2:
        yield f"training.sequenceLength is {told.sequence_length}; it must be at least 2"
    if told.max_steps is not None and told.max_steps < 1:
        yield f"training.maxSteps is {told.max_steps}; it must be at least 1"
    if told.epochs is not None and not 0 < told.epochs < math.inf:
        yield f"training.epochs is {told.epochs}; it must be a number above 0"
    if (told.max_steps is None) == (told.epochs is None):
        yield "set one of training.epochs and training.maxSteps, not both"


def _rates(run: RunConfig) -> Iterator[str]:
    told = run.training
    if not 0 < told.learning_rate <= 1:
        yield f"training.learningRate is {told.learning_rate}; it must be above 0 and at most 1"
    if not 0 < told.max_grad_norm < math.inf:
        yield f"training.maxGradNorm is {told.max_grad_norm}; it must be a number above 0"
    if not 0 <= told.weight_decay <= 1:
        yield f"training.weightDecay is {told.weight_decay}; it must be from 0 to 1"
    if not 0 <= told.warmup_fraction <= 1:
        yield f"training.warmupFraction is {told.warmup_fraction}; it must be from 0 to 1"
    if not 0 <= run.eval_fraction < 1:
        yield f"evalFraction is {run.eval_fraction}; it must be from 0 to below 1"


def _method(run: RunConfig) -> Iterator[str]:
    lora = run.lora
    if (lora is None) != (run.tuning == "Full"):
        yield f"tuning is {run.tuning}; set lora where it is LoRA or QLoRA, and nowhere else"
    if lora is not None:
        if lora.rank < 1 or lora.alpha < 1:
            yield f"lora.rank is {lora.rank} and lora.alpha {lora.alpha}; both must be at least 1"
        if not 0 <= lora.dropout < 1:
            yield f"lora.dropout is {lora.dropout}; it must be from 0 to below 1"
        if not lora.target_modules:
            yield 'lora.targetModules is empty; name layers, or use ["all-linear"]'
    if (run.preference is None) == (run.objective in PREFERENCES):
        yield f"objective is {run.objective}; set preference where it is DPO, KTO or ORPO only"

"""Memory: what prepare decides before a GPU is held, and what training does with it."""

from __future__ import annotations

from importlib.util import find_spec

from finetune_api.fitting import Fitted, TooLarge, applied, decide, gib, parts
from finetune_api.outcome import PrepareFacts
from finetune_api.run_config import RunConfig
from finetune_api.sizes import Attention, ModelShape
from finetune_trainer.errors import ConfigurationError, OutOfMemoryError
from finetune_trainer.logs import say


def fit(run: RunConfig, shape: ModelShape) -> Fitted:
    """Settle every `Auto` that concerns memory.

    Raises:
        ConfigurationError: weights are to be offloaded under a stage that cannot.
        OutOfMemoryError: by the estimate nothing fits; no GPU has been asked for yet.
    """
    fixed = "zeroStage" not in run.auto and run.zero_stage < 3
    if fixed and run.offload == "OptimizerAndParameters":
        raise ConfigurationError(
            f"spec.zero.offload: OptimizerAndParameters needs spec.zero.stage 3 or Auto (now "
            f"{run.zero_stage}); lower stages keep all parameters on every GPU"
        )
    found = decide(run, shape, attention(run))
    if isinstance(found, TooLarge):
        raise OutOfMemoryError(found.message)
    chosen = found.resolved
    say(
        f"memory of a process: about {gib(found.estimate.total)} ({parts(found.estimate)}) with "
        f"micro-batch {chosen.micro_batch_size} x {chosen.gradient_accumulation_steps}, "
        f"ZeRO {chosen.zero_stage}, offload {chosen.offload}, gradient checkpointing "
        f"{'on' if chosen.gradient_checkpointing else 'off'}"
    )
    return found


def attention(run: RunConfig) -> Attention:
    """What the engine will use on GPUs: prepare runs in the same image, but has none."""
    flash = run.accelerator == "CUDA" and run.training.precision == "BF16"
    return "Flash" if flash and find_spec("flash_attn") is not None else "Masked"


def resolved_run(run: RunConfig, facts: PrepareFacts) -> RunConfig:
    """`run` as prepare has decided it, or the operator for another number of nodes; every process
    trains with this."""
    return applied(run, facts.resolved) if facts.resolved and not run.resolved else run

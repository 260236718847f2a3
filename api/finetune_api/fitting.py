"""What `Auto` decides about memory: the first choice that fits, in a fixed order of preference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from finetune_api.memory import estimate
from finetune_api.outcome import Estimate, ResolvedTraining
from finetune_api.run_config import RunConfig
from finetune_api.sizes import GIB, Attention, ModelShape, Offload, Setup

HEADROOM = 0.9
"""Part of the memory that a choice of `Auto` may fill: the estimate is within 15 % of what was
measured elsewhere, and the allocator loses some to gaps."""

OFFLOADS: tuple[Offload, ...] = ("None", "Optimizer", "OptimizerAndParameters")
STAGES: tuple[Literal[1, 2, 3], ...] = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What the run is to do, and what it will need."""

    resolved: ResolvedTraining
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class TooLarge:
    """Nothing fits; the message says what it lacks and what to change."""

    message: str


def decide(run: RunConfig, shape: ModelShape, attention: Attention = "Masked") -> Fitted | TooLarge:
    """Settle every `Auto` that concerns memory; what the job fixes is never changed.

    The first choice stays where it fits or where the memory is unknown. Else, in this order, until
    something fits: smaller micro-batches, gradient checkpointing (with the largest micro-batch
    again), a higher ZeRO stage, offloading the optimizer, and the parameters too. Where all fill
    more than `HEADROOM`, it is the smallest.
    """
    tried = [
        Fitted(choice, estimate(shape, Setup.of(applied(run, choice), attention)))
        for choice in choices(run)
    ]
    if run.memory.accelerator_bytes is None:
        return tried[0]
    for found in tried:
        if fits(run, found.estimate, HEADROOM):
            return found
    least = min(tried, key=lambda found: found.estimate.total)
    if fits(run, least.estimate, 1.0):
        return least
    return TooLarge(_too_large(run, least))


def applied(run: RunConfig, resolved: ResolvedTraining) -> RunConfig:
    """`run` with what was decided."""
    training = run.training.model_copy(
        update={
            "micro_batch_size": resolved.micro_batch_size,
            "gradient_accumulation_steps": resolved.gradient_accumulation_steps,
            "gradient_checkpointing": resolved.gradient_checkpointing,
        }
    )
    return run.model_copy(
        update={
            "training": training,
            "zero_stage": resolved.zero_stage,
            "offload": resolved.offload,
        }
    )


def fits(run: RunConfig, needed: Estimate, part: float) -> bool:
    """Whether `part` of the accelerator's memory is enough, and of the node's where it is used."""
    limit, host = run.memory.accelerator_bytes, run.memory.host_bytes
    if limit is not None and needed.total > part * limit:
        return False
    return run.accelerator == "CPU" or host is None or needed.host <= part * host


def choices(run: RunConfig) -> Iterator[ResolvedTraining]:
    """Everything that may be chosen, best first; the first one is what `run` says."""
    training, share = run.training, run.training.global_batch_size // run.world_size
    micro = [training.micro_batch_size]
    if "microBatchSize" in run.auto:
        micro += [n for n in (8, 4, 2, 1) if n < micro[0] and share % n == 0]
    checkpointing = [training.gradient_checkpointing]
    if "gradientCheckpointing" in run.auto and not checkpointing[0]:
        checkpointing.append(True)
    for offload in _offloads(run):
        for stage in _stages(run, offload):
            for again in checkpointing:
                for size in micro:
                    yield ResolvedTraining(
                        zero_stage=stage,
                        offload=offload,
                        micro_batch_size=size,
                        gradient_accumulation_steps=share // size,
                        gradient_checkpointing=again,
                    )


def _offloads(run: RunConfig) -> list[Offload]:
    """On a CPU there is but one memory, so nothing is gained."""
    if "offload" not in run.auto or run.accelerator == "CPU":
        return [run.offload]
    return list(OFFLOADS[OFFLOADS.index(run.offload) :])


def _stages(run: RunConfig, offload: str) -> list[Literal[1, 2, 3]]:
    """Weights can be offloaded under stage 3 only, which not every tuning allows."""
    if "zeroStage" not in run.auto:
        return [run.zero_stage] if run.zero_stage == 3 or offload != OFFLOADS[2] else []
    least = 3 if offload == OFFLOADS[2] else run.zero_stage
    return [stage for stage in STAGES if least <= stage <= run.highest_stage]


def gib(size: int) -> str:
    """For people."""
    return f"{size / GIB:.1f} GiB"


def parts(needed: Estimate) -> str:
    """The terms of an estimate, largest first."""
    terms = needed.model_dump(exclude={"total", "host"})
    ordered = sorted(terms.items(), key=lambda term: -term[1])
    return ", ".join(f"{name} {gib(size)}" for name, size in ordered if size)


def advice(run: RunConfig) -> list[str]:
    """What to change when memory runs out, best first: only what this run has not done already."""
    training, fixes = run.training, []
    if training.micro_batch_size > 1:
        fixes.append(f"lower spec.training.microBatchSize (now {training.micro_batch_size})")
    if not training.gradient_checkpointing:
        fixes.append("set spec.training.gradientCheckpointing: Always")
    if run.zero_stage < run.highest_stage == 3 and run.world_size > 1:
        fixes.append(f"set spec.zero.stage: 3 (now {run.zero_stage})")
    if run.accelerator == "CUDA" and run.offload != OFFLOADS[2]:
        further = OFFLOADS[2] if run.zero_stage == 3 else OFFLOADS[1]
        if further != run.offload:
            fixes.append(f"set spec.zero.offload: {further} (now {run.offload})")
    if run.tuning == "Full":
        fixes.append("use spec.method.tuning: LoRA")
    if training.precision == "FP32":
        fixes.append("use spec.training.precision: BF16")
    fixes.append(f"shorten spec.training.sequenceLength (now {training.sequence_length})")
    fixes.append("use more workers or a profile with more memory")
    return fixes


def _too_large(run: RunConfig, least: Fitted) -> str:
    needed, chosen = least.estimate, applied(run, least.resolved)
    what = "GPU" if run.accelerator == "CUDA" else "process"
    limits = [f"{gib(run.memory.accelerator_bytes or 0)} is there"]
    if needed.host and run.memory.host_bytes is not None:
        limits.append(
            f"beside it {gib(needed.host)} of the pod's memory, where a process has "
            f"{gib(run.memory.host_bytes)}"
        )
    return (
        f"training needs about {gib(needed.total)} on every {what} ({parts(needed)}) at "
        f"micro-batch size {chosen.training.micro_batch_size}, gradient checkpointing "
        f"{'on' if chosen.training.gradient_checkpointing else 'off'}, ZeRO stage "
        f"{chosen.zero_stage}, offload {chosen.offload}, but {', and '.join(limits)}; "
        f"in this order: {', '.join(advice(chosen))}"
    )

"""What memory depends on: the sizes of a model, how it is trained, and constants of the engine.

The constants are also what `finetune_trainer.zero` tells DeepSpeed.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import ApiModel
from finetune_api.run_config import PREFERENCES, LoraConfig, RunConfig

GIB = 2**30

CUDA_BUCKET = 100_000_000
"""Elements per communication bucket on GPUs. With overlap the buffers take 4.5 times as many 4-byte
numbers, 1.8 GB; DeepSpeed's own default of 5e8 takes 9 GB."""
CPU_BUCKET = 25_000_000
"""Elements per communication bucket on CPU: gloo is not faster with larger ones, and the memory
(100 MB in 32 bit) is the pod's own."""
MAX_LIVE = 1_000_000_000
"""ZeRO-3: weights that may be whole at a time; 2 GB in bfloat16."""
PERSISTENT = 100_000
"""ZeRO-3: parameters of at most so many elements stay whole on every process."""
SUB_GROUP = 1_000_000_000
"""ZeRO-3: elements that the optimizer changes at a time, with a 32-bit copy of their gradients."""
LOSS_CHUNK = 2048
"""Positions whose logits are in 32 bit at a time, ..."""
LOSS_BYTES = 1 << 25
"""... or, where the output layer itself gives losses, the bytes of those logits."""

LIBRARIES = {"CUDA": GIB, "CPU": GIB}
"""CUDA's context and cuBLAS; on a CPU the interpreter with torch, transformers and DeepSpeed."""
NCCL = GIB
"""What NCCL takes on a GPU as soon as there are two processes."""
OVERLAP = 4.5
"""Buckets at a time where communication overlaps with computation (transformers on DeepSpeed)."""
NF4 = 0.516
"""Bytes per 4-bit weight with its constants, quantised twice (QLoRA, section 3)."""

Attention = Literal["Flash", "Masked"]
Offload = Literal["None", "Optimizer", "OptimizerAndParameters"]


class LinearShape(ApiModel):
    """Linear layers of one name; the output head is not among them."""

    name: Annotated[str, StringConstraints(max_length=256)]
    """Last part of the layers' names."""
    in_features: int
    """Width of what they take."""
    out_features: int
    """Width of what they give."""
    count: int
    """How many there are."""


class ModelShape(ApiModel):
    """What memory depends on in a model."""

    parameters: int
    """Tied weights counted once."""
    largest_module: int
    """Parameters of the largest single module, mostly the embedding: what ZeRO-3 gathers."""
    small_parameters: int
    """In tensors of at most `PERSISTENT` elements."""
    hidden_size: int
    """Width of what goes from layer to layer."""
    intermediate_size: int
    """Inner width of the feed-forward part, of all experts that a token goes through."""
    layers: int
    """Number of layers."""
    heads: int
    """Heads of attention."""
    kv_heads: int
    """Heads of keys and values, shared by those of attention."""
    head_size: int
    """Width of a head."""
    vocabulary_size: int
    """Tokens that can be predicted."""
    linears: Annotated[list[LinearShape], Field(max_length=10_000)]
    """All linear layers but the output head."""


class Setup(ApiModel):
    """What memory depends on beside the model."""

    tuning: Literal["Full", "LoRA", "QLoRA"]
    lora: LoraConfig | None = None
    zero_stage: Literal[1, 2, 3]
    offload: Offload = "None"
    ranks: int
    rows: int
    """Sequences in one forward pass; two per preference pair."""
    sequence_length: int
    precision: Literal["BF16", "FP32"] = "BF16"
    gradient_checkpointing: bool = False
    accelerator: Literal["CUDA", "CPU"] = "CUDA"
    attention: Attention = "Masked"
    """`Masked`: torch's own attention, with a mask that keeps packed examples apart."""

    @classmethod
    def of(cls, run: RunConfig, attention: Attention = "Masked") -> Setup:
        """As the trainer runs `run`."""
        training = run.training
        pairs = 2 if run.objective in PREFERENCES else 1
        return cls(
            tuning=run.tuning,
            lora=run.lora,
            zero_stage=run.zero_stage,
            offload=run.offload,
            ranks=run.world_size,
            rows=pairs * training.micro_batch_size,
            sequence_length=training.sequence_length,
            precision=training.precision,
            gradient_checkpointing=training.gradient_checkpointing,
            accelerator=run.accelerator,
            attention=attention,
        )

    @property
    def number(self) -> int:
        """Bytes of a weight or an activation."""
        return 2 if self.precision == "BF16" else 4


class Stack(ApiModel):
    """Habits of the software; the defaults are this trainer's, others are for published figures."""

    master: int = 4
    """Bytes per trained weight for the optimizer's own copy."""
    moments: int = 8
    """Bytes per trained weight for AdamW's two averages."""
    gradient: int = 4
    """Bytes per trained weight for the sum of gradients."""
    loss: Literal["OutputLayer", "Chunks", "Whole"] = "OutputLayer"
    """`OutputLayer`: the loss is taken inside of it, so that there are never all logits; `Whole`:
    over all positions at once."""
    loss_chunk: int = LOSS_CHUNK
    bucket: int | None = None
    live: int = MAX_LIVE
    sub_group: int = SUB_GROUP
    libraries: int | None = None
    """Bytes; 0 where somebody counted tensors only."""


OURS = Stack()


def targeted(shape: ModelShape, lora: LoraConfig) -> list[LinearShape]:
    """The layers that get an adapter."""
    if lora.target_modules == ["all-linear"]:
        return shape.linears
    return [linear for linear in shape.linears if linear.name in lora.target_modules]


def trained_parameters(shape: ModelShape, lora: LoraConfig | None) -> int:
    """Numbers that the optimizer changes: r (in + out) per adapted layer (LoRA, section 4.1)."""
    if lora is None:
        return shape.parameters
    adapters = sum(
        t.count * (lora.rank * (t.in_features + t.out_features) + lora.use_dora * t.out_features)
        for t in targeted(shape, lora)
    )
    sizes = {x.name: x.count * x.in_features * x.out_features for x in shape.linears}
    table = shape.vocabulary_size * shape.hidden_size  # the embedding, or the output head
    return adapters + sum(sizes.get(name, table) for name in lora.modules_to_save)


def persistent_elements(shape: ModelShape, lora: LoraConfig | None) -> int:
    """Elements that ZeRO-3 keeps whole: norms, and the matrices of small adapters."""
    if lora is None:
        return shape.small_parameters
    sizes = [
        (t.count, lora.rank * side)
        for t in targeted(shape, lora)
        for side in (t.in_features, t.out_features)
    ]
    return shape.small_parameters + sum(prod(size) for size in sizes if size[1] <= PERSISTENT)

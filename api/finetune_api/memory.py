"""How much memory one training process needs: a pure function of model, method and sharding.

It describes what this trainer holds (`finetune_trainer.zero`, `.engine`, `.losses`), term by term;
docs/memory.md has the formulas with their sources, and the tests compare them with real tensors.
Bytes per number: 4 in 32 bit, 2 in bfloat16.
"""

from __future__ import annotations

from math import prod
from typing import Literal

from finetune_api.base import ApiModel
from finetune_api.outcome import Estimate
from finetune_api.run_config import LoraConfig, RunConfig

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

    name: str
    in_features: int
    out_features: int
    count: int


class ModelShape(ApiModel):
    """What memory depends on in a model."""

    parameters: int
    """Tied weights counted once."""
    largest_module: int
    """Parameters of the largest single module, mostly the embedding: what ZeRO-3 gathers."""
    small_parameters: int
    """In tensors of at most `PERSISTENT` elements."""
    hidden_size: int
    intermediate_size: int
    """Inner width of the feed-forward part, of all experts that a token goes through."""
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary_size: int
    linears: list[LinearShape]


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
        pairs = 2 if run.objective in ("DPO", "KTO", "ORPO") else 1
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
    loss: Literal["OutputLayer", "Chunks", "Whole"] = "Chunks"
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


def _persistent(shape: ModelShape, lora: LoraConfig | None) -> int:
    """Elements that ZeRO-3 keeps whole: norms, and the matrices of small adapters."""
    if lora is None:
        return shape.small_parameters
    sizes = [
        (t.count, lora.rank * side)
        for t in targeted(shape, lora)
        for side in (t.in_features, t.out_features)
    ]
    return shape.small_parameters + sum(prod(size) for size in sizes if size[1] <= PERSISTENT)


def estimate(shape: ModelShape, setup: Setup, stack: Stack = OURS) -> Estimate:
    """Memory of one training process at its peak, in bytes: in the backward pass, or in the step.

    Args:
        shape: The model.
        setup: Method, sharding and sizes.
        stack: Only for comparing with other software.
    """
    trained = trained_parameters(shape, setup.lora)
    weights, weights_host = _weights(shape, setup, trained)
    gradients, gradients_host = _gradients(setup, trained, stack)
    passing, passing_host = _on_the_way(shape, setup, trained)
    optimizer = -(-trained // setup.ranks) * (stack.master + stack.moments)
    host = weights_host + gradients_host + passing_host
    if setup.offload != "None":
        host, optimizer = host + optimizer, 0
    logits = _logits(shape, setup, stack)
    activations = _activations(shape, setup, logits)
    passing += _communication(shape, setup, trained, stack)
    step = _step(setup, trained, stack)
    working = max(passing, step - activations - logits)
    buffers = working + _libraries(setup, stack)
    total = weights + gradients + optimizer + activations + logits + buffers
    if setup.accelerator == "CPU":  # there is one memory: offloading moves nothing
        total += host
    return Estimate(
        parameters=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        buffers=buffers,
        total=total,
        host=host,
    )


def _weights(shape: ModelShape, setup: Setup, trained: int) -> tuple[int, int]:
    """On the accelerator and in the node's memory."""
    number, frozen = setup.number, 0 if setup.lora is None else shape.parameters
    quantised = 0
    if setup.tuning == "QLoRA":
        quantised = sum(x.count * x.in_features * x.out_features for x in shape.linears)
        frozen -= quantised
    packed = round(NF4 * quantised)  # DeepSpeed shards no 4-bit weights
    plain = number * (frozen + trained)
    if setup.zero_stage < 3:
        return packed + plain, 0
    whole = number * _persistent(shape, setup.lora)
    shard = -(-plain // setup.ranks)
    if setup.offload == "OptimizerAndParameters":
        return packed + whole, shard
    return packed + shard + (whole if setup.ranks > 1 else 0), 0


def _gradients(setup: Setup, trained: int, stack: Stack) -> tuple[int, int]:
    """On the accelerator and in the node's memory, where the optimizer reads them."""
    whole, part = stack.gradient * trained, stack.gradient * -(-trained // setup.ranks)
    here = whole if setup.zero_stage == 1 else part
    if setup.offload == "None":
        return here, 0
    if setup.zero_stage == 3:  # summed there, and copied for the step
        return 0, 2 * part
    if setup.zero_stage == 2 and setup.precision == "FP32":  # summed there, too
        return 0, 2 * part
    return here, part


def _on_the_way(shape: ModelShape, setup: Setup, trained: int) -> tuple[int, int]:
    """ZeRO 1 and 2 with offload: one gradient on its way to the node, changed weights from it."""
    if setup.zero_stage == 3 or setup.offload == "None":
        return 0, 0
    largest = setup.number * min(shape.largest_module, trained)
    return largest, largest + setup.number * -(-trained // setup.ranks)


def _activations(shape: ModelShape, setup: Setup, logits: int) -> int:
    """What the forward pass keeps for the backward pass, and what that needs beside it.

    Counted tensor by tensor after Korthikanti et al. (2022), section 4.1, for a layer of the Llama
    kind: normalisation in 32 bit, gated feed-forward part, no dropout, attention scores never
    stored. The logits are gone when the first layer goes backward, so the larger of both counts.
    """
    number, hidden = setup.number, shape.hidden_size
    tokens = setup.rows * setup.sequence_length
    layer = tokens * _layer_per_token(shape, setup)
    if setup.attention == "Masked":
        # Torch makes numbers of the mask, for every layer anew.
        layer += setup.rows * setup.sequence_length**2 * number
    # While a layer goes backward: the gradients of the inner tensors of its feed-forward part.
    backward = tokens * number * (3 * shape.intermediate_size + hidden)
    ends = tokens * (2 * number + 4) * hidden  # embedding, last normalisation
    if setup.gradient_checkpointing:  # only the input of every layer; one is computed again
        kept, backward = shape.layers * tokens * number * hidden, backward + layer
    else:
        kept = shape.layers * layer
    return kept + ends + max(0, backward - logits)


def _layer_per_token(shape: ModelShape, setup: Setup) -> int:
    """Bytes that one layer keeps for one token."""
    number, hidden = setup.number, shape.hidden_size
    query = shape.heads * shape.head_size
    # A mask makes transformers repeat keys and values for every query head.
    keys = (shape.heads if setup.attention == "Masked" else shape.kv_heads) * shape.head_size
    norms = 2 * (4 * hidden + (number * hidden if setup.lora is None else 0))
    inputs = 2 * number * hidden
    attention = number * (2 * query + 2 * keys) + 4 * shape.heads
    feed_forward = 4 * number * shape.intermediate_size
    found = norms + inputs + attention + feed_forward
    if setup.lora:
        for t in targeted(shape, setup.lora):
            each = number * setup.lora.rank
            if setup.lora.dropout:  # the thinned input and which numbers were left out
                each += (number + 1) * t.in_features
            found += t.count * each // shape.layers
    return found


def _logits(shape: ModelShape, setup: Setup, stack: Stack) -> int:
    """At most, where every position is learned; as `finetune_trainer.losses` computes them.

    In 32 bit: logarithm of the softmax, its gradient and that of the logits, 12 bytes. In bfloat16:
    all logits, and the gradients of the chunks that are done.
    """
    words, positions = shape.vocabulary_size, setup.rows * setup.sequence_length
    if stack.loss == "OutputLayer":
        weights = (setup.number + 4) * words * shape.hidden_size if setup.lora is None else 0
        return 3 * LOSS_BYTES + weights
    if setup.precision == "FP32":
        return 12 * positions * words
    chunk = min(positions, stack.loss_chunk) if stack.loss == "Chunks" else positions
    return (2 * positions + 2 * (positions - chunk) + 12 * chunk) * words


def _communication(shape: ModelShape, setup: Setup, trained: int, stack: Stack) -> int:
    """Buckets of gradients, and the weights that ZeRO-3 has gathered."""
    cuda = setup.accelerator == "CUDA"
    bucket = stack.bucket if stack.bucket is not None else (CUDA_BUCKET if cuda else CPU_BUCKET)
    buckets = round(4 * bucket * (OVERLAP if cuda else 2))
    if setup.zero_stage < 3:
        return buckets if setup.ranks > 1 else 4 * bucket
    if setup.ranks == 1 and setup.offload != "OptimizerAndParameters":
        return buckets
    everything = shape.parameters + (trained if setup.lora else 0)
    live = min(everything, stack.live + shape.largest_module)
    arriving = min(everything, shape.largest_module + bucket // 2)  # flat, then copied in place
    return buckets + setup.number * (live + arriving)


def _libraries(setup: Setup, stack: Stack) -> int:
    """Memory that is gone before the first tensor."""
    if stack.libraries is not None:
        return stack.libraries
    nccl = NCCL if setup.accelerator == "CUDA" and setup.ranks > 1 else 0
    return LIBRARIES[setup.accelerator] + nccl


def _step(setup: Setup, trained: int, stack: Stack) -> int:
    """What the optimizer's step needs beside the states: gradients in 32 bit, in one piece."""
    part = -(-trained // setup.ranks)
    if setup.offload != "None":
        return 0
    if setup.zero_stage == 3:
        return 4 * min(part, stack.sub_group)
    if setup.precision == "FP32":  # a copy, while the sum of ZeRO-1 shrinks to this process's part
        return 4 * part if setup.zero_stage == 2 else max(0, 8 * part - 4 * trained)
    return 0

"""How much memory one training process needs: a pure function of model, method and sharding.

It describes what this trainer holds (`finetune_trainer.zero`, `.engine`, `.losses`), term by term;
docs/memory.md has the formulas with their sources, and the tests compare them with real tensors.
Bytes per number: 4 in 32 bit, 2 in bfloat16.
"""

from __future__ import annotations

from finetune_api.outcome import Estimate
from finetune_api.sizes import (
    CPU_BUCKET,
    CUDA_BUCKET,
    LIBRARIES,
    LOSS_BYTES,
    NCCL,
    NF4,
    OURS,
    OVERLAP,
    ModelShape,
    Setup,
    Stack,
    persistent_elements,
    targeted,
    trained_parameters,
)


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
    whole = number * persistent_elements(shape, setup.lora)
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

"""Exact attention inside the examples of packed rows, without a mask, on CPU.

With a mask of [length, length] every token is compared with all tokens of its row, and most of the
results are thrown away. Here attention runs example by example: causal, so no mask is read at all.
On a GPU the calls would be too small; flash attention does the same in one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

NAME = "finetune_segments"
"""Under which transformers finds it."""

KEYWORD = "segments"
"""The argument of a model's forward pass that carries `Segments` down to its attention."""

Segments = list[tuple[int, int, int]]
"""The examples of a micro-batch: row, first token, and the token after the last."""

BLOCK = 256
"""Queries whose scores are computed at a time in the backward pass."""

PAD = 32
"""Lengths are multiples of this: for every new shape of a product its code is generated anew,
which takes longer than the product."""

_proofs: list[tuple[Tensor, Tensor]] | None = None

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def segments(position_ids: np.ndarray) -> Segments:
    """Find the examples: each begins where positions start again.

    Args:
        position_ids: [rows, length]
    """
    found = []
    for row, positions in enumerate(position_ids):
        starts = [0, *(np.flatnonzero(positions[1:] == 0) + 1).tolist(), len(positions)]
        found += [(row, a, b) for a, b in pairwise(starts)]
    return found


class _SegmentAttention(torch.autograd.Function):
    """Causal attention of [rows, heads, length, features], example by example.

    The backward pass is written out: torch's for CPU multiplies in blocks that are too small for
    the matrix units, and takes ten times as long as the forward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, where: Segments, scale: float
    ) -> Tensor:
        rows, heads, length, _ = query.shape
        out = query.new_empty(rows, length, heads, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(rows, heads, length, dtype=torch.float32)
        for row, a, b in where:
            q, k, v = (_padded(x[row : row + 1, :, a:b]) for x in (query, key, value))
            repeats = heads // key.shape[1]
            if repeats > 1:
                k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
            mine, totals = _flash(q, k, v, 0.0, True, scale=scale)
            out[row, :, a:b], sums[row, :, a:b] = mine[0, :, : b - a], totals[0, :, : b - a]
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.where, ctx.scale = where, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        (grad,) = grads
        into = [
            x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)
            for x in (query, key, value)
        ]
        for row, a, b in ctx.where:
            whole = slice(a, b)
            q, g, o, k, v = (_padded(x[row, :, whole]) for x in (query, grad, out, key, value))
            total = _padded(sums[row, :, whole, None]).squeeze(-1)
            compute = _block_gradients if b - a <= BLOCK else _example_gradients
            parts = compute(q, g, o, total, k, v, ctx.scale)
            for target, part in zip(into, parts, strict=True):
                target[row, :, whole] = part[:, : b - a]
        return *into, None, None


def _padded(x: Tensor) -> Tensor:
    """[..., length, features] with zeros up to a multiple of `PAD`: causal attention of the tokens
    before them cannot see them, and from a gradient of zero nothing comes back."""
    return pad(x, (0, 0, 0, -x.shape[-2] % PAD))


def _example_gradients(
    query: Tensor,
    grad: Tensor,
    out: Tensor,
    sums: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_block_gradients`, for a whole example, block by block: sums over blocks in 32 bit."""
    into_query = torch.empty_like(query)
    into_key, into_value = (torch.zeros_like(x, dtype=torch.float32) for x in (key, value))
    for first in range(0, query.shape[1], BLOCK):
        last = slice(first, first + BLOCK)
        seen = slice(0, min(first + BLOCK, query.shape[1]))
        q, g, o, total = (x[:, last] for x in (query, grad, out, sums))
        into_query[:, last], *parts = _block_gradients(
            q, g, o, total, key[:, seen], value[:, seen], scale
        )
        into_key[:, seen] += parts[0]
        into_value[:, seen] += parts[1]
    return into_query, into_key, into_value


def _block_gradients(
    query: Tensor,
    grad: Tensor,
    out: Tensor,
    sums: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for a block of queries and for all keys and values that it sees.

    Args:
        query: [query heads, block, features], like `grad` and `out`; the last of the keys' length.
        sums: [query heads, block], logarithms of the softmax's denominators.
        key: [key heads, seen, features], like `value`.

    Returns:
        For queries [query heads, block, features], keys and values [key heads, seen, features].
    """
    heads, block, seen = key.shape[0], query.shape[1], key.shape[1]

    def grouped(x: Tensor) -> Tensor:  # the queries of all heads that share a key head
        return x.reshape(heads, -1, x.shape[-1])

    # Products that are differences of large numbers afterwards in 32 bit, the others in `dtype`.
    wide_grad = grouped(grad).float()
    inner = (wide_grad * grouped(out)).sum(-1, keepdim=True)
    p = grouped(query).float() @ key.float().transpose(1, 2)
    p.mul_(scale).sub_(sums.reshape(heads, -1, 1)).exp_()
    p.view(-1, block, seen).tril_(seen - block)
    into_p = wide_grad @ value.float().transpose(1, 2)
    into_scores = into_p.sub_(inner).mul_(p).mul_(scale).to(query.dtype)
    into_value = p.to(query.dtype).transpose(1, 2) @ grouped(grad)
    into_key = into_scores.transpose(1, 2) @ grouped(query)
    return (into_scores @ key).view_as(query), into_key, into_value


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it; without segments, or where they do not say all, its own.

    Returns:
        [rows, length, heads, features], and no weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    where = kwargs.pop(KEYWORD, None)
    special = ("sliding_window", "softcap", "position_bias", "cache", "output_attentions")
    own = where is None or dropout or any(kwargs.get(name) for name in special)
    usual = None
    if own or _proofs is not None:
        usual, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if own:
        return usual, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = _SegmentAttention.apply(query, key, value, where, scale).transpose(1, 2)
    if _proofs is not None:
        _proofs.append((usual, out))
    return out, None


@contextmanager
def proofs() -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Within this, attention is computed both ways; gives the results of every layer."""
    global _proofs
    _proofs = []
    try:
        yield _proofs
    finally:
        _proofs = None


def register() -> None:
    """Make it known to transformers under `NAME`; masks are those of SDPA, for other callers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)

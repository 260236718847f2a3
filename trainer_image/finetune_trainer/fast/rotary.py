"""Rotary position embedding of queries and keys, with a backward pass that keeps neither."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Rotate(torch.autograd.Function):
    """`x * cos + rotate_half(x) * sin`: linear in `x`, so that `x` need not be kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        out = x * cos
        turned = sin * _swap(x)
        out[..., :half].sub_(turned[..., :half])
        out[..., half:].add_(turned[..., half:])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        (grad,) = grads
        half = grad.shape[-1] // 2
        out = grad * cos
        turned = _swap(grad * sin)
        out[..., :half].add_(turned[..., :half])
        out[..., half:].sub_(turned[..., half:])
        return out, None, None


def _swap(x: Tensor) -> Tensor:
    """The two halves of the last dimension in the other order."""
    return torch.roll(x, x.shape[-1] // 2, -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` [rows, heads, length, features], `cos` and `sin` [rows, 1, length, features]."""
    return _Rotate.apply(x, cos, sin)

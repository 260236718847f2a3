"""The gated part of a SwiGLU block, `silu(gate) * up`, keeping its two inputs only."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        (grad,) = grads
        into_up = silu(gate).mul_(grad)
        into_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return into_gate, into_up


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, both of one shape."""
    return _GatedSilu.apply(gate, up)


def fits(module: nn.Module) -> bool:
    """Whether a module looks like a SwiGLU block; what it computes is proven elsewhere."""
    names = {name for name, _ in module.named_children()}
    return names == {"gate_proj", "up_proj", "down_proj", "act_fn"}


def replace(module: nn.Module) -> None:
    """Let a block compute with `gated_silu`."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down_proj(gated_silu(self.gate_proj(x), self.up_proj(x)))

    module.forward = MethodType(forward, module)

"""A linear layer with a LoRA adapter as one operation.

peft's own layer makes, for every call, the adapter's product, its scaled copy, and the sum with the
frozen layer's product: three more tensors as large as the output, and as many in the backward pass.
Here the adapter is added onto the frozen layer's product in place.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class _LoraLinear(torch.autograd.Function):
    """`x W' + bias + scale (x A') B'`, gradients for x, A and B only."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        seen = rows if dropped is None else dropped.reshape(rows.shape)
        out = linear(rows, weight, bias)
        narrow = seen @ a.t()
        out.addmm_(narrow, b.t(), alpha=scale)
        ctx.save_for_backward(x if dropped is None else dropped, narrow, weight, a, b)
        ctx.scale, ctx.together = scale, dropped is None
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        seen, narrow, weight, a, b = ctx.saved_tensors
        shape, seen = seen.shape, seen.reshape(-1, seen.shape[-1])
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        into_narrow = (grad @ b).mul_(ctx.scale)
        into_x = into_dropped = None
        if ctx.needs_input_grad[0]:
            into_x = grad @ weight
            if ctx.together:
                into_x.addmm_(into_narrow, a)
            into_x = into_x.view(shape)
        if not ctx.together and ctx.needs_input_grad[1]:
            into_dropped = (into_narrow @ a).view(shape)
        into_a = into_narrow.t() @ seen
        into_b = (narrow.t() @ grad).mul_(ctx.scale).t()  # this way round it takes half the time
        return into_x, into_dropped, None, None, into_a, into_b, None


def replace(layer: Any) -> bool:
    """Let a LoRA layer of peft compute as above; False: it is of a kind that is left alone.

    Left alone are layers whose frozen part is not a plain `nn.Linear` (4 bit), DoRA and the like,
    adapters with a bias or of another type than the frozen part. What changes from call to call
    (adapter switched off, merged, several at a time) goes the way of peft.
    """
    base = layer.get_base_layer()
    names = list(layer.lora_A)
    if type(base) is not nn.Linear or len(names) != 1 or layer.lora_variant:
        return False
    name = names[0]
    parts = (layer.lora_A[name], layer.lora_B[name])
    if any(type(part) is not nn.Linear or part.bias is not None for part in parts):
        return False
    if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return False
    if any(part.weight.dtype != base.weight.dtype for part in parts):
        return False

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = self.get_base_layer()
        usual = not (args or kwargs or self.disable_adapters or self.merged)
        if not usual or list(self.active_adapters) != [name] or x.dtype != base.weight.dtype:
            return type(self).forward(self, x, *args, **kwargs)
        dropout = self.lora_dropout[name]
        dropping = self.training and getattr(dropout, "p", 0.0) > 0
        return _LoraLinear.apply(
            x,
            dropout(x) if dropping else None,
            base.weight,
            base.bias,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
        )

    layer.forward = MethodType(forward, layer)
    return True

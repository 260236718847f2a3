"""Output layer and cross entropy in one: the logits of a few tokens at a time, never all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

CHUNK_BYTES = 1 << 26
"""The 32-bit logits of a chunk of tokens. With fewer tokens the product reads the output layer's
weight, 57 MB for 49,152 words of 576 features in bfloat16, too often for what it computes."""


class _TokenLosses(torch.autograd.Function):
    """Negative log-likelihood of every target, [tokens].

    A token's loss depends on its own hidden state only, so its gradient is found in the forward
    pass while its logits are there, up to the factor that comes from above in the backward pass.
    The gradient for the weight is a sum over tokens with those factors inside: where it is wanted
    (full tuning), the logits are computed a second time.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        ctx.again = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        wanted = ctx.needs_input_grad[0] and not ctx.again
        into_hidden = torch.empty_like(hidden) if wanted else None
        for some in _chunks(len(hidden), len(weight)):
            log_p = _log_softmax(hidden[some], weight, bias)
            rows = targets[some, None]
            losses[some] = log_p.gather(1, rows).squeeze(1).neg_()
            if into_hidden is not None:
                into_hidden[some] = _into_logits(log_p, rows).to(weight.dtype) @ weight
            del log_p
        if ctx.again:
            ctx.save_for_backward(hidden, weight, bias, targets)
        else:
            ctx.save_for_backward(into_hidden)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        factors = grads[0][:, None]
        if not ctx.again:
            (into_hidden,) = ctx.saved_tensors
            return (into_hidden * factors).to(into_hidden.dtype), None, None, None
        hidden, weight, bias, targets = ctx.saved_tensors
        into_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        into_weight = torch.zeros_like(weight, dtype=torch.float32)
        into_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for some in _chunks(len(hidden), len(weight)):
            log_p = _log_softmax(hidden[some], weight, bias)
            wide = _into_logits(log_p, targets[some, None]).mul_(factors[some])
            if into_bias is not None:
                into_bias += wide.sum(0)
            into_logits = wide.to(weight.dtype)
            del log_p, wide
            if into_hidden is not None:
                into_hidden[some] = into_logits @ weight
            into_weight += into_logits.t() @ hidden[some]
        return (
            into_hidden,
            into_weight.to(weight.dtype) if ctx.needs_input_grad[1] else None,
            into_bias.to(weight.dtype) if into_bias is not None else None,
            None,
        )


def _chunks(tokens: int, words: int) -> list[slice]:
    size = max(1, CHUNK_BYTES // (4 * words))
    return [slice(first, first + size) for first in range(0, tokens, size)]


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In 32 bit: a sum of exponentials over 100,000 words is worth nothing in bfloat16."""
    return torch.log_softmax(linear(hidden, weight, bias).float(), dim=1)


def _into_logits(log_p: Tensor, rows: Tensor) -> Tensor:
    """The gradient of the loss with respect to the logits, in the place of `log_p`."""
    p = log_p.exp_()
    return p.scatter_add_(1, rows, p.new_full((1, 1), -1.0).expand(len(rows), 1))


def token_losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """What every target costs in nats, 32 bit.

    Args:
        hidden: [tokens, features], what goes into the output layer.
        weight: [words, features]
        bias: [words]
        targets: [tokens], every one of them a word.
    """
    return _TokenLosses.apply(hidden, weight, bias, targets)


class LossLayer:
    """Lets a model's output layer give losses where it would give logits.

    The model calls its output layer as ever, so that ZeRO-3 gathers the layer's weight for it, and
    hands on what comes out of it.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """Take the layer; until it is told what to look at it computes logits."""
        self._wanted: tuple[Tensor, Tensor] | None = None

        def forward(self_: Any, hidden: Tensor) -> Tensor:
            if self._wanted is None:
                return linear(hidden, self_.weight, self_.bias)
            places, targets = self._wanted
            rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, places)
            return token_losses(rows, self_.weight, self_.bias, targets)

        layer.forward = MethodType(forward, layer)

    @property
    def busy(self) -> bool:
        """Whether it gives losses now."""
        return self._wanted is not None

    @contextmanager
    def given(self, places: Tensor, targets: Tensor) -> Iterator[None]:
        """Within this, the layer gives `token_losses`.

        Args:
            places: [tokens], which of the layer's inputs, flattened to [inputs, features], count.
            targets: [tokens], the word to be predicted at each.
        """
        self._wanted = (places, targets)
        try:
            yield
        finally:
            self._wanted = None


def hands_on(base: Any, device: torch.device) -> bool:
    """Whether a model's logits are what its output layer gives, untouched.

    Some models scale or bound them afterwards; their losses are not those of the output layer.
    """
    layer = base.get_output_embeddings()
    if type(layer) is not nn.Linear:
        return False
    given: list[Any] = []
    hook = layer.register_forward_hook(lambda *args: given.append(args[-1]))
    training = base.training
    base.eval()
    try:
        with torch.no_grad():
            tokens = torch.zeros(1, 2, dtype=torch.int64, device=device)
            logits = base(input_ids=tokens, use_cache=False).logits
    finally:
        hook.remove()
        base.train(training)
    return len(given) == 1 and logits is given[0]

"""Puts the faster kernels into a loaded model, wherever they prove to compute the same."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from finetune_trainer.fast import adapter, attention, gated, norm

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest difference of what replaces and what is replaced, relative to the largest value: a few
roundings of the type."""


def speed_up(model: nn.Module, base: Any, sharded: bool) -> Counter[str]:
    """Replace norms, gates and adapters; returns how many of each.

    Args:
        model: What is trained: `base`, or peft's model around it.
        base: The model of transformers.
        sharded: ZeRO-3, which fetches weights for one module at a time: adapters stay as they are,
            because theirs and the frozen layer's would be needed together.
    """
    done: Counter[str] = Counter()
    proven: dict[Any, bool] = {}
    for module in base.modules():
        eps = norm.eps_of(module)
        if eps is not None and _once(proven, (type(module), eps), _same_norm, module):
            norm.replace(module, eps)
            done["norm"] += 1
        elif gated.fits(module) and _once(
            proven, (type(module), type(module.act_fn)), _same_gate, module
        ):
            gated.replace(module)
            done["gate"] += 1
    if model is not base and not sharded:
        from peft.tuners.lora import Linear as LoraLinear

        done["adapter"] = sum(adapter.replace(m) for m in base.modules() if type(m) is LoraLinear)
    return done


def _once(
    proven: dict[Any, bool], key: Any, prove: Callable[[nn.Module], bool], module: nn.Module
) -> bool:
    if key not in proven:
        proven[key] = prove(module)
    return proven[key]


def _same_norm(module: nn.Module) -> bool:
    eps = norm.eps_of(module)
    weight = module.weight
    size = getattr(weight, "ds_shape", weight.shape)[0]
    probe = copy.copy(module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        scale = nn.Parameter(torch.randn(size).to(weight.device, weight.dtype))
        x = (3 * torch.randn(5, size)).to(weight.device, weight.dtype)
    probe._parameters = {"weight": scale}
    assert eps is not None
    return _same(
        lambda x: type(module).forward(probe, x), lambda x: norm.rms_norm(x, scale, eps), x, [scale]
    )


def _same_gate(module: Any) -> bool:
    probe = copy.copy(module)
    like = next((p for p in module.parameters() if p.is_floating_point()), None)
    if like is None:
        return False  # 4-bit weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = {
            name: nn.Linear(8, 8, device=like.device, dtype=like.dtype)
            for name in ("gate_proj", "up_proj", "down_proj")
        }
        x = (3 * torch.randn(5, 8)).to(like.device, like.dtype)
    probe._modules = {**layers, "act_fn": module.act_fn}
    fast = copy.copy(probe)
    gated.replace(fast)
    weights = [layer.weight for layer in layers.values()]
    return _same(lambda x: type(module).forward(probe, x), fast.forward, x, weights)


def _same(
    slow: Callable[[Tensor], Tensor],
    fast: Callable[[Tensor], Tensor],
    x: Tensor,
    weights: list[Any],
) -> bool:
    """Whether outputs and all gradients agree."""
    results = []
    for compute in (slow, fast):
        given = x.clone().requires_grad_()
        out = compute(given)
        if out.shape != x.shape or out.dtype != x.dtype:
            return False
        grad = torch.linspace(-1, 1, out.numel(), device=x.device).view_as(out).to(out.dtype)
        results.append([out.detach(), *torch.autograd.grad(out, [given, *weights], grad)])
    tolerance = TOLERANCE.get(x.dtype, 0.0)
    return all(close(a, b, tolerance) for a, b in zip(*results, strict=True))


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two tensors differ by no more than `tolerance` of the largest value."""
    largest = a.float().abs().max().item()
    return (a.float() - b.float()).abs().max().item() <= tolerance * max(largest, 1e-6)


@torch.no_grad()
def use_segments(base: Any, device: torch.device) -> bool:
    """Let attention run example by example, if every layer then gives the same; True: it does.

    Tried on two packed examples of different lengths in each of two rows.
    """
    if base.config._attn_implementation != "sdpa" or device.type != "cpu":
        return False
    attention.register()
    positions = torch.stack([torch.cat([torch.arange(n), torch.arange(24 - n)]) for n in (9, 17)])
    ids = torch.arange(48).view(2, 24) % base.config.get_text_config().vocab_size
    where = {attention.KEYWORD: attention.segments(positions.numpy())}
    training = base.training
    base.eval()
    base.config._attn_implementation = attention.NAME
    try:
        with attention.proofs() as found:
            base(input_ids=ids, position_ids=positions, use_cache=False, **where)
    except TypeError:  # its forward pass takes no further arguments
        found = []
    base.train(training)
    same = bool(found) and all(close(a, b, TOLERANCE.get(a.dtype, 0.0)) for a, b in found)
    if not same:
        base.config._attn_implementation = "sdpa"
    return same

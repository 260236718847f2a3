"""Every kernel that replaces a part of a model computes what that part computed."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

from finetune_trainer.fast import adapter, attention, gated, norm, output  # noqa: E402
from finetune_trainer.fast.apply import close, speed_up, use_segments  # noqa: E402

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def model(kind: str = "Llama", **changes: Any) -> Any:
    """A tiny model of transformers with weights that matter."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(**(SIZES | changes))
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in made.parameters():
        nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    return made.train()


def with_lora(base: Any, **changes: Any) -> Any:
    """An adapter whose B is not zero."""
    import peft

    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | changes
    made = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    return made


def batch() -> dict[str, Any]:
    """Two rows of packed examples, a third of the tokens learned; the last row ends in padding."""
    made = np.random.default_rng(5)
    lengths = ((7, 12, 5), (16, 8))
    positions = np.stack([np.concatenate([np.arange(n) for n in row]) for row in lengths])
    targets = np.where(made.random(positions.shape) < 0.4, made.integers(1, 96, (2, 24)), -100)
    keep = np.flatnonzero((targets != -100).any(0))
    arrays = {
        "input_ids": made.integers(1, 96, (2, 24)),
        "position_ids": positions,
        "keep": keep,
        "targets": targets[:, keep],
    }
    found: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return found | {"segments": attention.segments(positions)}


def outcome(loss: Any, trained: Any) -> list[Any]:
    """A loss and the gradients of everything that is trained."""
    weights = [p for p in trained.parameters() if p.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, weights)]


def assert_close(found: list[Any], expected: list[Any], tolerance: float = 1e-5) -> None:
    assert [x.shape for x in found] == [x.shape for x in expected]
    assert all(close(b, a, tolerance) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_is_that_of_transformers(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "BLOCK_BYTES", 4 * 48 * 3)  # more than one block
    theirs = model().model.norm.to(dtype)
    x = (3 * torch.randn(2, 5, 48)).to(dtype).requires_grad_()
    grad = torch.randn(2, 5, 48).to(dtype)
    expected = [theirs(x), *torch.autograd.grad(theirs(x), [x, theirs.weight], grad)]
    ours = norm.rms_norm(x, theirs.weight, theirs.variance_epsilon)
    assert torch.equal(ours, expected[0])
    found = [ours, *torch.autograd.grad(ours, [x, theirs.weight], grad)]
    assert_close(found, expected, 1e-6 if dtype == torch.float32 else 1e-2)


def test_gated_silu_is_silu_times_up() -> None:
    gate, up, grad = (torch.randn(6, 8) for _ in range(3))
    gate.requires_grad_()
    up.requires_grad_()
    plain = nn.functional.silu(gate) * up
    ours = gated.gated_silu(gate, up)
    expected = [plain, *torch.autograd.grad(plain, [gate, up], grad)]
    assert_close([ours, *torch.autograd.grad(ours, [gate, up], grad)], expected, 1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapted_layer_is_that_of_peft(dropout: float, rslora: bool) -> None:
    theirs = (
        with_lora(model(attention_bias=True), lora_dropout=dropout, use_rslora=rslora)
        .base_model.model.model.layers[0]
        .self_attn.q_proj
    )
    ours = copy.deepcopy(theirs)
    assert adapter.replace(ours)
    x, grad = torch.randn(2, 5, 48), torch.randn(2, 5, 48)
    results = []
    for layer in (theirs, ours):
        given = x.clone().requires_grad_()
        torch.manual_seed(3)  # the same elements dropped
        out = layer(given)
        weights = [p for p in layer.parameters() if p.requires_grad]
        results.append([out, *torch.autograd.grad(out, [given, *weights], grad)])
    assert len(results[0]) == 4
    assert_close(results[1], results[0])
    # What peft can switch at any time still works, and so does an input that needs no gradient.
    for layer in (theirs, ours):
        layer.eval()
    assert_close([ours(x)], [theirs(x)])
    for layer in (theirs, ours):
        layer.enable_adapters(False)
    assert torch.equal(ours(x), theirs(x))
    for layer in (theirs, ours):
        layer.enable_adapters(True)
        layer.merge()
    assert torch.equal(ours(x), theirs(x))


def test_dora_and_adapters_of_another_type_are_left_to_peft() -> None:
    dora = with_lora(model(), use_dora=True)
    assert speed_up(dora, dora.get_base_model(), sharded=False)["adapter"] == 0
    base = model().bfloat16()
    wide = with_lora(base)  # peft makes adapters of bfloat16 models in 32 bit
    assert speed_up(wide, base, sharded=False)["adapter"] == 0


@pytest.mark.parametrize("trained", [False, True])
def test_losses_inside_the_output_layer_are_cross_entropy(
    trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "CHUNK_BYTES", 4 * 96 * 4)  # chunks of four tokens
    hidden, factors = torch.randn(10, 16, requires_grad=True), torch.randn(10)
    weight, bias = (torch.randn(*shape, requires_grad=trained) for shape in ((96, 16), (96,)))
    targets = torch.randint(0, 96, (10,))
    wanted = [hidden, weight, bias] if trained else [hidden]
    plain = cross_entropy(hidden @ weight.t() + bias, targets, reduction="none")
    ours = output.token_losses(hidden, weight, bias, targets)
    expected = [plain, *torch.autograd.grad(plain, wanted, factors)]
    assert_close([ours, *torch.autograd.grad(ours, wanted, factors)], expected)


def test_a_batch_without_learned_tokens_costs_nothing() -> None:
    hidden = torch.randn(0, 16, requires_grad=True)
    losses = output.token_losses(hidden, torch.randn(96, 16), None, torch.zeros(0).long())
    (grad,) = torch.autograd.grad(losses.sum(), hidden)
    assert (losses.sum().item(), grad.shape) == (0.0, (0, 16))


def test_attention_by_segments_is_causal_attention_example_by_example(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "BLOCK", 5)  # more than one block of queries
    where = batch()["segments"]
    assert where == [(0, 0, 7), (0, 7, 19), (0, 19, 24), (1, 0, 16), (1, 16, 24)]
    query = torch.randn(2, 4, 24, 12, requires_grad=True)
    key, value = (torch.randn(2, 2, 24, 12, requires_grad=True) for _ in range(2))
    grad = torch.randn(2, 24, 4, 12)
    ours, _ = attention.attend(nn.Module(), query, key, value, None, segments=where)
    parts: Any = torch.zeros(2, 24, 4, 12)
    for row, a, b in where:
        q, k, v = (x[row : row + 1, :, a:b] for x in (query, key, value))
        k, v = (x.repeat_interleave(2, 1) for x in (k, v))
        alone = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        parts[row, a:b] = alone[0].transpose(0, 1)
    inputs = [query, key, value]
    expected = [parts, *torch.autograd.grad(parts, inputs, grad)]
    assert_close([ours, *torch.autograd.grad(ours, inputs, grad)], expected)


FUSED = {
    "Llama": True,
    "Qwen2": True,
    "Qwen3": True,
    "Mistral": True,
    "GPT2": True,
    "Gemma2": False,
}
"""Architectures, and whether their logits are the output layer's own (Gemma 2 bounds them)."""


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("lora", [False, True])
def test_a_faster_model_has_the_losses_and_gradients_of_the_plain_one(
    kind: str, lora: bool
) -> None:
    from finetune_trainer.losses import SummedLoss

    special = {"Mistral": {"sliding_window": 4}, "Gemma2": {"sliding_window": 4, "head_dim": 12}}
    changes = special.get(kind, {}) | ({"n_layer": 2} if kind == "GPT2" else {})
    told = batch()
    results = []
    for fast in (False, True):
        base = model(kind, **changes)
        if kind == "GPT2":
            base.eval()  # its dropout would differ
        trained = with_lora(base) if lora else base
        module = SummedLoss(trained, base)
        if fast:
            speed_up(trained, base, sharded=False)
            module.fuse(base, CPU)
            assert (module._output is not None) is FUSED[kind]
            if use_segments(base, CPU):
                module.by_segments()
        results.append(outcome(module(**told), trained))
    assert_close(results[1], results[0], 2e-5)


def test_what_is_replaced_is_found_without_a_list_of_models() -> None:
    def replaced(kind: str, **changes: Any) -> dict[str, int]:
        base = model(kind, **changes)
        return {k: v for k, v in speed_up(with_lora(base), base, sharded=False).items() if v}

    assert replaced("Llama") == {"norm": 5, "gate": 2, "adapter": 14}
    assert replaced("Qwen3", head_dim=12) == {"norm": 9, "gate": 2, "adapter": 14}
    # Gemma's norm multiplies by 1 + weight, and its gate is no SiLU.
    assert replaced("Gemma2", head_dim=12) == {"adapter": 14}


def test_packed_examples_have_the_losses_they_have_alone() -> None:
    from finetune_trainer.losses import SummedLoss

    base = model()
    trained = with_lora(base)
    module = SummedLoss(trained, base)
    told = batch()
    plain = []
    whole = torch.full((2, 24), -100)
    whole[:, told["keep"]] = told["targets"]
    for row, a, b in told["segments"]:
        logits = trained(input_ids=told["input_ids"][row : row + 1, a:b]).logits[0]
        plain.append(cross_entropy(logits, whole[row, a:b], reduction="none"))
    expected = torch.cat(plain)[whole.flatten() != -100]
    speed_up(trained, base, sharded=False)
    module.fuse(base, CPU)
    assert use_segments(base, CPU)
    module.by_segments()
    assert (module.token_losses(**told) - expected).abs().max().item() < 1e-5

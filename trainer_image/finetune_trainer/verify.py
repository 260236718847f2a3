"""Proof that a result is worth keeping: sound tensors, loadable, and different from the base.

Exit code 0 of a training proves nothing: adapters saved from a sharded model can be empty, a run
with a learning rate of zero learns nothing. Both look like success until somebody uses them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_api.artefact import Verification
from finetune_api.run_config import LoraConfig
from finetune_trainer.errors import InternalError, ModelError

FULL_PRECISION_LIMIT = 2_000_000_000
"""Parameters up to which models are compared in 32 bits; beyond that it costs too much memory."""

EXACT = 1e-3
"""How far the reloaded model's loss may be from training's, in nats and, where the loss is above 1,
as a part of it: both computed in 32 bits."""
ROUNDED = 1e-2
"""The same where training or the artefact has 16 bits: rounding of activations on a GPU and of
merged weights."""
QUANTISED = 1e-1
"""The same for QLoRA: training saw the base in 4 bits, the artefact is used with the whole one."""

_UNCHANGED = (
    "the training changed nothing: {what}; raise spec.training.learningRate or "
    "the number of steps (spec.training.maxSteps or epochs)"
)


def tensors(directory: Path) -> Iterator[tuple[str, Any]]:
    """Every tensor of the safetensors files, one at a time; raises InternalError if unreadable."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dictionary)
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as exc:
            raise InternalError(f"{path.name} of the result cannot be read: {exc}") from exc


def check_tensors(directory: Path) -> int:
    """Count the tensors; raises InternalError if one is empty or not finite, or none is there."""
    import torch

    count = 0
    for name, tensor in tensors(directory):
        if tensor.numel() == 0:
            raise InternalError(f"{name} of the result is empty; it was saved from a sharded model")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InternalError(f"{name} of the result has values that are not finite")
        count += 1
    if not count:
        raise InternalError("the result has no tensors; training has not saved it")
    return count


def sixteen_bit(directory: Path) -> bool:
    """Whether any tensor of the safetensors files is of a 16-bit type."""
    return any(t.is_floating_point() and t.element_size() == 2 for _, t in tensors(directory))


def check_adapter(directory: Path, lora: LoraConfig) -> None:
    """Refuse an adapter whose shapes do not match its rank, or that learned nothing.

    Raises:
        InternalError: a matrix is missing or has another rank than was asked for.
        ModelError: every B matrix is zero, as it was before the first step.
    """
    ranks: dict[str, dict[str, int]] = {}
    learned = False
    for name, tensor in tensors(directory):
        for part, axis in (("lora_A", 0), ("lora_B", 1), ("lora_embedding_A", 0)):
            if f".{part}" in name:
                layer = name.split(f".{part}")[0]
                ranks.setdefault(layer, {})[part[-1]] = tensor.shape[axis]
        if ".lora_embedding_B" in name:
            ranks.setdefault(name.split(".lora_embedding_B")[0], {})["B"] = tensor.shape[1]
        if "_B" in name.rsplit("lora", 1)[-1]:
            learned = learned or bool((tensor != 0).any())
    wrong = sorted(
        layer for layer, found in ranks.items() if found != {"A": lora.rank, "B": lora.rank}
    )
    if wrong or not ranks:
        where = f"{wrong[0]} has {ranks[wrong[0]]}" if wrong else "there are no adapter matrices"
        raise InternalError(f"the adapter does not have rank {lora.rank} everywhere: {where}")
    if not learned:
        raise ModelError(_UNCHANGED.format(what="every lora_B of the adapter is zero"))


def check_changed(base: Path, tuned: Path) -> None:
    """Refuse a full model all of whose weights are those of the base; raises ModelError."""
    import torch

    before = dict(_locate(base))
    for name, tensor in tensors(tuned):
        path = before.get(name)
        if path is None or not torch.equal(_one(path, name).float(), tensor.float()):
            return
    raise ModelError(_UNCHANGED.format(what="every weight is that of the base model"))


def check_loads(model: Any, loading: dict[str, Any]) -> None:
    """Refuse a model with tensors missing, left over, or of the wrong shape (InternalError)."""
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        found = sorted(str(item) for item in loading.get(key) or [])
        if found:
            text = ", ".join(found[:3])
            raise InternalError(f"{type(model).__name__} cannot be loaded: {key}: {text}")


def finite_logits(model: Any, tokens: Any) -> Any:
    """One forward pass.

    Args:
        tokens: Token ids [1, length].

    Returns:
        Logits [1, length, vocabulary], float32.

    Raises:
        InternalError: they are not all finite.
    """
    import torch

    with torch.inference_mode():
        logits = model(input_ids=tokens).logits.float()
    if not torch.isfinite(logits).all():
        raise InternalError("the reloaded model computes values that are not finite")
    return logits


def loss_of(model: Any, told: Verification) -> float:
    """The mean loss of the examples in nats, each by itself and by nothing but the model."""
    import torch
    from torch.nn.functional import cross_entropy

    summed = 0.0
    for example in told.examples:
        ids, learned = torch.tensor([example.ids]), torch.tensor(example.learned)
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, learned - 1].float()
        summed += float(cross_entropy(logits, ids[0, learned], reduction="sum"))
    return summed / sum(len(example.learned) for example in told.examples)


def tolerance(told: Verification, tuning: str, sixteen_bit: bool) -> float:
    """How far the reloaded model's loss may be from training's, in nats.

    Args:
        sixteen_bit: The weights were rounded to 16 bits after training (merging does that).
    """
    part = ROUNDED if sixteen_bit or told.precision == "BF16" else EXACT
    return (QUANTISED if tuning == "QLoRA" else part) * max(1.0, told.loss)


def check_reproduced(found: float, told: Verification, allowed: float) -> None:
    """Refuse an artefact that does not compute what training computed (InternalError)."""
    if not abs(found - told.loss) <= allowed:
        raise InternalError(
            f"the reloaded model has a loss of {found:.4f} on {len(told.examples)} held-out "
            f"examples, training had {told.loss:.4f} with the same weights (allowed: "
            f"{allowed:.2g} apart); the result was not saved as it was trained"
        )


def check_different(base: Any, tuned: Any) -> None:
    """Refuse a result that computes exactly what the base computes (ModelError)."""
    if base.shape == tuned.shape and bool((base == tuned).all()):
        raise ModelError(_UNCHANGED.format(what="the tuned model computes what the base computes"))


def _locate(directory: Path) -> Iterator[tuple[str, Path]]:
    from safetensors import safe_open

    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dictionary)
                yield name, path


def _one(path: Path, name: str) -> Any:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)

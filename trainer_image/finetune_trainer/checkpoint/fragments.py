"""Which ranges of which parameters this process owns, and where DeepSpeed keeps them.

ZeRO gives every process a flat 32-bit vector per parameter group ("flat" below), of weights and of
each moment of AdamW. A stretch of it is a range of one parameter, flattened. Under ZeRO 1 and 2 the
whole group is cut into equal parts, wherever that is in a parameter (`_hp_mapping`); under ZeRO 3
every parameter is cut into equal parts, the last one padded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune_trainer.engine import Engine
from finetune_trainer.errors import InternalError
from finetune_trainer.ranks import Gang

Kind = Literal["weight", "exp_avg", "exp_avg_sq"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Fragment:
    """A range of one parameter that this process owns."""

    name: str
    """Of the parameter, as in `model.named_parameters()`."""
    start: int
    """In the flattened parameter."""
    numel: int
    group: int
    """Which of the flat vectors it is in ..."""
    offset: int
    """... and where."""

    def key(self, kind: Kind) -> str:
        """Its name in a file."""
        return f"{kind}:{self.start}:{self.name}"


class Owned:
    """What this process owns of weights and moments: read and changed in place."""

    def __init__(self, engine: Engine, gang: Gang) -> None:
        """Look up where everything is; it stays there for the life of the engine."""
        self._zero = zero = engine.deepspeed.optimizer
        names = {id(p): name for name, p in engine.model.named_parameters()}
        self._third = hasattr(zero, "fp32_partitioned_groups_flat")
        if self._third:
            self._vectors: list[Tensor] = zero.fp32_partitioned_groups_flat
            found = _of_stage_3(zero.fp16_groups, names, gang)
        elif hasattr(zero, "single_partition_of_fp32_groups"):
            self._vectors = zero.single_partition_of_fp32_groups
            found = _of_1_and_2(zero.bit16_groups, names)
        else:  # what DeepSpeed takes for ZeRO 1 in bfloat16 with gradients added up in 32 bit
            self._vectors = zero.fp32_groups_flat_partition
            found = _of_1_and_2(zero.bf16_groups, names)
        self.fragments: list[Fragment] = list(found)

    def tensors(self, kind: Kind) -> list[Tensor]:
        """The flat vectors of one kind, of all groups; moments are made where they are not yet."""
        if kind == "weight":
            return [flat.detach() for flat in self._vectors]
        return [state[kind] for state in self._states()]

    @property
    def optimizer_steps(self) -> int:
        """AdamW's own counter."""
        return int(self._states()[0]["step"])

    @optimizer_steps.setter
    def optimizer_steps(self, steps: int) -> None:
        for state in self._states():
            if isinstance(state["step"], Tensor):
                state["step"].fill_(steps)
            else:  # DeepSpeed's own Adam for CPUs counts with Python's numbers
                state["step"] = steps

    def _states(self) -> list[dict[str, Any]]:
        """AdamW's state of every group; as its first step would make it, where that is to come."""
        adam = self._zero.optimizer
        for flat in self._vectors:  # these very objects are what AdamW's state belongs to
            if not adam.state[flat]:
                on_device = adam.defaults.get("fused") or adam.defaults.get("capturable")
                device = flat.device if on_device else torch.device("cpu")
                step = torch.zeros((), dtype=torch.float32, device=device)
                adam.state[flat] |= {
                    "step": step if isinstance(adam, torch.optim.AdamW) else 0,
                    "exp_avg": torch.zeros_like(flat, requires_grad=False),
                    "exp_avg_sq": torch.zeros_like(flat, requires_grad=False),
                }
        return [adam.state[flat] for flat in self._vectors]

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the model's own weights follow the 32-bit ones; by all processes together."""
        zero = self._zero
        if not self._third:
            zero.update_lp_params()
            return
        zero.checkpoint_event_prologue()  # drops whole copies, which are of the old weights
        for group in range(len(self._vectors)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        zero.checkpoint_event_epilogue()  # gathers the small ones that every process has whole


def _of_1_and_2(groups: list[Any], names: dict[int, str]) -> Iterator[Fragment]:
    for group, parameters in enumerate(groups):
        for parameter in parameters:
            mapping = parameter._hp_mapping
            if mapping is not None:  # else it is all of other processes
                here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                name = names[id(parameter)]
                yield Fragment(name, int(here.start), int(here.numel), group, int(there.start))


def _of_stage_3(groups: list[Any], names: dict[int, str], gang: Gang) -> Iterator[Fragment]:
    for group, parameters in enumerate(groups):
        offset = 0
        for parameter in parameters:
            part = int(parameter.partition_numel())
            start = gang.rank * part
            numel = min(part, int(parameter.ds_numel) - start)  # what is over is padding
            if numel > 0:
                yield Fragment(names[id(parameter)], start, numel, group, offset)
            offset += part


@dataclass(frozen=True)
class _Piece:
    """A range of a parameter in a file."""

    start: int
    end: int
    file: Any
    key: str


class Pieces:
    """All ranges in the files of a checkpoint, mapped into memory: only what is copied is read."""

    def __init__(self, paths: list[Path]) -> None:
        """Open all files.

        Raises:
            InternalError: one is no safetensors file of ours.
        """
        self._found: dict[tuple[str, str], list[_Piece]] = {}
        for path in paths:
            try:
                file = safe_open(path, framework="pt")
                for key in file.keys():  # noqa: SIM118 (no dictionary)
                    kind, start, name = key.split(":", 2)
                    begin, numel = int(start), file.get_slice(key).get_shape()[0]
                    piece = _Piece(begin, begin + numel, file, key)
                    self._found.setdefault((kind, name), []).append(piece)
            except (SafetensorError, OSError, ValueError, IndexError) as exc:
                raise InternalError(f"{path} cannot be read: {exc}") from exc

    def copy(self, kind: Kind, fragment: Fragment, into: Tensor) -> None:
        """Copy a range into a vector of the same length.

        Raises:
            InternalError: the checkpoint does not have all of it.
        """
        end, copied = fragment.start + fragment.numel, 0
        for piece in self._found.get((kind, fragment.name), ()):
            low, high = max(piece.start, fragment.start), min(piece.end, end)
            if low < high:
                numbers = piece.file.get_slice(piece.key)[low - piece.start : high - piece.start]
                into[low - fragment.start : high - fragment.start].copy_(numbers)
                copied += high - low
        if copied != fragment.numel:
            raise InternalError(
                f"the checkpoint has {copied} of the {fragment.numel} numbers of {fragment.name}"
            )


@torch.no_grad()
def restore(owned: Owned, paths: list[Path], optimizer_steps: int | None) -> None:
    """Copy what this process owns out of a checkpoint's files; by all processes together.

    Args:
        optimizer_steps: AdamW's counter; None: weights only, for a result and not to go on from.
    """
    pieces = Pieces(paths)
    for kind in KINDS if optimizer_steps is not None else KINDS[:1]:
        flats = owned.tensors(kind)
        for fragment in owned.fragments:
            whole = flats[fragment.group]
            into = whole[fragment.offset : fragment.offset + fragment.numel]
            pieces.copy(kind, fragment, into)
    if optimizer_steps is not None:
        owned.optimizer_steps = optimizer_steps
    owned.refresh()

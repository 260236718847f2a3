"""The seam between the objectives and everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from torch import Tensor, nn

D = TypeVar("D")

Constants = Mapping[str, float]
"""Numbers of a whole global batch that the loss of each of its micro-batches needs."""


class Objective(Protocol[D]):
    """How to learn from data of the type `D`, whose length is what an epoch and a batch count.

    The loss of a global batch is the sum of what `module` returns for its micro-batches, divided
    by `divisor`: so the result does not depend on how the batch is split over micro-batches and
    processes.
    """

    rows_per_item: ClassVar[int]
    """Sequences of the forward pass for each item of a micro-batch."""

    packs: ClassVar[bool]
    """Whether several examples can be in one sequence."""

    def open(self, directory: Path) -> D:
        """Map one part of the prepared data into memory; raises InternalError."""

    def module(self, model: nn.Module, base: nn.Module) -> nn.Module:
        """What DeepSpeed wraps: its forward pass takes a batch and gives the summed loss.

        Args:
            model: The model of peft, or of transformers where there is no adapter.
            base: The model of transformers.
        """

    def batch(self, data: D, items: np.ndarray, learned: bool = True, flat: bool = False) -> Any:
        """A micro-batch: a dataclass of arrays, named as the arguments of the forward pass.

        Args:
            learned: False for a filler that keeps a process in step with the others.
            flat: See `batches.micro_batch`.
        """

    def divisor(self, data: D, items: np.ndarray) -> float:
        """What the summed loss of a global batch is divided by."""

    def constants(
        self, forward: Any, data: D, items: np.ndarray, parts: Sequence[np.ndarray], gang: Any
    ) -> Constants:
        """What the forward pass is given beside each micro-batch; called by all processes alike.

        Args:
            forward: The DeepSpeed engine.
            items: The global batch.
            parts: This process's micro-batches of it; empty ones stand for fillers.
        """

    def taken(self, module: nn.Module) -> Tensor:
        """Sums over the micro-batches since the last call, float64 [numbers]; may be empty."""

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """Numbers for the log, from the sums of all processes."""

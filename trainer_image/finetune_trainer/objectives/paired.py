"""DPO and ORPO: the chosen answer against the rejected one."""

# ruff: noqa: ARG002  (the arguments of `Objective`, needed or not)
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from finetune_api.run_config import PreferenceConfig
from finetune_trainer.objectives.base import Constants
from finetune_trainer.objectives.data import Pairs, kept
from finetune_trainer.objectives.logprobs import LogProbs


@dataclass(frozen=True)
class PairBatch:
    """Pairs for one forward pass: first all chosen answers, then all rejected ones."""

    input_ids: np.ndarray
    """[2 * pairs, length]"""
    keep: np.ndarray
    """[kept], ascending: positions at which any row has a target."""
    targets: np.ndarray
    """[2 * pairs, kept], -100 where that row has none. ORPO: the prompts of chosen ones too."""
    counted: np.ndarray
    """[pairs], 1; or 0 for a filler."""
    answers: np.ndarray | None = None
    """ORPO: [2 * pairs, kept], which targets belong to the answer."""
    reference: np.ndarray | None = None
    """DPO: [2 * pairs], log-probabilities by the base model; None: it is asked."""


class PairedLoss(LogProbs):
    """A model whose forward pass gives the summed loss of pairs."""

    def __init__(self, model: nn.Module, base: nn.Module, beta: float) -> None:
        """See `LogProbs`; `beta` as in `spec.method.preference`."""
        super().__init__(model, base)
        self.beta = beta
        self.sums = torch.zeros(4, dtype=torch.float64)
        """Rewards of chosen and rejected answers, pairs with the right order, pairs."""

    def note(self, chosen: Tensor, rejected: Tensor, counted: Tensor) -> None:
        """Add the rewards [pairs] to the sums."""
        with torch.no_grad():
            right = (chosen > rejected).float()
            found = torch.stack([chosen, rejected, right, torch.ones_like(right)]) * counted
            self.sums = self.sums.to(found.device) + found.double().sum(1)


class DpoLoss(PairedLoss):
    """-log sigmoid(beta (log-ratio of the chosen answer - log-ratio of the rejected one))."""

    def forward(
        self,
        input_ids: Tensor,
        keep: Tensor,
        targets: Tensor,
        counted: Tensor,
        reference: Tensor | None = None,
    ) -> Tensor:
        """The summed loss, a 32-bit scalar; shapes as in `PairBatch`."""
        if reference is None:
            reference = self.reference(input_ids, keep, targets).sum(1)
        chosen, rejected = (self.tokens(input_ids, keep, targets).sum(1) - reference).chunk(2)
        self.note(self.beta * chosen.detach(), self.beta * rejected.detach(), counted)
        return (-logsigmoid(self.beta * (chosen - rejected)) * counted).sum()


class OrpoLoss(PairedLoss):
    """Cross entropy of prompt and chosen answer, and the odds of the chosen against the rejected.

    Both rest on means over tokens, so long answers do not weigh more than short ones.
    """

    def forward(
        self,
        input_ids: Tensor,
        keep: Tensor,
        targets: Tensor,
        counted: Tensor,
        answers: Tensor,
        token_weight: float,
    ) -> Tensor:
        """The summed loss, a 32-bit scalar; shapes as in `PairBatch`.

        Args:
            token_weight: Pairs per token of all chosen sequences of the global batch: the sum is
                divided by the pairs, and every token is to count the same.
        """
        tokens = self.tokens(input_ids, keep, targets)
        means = (tokens * answers).sum(1) / answers.sum(1)
        chosen, rejected = means.chunk(2)
        self.note(self.beta * chosen.detach(), self.beta * rejected.detach(), counted)
        odds = (chosen - rejected) - (_log_of_rest(chosen) - _log_of_rest(rejected))
        learned = tokens.chunk(2)[0].sum(1)
        return ((-self.beta * logsigmoid(odds) - token_weight * learned) * counted).sum()


def _log_of_rest(log_probability: Tensor) -> Tensor:
    """log(1 - p), stable for p near 0 and near 1 (Maechler 2012)."""
    near_one = log_probability > -math.log(2)
    # The other branch gets a harmless value: its gradient would be NaN, and NaN x 0 is NaN.
    close = torch.where(near_one, log_probability.clamp(max=-1e-7), -1.0)
    far = torch.where(near_one, -1.0, log_probability)
    return torch.where(near_one, torch.log(-torch.expm1(close)), torch.log1p(-torch.exp(far)))


class Paired:
    """What DPO and ORPO have in common: the mean over the pairs of the global batch."""

    rows_per_item: ClassVar[int] = 2
    packs: ClassVar[bool] = False

    def __init__(self, settings: PreferenceConfig, prepared: bool = False) -> None:
        """Take the settings, and whether prepare has computed what the base model says."""
        self._beta, self._prepared = settings.beta, prepared

    def open(self, directory: Path) -> Pairs:
        """See `Objective`."""
        return Pairs.open(directory, reference=self._prepared)

    def divisor(self, data: Pairs, items: np.ndarray) -> float:
        """The pairs."""
        return len(items)

    def taken(self, module: nn.Module) -> Tensor:
        """Rewards and order, see `PairedLoss`."""
        sums: Tensor = module.sums
        module.sums = torch.zeros_like(sums)
        return sums

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """Means over the pairs, named as TRL names them."""
        chosen, rejected, right, count = sums
        return {
            "rewards/chosen": chosen / count,
            "rewards/rejected": rejected / count,
            "rewards/accuracies": right / count,
            "rewards/margins": (chosen - rejected) / count,
        }


class Dpo(Paired):
    """Direct preference optimization."""

    def module(self, model: nn.Module, base: nn.Module) -> nn.Module:
        """See `Objective`."""
        return DpoLoss(model, base, self._beta)

    def batch(
        self, data: Pairs, items: np.ndarray, learned: bool = True, flat: bool = False
    ) -> PairBatch:
        """See `Objective`."""
        numbers = np.concatenate([2 * items, 2 * items + 1])
        rows = data.rows(numbers)
        targets = rows.of_answers()
        keep = kept(targets)
        return PairBatch(
            input_ids=rows.input_ids,
            keep=keep,
            targets=targets[:, keep],
            counted=np.full(len(items), learned, dtype=np.float32),
            reference=None if data.reference is None else data.reference[numbers],
        )

    def constants(
        self, forward: Any, data: Pairs, items: np.ndarray, parts: Sequence[np.ndarray], gang: Any
    ) -> Constants:
        """None."""
        return {}


class Orpo(Paired):
    """Odds-ratio preference optimization: no reference model."""

    def module(self, model: nn.Module, base: nn.Module) -> nn.Module:
        """See `Objective`."""
        return OrpoLoss(model, base, self._beta)

    def batch(
        self, data: Pairs, items: np.ndarray, learned: bool = True, flat: bool = False
    ) -> PairBatch:
        """See `Objective`."""
        rows = data.rows(np.concatenate([2 * items, 2 * items + 1]))
        targets = rows.of_answers()
        targets[: len(items)] = rows.targets[: len(items)]
        keep = kept(targets)
        return PairBatch(
            input_ids=rows.input_ids,
            keep=keep,
            targets=targets[:, keep],
            counted=np.full(len(items), learned, dtype=np.float32),
            answers=rows.answers[:, keep],
        )

    def constants(
        self, forward: Any, data: Pairs, items: np.ndarray, parts: Sequence[np.ndarray], gang: Any
    ) -> Constants:
        """The weight of a token, see `OrpoLoss.forward`."""
        tokens = int((data.starts[2 * items + 1] - data.starts[2 * items] - 1).sum())
        return {"token_weight": len(items) / tokens}

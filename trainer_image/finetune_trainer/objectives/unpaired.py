"""KTO: answers that are good or bad by themselves."""

# ruff: noqa: ARG002  (the arguments of `Objective`, needed or not)
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from finetune_api.run_config import PreferenceConfig
from finetune_trainer.losses import tensors
from finetune_trainer.objectives.base import Constants
from finetune_trainer.objectives.data import Pairs, kept
from finetune_trainer.objectives.logprobs import LogProbs


@dataclass(frozen=True)
class AnswerBatch:
    """Answers for one forward pass."""

    input_ids: np.ndarray
    """[rows, length]"""
    keep: np.ndarray
    """[kept], ascending: positions at which any row has a target."""
    targets: np.ndarray
    """[rows, kept], -100 where that row has none."""
    counted: np.ndarray
    """[rows], 1; or 0 for a filler."""
    desirable: np.ndarray
    """[rows], bool"""
    reference: np.ndarray | None
    """[rows], log-probabilities by the base model; None: it is asked."""


class KtoLoss(LogProbs):
    """1 - sigmoid(beta (log-ratio - distance)) for a good answer, the sign turned for a bad one."""

    def __init__(self, model: nn.Module, base: nn.Module, settings: PreferenceConfig) -> None:
        """See `LogProbs`; the settings are `spec.method.preference`."""
        super().__init__(model, base)
        self.settings = settings
        self.sums = torch.zeros(6, dtype=torch.float64)
        """Good answers: number, rewards; bad ones: number, rewards; right ones; the distance."""

    def forward(
        self,
        input_ids: Tensor,
        keep: Tensor,
        targets: Tensor,
        counted: Tensor,
        desirable: Tensor,
        reference: Tensor | None = None,
        distance: float | None = None,
    ) -> Tensor:
        """The summed loss, a 32-bit scalar; shapes as in `AnswerBatch`.

        Args:
            distance: Estimate of the divergence of the model from its reference, in nats; None:
                return the sum of the log-ratios instead, from which it is estimated.
        """
        if reference is None:
            reference = self.reference(input_ids, keep, targets).sum(1)
        ratios = self.tokens(input_ids, keep, targets).sum(1) - reference
        if distance is None:
            return (ratios * counted).sum()
        beta = self.settings.beta
        signs = torch.where(desirable, 1.0, -1.0)
        values = torch.sigmoid(beta * signs * (ratios - distance))
        weights = torch.where(
            desirable, self.settings.desirable_weight, self.settings.undesirable_weight
        )
        self._note(ratios.detach(), desirable, distance, counted)
        return (weights * (1 - values) * counted).sum()

    def _note(self, ratios: Tensor, desirable: Tensor, distance: float, counted: Tensor) -> None:
        good = desirable.float()
        rewards = self.settings.beta * ratios
        right = ((ratios > distance) == desirable).float()
        found = torch.stack([good, good * rewards, 1 - good, (1 - good) * rewards, right])
        sums = (found * counted).double().sum(1)
        self.sums = self.sums.to(sums.device) + torch.cat(
            [sums, distance * counted.double().sum()[None]]
        )


class Kto:
    """Kahneman-Tversky optimization: the mean over the answers of the global batch.

    The distance is estimated once for the whole global batch, from the answers of other examples,
    before its first micro-batch: TRL does it for every micro-batch, and its result depends on
    their size. The passes over the model are the same in number.
    """

    rows_per_item: ClassVar[int] = 1
    packs: ClassVar[bool] = False

    def __init__(self, settings: PreferenceConfig, prepared: bool = False) -> None:
        """Take the settings, and whether prepare has computed what the base model says."""
        self._settings, self._prepared = settings, prepared

    def open(self, directory: Path) -> Pairs:
        """See `Objective`."""
        return Pairs.open(directory, judged=True, reference=self._prepared)

    def module(self, model: nn.Module, base: nn.Module) -> nn.Module:
        """See `Objective`."""
        return KtoLoss(model, base, self._settings)

    def batch(
        self, data: Pairs, items: np.ndarray, learned: bool = True, flat: bool = False
    ) -> AnswerBatch:
        """See `Objective`."""
        return self._batch(data, items, 2 * items, learned)

    def _batch(
        self, data: Pairs, items: np.ndarray, numbers: np.ndarray, learned: bool
    ) -> AnswerBatch:
        assert data.desirable is not None
        rows = data.rows(numbers)
        targets = rows.of_answers()
        keep = kept(targets)
        return AnswerBatch(
            input_ids=rows.input_ids,
            keep=keep,
            targets=targets[:, keep],
            counted=np.full(len(items), learned, dtype=np.float32),
            desirable=data.desirable[items],
            reference=None if data.reference is None else data.reference[numbers],
        )

    def divisor(self, data: Pairs, items: np.ndarray) -> float:
        """The answers."""
        return len(items)

    @torch.no_grad()
    def constants(
        self, forward: Any, data: Pairs, items: np.ndarray, parts: Sequence[np.ndarray], gang: Any
    ) -> Constants:
        """The distance: the mean log-ratio of answers to the wrong prompts, at least 0."""
        summed = torch.zeros(1, dtype=torch.float64, device=gang.device)
        for part in parts:
            learned = len(part) > 0
            chosen = part if learned else np.zeros(1, dtype=np.int64)
            batch = self._batch(data, chosen, 2 * chosen + 1, learned)
            summed += forward(**tensors(batch, gang.device)).double()
        return {"distance": max(0.0, float(gang.sum(summed).item()) / len(items))}

    def taken(self, module: nn.Module) -> Tensor:
        """Rewards, order and distance, see `KtoLoss`."""
        sums: Tensor = module.sums
        module.sums = torch.zeros_like(sums)
        return sums

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """Means over the good and the bad answers, named as TRL names them."""
        good, good_rewards, bad, bad_rewards, right, distance = sums
        found = {"kl": distance / (good + bad), "rewards/accuracies": right / (good + bad)}
        if good:
            found["rewards/chosen"] = good_rewards / good
        if bad:
            found["rewards/rejected"] = bad_rewards / bad
        if good and bad:
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        return found

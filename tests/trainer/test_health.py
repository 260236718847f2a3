"""When a training counts as broken, and that an ordinary one never does."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from finetune_trainer.health import PATIENCE, WARM_UP, WINDOW, LossWatch, WatchState, bound

SMOLLM2_DEMO = [
    2.232, 2.024, 1.768, 1.477, 1.645, 1.274, 1.157, 1.48, 1.065, 1.108, 1.102, 1.027, 1.158,
    1.085, 1.57, 0.697, 1.033, 1.214, 1.232, 0.959, 1.569, 1.127, 1.256, 0.722,
]  # fmt: skip
"""Recorded: SmolLM2-135M, LoRA, the demonstration's data."""


def verdicts(losses: list[float], watch: LossWatch | None = None) -> list[tuple[int, str]]:
    """Step and words of every verdict."""
    watch = watch or LossWatch()
    found = [(i, watch.see(i, len(losses), loss, 1.0, 2e-4)) for i, loss in enumerate(losses, 1)]
    return [(step, words) for step, words in found if words]


def one_example(r: random.Random, _: int) -> float:
    """Batches of one: answers of one word beside whole pages, now and then a broken one."""
    return r.lognormvariate(0.3, 0.7) if r.random() > 0.01 else 11.0


def easy_and_hard(r: random.Random, _: int) -> float:
    """Half of the examples are known already, the other half is another language."""
    return r.gauss(0.05, 0.01) if r.random() < 0.55 else r.gauss(4.0, 0.3)


def epochs(r: random.Random, step: int) -> float:
    """Every epoch is remembered from the one before; the first steps of each are worse."""
    return 2.5 * 0.5 ** (step // 500) * (1.4 if step % 500 < 20 else 1.0) * r.uniform(0.8, 1.2)


def learned_by_heart(r: random.Random, step: int) -> float:
    """A small data set: the loss is next to nothing, its relative changes are wild."""
    return r.lognormvariate(-7, 1.5)


def preference(r: random.Random, step: int) -> float:
    """DPO, four pairs a step: from 0.69 down, and some pairs stay the wrong way round."""
    margins = [r.gauss(min(4.0, step / 300), 2.0 * min(1.0, step / 300)) for _ in range(4)]
    return sum(math.log1p(math.exp(-m)) for m in margins) / 4


def from_scratch(r: random.Random, step: int) -> float:
    """Random weights: from the logarithm of the vocabulary down, with the warm-up's bump."""
    return 2.5 + 8.3 * math.exp(-step / 200) + (0.8 if 90 < step < 140 else 0) + r.gauss(0, 0.1)


@pytest.mark.parametrize(
    "curve", [one_example, easy_and_hard, epochs, learned_by_heart, preference, from_scratch]
)
@pytest.mark.parametrize("seed", range(2))
def test_an_ordinary_run_is_left_alone(
    curve: Callable[[random.Random, int], float], seed: int
) -> None:
    r = random.Random(seed)
    assert verdicts([curve(r, step) for step in range(3000)]) == []


def test_recorded_runs_are_left_alone() -> None:
    assert verdicts(SMOLLM2_DEMO * 20) == []


def test_a_jump_that_stays_ends_the_run_and_says_what_to_change() -> None:
    r = random.Random(0)
    losses = [r.gauss(2.0, 0.2) for _ in range(200)] + [8.0] * 50
    step, words = verdicts(losses)[0]
    assert step == 200 + PATIENCE
    assert words == (
        "training diverged at step 210 of 250: the loss rose from 1.99 to 8 and has stayed there "
        "for 10 steps, at learning rate 0.0002; lower spec.training.learningRate, raise "
        "spec.training.warmupFraction, or look for broken examples in the data"
    )


@pytest.mark.parametrize("climb", [5, 20, 60])
def test_a_climb_ends_the_run_soon_after_it_has_left_the_noise(climb: int) -> None:
    r = random.Random(1)
    rising = [2.0 + 6.0 * i / climb for i in range(climb)]
    losses = [2.0] * 100 + rising + [8.0] * 100
    first = verdicts([loss + r.gauss(0, 0.2) for loss in losses])[0][0]
    assert 100 < first <= 100 + climb + PATIENCE


def test_a_jump_that_comes_back_is_left_alone() -> None:
    losses = [2.0 + 0.01 * (i % 7) for i in range(100)]
    assert verdicts(losses + [9.0] * (PATIENCE - 1) + losses + [9.0, 2.0] * 50) == []


@pytest.mark.parametrize(
    ("loss", "grad_norm", "what"),
    [
        (math.nan, 1.0, "the loss is nan"),
        (math.inf, math.nan, "the loss is inf"),
        (2.0, math.inf, "the gradient is inf"),
        (2.0, math.nan, "the gradient is nan"),
    ],
)
def test_what_is_not_finite_ends_the_run_at_once(loss: float, grad_norm: float, what: str) -> None:
    assert LossWatch().see(1, 46, loss, grad_norm, 2e-4) == (
        f"training diverged at step 1 of 46: {what} at learning rate 0.0002; lower "
        "spec.training.learningRate, raise spec.training.warmupFraction, or look for broken "
        "examples in the data"
    )


def test_nothing_is_judged_before_there_is_something_to_compare_with() -> None:
    assert bound([2.0] * (WARM_UP - 1)) is None
    assert bound([2.0] * WARM_UP) == 3.0
    assert bound([8.0] * WARM_UP) == 12.0


def test_a_checkpoint_within_a_spike_is_none_to_go_back_to() -> None:
    watch = LossWatch()
    assert verdicts([2.0] * 100 + [9.0], watch) == []
    assert not watch.healthy
    watch.see(102, 200, 2.0, 1.0, 2e-4)
    assert watch.healthy


def test_a_resumed_run_judges_like_one_that_went_on() -> None:
    r = random.Random(2)
    losses = [r.gauss(2.0, 0.2) for _ in range(300)] + [8.0] * 20
    for cut in (10, 150, 300, 305):
        watch = LossWatch()
        verdicts(losses[:cut], watch)
        kept = watch.state().model_dump_json(by_alias=True)
        again = LossWatch(WatchState.model_validate_json(kept))
        assert again.state() == watch.state()
        assert verdicts(losses[cut:], again)[0][0] + cut == 300 + PATIENCE
    assert len(watch.state().recent) == WINDOW

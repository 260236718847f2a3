"""The learning rate of every step."""

import pytest

from finetune_trainer.schedule import Schedule, learning_rate


def rates(schedule: Schedule, total_steps: int, warmup_fraction: float) -> list[float]:
    return [
        round(learning_rate(step, total_steps, 1.0, schedule, warmup_fraction), 4)
        for step in range(total_steps)
    ]


def test_cosine_rises_in_equal_parts_and_falls_by_half_a_wave() -> None:
    expected = [0.5, 1.0, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067]
    assert rates("Cosine", 8, 0.25) == expected


def test_linear_falls_in_equal_parts() -> None:
    assert rates("Linear", 5, 0.0) == [1.0, 0.8, 0.6, 0.4, 0.2]


def test_constant_stays_where_the_warm_up_ends() -> None:
    assert rates("Constant", 5, 0.5) == [0.3333, 0.6667, 1.0, 1.0, 1.0]


def test_a_warm_up_that_takes_all_steps_ends_at_the_peak() -> None:
    assert rates("Cosine", 4, 1.0) == [0.25, 0.5, 0.75, 1.0]


def test_a_single_step_runs_at_the_peak() -> None:
    assert rates("Cosine", 1, 0.03) == [1.0]


def test_no_step_is_wasted_on_a_rate_of_zero() -> None:
    for schedule in ("Cosine", "Linear", "Constant"):
        assert min(rates(schedule, 50, 0.1)) > 0


@pytest.mark.parametrize("step", [-1, 5])
def test_a_step_outside_the_run_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=f"step {step} is not one of 5"):
        learning_rate(step, 5, 1.0, "Cosine", 0.0)

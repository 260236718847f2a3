"""Loss curves as text."""

from __future__ import annotations

from job_builders import job, running

from finetune_cli.chart import curve, draw


def test_a_curve_is_what_the_status_has() -> None:
    assert curve(job(running())) == [
        (10, 3.5),
        (20, 3.0),
        (30, 2.5),
        (40, 2.0),
        (50, 1.5),
        (60, 1.0),
    ]
    assert curve(job(None)) == []


def test_a_falling_loss_falls_from_the_upper_left_to_the_lower_right() -> None:
    assert draw({"docs": [(0, 4.0), (10, 0.0)]}, 16, 4) == "\n".join(
        [
            "loss by step: docs",
            "    4 ┤⠑⠤⡀",
            "      ┤⠀⠀⠈⠢⢄",
            "      ┤⠀⠀⠀⠀⠀⠑⠢⡀",
            "    0 ┤⠀⠀⠀⠀⠀⠀⠀⠈⠒⢄",
            "      └──────────",
            "       0       10",
        ]
    )


def test_a_single_point_and_a_flat_curve_are_drawn_too() -> None:
    assert "⠁" in draw({"docs": [(5, 1.5)]}, 30, 3)
    assert draw({"docs": [(0, 1.0), (10, 1.0)]}, 30, 3).splitlines()[1].startswith("1 ┤⠉⠉")


def test_several_curves_are_told_apart_by_their_ends() -> None:
    text = draw({"a": [(0, 4.0), (10, 0.0)], "b": [(0, 4.0), (10, 3.0)]}, 40, 6)
    assert text.startswith("loss by step: ● a   ◆ b\n")
    assert (text.count("●"), text.count("◆")) == (2, 2)

"""`loss_curve.png`: how the loss fell, for people."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_trainer.errors import InternalError

Points = list[tuple[int, float]]

SMOOTHING_PARTS = 40
"""The smoothed line averages over this part of the run."""


@dataclass(frozen=True)
class History:
    """What training logged, by step."""

    loss: Points
    learning_rate: Points
    eval_loss: Points
    retention_loss: Points = field(default_factory=list)
    """On general text that should not be forgotten."""


def read_history(path: Path) -> History:
    """Read `losses.jsonl`. A step that was run again after a restart counts once, the last time.

    Raises:
        InternalError: the file is missing or broken.
    """
    names = ("loss", "learningRate", "evalLoss", "retentionLoss")
    series: dict[str, dict[int, float]] = {name: {} for name in names}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        for line in lines:
            entry = json.loads(line)
            for name, points in series.items():
                if entry.get(name) is not None:
                    points[int(entry["step"])] = float(entry[name])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise InternalError(f"{path.name} of the training cannot be read: {exc}") from exc
    return History(*(sorted(points.items()) for points in series.values()))


def smooth(points: Points) -> Points:
    """The mean over a window that reaches a fortieth of the points to both sides."""
    reach = max(1, len(points) // SMOOTHING_PARTS)
    values = [value for _, value in points]
    return [
        (step, statistics.fmean(values[max(0, i - reach) : i + reach + 1]))
        for i, (step, _) in enumerate(points)
    ]


def draw(history: History, title: str, path: Path) -> None:
    """Write the picture: loss above, learning rate below."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, (upper, lower) = pyplot.subplots(
        2, 1, sharex=True, figsize=(9, 5.4), height_ratios=[4, 1], layout="constrained"
    )
    _loss(upper, history)
    upper.set_title(title, loc="left", fontsize=12, fontweight="bold")
    lower.plot(*_axes(history.learning_rate), color="#5f6b7a", linewidth=1.4)
    lower.set_ylabel("learning rate")
    lower.set_xlabel("optimizer step")
    lower.set_ylim(bottom=0)
    lower.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (upper, lower):
        axes.grid(color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    figure.savefig(path, dpi=150, metadata={"Software": None})
    pyplot.close(figure)


def _loss(axes: Any, history: History) -> None:
    from matplotlib.patheffects import withStroke

    steps, values = _axes(history.loss)
    few = len(values) < SMOOTHING_PARTS
    marker = "o" if few else None
    axes.plot(
        steps, values, color="#1f6fb4", alpha=1 if few else 0.3, linewidth=1.2, marker=marker,
        markersize=3.5, label="training, each logged step",
    )  # fmt: skip
    if not few:
        axes.plot(*_axes(smooth(history.loss)), color="#1f6fb4", linewidth=2, label="smoothed")
    for points, color, name in (
        (history.eval_loss, "#d1495b", "held-out examples"),
        (history.retention_loss, "#3a7d44", "retention set"),
    ):
        if not points:
            continue
        axes.plot(
            *_axes(points), color=color, marker="D", markersize=6, linewidth=1.2,
            linestyle="--", label=name,
        )  # fmt: skip
        for step, value in (points[0], points[-1]):
            axes.annotate(
                f"{value:.3f}", (step, value), xytext=(0, 9), textcoords="offset points",
                ha="left" if step == points[0][0] else "right",
                color=color, fontsize=10, fontweight="bold",
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )  # fmt: skip
    axes.margins(y=0.15)
    axes.set_ylabel("loss (nats per learned token)")
    axes.legend(frameon=False, loc="upper right")


def _axes(points: Points) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]

"""Loss curves: in a terminal, by Braille characters, and as PNG. Pure but for the PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune_cli.exits import CliError
from finetune_cli.jobs import Job

Curve = Sequence[tuple[int, float]]
"""Steps and losses, ascending by step."""
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a Braille character, by row and column."""
MARKS = "●◆▲■○◇△□"


def curve(job: Job) -> Curve:
    """The loss curve that the status has, at most 50 points."""
    progress = job.status.progress
    return [(point.step, point.loss) for point in progress.history] if progress else []


def draw(curves: Mapping[str, Curve], width: int, height: int) -> str:
    """Curves over one another with axes, for a terminal.

    Args:
        width: Characters in all, at least 30.
        height: Lines of the chart itself.
    """
    points = [point for found in curves.values() for point in found]
    first, last = min(s for s, _ in points), max(s for s, _ in points)
    low, high = min(v for _, v in points), max(v for _, v in points)
    labels = [f"{high - (high - low) * i / (height - 1):.4g}" for i in range(height)]
    margin = max(len(label) for label in labels)
    inner = max(10, width - margin - 2)
    cells = [[0] * inner for _ in range(height)]
    ends: dict[tuple[int, int], str] = {}
    for mark, found in zip(MARKS * len(curves), curves.values(), strict=False):
        places = [
            (
                round((step - first) / max(1, last - first) * (inner * 2 - 1)),
                round((high - loss) / ((high - low) or 1.0) * (height * 4 - 1)),
            )
            for step, loss in found
        ]
        _line(cells, places)
        if len(curves) > 1:
            ends[(places[-1][1] // 4, places[-1][0] // 2)] = mark
    lines = []
    for y, row in enumerate(cells):
        text = "".join(ends.get((y, x)) or chr(0x2800 + bits) for x, bits in enumerate(row))
        label = labels[y] if y % 3 == 0 or y == height - 1 else ""
        lines.append(f"{label:>{margin}} ┤{text}".rstrip("\u2800 "))
    lines.append(f"{'':>{margin}} └{'─' * inner}")
    lines.append(f"{'':>{margin}}  {first}{last:>{inner - len(str(first))}}")
    names = [
        f"{mark} {name}" if len(curves) > 1 else name
        for mark, name in zip(MARKS * len(curves), curves, strict=False)
    ]
    return "\n".join(["loss by step: " + "   ".join(names), *lines])


def _line(cells: list[list[int]], places: Sequence[tuple[int, int]]) -> None:
    """Set the dots between neighbours."""
    for (x0, y0), (x1, y1) in zip(places, [*places[1:], places[-1]], strict=True):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for i in range(steps + 1):
            x, y = x0 + round((x1 - x0) * i / steps), y0 + round((y1 - y0) * i / steps)
            cells[y // 4][x // 2] |= DOTS[y % 4][x % 2]


def write_png(curves: Mapping[str, Curve], evaluations: Mapping[str, float], path: Path) -> None:
    """The same as a picture of 1280 x 720.

    Args:
        evaluations: The held-out loss of each result, where it is known.

    Raises:
        CliError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise CliError("a PNG needs matplotlib: pip install 'finetune-cli[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9.6, 5.4), dpi=1280 / 9.6, layout="constrained")
    for name, found in curves.items():
        (line,) = axes.plot([s for s, _ in found], [v for _, v in found], label=name, linewidth=2)
        if name in evaluations:
            axes.axhline(
                evaluations[name],
                color=line.get_color(),
                linestyle=":",
                label=f"{name}: held-out loss of the result, {evaluations[name]:.4g}",
            )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
    pyplot.close(figure)

"""The live view of `watch`: rows as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune_cli.jobs import span
from finetune_cli.rows import Row, sparkline

STYLES = {
    "Running": "green",
    "Succeeded": "bold green",
    "Failed": "bold red",
    "Restarting": "yellow",
    "Pending": "yellow",
    "Suspended": "cyan",
}
SPARK = 12
BAR = 12


def render(rows: Sequence[Row], namespaces: bool, clock: str) -> RenderableType:
    """A line per job, and what all of them hold.

    Args:
        namespaces: Show the column.
        clock: Time of day, for people who wonder whether it still moves.
    """
    shown = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="bold")
    for header in [*(["NAMESPACE"] if namespaces else []), "NAME", "PHASE"]:
        shown.add_column(header, no_wrap=True)
    shown.add_column("PROGRESS", no_wrap=True, min_width=BAR + 5)
    shown.add_column("LOSS", no_wrap=True, min_width=SPARK + 8)
    shown.add_column("ETA", no_wrap=True, justify="right")
    shown.add_column("WORKERS", no_wrap=True)
    shown.add_column("GPUS", no_wrap=True, justify="right")
    shown.add_column("WHAT IT DOES, OR WAITS FOR", ratio=1, overflow="ellipsis", no_wrap=True)
    for row in rows:
        shown.add_row(*([row.namespace] if namespaces else []), *_cells(row))
    held = sum(row.gpus or 0 for row in rows)
    running = sum(row.phase == "Running" for row in rows)
    foot = f"{len(rows)} jobs, {running} running, {held} GPUs held · {clock} · Ctrl-C ends the view"
    return Group(shown, Text(), Text(foot, style="dim"))


def _cells(row: Row) -> list[RenderableType]:
    attempt = f" #{row.attempt}" if row.attempt and not row.over else ""
    return [
        Text(row.name, style="bold"),
        Text(row.phase + attempt, style=STYLES.get(row.phase, "")),
        _bar(row),
        _loss(row),
        Text("" if row.eta_seconds is None else span(row.eta_seconds)),
        Text(row.workers),
        Text("?" if row.gpus is None else str(row.gpus or "-")),
        Text(row.says.replace("\n", " "), style="red" if row.phase == "Failed" else ""),
    ]


def _bar(row: Row) -> RenderableType:
    if row.percent is None:
        return Text("")
    line = Table.grid(padding=(0, 1, 0, 0))
    bar = ProgressBar(
        total=100,
        completed=row.percent,
        width=BAR,
        complete_style="green",
        finished_style="green",
    )
    line.add_row(bar, Text(f"{row.percent:>3}%"))
    return line


def _loss(row: Row) -> Text:
    if row.loss is None:
        return Text("")
    spark = sparkline(row.losses, SPARK)
    return Text(f"{spark:<{SPARK}} ", style="blue").append(f"{row.loss:.4g}", style="default")

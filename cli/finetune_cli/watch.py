"""`watch`: several jobs at once, live on a terminal, as lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from finetune_cli.exits import CliError, Exit
from finetune_cli.jobs import parse_job
from finetune_cli.output import is_terminal, note, plain, table
from finetune_cli.rows import Row, changed, line, row, sparkline
from finetune_cli.session import Session


def watch_command(session: Session) -> int:
    """`watch [JOB...]`."""
    if session.args.once:
        return _once(session, session.args.jobs)
    return watch_jobs(session, session.args.jobs)


def watch_jobs(session: Session, names: Sequence[str]) -> int:
    """Until all that were named are over: 0 if all have succeeded, 6 if one has failed. Without
    names until Ctrl-C, as new jobs may come."""
    args = session.args
    if args.output == "table" and is_terminal(session.out):
        return _live(session, names)
    return _lines(session, names)


def rows_of(session: Session, names: Sequence[str]) -> list[Row]:
    """The rows of the jobs that were named, or of all.

    Raises:
        CliError: a job that was named does not exist.
    """
    everywhere = getattr(session.args, "all_namespaces", False)
    gpus = session.cluster.gpus_of_profiles()
    now = session.now()
    if names:
        return [row(session.job(name), gpus, now) for name in names]
    bodies = session.cluster.jobs(None if everywhere else session.namespace)
    return sorted(
        (row(parse_job(body), gpus, now) for body in bodies),
        key=lambda r: (r.over, r.namespace, r.name),
    )


def _once(session: Session, names: Sequence[str]) -> int:
    rows = rows_of(session, names)
    if session.args.output != "table":
        session.print_data(rows)
        return Exit.OK
    if not rows:
        note(f"there is no job in {session.namespace}")
    header = ("JOB", "PHASE", "PROGRESS", "LOSS", "CURVE", "ETA", "WORKERS", "GPUS", "SAYS")
    session.out.write(table(header, [_cells(found) for found in rows]))
    return Exit.OK


def _cells(found: Row) -> tuple[str, ...]:
    return (
        found.key,
        found.phase,
        "" if found.percent is None else f"{found.percent} %",
        "" if found.loss is None else f"{found.loss:.4g}",
        sparkline(found.losses, 16),
        "" if found.eta_seconds is None else f"{found.eta_seconds}s",
        found.workers,
        "?" if found.gpus is None else str(found.gpus),
        found.says.replace("\n", " "),
    )


def _polled(session: Session, names: Sequence[str]) -> Iterator[list[Row]]:
    """The rows again and again, until all that were named are over, or `--timeout`.

    What the API server does not answer is said and tried again: a view must outlive a restart of
    it. Only the first look must succeed.
    """
    args = session.args
    end = None if args.timeout is None else time.monotonic() + args.timeout
    found = rows_of(session, names)
    while True:
        yield found
        if names and all(r.over for r in found):
            return
        if end is not None and time.monotonic() >= end:
            raise CliError(f"not over after {args.timeout} s", Exit.TIMEOUT)
        time.sleep(args.interval)
        try:
            found = rows_of(session, names)
        except CliError as error:
            if error.code not in (Exit.NO_CLUSTER, Exit.FAILED):
                raise
            note(f"{error}; trying again")


def _lines(session: Session, names: Sequence[str]) -> int:
    """One line, or one JSON object, for every change."""
    before: dict[str, Row] = {}
    last: list[Row] = []
    for last in _polled(session, names):
        for found in last:
            if changed(before.get(found.key), found):
                session.print(_as_line(session, found))
        gone = before.keys() - {found.key for found in last}
        for key in sorted(gone):
            note(f"{key} was deleted")
        before = {found.key: found for found in last}
    return verdict(last)


def _as_line(session: Session, found: Row) -> str:
    time_of_day = time.strftime("%H:%M:%S")
    if session.args.output == "table":
        return f"{time_of_day} {line(found)}"
    data: Any = plain(found)
    if session.args.output == "json":
        return json.dumps(data, ensure_ascii=False)
    import yaml

    return "---\n" + yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip()


def _live(session: Session, names: Sequence[str]) -> int:
    from rich.console import Console
    from rich.live import Live

    from finetune_cli.view import render

    last: list[Row] = []
    console = Console(file=sys.stdout)
    with Live(console=console, auto_refresh=False, transient=False) as live:
        for last in _polled(session, names):
            several = len({found.namespace for found in last}) > 1
            live.update(render(last, several, time.strftime("%H:%M:%S")), refresh=True)
    return verdict(last)


def verdict(rows: Sequence[Row]) -> int:
    """The exit code for jobs that are over."""
    return Exit.JOB_FAILED if any(found.phase == "Failed" for found in rows) else Exit.OK

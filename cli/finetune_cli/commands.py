"""The commands that ask the cluster something and print it, or change one field."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from finetune_cli import chart
from finetune_cli.cluster import FIELD_OWNER, job_path
from finetune_cli.compare import Comparison, compare
from finetune_cli.exits import CliError, Exit
from finetune_cli.explain import Explanation, explain
from finetune_cli.jobs import parse_event
from finetune_cli.output import is_terminal, note, table
from finetune_cli.session import Session

MERGE = "application/merge-patch+json"


def explain_command(session: Session) -> int:
    """`explain JOB`."""
    job = session.job(session.args.job)
    events = [parse_event(e) for e in session.cluster.events(job.namespace, job.name)]
    found = explain(job, events, session.now(), session.program)
    if session.args.output == "table":
        session.print(_told(found))
    else:
        session.print_data(found)
    return Exit.OK


def _told(found: Explanation) -> str:
    lines = [found.headline, *(f"  {sentence}" for sentence in found.because)]
    if found.next:
        lines += ["", "Next:", *(f"  {i}. {step}" for i, step in enumerate(found.next, 1))]
    if found.log_tail:
        lines += ["", "Its last lines:", *(f"  | {text}" for text in found.log_tail.splitlines())]
    return "\n".join(lines)


def suspend_command(session: Session) -> int:
    """`suspend JOB...`."""
    return _set_suspend(session, True)


def resume_command(session: Session) -> int:
    """`resume JOB...`."""
    return _set_suspend(session, False)


def _set_suspend(session: Session, value: bool) -> int:
    done = []
    for name in session.args.jobs:
        job = session.job(name)
        if job.status.phase in ("Succeeded", "Failed"):
            raise CliError(f"{job.name} is over ({job.status.phase}); it cannot be suspended")
        changes = job.spec.suspend != value
        if changes:
            session.cluster.request(
                "PATCH",
                job_path(job.namespace, job.name),
                {"spec": {"suspend": value}},
                MERGE,
                {"fieldManager": FIELD_OWNER},
            )
        done.append({"job": job.key, "suspend": value, "changed": changes})
        if session.args.output == "table":
            session.print(_what_follows(job.name, job.status.phase, value, changes))
    if session.args.output != "table":
        session.print_data(done)
    return Exit.OK


def _what_follows(name: str, phase: str | None, value: bool, changes: bool) -> str:
    if not changes:
        return f"{name} {'is suspended' if value else 'was not suspended'} already; nothing changed"
    if value and phase == "Running":
        return f"{name}: its workers save a checkpoint, end and give their GPUs back"
    return f"{name}: it is stopped" if value else f"{name}: it goes on from its last checkpoint"


def compare_command(session: Session) -> int:
    """`compare A B`."""
    found = compare(session.job(session.args.a), session.job(session.args.b))
    if session.args.output != "table":
        session.print_data(found)
        return Exit.OK
    session.out.write(_side_by_side(found))
    session.out.flush()
    return Exit.OK


def _side_by_side(found: Comparison) -> str:
    rows = [(d.field, _cell(d.a), _cell(d.b)) for d in found.configuration]
    text = table(("CONFIGURATION", found.a, found.b), rows or [("no difference", "", "")])
    if found.metrics:
        shown = [(m.name, _cell(m.a), _cell(m.b), m.better or "") for m in found.metrics]
        better = {"a": found.a, "b": found.b, "": ""}
        rows4 = [(name, a, b, better[best]) for name, a, b, best in shown]
        text += "\n" + table(("MEASURED", found.a, found.b, "BETTER"), rows4)
    return text


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def plot_command(session: Session) -> int:
    """`plot JOB...`."""
    args = session.args
    jobs = [session.job(name) for name in args.jobs]
    curves = {job.name: chart.curve(job) for job in jobs}
    empty = [name for name, found in curves.items() if not found]
    if len(empty) == len(curves):
        raise CliError(
            f"{', '.join(empty)}: no loss has been reported yet (status.progress.history is empty)",
            Exit.NOT_FOUND,
        )
    if empty:
        note(f"without a curve so far: {', '.join(empty)}")
    curves = {name: found for name, found in curves.items() if found}
    if args.output != "table":
        session.print_data(
            {name: [{"step": s, "loss": v} for s, v in found] for name, found in curves.items()}
        )
    elif args.png is not None:
        results = {
            job.name: job.status.output.eval_loss_after
            for job in jobs
            if job.status.output and job.status.output.eval_loss_after is not None
        }
        chart.write_png(curves, results, Path(args.png))
        session.print(args.png)
    else:
        width = shutil.get_terminal_size().columns if is_terminal(session.out) else 80
        session.print(chart.draw(curves, args.width or min(width, 120), args.height))
    return Exit.OK


def completion_command(session: Session) -> int:
    """`completion SHELL`: a script for the shell to read."""
    from finetune_cli.complete import SCRIPTS

    session.out.write(SCRIPTS[session.args.shell])
    return Exit.OK

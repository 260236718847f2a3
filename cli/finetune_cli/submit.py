"""`init`, `validate` and `submit`: from answers to a job in the cluster."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.profile import FineTuneProfileSpec
from finetune_api.snapshot import Refused, make_snapshot
from finetune_cli import init, manifest
from finetune_cli.cluster import FIELD_OWNER, FINETUNE, ApiError, job_path
from finetune_cli.exits import CliError, Exit
from finetune_cli.jobs import lenient
from finetune_cli.output import is_terminal, note
from finetune_cli.session import Session

Json = dict[str, Any]
APPLY = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True)
class Check:
    """One look at a manifest."""

    name: str
    result: str
    """`ok`, `invalid`, or `skipped`."""
    problems: tuple[str, ...] = ()
    """What is wrong, field first; of a skipped check why."""


def init_command(session: Session) -> int:
    """`init`: asks what was not told, and writes the manifest."""
    args = session.args
    given: dict[str, Any] = {
        "name": args.name,
        "model.uri": args.model,
        "dataset.uri": args.dataset,
        "method.tuning": args.tuning,
        "workers.numNodes": args.workers,
        "output.uri": args.output_uri,
    }
    answers = _ask(given) if sys.stdin.isatty() and is_terminal(sys.stderr) else _told(given)
    optional = {"method.objective": args.objective, "profile": args.profile}
    optional |= {"training.epochs": args.epochs}
    name = answers.pop("name")
    text = init.render(name, args.namespace, answers | {k: v for k, v in optional.items() if v})
    for body in manifest.documents(text, "the new manifest"):
        manifest.parse(body, "the new manifest")
    if args.file == "-":
        session.out.write(text)
        return Exit.OK
    path = Path(args.file)
    if path.exists() and not args.force:
        raise CliError(f"{path} exists; choose another --file, or --force")
    path.write_text(text, encoding="utf-8")
    note(f"{path} is written; next: {session.program} validate {path}")
    return Exit.OK


def _told(given: dict[str, Any]) -> dict[str, Any]:
    """Without a terminal nothing is asked."""
    missing = [q.flag for q in init.QUESTIONS if given[q.field] is None and q.default is None]
    if missing:
        raise CliError(
            f"without a terminal nothing can be asked; give {', '.join(missing)}", Exit.USAGE
        )
    return {field: value for field, value in given.items() if value not in (None, "")}


def _ask(given: dict[str, Any]) -> dict[str, Any]:
    found = dict(given)
    for question in init.QUESTIONS:
        if found[question.field] is not None:
            continue
        hint = f" [{question.default}]" if question.default else ""
        while not found[question.field]:
            print(f"{question.text}{hint}: ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line:
                raise CliError("the answers ended too soon", Exit.USAGE)
            found[question.field] = line.strip() or question.default
            if found[question.field] == "":
                break
    workers = found["workers.numNodes"]
    if not str(workers).isdigit():
        raise CliError(f"{workers!r} is no number of workers", Exit.USAGE)
    found["workers.numNodes"] = int(workers)
    return {field: value for field, value in found.items() if value not in (None, "")}


def validate_command(session: Session) -> int:
    """`validate FILE`: says which checks were made, and every problem."""
    args, checks = session.args, []
    for body in manifest.read(args.file):
        name = (body.get("metadata") or {}).get("name", "?")
        for check in _checks(session, body):
            checks.append((name, check))
    wrong = any(check.result == "invalid" for _, check in checks)
    if args.output == "table":
        for name, check in checks:
            session.print(f"{name}: {check.name}: {check.result}")
            for problem in check.problems:
                session.print(f"  {problem}")
    else:
        session.print_data(
            [
                {"job": n, "check": c.name, "result": c.result, "problems": c.problems}
                for n, c in checks
            ]
        )
    return Exit.INVALID if wrong else Exit.OK


def _checks(session: Session, body: Json) -> list[Check]:
    wrong = manifest.problems(body)
    found = [Check("types of the fields", "invalid" if wrong else "ok", tuple(wrong))]
    if wrong or session.args.offline:
        why = "mend the types first" if wrong else "--offline"
        return [*found, Check("rules of the API server", "skipped", (why,))]
    try:
        found += [_dry_run(session, body), _profile(session, body)]
    except CliError as error:
        if error.code != Exit.NO_CLUSTER:
            raise
        found.append(Check("rules of the API server", "skipped", (str(error),)))
    return found


def _dry_run(session: Session, body: Json) -> Check:
    """What the API server itself would say; nothing is written."""
    name = "rules of the API server"
    try:
        answer = _apply(session, body, dry_run=True)
    except ApiError as error:
        if error.status in (400, 422):
            return Check(name, "invalid", tuple(_refusal(error)))
        if error.status == 404:
            return Check(name, "skipped", (str(error),))
        raise
    return Check(name, "ok", answer)


def _apply(session: Session, body: Json, dry_run: bool) -> tuple[str, ...]:
    """Server-side apply of a manifest, its warnings."""
    metadata = body.get("metadata") or {}
    namespace = session.args.namespace or metadata.get("namespace") or session.cluster.namespace
    wanted = body | {"metadata": metadata | {"namespace": namespace}}
    wanted.pop("status", None)
    query = {"fieldManager": FIELD_OWNER, "fieldValidation": "Strict", "force": "true"}
    if dry_run:
        query["dryRun"] = "All"
    path = job_path(namespace, metadata.get("name") or "unnamed")
    return session.cluster.request("PATCH", path, wanted, APPLY, query).warnings


def _refusal(error: ApiError) -> list[str]:
    """A line per field; what the API server says, where it names none."""
    found = [f"{field}: {message}" if field else message for field, message in error.causes]
    return list(dict.fromkeys(found)) or [str(error)]


def _profile(session: Session, body: Json) -> Check:
    """What the operator would refuse, with the profiles of the cluster."""
    name = "limits of the profile"
    try:
        items = session.cluster.items(f"{FINETUNE}/finetuneprofiles")
    except ApiError as error:
        return Check(name, "skipped", (str(error),))
    profiles = {
        p["metadata"]["name"]: lenient(FineTuneProfileSpec, p.get("spec") or {}) for p in items
    }
    spec = manifest.parse(body, "the manifest").spec
    found = make_snapshot(spec, profiles, "the operator's default")
    if isinstance(found, Refused):
        return Check(name, "invalid", (f"{found.reason}: {found.message}",))
    return Check(f"{name} {found.profile_name}", "ok")


def submit_command(session: Session) -> int:
    """`submit FILE`: makes the jobs; one that exists is left alone."""
    args = session.args
    bodies = manifest.read(args.file)
    if args.name is not None:
        if len(bodies) > 1:
            raise CliError(f"--name is for one job; {args.file} has {len(bodies)}", Exit.USAGE)
        bodies[0].setdefault("metadata", {})["name"] = args.name
    for body in bodies:
        manifest.parse(body, args.file)
    done = [_create(session, body) for body in bodies]
    if args.watch:
        from finetune_cli.watch import watch_jobs

        return watch_jobs(session, [f"{d['namespace']}/{d['name']}" for d in done])
    if args.output != "table":
        session.print_data(done)
    return Exit.OK


def _create(session: Session, body: Json) -> Json:
    metadata = body["metadata"]
    namespace = session.args.namespace or metadata.get("namespace") or session.cluster.namespace
    wanted = body | {"metadata": metadata | {"namespace": namespace}}
    wanted.pop("status", None)
    query = {"fieldManager": FIELD_OWNER, "fieldValidation": "Strict"}
    if session.args.dry_run:
        query["dryRun"] = "All"
    name = metadata["name"]
    try:
        answer = session.cluster.request("POST", job_path(namespace), wanted, query=query)
    except ApiError as error:
        if error.status == 409:
            raise CliError(
                f"{namespace}/{name} exists already; give the new one another name: --name NEW"
            ) from error
        if error.status in (400, 422):
            lines = [f"{name} is refused:", *manifest.indented(_refusal(error))]
            raise CliError("\n".join(lines), Exit.INVALID) from error
        raise
    for warning in answer.warnings:
        note(f"warning: {warning}")
    if session.args.output == "table":
        dry = " (dry run: nothing was made)" if session.args.dry_run else ""
        session.print(f"{namespace}/{name} is submitted{dry}")
        if not dry and not session.args.watch:
            note(f"see it: {session.program} watch {name} -n {namespace}")
    return {"namespace": namespace, "name": name, "uid": answer.body["metadata"].get("uid")}

"""`fetch JOB DIR`: brings the result here, and proves that it is what the job wrote."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from finetune_cli.artefact import MANIFEST, Entry, listed, unpack, verify
from finetune_cli.cluster import ApiError, Cluster
from finetune_cli.exits import CliError, Exit
from finetune_cli.jobs import Job
from finetune_cli.output import is_terminal, note
from finetune_cli.reader import CONTAINER, MOUNT, reader_pod
from finetune_cli.session import Session

Json = dict[str, Any]
POLL_SECONDS = 0.5


def fetch_command(session: Session) -> int:
    """`fetch JOB DIR`."""
    args = session.args
    job, target = session.job(args.job), Path(args.dir)
    output = job.status.output
    if output is None:
        raise CliError(
            f"{job.name} has no result: its phase is {job.status.phase or 'New'}", Exit.NOT_FOUND
        )
    claim, _, inside = output.uri.removeprefix("pvc://").partition("/")
    image = args.image or (job.status.resolved.image if job.status.resolved else None)
    if image is None:
        raise CliError(f"{job.name} does not say its image; name one by --image", Exit.USAGE)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CliError(f"{target} is not empty; name a new directory", Exit.USAGE)
    source = f"{MOUNT}/{inside}".rstrip("/")
    made = target.with_name(f".{target.name}.partial")
    shutil.rmtree(made, ignore_errors=True)
    try:
        with reader(session.cluster, reader_pod(job, claim, image, args.timeout), args) as pod:
            entries = _bring(session, job, pod, source, output.digest, made)
        verify(made, entries)
        if target.exists():
            target.rmdir()
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    size = sum(entry.bytes for entry in entries)
    found = {"job": job.key, "directory": str(target), "digest": output.digest}
    found |= {"files": len(entries) + 1, "bytes": size}  # type: ignore[dict-item]
    if args.output == "table":
        session.print(
            f"{target}: {len(entries) + 1} files, {size / 1e6:.1f} MB, every hash is right "
            f"({output.digest[:19]}...)"
        )
    else:
        session.print_data(found)
    return Exit.OK


def _bring(
    session: Session, job: Job, pod: str, source: str, digest: str, made: Path
) -> list[Entry]:
    """The manifest first: what is not the job's result is not copied."""
    run, namespace = session.cluster.run, job.namespace
    manifest = b"".join(run(namespace, pod, CONTAINER, ["cat", f"{source}/{MANIFEST}"]))
    entries = listed(manifest, digest)
    made.mkdir(parents=True)
    files = [f"./{name}" for name in (*(entry.path for entry in entries), MANIFEST)]
    command = ["tar", "-C", source, "-cf", "-", *files]
    total = sum(entry.bytes for entry in entries) + len(manifest)
    with _progress(total) as told:
        unpack(run(namespace, pod, CONTAINER, command), made, told)
    return entries


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; nothing elsewhere."""
    if not is_terminal(sys.stderr):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("fetch", total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def reader(cluster: Cluster, manifest: Json, args: Any) -> Iterator[str]:
    """A reader pod that runs; it is deleted whatever happens.

    Raises:
        CliError: it is refused, or does not start within `--timeout` seconds.
    """
    namespace = manifest["metadata"]["namespace"]
    path = f"/api/v1/namespaces/{quote(namespace)}/pods"
    name = cluster.request("POST", path, manifest).body["metadata"]["name"]
    note(f"pod {name} reads the volume")
    try:
        _wait_until_running(cluster, f"{path}/{name}", args.timeout)
        yield name
    finally:
        try:
            cluster.request("DELETE", f"{path}/{name}", query={"gracePeriodSeconds": "0"})
        except ApiError as error:
            if error.status != 404:
                note(f"pod {name} could not be deleted: {error}; it ends by itself")


def _wait_until_running(cluster: Cluster, path: str, seconds: float) -> None:
    end, said = time.monotonic() + seconds, ""
    while True:
        status = cluster.get(path).get("status", {})
        phase, why = status.get("phase"), _why(status)
        if phase == "Running" and why is None:
            return
        if phase in ("Failed", "Succeeded"):
            raise CliError(f"the reader pod ended: {status.get('message') or phase}")
        if time.monotonic() >= end:
            raise CliError(f"the reader pod does not start: {why or phase}", Exit.TIMEOUT)
        if why and why != said:
            note(f"it waits: {why}")
            said = why
        time.sleep(POLL_SECONDS)


def _why(status: Json) -> str | None:
    """What a pod waits for, in the words of the scheduler or the kubelet."""
    for container in status.get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting")
        if waiting:
            return f"{waiting.get('reason')}: {waiting.get('message', '')}".rstrip(": ")
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason')}: {condition.get('message', '')}"
    return None

"""`logs`: of rank 0, of one worker, of all, or of the one that failed."""

from __future__ import annotations

import threading
import time
from urllib.parse import quote

from finetune_api.names import CONTAINER, LABEL_JOB
from finetune_cli.cluster import ApiError
from finetune_cli.exits import CliError
from finetune_cli.jobs import Job
from finetune_cli.output import note
from finetune_cli.pods import Pod, Wish, choose, container_state, parse_pod
from finetune_cli.session import Session

LOOK_SECONDS = 2.0
"""How often a pod that has not started is looked at."""


def logs_command(session: Session) -> int:
    """`logs JOB`."""
    args = session.args
    job = session.job(args.job)
    wish = Wish(
        worker=args.worker,
        rank=args.rank,
        stage=args.stage,
        attempt=args.attempt,
        all=args.all,
        failed=args.failed,
    )
    bodies = session.cluster.pods(job.namespace, f"{LABEL_JOB}={job.name}")
    chosen = choose(job, [parse_pod(body) for body in bodies], wish)
    if len(chosen) == 1:
        _print(session, job, chosen[0], "")
        return 0
    if not args.follow:
        for pod in chosen:
            _print(session, job, pod, f"[{pod.short}] ")
        return 0
    _follow_all(session, job, chosen)
    return 0


def _follow_all(session: Session, job: Job, pods: list[Pod]) -> None:
    """All at once, line by line; ends when the last one ends."""
    errors: list[CliError] = []

    def follow(pod: Pod) -> None:
        try:
            _print(session, job, pod, f"[{pod.short}] ")
        except CliError as error:
            errors.append(error)

    threads = [threading.Thread(target=follow, args=(pod,), daemon=True) for pod in pods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _print(session: Session, job: Job, pod: Pod, prefix: str) -> None:
    args = session.args
    query = {} if args.tail is None else {"tailLines": str(args.tail)}
    if args.follow:
        query["follow"] = "true"
        _wait_for_start(session, job, pod)
    try:
        for line in session.cluster.log(job.namespace, pod.name, CONTAINER, **query):
            # In one write, so that lines of several pods stay whole.
            session.out.write(f"{prefix}{line}\n")
            if args.follow:
                session.out.flush()
    except ApiError as error:
        raise CliError(f"pod {pod.name} has no log: {error}", error.code) from error
    session.out.flush()


def _wait_for_start(session: Session, job: Job, pod: Pod) -> None:
    """Until the container has begun; what it waits for is said once."""
    said, path = "", f"/api/v1/namespaces/{quote(job.namespace)}/pods/{quote(pod.name)}"
    while True:
        state = container_state(session.cluster.get(path))
        if state is None:
            return
        if state != said:
            note(f"pod {pod.name} has not started: {state}")
            said = state
        time.sleep(LOOK_SECONDS)

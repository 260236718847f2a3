"""Why a job waits or what killed it, in sentences, with the next thing to try.

Pure: from the job and the Events about it to an `Explanation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.status import LastFailure
from finetune_cli.advice import FAILURES, UNKNOWN_WAIT, WAIT, WAITS
from finetune_cli.jobs import Event, Job, seconds, span

PATIENCE = 30.0
"""Seconds in which an operator that runs has looked at a new job."""
MAX_EVENTS = 3


@dataclass(frozen=True, slots=True)
class Explanation:
    """What there is to say."""

    job: str
    """`namespace/name`."""
    phase: str
    headline: str
    because: tuple[str, ...]
    """Sentences, the most important first."""
    next: tuple[str, ...]
    """Things to try, in this order."""
    log_tail: str | None = None
    """The last lines of what failed first."""


def explain(
    job: Job, events: Sequence[Event], now: float, program: str = "kubectl finetune"
) -> Explanation:
    """Why it waits or what killed it.

    Args:
        now: Seconds since the epoch.
        program: How people call this program, for the commands that are proposed.
    """
    phase = job.status.phase
    if phase is None:
        found = _unseen(job, now)
    elif phase == "Failed":
        found = _failed(job)
    elif phase == "Succeeded":
        found = _succeeded(job)
    else:
        found = _under_way(job, events, now)
    words = {"program": program, "name": job.name, "namespace": job.namespace}
    tries = tuple(_filled(line, words) for line in found.next)
    return Explanation(found.job, found.phase, found.headline, found.because, tries, found.log_tail)


def _filled(line: str, words: dict[str, str]) -> str:
    """Advice with names in it; other braces stay."""
    for name, value in words.items():
        line = line.replace("{" + name + "}", value)
    return line


def _unseen(job: Job, now: float) -> Explanation:
    age = now - seconds(job.created) if job.created else 0.0
    if age < PATIENCE:
        headline = (
            f"{job.name} was submitted {span(age)} ago; the operator has not looked at it yet"
        )
        return Explanation(job.key, "New", headline, (), ("look again in a few seconds",))
    return Explanation(
        job.key,
        "New",
        f"{job.name} was submitted {span(age)} ago, and no operator has looked at it",
        ("finetune-operator does not run in this cluster, or has lost the API server.",),
        (
            "see whether it runs: "
            "`kubectl get pods -A -l app.kubernetes.io/name=finetune-operator`",
            "and which replica leads: `kubectl get lease -A | grep finetune-operator`",
        ),
    )


def _failed(job: Job) -> Explanation:
    status, failure = job.status, job.status.last_failure
    if failure is None:
        return Explanation(
            job.key, "Failed", f"{job.name} failed: {status.message or 'nobody says why'}", (), ()
        )
    advice = FAILURES[failure.failure_class]
    because = [_sentence(failure.message), advice.meaning, *_place(failure), *_history(job)]
    stage = f" in {failure.stage}" if failure.stage else ""
    pods = [f"read its log: `{{program}} logs {job.name} -n {job.namespace} --failed`"]
    return Explanation(
        job.key,
        "Failed",
        f"{job.name} failed{stage}: {failure.failure_class}",
        tuple(because),
        (*(pods if failure.pod else []), *advice.on(job)),
        failure.log_tail,
    )


def _place(failure: LastFailure) -> list[str]:
    where = []
    if failure.rank is not None:
        where.append(f"rank {failure.rank} failed first")
    if failure.pod is not None:
        where.append(f"in pod {failure.pod}")
    if failure.node is not None:
        where.append(f"on node {failure.node}")
    if failure.exit_code is not None:
        where.append(f"with exit code {failure.exit_code}")
    return [_sentence(" ".join(where))] if where else []


def _history(job: Job) -> list[str]:
    """The attempts before, and nodes that have to do with more than one of them."""
    restarts = job.status.restarts
    if restarts is None or not (restarts.counted or restarts.disruptions):
        return []
    said = []
    for entry in restarts.history[-5:]:
        step = "" if entry.step is None else f" at step {entry.step}"
        node = "" if entry.node is None else f" on {entry.node}"
        said.append(f"attempt {entry.attempt} {entry.failure_class}{step}{node}")
    found = [
        f"{restarts.counted} restarts and {restarts.disruptions} disruptions so far: "
        f"{'; '.join(said)}."
    ]
    nodes = [entry.node for entry in restarts.history if entry.node and entry.cause == "Platform"]
    for node in sorted({node for node in nodes if nodes.count(node) > 1}):
        found.append(f"Node {node} had to do with {nodes.count(node)} of them: have it checked.")
    return found


def _succeeded(job: Job) -> Explanation:
    output = job.status.output
    because = []
    if output is not None:
        because.append(f"The result is in {output.uri} ({output.bytes / 1e6:.1f} MB).")
        if output.eval_loss_before is not None and output.eval_loss_after is not None:
            better = output.eval_loss_after < output.eval_loss_before
            because.append(
                f"The loss on held-out examples was {output.eval_loss_before:.4g} before and is "
                f"{output.eval_loss_after:.4g} now"
                + ("." if better else ": it has learned nothing that these examples show.")
            )
    tries = [f"bring it here: `{{program}} fetch {job.name} DIR -n {job.namespace}`"]
    return Explanation(
        job.key,
        "Succeeded",
        f"{job.name} succeeded",
        tuple(because),
        tuple(tries if output else []),
    )


def _under_way(job: Job, events: Sequence[Event], now: float) -> Explanation:
    validated, waiting = job.condition("Validated"), job.condition("Waiting")
    if validated is not None and validated.status == "False":
        return _waits(job, validated.reason, validated.message, events, now)
    if job.status.phase == "Restarting":
        return _restarting(job)
    if waiting is not None and waiting.status == "True":
        return _waits(job, waiting.reason, waiting.message, events, now)
    if job.status.phase == "Suspended":
        return _waits(job, "Suspended", job.status.message or "", events, now)
    return _works(job)


def _waits(job: Job, reason: str, message: str, events: Sequence[Event], now: float) -> Explanation:
    advice = WAITS.get(reason, UNKNOWN_WAIT)
    condition = job.condition("Waiting")
    since = ""
    if condition is not None and condition.status == "True":
        since = f", for {span(now - seconds(condition.last_transition_time))}"
    words = [_sentence(message)] if message and message != advice.meaning else []
    if reason == "Suspended":
        words += _kept(job)
    elif reason not in ("Starting", "Stopping"):
        words.append(_held(job))
    return Explanation(
        job.key,
        str(job.status.phase),
        f"{job.name} waits ({reason}{since}): {advice.meaning}",
        (*words, *_said(events, message)),
        tuple(advice.on(message)),
    )


def _held(job: Job) -> str:
    if job.status.start_time is None:
        return "Nothing has been made for it yet, and it holds nothing."
    return "It goes on by itself as soon as that is away."


def _kept(job: Job) -> list[str]:
    progress = job.status.progress
    if progress is None or progress.step is None:
        return []
    of = f" of {progress.total_steps}" if progress.total_steps is not None else ""
    return [f"It had done step {progress.step}{of}, and goes on from its last checkpoint."]


def _restarting(job: Job) -> Explanation:
    failure, message = job.status.last_failure, job.status.message or ""
    because = [_sentence(message)] if message else []
    if failure is not None:
        because += [FAILURES[failure.failure_class].meaning, *_place(failure)]
    tries = [*WAIT]
    if failure is not None and failure.pod:
        tries.append(
            "read what the failed worker said: `{program} logs {name} -n {namespace} --failed`"
        )
    return Explanation(
        job.key,
        "Restarting",
        f"{job.name} starts again by itself after a failure",
        (*because, *_history(job)),
        tuple(tries),
        failure.log_tail if failure else None,
    )


def _works(job: Job) -> Explanation:
    """Nothing is wrong, or only a little."""
    status = job.status
    because, tries = [], ["see it: `{program} watch {name} -n {namespace}`"]
    progress = status.progress
    if status.phase == "Running" and progress is not None and progress.step is not None:
        of = f" of {progress.total_steps}" if progress.total_steps is not None else ""
        loss = "" if progress.loss is None else f", loss {progress.loss:.4g}"
        because.append(f"It has done step {progress.step}{of}{loss}.")
        if progress.eta_seconds is not None:
            because.append(f"Training ends in about {span(progress.eta_seconds)}.")
    elif status.message:
        because.append(_sentence(status.message))
    headline = f"{job.name} is {str(status.phase).lower()}; nothing is wrong"
    if progress is not None and progress.stalled_seconds is not None:
        headline = f"{job.name} does not get on, for {span(progress.stalled_seconds)}"
        because.append("spec.hangPolicy.action is Report, so its workers are left alone.")
        tries = [
            "read where its ranks stand: `{program} logs {name} -n {namespace} --all`",
            "end the attempt and go on from its checkpoint: `{program} suspend {name} "
            "-n {namespace}`, then `resume`",
        ]
    reported = job.condition("ProgressReported")
    if reported is not None and reported.status == "False":
        headline = f"{job.name} is running, but its reports do not arrive"
        because.append(_sentence(reported.message))
        tries = [
            "see whether it trains: `{program} logs {name} -n {namespace} -f`",
            "have the way from its pods to the operator checked (NetworkPolicy, Service, "
            "progress port)",
        ]
    return Explanation(
        job.key, str(status.phase), headline, (*because, *_history(job)), tuple(tries)
    )


def _said(events: Sequence[Event], known: str) -> list[str]:
    """Warnings that say something else than the status, newest first."""
    found: list[str] = []
    for event in sorted(events, key=lambda e: e.time, reverse=True):
        words = f"{event.about} says {event.reason}: {event.message}"
        new = event.message not in known and not any(event.message in said for said in found)
        if event.type == "Warning" and new and known not in event.message:
            found.append(_sentence(words))
    return found[:MAX_EVENTS]


def _sentence(text: str) -> str:
    """With a capital letter, unless a name stands first, and a full stop."""
    text = text.strip()
    if not text:
        return text
    first = text.split()[0]
    plain = first.rstrip(",:;").isalpha()
    return (text[0].upper() if plain else text[0]) + text[1:] + ("" if text[-1] in ".!?:" else ".")

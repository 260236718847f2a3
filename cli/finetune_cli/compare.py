"""What is different between two jobs: configuration and measurements. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_cli.jobs import Job, seconds

IRRELEVANT = ("resolved.shape", "resolved.outputUri")
"""What follows from the model, in hundreds of numbers; and where the result lies, which has the
job's own name in it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A field with two values; None: it is not set."""

    field: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class Measure:
    """A measured number of both jobs; None: not measured."""

    name: str
    a: float | None
    b: float | None
    better: str | None
    """`a`, `b`, or None: equal, not known, or not a matter of better and worse."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two jobs side by side."""

    a: str
    b: str
    configuration: tuple[Difference, ...]
    """Fields of spec and status.resolved that differ, defaults filled in."""
    metrics: tuple[Measure, ...]


def compare(a: Job, b: Job) -> Comparison:
    """What is different."""
    return Comparison(
        a.key, b.key, tuple(_configuration(a, b)), tuple(_measure(*m) for m in _metrics(a, b))
    )


def _configuration(a: Job, b: Job) -> Iterator[Difference]:
    left, right = _settings(a), _settings(b)
    for field in [*left, *(name for name in right if name not in left)]:
        if left.get(field) != right.get(field):
            yield Difference(field, left.get(field), right.get(field))


def _settings(job: Job) -> dict[str, Any]:
    resolved = job.status.resolved
    found = dict(_flat("spec", job.spec.to_json_dict()))
    if resolved is not None:
        found |= dict(_flat("resolved", resolved.to_json_dict()))
    return {
        name: value
        for name, value in found.items()
        if not any(name == skip or name.startswith(f"{skip}.") for skip in IRRELEVANT)
    }


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Leaves by their dotted names; a list is a leaf."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}", inner)
    else:
        yield prefix, value


def _metrics(a: Job, b: Job) -> Iterator[tuple[str, float | None, float | None, int]]:
    """Name, both values, and which direction is better: -1 less, 1 more, 0 neither."""
    left, right = _numbers(a), _numbers(b)
    for name, (value, direction) in left.items():
        other = right[name][0]
        if value is not None or other is not None:
            yield name, value, other, direction


def _numbers(job: Job) -> dict[str, tuple[float | None, int]]:
    status = job.status
    output, progress, data = status.output, status.progress, status.dataset
    return {
        "eval loss before": (output.eval_loss_before if output else None, 0),
        "eval loss after": (output.eval_loss_after if output else None, -1),
        "retention loss before": (output.retention_loss_before if output else None, 0),
        "retention loss after": (output.retention_loss_after if output else None, -1),
        "eval loss so far": (progress.eval_loss if progress and not output else None, -1),
        "training loss": (progress.loss if progress else None, 0),
        "steps": (progress.step if progress else None, 0),
        "tokens per second": (progress.tokens_per_second if progress else None, 1),
        "examples": (data.examples if data else None, 0),
        "tokens": (data.tokens if data else None, 0),
        "seconds in all": (_duration(job), -1),
        "training seconds": (_training(job), -1),
        "attempts": (None if status.attempt is None else status.attempt + 1, -1),
        "result in bytes": (output.bytes if output else None, 0),
    }


def _duration(job: Job) -> float | None:
    start, end = job.status.start_time, job.status.completion_time
    return None if start is None or end is None else seconds(end) - seconds(start)


def _training(job: Job) -> float | None:
    """Of the last attempt."""
    for stage in job.status.stages:
        if stage.name == "train" and stage.completion_time is not None:
            return seconds(stage.completion_time) - seconds(stage.start_time)
    return None


def _measure(name: str, a: float | None, b: float | None, direction: int) -> Measure:
    better = None
    if direction and a is not None and b is not None and a != b:
        better = "a" if (a - b) * direction > 0 else "b"
    return Measure(name, a, b, better)

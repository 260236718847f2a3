"""A job as the API server returns it, parsed once."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from finetune_api.base import ApiModel
from finetune_api.status import Condition, FineTuneJobStatus
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_cli.exits import CliError

Json = dict[str, Any]
M = TypeVar("M", bound=ApiModel)


@dataclass(frozen=True, slots=True)
class Job:
    """A FineTuneJob of a cluster."""

    namespace: str
    name: str
    uid: str
    created: str
    generation: int
    spec: FineTuneJobSpec
    status: FineTuneJobStatus

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    def condition(self, type_: str) -> Condition | None:
        """One of the conditions; None: the operator has not written it."""
        return next((c for c in self.status.conditions if c.type == type_), None)


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes Event about a job or one of its pods."""

    type: str
    reason: str
    message: str
    time: str
    about: str
    """`Kind/name`."""


def parse_job(body: Mapping[str, Any]) -> Job:
    """Parse once, at the edge.

    Raises:
        CliError: it has values that this version does not know.
    """
    metadata = body["metadata"]
    try:
        spec = lenient(FineTuneJobSpec, body.get("spec") or {})
        status = lenient(FineTuneJobStatus, body.get("status") or {})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise CliError(
            f"{metadata['name']}: this version of the program does not understand {where}: "
            f"{problem['msg']}; update it to the version of the operator"
        ) from error
    return Job(
        namespace=metadata.get("namespace", "default"),
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        created=metadata.get("creationTimestamp", ""),
        generation=metadata.get("generation", 0),
        spec=spec,
        status=status,
    )


def parse_event(body: Mapping[str, Any]) -> Event:
    """An Event of either API."""
    about = body.get("involvedObject") or body.get("regarding") or {}
    time = body.get("lastTimestamp") or body.get("eventTime") or body.get("firstTimestamp")
    return Event(
        type=body.get("type") or "Normal",
        reason=body.get("reason") or "",
        message=body.get("message") or body.get("note") or "",
        time=time or body.get("metadata", {}).get("creationTimestamp") or "",
        about=f"{about.get('kind', '')}/{about.get('name', '')}",
    )


def lenient(model: type[M], data: Mapping[str, Any]) -> M:
    """Validate what a newer operator may have written: fields that are not known here are left out.

    Raises:
        pydantic.ValidationError: something else is wrong.
    """
    try:
        return model.parse(data)
    except ValidationError as error:
        unknown = [e["loc"] for e in error.errors() if e["type"] == "extra_forbidden"]
        if not unknown:
            raise
    known = deepcopy(dict(data))
    for path in unknown:
        place: Any = known
        for part in path[:-1]:
            place = place[part]
        del place[path[-1]]
    return model.parse(known)


def seconds(time: str) -> float:
    """An RFC 3339 time in seconds since the epoch."""
    return datetime.fromisoformat(time).timestamp()


def span(duration: float) -> str:
    """Seconds for people, two units at most: `45s`, `3m20s`, `2h05m`, `3d4h`."""
    whole = max(0, round(duration))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"

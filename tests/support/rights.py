"""The rights that the chart gives beside the requests that were made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one resource."""

    group: str
    resource: str
    """With its subresource: `pods/status`."""
    verb: str


def given(roles: Iterable[Json]) -> set[Right]:
    """Every right of some roles, one by one; a wildcard is none that can be used up."""
    rules = [rule for role in roles for rule in role["rules"]]
    found = {
        Right(group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert not [r for r in found if "*" in (r.group, r.resource, r.verb)], "a wildcard"
    return found


def used(requests: Iterable[Json]) -> set[Right]:
    """The rights that requests of the audit log needed. Requests for no resource (`/version`, what
    the API server serves) need none that a role of ours gives."""
    found = set()
    for entry in requests:
        target = entry.get("objectRef")
        if target is None or "resource" not in target:
            continue
        part = f"/{target['subresource']}" if "subresource" in target else ""
        resource = target["resource"] + part
        found.add(Right(target.get("apiGroup", ""), resource, entry["verb"]))
    return found

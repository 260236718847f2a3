"""A job as its profile sees it, and how the lists of a profile are read; `limit_table.py` has the
limits themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.profile import FineTuneProfileSpec
from finetune_api.profile_limits import NamespaceSelector, SelectorRequirement
from finetune_api.v1alpha1 import FineTuneJobSpec

NAME_LABEL = "kubernetes.io/metadata.name"
"""The label that every namespace has."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A job, with its profile's defaults, as the profile sees it."""

    spec: FineTuneJobSpec
    profile_name: str
    profile: FineTuneProfileSpec
    labels: Mapping[str, str] | None = None
    """Of its namespace; None: there is no cluster."""

    @property
    def procs(self) -> int:
        """Training processes of a worker."""
        return processes(self.spec, self.profile)

    @property
    def world(self) -> int:
        """Training processes in all."""
        return self.spec.workers.num_nodes * self.procs


def processes(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> int:
    """Training processes per worker."""
    wanted = spec.workers.num_proc_per_node
    return max(1, profile.node.gpus_per_node) if wanted == "Auto" else wanted


def matches(text: str, patterns: list[str] | None) -> bool:
    """Whether one of the patterns is the whole text; no list: everything is."""
    if patterns is None:
        return True
    return any(re.fullmatch(p.replace(".", "[.]").replace("*", ".*"), text) for p in patterns)


def selects(selector: NamespaceSelector, labels: Mapping[str, str]) -> bool:
    """Whether a namespace with these labels is meant."""
    own = all(labels.get(key) == value for key, value in selector.match_labels.items())
    return own and all(_holds(one, labels) for one in selector.match_expressions)


def _holds(one: SelectorRequirement, labels: Mapping[str, str]) -> bool:
    if one.operator in ("Exists", "DoesNotExist"):
        return (one.key in labels) == (one.operator == "Exists")
    return (labels.get(one.key) in one.values) == (one.operator == "In")

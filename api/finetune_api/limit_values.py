"""What the limits of `limit_table.py` compute with and say: each value for the operator in Python
and for the API server in CEL, where `object` is the job and `params` the profile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic.alias_generators import to_snake

from finetune_api.limits import NAME_LABEL, Asked
from finetune_api.tracking import Tracker


def _own(path: str, otherwise: str) -> str:
    """CEL: a field of the job, else the profile's default, else the field's own default."""
    field = ".".join(f"?{part}" for part in path.split("."))
    return f"object.spec.{field}.orValue(params.spec.?defaults.{field}.orValue({otherwise}))"


VARIABLES = {
    "nodes": _own("workers.numNodes", "1"),
    "gpusPerNode": "params.spec.node.gpusPerNode",
    "askedProcs": _own("workers.numProcPerNode", "'Auto'"),
    "procs": "type(variables.askedProcs) == string ?"
    " (variables.gpusPerNode > 0 ? variables.gpusPerNode : 1) : int(variables.askedProcs)",
    "world": "variables.nodes * variables.procs",
    "batch": _own("training.globalBatchSize", "32"),
    "micro": _own("training.microBatchSize", "'Auto'"),
    "ownTrainer": "has(object.spec.trainer) || params.spec.?defaults.?trainer.hasValue()",
    "trainerImage": _own("trainer.image", "''"),
    "retention": "object.spec.?evaluation.?retention.?uri.orValue('')",
    "objective": _own("method.objective", "'SFT'"),
    "tuning": _own("method.tuning", "'LoRA'"),
    "format": _own("dataset.format", "'Auto'"),
    "trackers": _own("tracking.reportTo", "[]"),
    "serviceAccount": _own("serviceAccountName", "''"),
    "deadline": _own("activeDeadlineSeconds", "0"),
    "labels": "has(namespaceObject.metadata.labels) ? namespaceObject.metadata.labels : {}",
}
"""CEL: what the limits and their texts compute with, in an order in which each knows its own."""

Value = tuple[Callable[[Asked], Any], str]


def _list(field: str) -> Value:
    """A list of the limits, as a text."""
    name = to_snake(field)
    return (
        lambda a: ", ".join(getattr(a.profile.limits, name) or ["none"]),
        f"params.spec.limits.?{field}.orValue(['none']).join(', ')",
    )


def retention(asked: Asked) -> str:
    """URI of the retention set; empty: there is none."""
    found = asked.spec.evaluation.retention
    return found.uri if found else ""


def trackers(asked: Asked) -> list[Tracker]:
    """What the job reports to."""
    return asked.spec.tracking.report_to if asked.spec.tracking else []


def image(asked: Asked) -> str:
    """The job's own image; empty: the profile's."""
    found = asked.spec.trainer
    return (found.image or "") if found else ""


def _batches(asked: Asked) -> str:
    batch, world = asked.spec.training.global_batch_size, asked.world
    lower, upper = batch // world * world, (batch // world + 1) * world
    return f"{lower} or {upper}" if lower else str(upper)


_LOWER = "variables.batch / variables.world"

VALUES: dict[str, Value] = {
    "profile": (lambda a: a.profile_name, "params.metadata.name"),
    "namespace": (lambda a: (a.labels or {}).get(NAME_LABEL, ""), "object.metadata.namespace"),
    "nodes": (lambda a: a.spec.workers.num_nodes, "variables.nodes"),
    "procs": (lambda a: a.procs, "variables.procs"),
    "world": (lambda a: a.world, "variables.world"),
    "gpusPerNode": (lambda a: a.profile.node.gpus_per_node, "variables.gpusPerNode"),
    "maxNodes": (lambda a: a.profile.limits.max_nodes, "params.spec.limits.maxNodes"),
    "maxGpus": (lambda a: a.profile.limits.max_gpus, "params.spec.limits.maxGpus"),
    "deadline": (lambda a: a.spec.active_deadline_seconds, "variables.deadline"),
    "maxDuration": (
        lambda a: a.profile.limits.max_duration_seconds,
        "params.spec.limits.maxDurationSeconds",
    ),
    "model": (lambda a: a.spec.model.uri, "object.spec.model.uri"),
    "dataset": (lambda a: a.spec.dataset.uri, "object.spec.dataset.uri"),
    "retention": (retention, "variables.retention"),
    "models": _list("models"),
    "datasets": _list("datasets"),
    "objective": (lambda a: a.spec.method.objective, "variables.objective"),
    "objectives": _list("objectives"),
    "format": (lambda a: a.spec.dataset.format, "variables.format"),
    "tuning": (lambda a: a.spec.method.tuning, "variables.tuning"),
    "tunings": _list("tunings"),
    "trackers": (lambda a: ", ".join(trackers(a)), "variables.trackers.join(', ')"),
    "reportTo": (
        lambda a: ", ".join(a.profile.limits.report_to) or "none",
        "size(params.spec.limits.reportTo) == 0 ? 'none' : params.spec.limits.reportTo.join(', ')",
    ),
    "image": (image, "variables.trainerImage"),
    "images": _list("trainerImages"),
    "account": (lambda a: a.spec.service_account_name, "variables.serviceAccount"),
    "accounts": _list("serviceAccounts"),
    "batch": (lambda a: a.spec.training.global_batch_size, "variables.batch"),
    "batches": (
        _batches,
        f"({_LOWER} > 0 ? string({_LOWER} * variables.world) + ' or ' : '') +"
        f" string(({_LOWER} + 1) * variables.world)",
    ),
    "micro": (lambda a: a.spec.training.micro_batch_size, "variables.micro"),
    "share": (lambda a: a.spec.training.global_batch_size // a.world, _LOWER),
}
"""What stands in the texts: for the operator, and in CEL."""

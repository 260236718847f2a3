"""What a profile allows: one table, each limit for the operator in Python and for the API server in
CEL, with one text for both.

`problems` is what the operator asks before it makes anything; `admission.py` makes a
ValidatingAdmissionPolicy of the same table, so that most of it is told at `kubectl apply`. That
both say the same is a test: `tests/cluster/test_profile_policy.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.limit_values import VALUES, image, retention, trackers
from finetune_api.limits import Asked, matches, selects
from finetune_api.run_config import PREFERENCES


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit."""

    name: str
    """Variable of the policy."""
    reason: str
    """Reason of the condition."""
    text: str
    """What is said where it is not kept; `{name}` is one of `VALUES`."""
    kept: Callable[[Asked], bool]
    cel: str
    """`kept` in CEL: `object` is the job, `params` the profile."""
    final: bool = False
    """The job fails; else it waits until something changes."""

    def says(self, asked: Asked) -> str:
        """The text about a job."""
        return self.text.format_map(_Values(asked))


class _Values(dict[str, str]):
    """Computes only what a text asks for."""

    def __init__(self, asked: Asked) -> None:
        super().__init__()
        self._asked = asked

    def __missing__(self, name: str) -> str:
        return str(VALUES[name][0](self._asked))


def problems(asked: Asked) -> list[tuple[Limit, str]]:
    """Every limit that a job does not keep, with what is said of it."""
    return [(limit, limit.says(asked)) for limit in LIMITS if not limit.kept(asked)]


def _at_most(value: int | None, limit: int | None) -> bool:
    return value is None or limit is None or value <= limit


def _listed(field: str, value: str) -> str:
    """CEL: a text is in a list of patterns, or there is no such list."""
    limit = f"params.spec.limits.{field}"
    pattern = "'^' + p.replace('.', '[.]').replace('*', '.*') + '$'"
    return f"!has({limit}) || {limit}.exists(p, {value}.matches({pattern}))"


def _among(field: str, value: str) -> str:
    """CEL: a value is in a list, or there is none, or the trainer is the job's own."""
    limit = f"params.spec.limits.{field}"
    return f"variables.ownTrainer || !has({limit}) || {value} in {limit}"


_SELECTOR = "params.spec.limits.namespaceSelector"
_LABELS = "variables.labels"

LIMITS = (
    Limit(
        "namespaceSelector",
        "ForbiddenByProfile",
        "metadata.namespace is {namespace}, which profile '{profile}' is not for "
        "(limits.namespaceSelector)",
        lambda a: (
            a.labels is None
            or a.profile.limits.namespace_selector is None
            or selects(a.profile.limits.namespace_selector, a.labels)
        ),
        f"!has({_SELECTOR}) || ({_SELECTOR}.matchLabels.all(k,"
        f" k in {_LABELS} && {_LABELS}[k] == {_SELECTOR}.matchLabels[k])"
        f" && {_SELECTOR}.matchExpressions.all(e, e.operator == 'Exists' ? e.key in {_LABELS} :"
        f" e.operator == 'DoesNotExist' ? !(e.key in {_LABELS}) :"
        f" (e.key in {_LABELS} && {_LABELS}[e.key] in e.values) == (e.operator == 'In')))",
    ),
    Limit(
        "trainer",
        "OwnTrainerForbidden",
        "spec.trainer: profile '{profile}' lets no job bring its own trainer "
        "(limits.ownTrainer is false); remove it, or use a profile that allows it",
        lambda a: a.spec.trainer is None or a.profile.limits.own_trainer,
        "!variables.ownTrainer || params.spec.limits.ownTrainer",
        final=True,
    ),
    Limit(
        "trainerImages",
        "ForbiddenByProfile",
        "spec.trainer.image is {image}; profile '{profile}' allows {images} (limits.trainerImages)",
        lambda a: not image(a) or matches(image(a), a.profile.limits.trainer_images),
        f"variables.trainerImage == '' || {_listed('trainerImages', 'variables.trainerImage')}",
    ),
    Limit(
        "serviceAccounts",
        "ForbiddenByProfile",
        "spec.serviceAccountName is {account}; profile '{profile}' allows {accounts} "
        "(limits.serviceAccounts)",
        lambda a: (
            a.spec.service_account_name is None
            or matches(a.spec.service_account_name, a.profile.limits.service_accounts or [])
        ),
        "variables.serviceAccount == '' || (has(params.spec.limits.serviceAccounts) &&"
        f" ({_listed('serviceAccounts', 'variables.serviceAccount')}))",
    ),
    Limit(
        "models",
        "ForbiddenByProfile",
        "spec.model.uri is {model}; profile '{profile}' allows {models} (limits.models)",
        lambda a: matches(a.spec.model.uri, a.profile.limits.models),
        _listed("models", "object.spec.model.uri"),
    ),
    Limit(
        "datasets",
        "ForbiddenByProfile",
        "spec.dataset.uri is {dataset}; profile '{profile}' allows {datasets} (limits.datasets)",
        lambda a: matches(a.spec.dataset.uri, a.profile.limits.datasets),
        _listed("datasets", "object.spec.dataset.uri"),
    ),
    Limit(
        "retention",
        "ForbiddenByProfile",
        "spec.evaluation.retention.uri is {retention}; profile '{profile}' allows {datasets} "
        "(limits.datasets)",
        lambda a: not retention(a) or matches(retention(a), a.profile.limits.datasets),
        f"variables.retention == '' || {_listed('datasets', 'variables.retention')}",
    ),
    Limit(
        "objectives",
        "ForbiddenByProfile",
        "spec.method.objective is {objective}; profile '{profile}' allows {objectives} "
        "(limits.objectives)",
        lambda a: (
            a.spec.trainer is not None
            or a.profile.limits.objectives is None
            or a.spec.method.objective in a.profile.limits.objectives
        ),
        _among("objectives", "variables.objective"),
    ),
    Limit(
        "tunings",
        "ForbiddenByProfile",
        "spec.method.tuning is {tuning}; profile '{profile}' allows {tunings} (limits.tunings)",
        lambda a: (
            a.spec.trainer is not None
            or a.profile.limits.tunings is None
            or a.spec.method.tuning in a.profile.limits.tunings
        ),
        _among("tunings", "variables.tuning"),
    ),
    Limit(
        "reportTo",
        "ForbiddenByProfile",
        "spec.tracking.reportTo is {trackers}; profile '{profile}' allows {reportTo} "
        "(limits.reportTo)",
        lambda a: all(tracker in a.profile.limits.report_to for tracker in trackers(a)),
        "variables.trackers.all(t, t in params.spec.limits.reportTo)",
    ),
    Limit(
        "maxNodes",
        "ExceedsProfile",
        "spec.workers.numNodes is {nodes}; profile '{profile}' allows at most {maxNodes} "
        "(limits.maxNodes)",
        lambda a: _at_most(a.spec.workers.num_nodes, a.profile.limits.max_nodes),
        "!has(params.spec.limits.maxNodes) || variables.nodes <= params.spec.limits.maxNodes",
    ),
    Limit(
        "gpusPerNode",
        "ExceedsProfile",
        "spec.workers.numProcPerNode is {procs}; a node of profile '{profile}' has {gpusPerNode} "
        "GPUs (node.gpusPerNode)",
        lambda a: not a.profile.node.gpus_per_node or a.procs <= a.profile.node.gpus_per_node,
        "variables.gpusPerNode == 0 || variables.procs <= variables.gpusPerNode",
    ),
    Limit(
        "maxGpus",
        "ExceedsProfile",
        "spec.workers asks for {nodes} x {procs} = {world} GPUs; profile '{profile}' allows at "
        "most {maxGpus} (limits.maxGpus)",
        lambda a: not a.profile.node.gpus_per_node or _at_most(a.world, a.profile.limits.max_gpus),
        "variables.gpusPerNode == 0 || !has(params.spec.limits.maxGpus)"
        " || variables.world <= params.spec.limits.maxGpus",
    ),
    Limit(
        "maxDurationSeconds",
        "ExceedsProfile",
        "spec.activeDeadlineSeconds is {deadline}; profile '{profile}' allows at most {maxDuration}"
        " (limits.maxDurationSeconds)",
        lambda a: _at_most(a.spec.active_deadline_seconds, a.profile.limits.max_duration_seconds),
        "!has(params.spec.limits.maxDurationSeconds)"
        " || variables.deadline <= params.spec.limits.maxDurationSeconds",
    ),
    Limit(
        "format",
        "InvalidSpec",
        "spec.dataset.format is {format}, and spec.method.objective is {objective}: Preference and "
        "DPO, KTO or ORPO belong together; change one",
        lambda a: (
            a.spec.trainer is not None
            or a.spec.dataset.format == "Auto"
            or (a.spec.dataset.format == "Preference") == (a.spec.method.objective in PREFERENCES)
        ),
        "variables.ownTrainer || variables.format == 'Auto' || (variables.format == 'Preference')"
        f" == (variables.objective in {list(PREFERENCES)})",
    ),
    Limit(
        "globalBatchSize",
        "InvalidBatchSize",
        "spec.training.globalBatchSize is {batch}, which {nodes} x {procs} processes cannot share "
        "evenly; use {batches}",
        lambda a: a.spec.trainer is not None or a.spec.training.global_batch_size % a.world == 0,
        "variables.ownTrainer || variables.batch % variables.world == 0",
    ),
    Limit(
        "microBatchSize",
        "InvalidBatchSize",
        "spec.training.microBatchSize is {micro}, which does not divide a process's share of "
        "{share} (globalBatchSize {batch} / {world} processes); use Auto or a divisor of it",
        lambda a: _micro_fits(a),
        "variables.ownTrainer || type(variables.micro) == string"
        " || variables.batch % variables.world != 0"
        " || (variables.batch / variables.world) % int(variables.micro) == 0",
    ),
)


def _micro_fits(asked: Asked) -> bool:
    training = asked.spec.training
    micro, batch = training.micro_batch_size, training.global_batch_size
    if asked.spec.trainer is not None or micro == "Auto" or batch % asked.world:
        return True
    return (batch // asked.world) % micro == 0

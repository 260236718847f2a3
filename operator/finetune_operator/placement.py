"""Where the workers run: all of a pod that the scheduler reads."""

from __future__ import annotations

from typing import Any

from finetune_operator import names
from finetune_operator.plan import Plan

Manifest = dict[str, Any]


def scheduling(plan: Plan, attempt: int) -> Manifest:
    """The fields of a worker pod; what the profile leaves open is left out."""
    profile = plan.snapshot.profile
    placement = profile.placement
    found: Manifest = {
        "nodeSelector": placement.node_selector,
        "tolerations": [toleration.to_json_dict() for toleration in placement.tolerations],
        "schedulerName": placement.scheduler_name,
        "priorityClassName": placement.priority_class_name,
        "runtimeClassName": profile.node.runtime_class_name,
        "affinity": _affinity(plan, attempt),
        "topologySpreadConstraints": [
            {**spread.to_json_dict(), "labelSelector": {"matchLabels": _workers(plan, attempt)}}
            for spread in placement.topology_spread
        ],
    }
    return {key: value for key, value in found.items() if value}


def queue_label(plan: Plan) -> dict[str, str]:
    """The label by which Kueue takes the Kubernetes Job that trains into its queue."""
    queue = plan.snapshot.profile.placement.queue
    return {names.LABEL_QUEUE: queue} if queue else {}


def _workers(plan: Plan, attempt: int) -> dict[str, str]:
    """Labels of the workers of one attempt: those of the one before may still be ending."""
    return {
        names.LABEL_JOB: plan.name,
        names.LABEL_STAGE: "train",
        names.LABEL_ATTEMPT: str(attempt),
    }


def _affinity(plan: Plan, attempt: int) -> Manifest:
    together = plan.snapshot.profile.placement.together
    found: Manifest = {}
    if plan.not_on:
        found["nodeAffinity"] = _not_on(plan.not_on)
    if together is not None:
        term: Manifest = {
            "labelSelector": {"matchLabels": _workers(plan, attempt)},
            "topologyKey": together.topology_key,
        }
        found["podAffinity"] = (
            {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
            if together.required
            else {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 100, "podAffinityTerm": term}
                ]
            }
        )
    return found


def _not_on(nodes: tuple[str, ...]) -> Manifest:
    """By the nodes' own names: the label kubernetes.io/hostname is another name in some clouds.
    A field takes one value; the requirements of a term must all hold."""
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    terms = {"nodeSelectorTerms": [{"matchFields": fields}]}
    return {"requiredDuringSchedulingIgnoredDuringExecution": terms}

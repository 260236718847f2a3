"""What a job starts with, or why it cannot: its spec and its profile as they were then."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.base import ApiModel
from finetune_api.profile import FineTuneProfileSpec
from finetune_api.v1alpha1 import FineTuneJobSpec


class Snapshot(ApiModel):
    """What a job started with; kept in its ConfigMap, so later edits of the profile, or another
    default image after an upgrade, do not touch a job under way."""

    profile_name: str
    profile: FineTuneProfileSpec
    spec: FineTuneJobSpec
    image: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a job cannot start: a word and a sentence with the fix."""

    reason: str
    message: str
    final: bool = False
    """The job fails; else it waits until something changes."""


def choose_profile(
    wanted: str | None, profiles: dict[str, FineTuneProfileSpec]
) -> tuple[str, FineTuneProfileSpec] | Refused:
    """The named profile, or the default one."""
    if wanted is not None:
        if wanted not in profiles:
            known = ", ".join(sorted(profiles)) or "none"
            return Refused(
                "ProfileNotFound",
                f"spec.profile: there is no FineTuneProfile {wanted!r}; existing: {known}",
            )
        return wanted, profiles[wanted]
    defaults = sorted(name for name, spec in profiles.items() if spec.default)
    if len(defaults) == 1:
        return defaults[0], profiles[defaults[0]]
    if not defaults:
        return Refused(
            "NoDefaultProfile",
            "no FineTuneProfile has spec.default: true; set spec.profile, or ask your platform "
            "team for a default profile",
        )
    return Refused(
        "AmbiguousProfile",
        f"several FineTuneProfiles have spec.default: true ({', '.join(defaults)}); "
        "set spec.profile",
    )


def make_snapshot(
    spec: FineTuneJobSpec, profiles: dict[str, FineTuneProfileSpec], default_image: str
) -> Snapshot | Refused:
    """What the job starts with, or why it cannot."""
    chosen = choose_profile(spec.profile, profiles)
    if isinstance(chosen, Refused):
        return chosen
    name, profile = chosen
    return check(spec, name, profile) or Snapshot(
        profile_name=name, profile=profile, spec=spec, image=profile.image or default_image
    )


def processes(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> int:
    """Training processes per worker."""
    wanted = spec.workers.num_proc_per_node
    return max(1, profile.node.gpus_per_node) if wanted == "Auto" else wanted


def check(spec: FineTuneJobSpec, profile_name: str, profile: FineTuneProfileSpec) -> Refused | None:
    """What the manifest alone did not show; None: the job fits its profile."""
    nodes, procs = spec.workers.num_nodes, processes(spec, profile)
    limit = profile.limits.max_nodes
    if limit is not None and nodes > limit:
        return Refused(
            "ExceedsProfile",
            f"spec.workers.numNodes is {nodes}; profile {profile_name!r} allows at most {limit}",
        )
    if spec.trainer is not None and not profile.limits.own_trainer:
        return Refused(
            "OwnTrainerForbidden",
            f"spec.trainer: profile {profile_name!r} lets no job bring its own trainer "
            "(spec.limits.ownTrainer is false); remove it, or use a profile that allows it",
            final=True,
        )
    forbidden = _trackers(spec, profile_name, profile)
    if forbidden is not None:
        return forbidden
    gpus = profile.node.gpus_per_node
    if gpus and procs > gpus:
        return Refused(
            "ExceedsProfile",
            f"spec.workers.numProcPerNode is {procs}; a node of profile {profile_name!r} has "
            f"{gpus} GPUs",
        )
    if spec.trainer is not None:
        return None  # how its batches are shared is its own business
    batch, world = spec.training.global_batch_size, nodes * procs
    if batch % world:
        lower, upper = batch // world * world, (batch // world + 1) * world
        choices = f"{lower} or {upper}" if lower else str(upper)
        return Refused(
            "InvalidBatchSize",
            f"spec.training.globalBatchSize is {batch}, which {nodes} x {procs} processes cannot "
            f"share evenly; use {choices}",
        )
    micro = spec.training.micro_batch_size
    if micro != "Auto" and (batch // world) % micro:
        return Refused(
            "InvalidBatchSize",
            f"spec.training.microBatchSize is {micro}, which does not divide a process's share of "
            f"{batch // world} (globalBatchSize {batch} / {world} processes); use Auto or a "
            "divisor of it",
        )
    return None


def _trackers(
    spec: FineTuneJobSpec, profile_name: str, profile: FineTuneProfileSpec
) -> Refused | None:
    wanted = spec.tracking.report_to if spec.tracking else []
    allowed = profile.limits.report_to
    for tracker in wanted:
        if tracker not in allowed:
            return Refused(
                "TrackingForbidden",
                f"spec.tracking.reportTo: profile {profile_name!r} does not allow {tracker} "
                f"(spec.limits.reportTo is {', '.join(allowed) or 'empty'}); remove it, or use a "
                "profile that allows it",
                final=True,
            )
    return None

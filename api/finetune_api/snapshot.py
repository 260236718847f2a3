"""What a job starts with, or why it cannot: its spec and its profile as they were then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.base import ApiModel
from finetune_api.defaults import as_texts, with_defaults
from finetune_api.limit_table import problems
from finetune_api.limits import Asked
from finetune_api.profile import FineTuneProfileSpec
from finetune_api.v1alpha1 import FineTuneJobSpec


class Snapshot(ApiModel):
    """What a job started with; kept in its ConfigMap, so later edits of the profile, or another
    default image after an upgrade, do not touch a job under way."""

    profile_name: str
    profile: FineTuneProfileSpec
    spec: FineTuneJobSpec
    """With the profile's defaults."""
    image: str
    defaults: dict[str, str] = {}
    """What of `spec` is the profile's: JSON by dotted path."""


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
    spec: FineTuneJobSpec,
    profiles: dict[str, FineTuneProfileSpec],
    default_image: str,
    labels: Mapping[str, str] | None = None,
) -> Snapshot | Refused:
    """What the job starts with, or why it cannot.

    Args:
        labels: Of the job's namespace; None: there is no cluster.
    """
    chosen = choose_profile(spec.profile, profiles)
    if isinstance(chosen, Refused):
        return chosen
    name, profile = chosen
    whole, taken = with_defaults(spec, profile.defaults)
    return check(whole, name, profile, labels) or Snapshot(
        profile_name=name,
        profile=profile,
        spec=whole,
        image=profile.image or default_image,
        defaults=as_texts(taken),
    )


def check(
    spec: FineTuneJobSpec,
    profile_name: str,
    profile: FineTuneProfileSpec,
    labels: Mapping[str, str] | None = None,
) -> Refused | None:
    """What the manifest alone did not show, all of it; None: the job fits its profile."""
    found = problems(Asked(spec, profile_name, profile, labels))
    if not found:
        return None
    first = next((limit for limit, _ in found if limit.final), found[0][0])
    return Refused(first.reason, "; ".join(text for _, text in found), final=first.final)

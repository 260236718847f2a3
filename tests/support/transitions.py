"""Changes of one field at a time, made up from the CRD's own schema: a new field is tried without a
line here. Values are the bounds, what lies just outside, the wrong type, no value, and some drawn
from a seed (`SEED=n`), the same for the same seed."""

from __future__ import annotations

import copy
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("SEED", "0"))
ABSENT = object()

WORDS = (
    "other",
    "Not A Name!",
    "hf://other/name",
    "pvc://other/docs.jsonl",
    "configmap://other/docs.jsonl",
    "pvc://other/../docs.jsonl",
)
"""For texts: names, every form of a URI, and what is neither."""

FULL: Json = {
    "profile": "standard",
    "model": {
        "uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
        "revision": "v1",
        "secretRef": {"name": "hf-token"},
    },
    "dataset": {
        "uri": "hf://team/docs",
        "revision": "v1",
        "secretRef": {"name": "hf-token"},
        "evalFraction": 0.1,
    },
    "method": {"lora": {"rank": 8}},
    "training": {"maxSteps": 40, "microBatchSize": 2},
    "workers": {"numNodes": 2, "numProcPerNode": 8},
    "zero": {"stage": 1},
    "evaluation": {
        "everySteps": 5,
        "earlyStoppingPatience": 3,
        "retention": {
            "uri": "hf://team/general",
            "revision": "v1",
            "secretRef": {"name": "hf-token"},
        },
    },
    "checkpoints": {"everySteps": 10, "everyMinutes": 30},
    "suspend": False,
    "activeDeadlineSeconds": 86_400,
    "startupDeadlineSeconds": 3600,
    "restartPolicy": {"windowSeconds": 600},
    "output": {"uri": "pvc://team-models/docs"},
}
"""A job that says something of every part, so that each field can be changed alone."""
PREFERENCES: Json = {
    **FULL,
    "dataset": {**FULL["dataset"], "format": "Preference"},
    "method": {"objective": "DPO", "preference": {"beta": 0.2}},
}


@dataclass(frozen=True, slots=True)
class Transition:
    """One field, and its new value."""

    path: tuple[str, ...]
    value: Any

    def __str__(self) -> str:
        shown = "absent" if self.value is ABSENT else repr(self.value)[:60]
        return f"{'.'.join(self.path)} = {shown}"

    def of(self, spec: Json) -> Json:
        """The spec with this change."""
        changed = copy.deepcopy(spec)
        *parents, last = self.path
        target = changed
        for name in parents:
            target = target.setdefault(name, {})
        if self.value is ABSENT:
            target.pop(last, None)
        else:
            target[last] = self.value
        return changed


def spec_schema() -> Json:
    """Of `FineTuneJob.spec`, as generated."""
    crd = yaml.safe_load((ROOT / "crds" / "finetunejobs.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    found: Json = schema["properties"]["spec"]
    return found


def base(path: tuple[str, ...]) -> Json:
    """The spec in which a field is changed."""
    return PREFERENCES if path[:2] == ("method", "preference") else FULL


def fields(schema: Json | None = None, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Json]:
    """Schema of every field by path, of groups of fields as well."""
    schema = spec_schema() if schema is None else schema
    found: dict[tuple[str, ...], Json] = {path: schema} if path else {}
    for name, inner in schema.get("properties", {}).items():
        found |= fields(inner, (*path, name))
    return found


def transitions(path: tuple[str, ...], schema: Json) -> list[Transition]:
    """What is tried with a field."""
    source = random.Random(f"{SEED} {path}")
    found: list[Any] = []
    for value in [ABSENT, *_values(schema, source)]:
        if value is ABSENT or value not in found:
            found.append(value)
    return [Transition(path, value) for value in found]


def _values(schema: Json, source: random.Random) -> list[Any]:
    if schema.get("x-kubernetes-int-or-string"):
        return ["Auto", 0, 1, 4, source.randint(2, 64), 10**6, "big"]
    if "enum" in schema:
        return [*schema["enum"], "Magic"]
    kind = schema["type"]
    if kind == "boolean":
        return [True, False, "yes"]
    if kind in ("integer", "number"):
        return _numbers(schema, source)
    if kind == "array":
        one = source.choice(WORDS)
        return [[], [one], ["q_proj", "v_proj"], [one, "all-linear"], one]
    if kind == "object":
        return [{}, "text"]
    return [*WORDS, "x" * (schema["maxLength"] + 1), "", 7]


def _numbers(schema: Json, source: random.Random) -> list[Any]:
    low, high = schema["minimum"], schema["maximum"]
    if schema["type"] == "number":
        middle = round(source.uniform(low, high), 3)
        return [low, high, middle, low - 1, high + 1, "many"]
    return [low, high, source.randint(low, min(high, low + 200)), low - 1, high + 1, 1.5, "many"]

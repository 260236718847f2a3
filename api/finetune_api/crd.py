"""Generates the CRDs from the classes: `python -m finetune_api.crd DIRECTORY [--check]`.

JSON schema of pydantic -> structural schema of Kubernetes: references inlined, `null` left out,
2020-12 keywords turned into those of OpenAPI 3.0, unions into int-or-string.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from finetune_api.base import GROUP, VERSION, ApiModel
from finetune_api.defaults import NO_DEFAULT
from finetune_api.profile import FineTuneProfile
from finetune_api.v1alpha1 import FineTuneJob

Schema = dict[str, Any]

_KEPT = (
    "description", "type", "enum", "default", "format", "pattern", "minLength", "maxLength",
    "minimum", "maximum", "minItems", "maxItems", "maxProperties", "x-kubernetes-validations",
)  # fmt: skip


def structural(schema: Schema, defs: dict[str, Schema]) -> Schema:
    """One node of a structural schema from one node of pydantic's JSON schema."""
    schema = _resolve(schema, defs)
    if "anyOf" in schema:
        return _union(schema, defs)
    if "const" in schema:
        schema = {**schema, "enum": [schema["const"]]}
    found: Schema = {key: schema[key] for key in _KEPT if key in schema}
    for bound, keyword in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in schema:
            found |= {keyword: schema[bound], bound: True}
    if schema.get("type") == "object":
        found |= _object(schema, defs)
    if schema.get("type") == "array":
        found["items"] = structural(schema["items"], defs)
        names = found["items"].get("properties", {})
        if {"type", "status", "reason"} <= set(names):  # conditions: each type once
            found |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
        elif "secretKeyRef" in names:  # environment variables: each name once
            found |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
        else:
            found["x-kubernetes-list-type"] = "atomic"
    if schema.get("type") == "integer":
        found.setdefault("format", "int64")
    if found.get("default", 0) is None:
        del found["default"]
    if isinstance(found.get("default"), dict):
        # Whole, not {}: the API server checks CEL rules on a default before it fills in more.
        found["default"] = _without_none(found["default"])
    _describe(found)
    return found


def _describe(found: Schema) -> None:
    """One line of text, with the default where the text does not name it: kubectl does not."""
    if "description" not in found:
        return
    text = " ".join(found["description"].split())
    default = found.get("default")
    if isinstance(default, (str, int, float)) and "Default" not in text:
        shown = json.dumps(default) if isinstance(default, (bool, int, float)) else default
        text += f" Default: {shown or 'none'}."
    found["description"] = text


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return value


def _resolve(schema: Schema, defs: dict[str, Schema]) -> Schema:
    """Follow a reference; what stands beside it (description, default) wins."""
    while "$ref" in schema:
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**defs[schema["$ref"].rsplit("/", 1)[-1]], **rest}
    return schema


def _object(schema: Schema, defs: dict[str, Schema]) -> Schema:
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        return {"additionalProperties": structural(extra, defs)}
    found: Schema = {
        "properties": {
            name: structural(value, defs) for name, value in schema.get("properties", {}).items()
        }
    }
    if schema.get("required"):
        found["required"] = schema["required"]
    return found


def _union(schema: Schema, defs: dict[str, Schema]) -> Schema:
    """`T | None` or `int | "Auto"`; nothing else is used in this API."""
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    options = [_resolve(o, defs) for o in schema["anyOf"]]
    options = [o for o in options if o.get("type") != "null"]
    if len(options) == 1:
        return structural({**options[0], **rest}, defs)
    by_type = {str(o["type"]): o for o in options}
    found: Schema = {k: rest[k] for k in ("description", "default") if k in rest}
    _describe(found)
    if set(by_type) == {"integer", "string"}:
        word, number = by_type["string"]["const"], by_type["integer"]
        allowed, message = _numbers(number)
        found["x-kubernetes-int-or-string"] = True
        found["x-kubernetes-validations"] = [
            {
                "rule": f"type(self) == string ? self == '{word}' : ({allowed})",
                "message": f"must be {word} or {message}",
            }
        ]
        return found
    raise TypeError(f"no structural form for {schema}")


def _numbers(number: Schema) -> tuple[str, str]:
    if "enum" in number:
        values = ", ".join(str(v) for v in number["enum"])
        return f"int(self) in [{values}]", f"one of {values}"
    low, high = number["minimum"], number["maximum"]
    return f"int(self) >= {low} && int(self) <= {high}", f"a whole number from {low} to {high}"


def schema_of(kind: type[ApiModel]) -> Schema:
    """The structural schema of a kind."""
    raw = kind.model_json_schema(by_alias=True)
    return structural(raw, raw.get("$defs", {}))


def job_schema() -> Schema:
    """Without defaults in the spec: a job says what its author has written, and the defaults of its
    profile come before those of the fields. The parts of the status are each written as a whole, so
    the API server need not remember who wrote which field of them: half of what it stores."""
    schema = schema_of(FineTuneJob)
    for part in schema["properties"]["status"]["properties"].values():
        if part["type"] == "object":
            part["x-kubernetes-map-type"] = "atomic"
    schema["properties"]["spec"] = _without(("default",), schema["properties"]["spec"])
    return schema


def profile_schema() -> Schema:
    """With any part of a job's spec under `defaults`."""
    schema = schema_of(FineTuneProfile)
    of_profile = schema["properties"]["spec"]["properties"]
    fragment = _without(
        ("required", "x-kubernetes-validations"), job_schema()["properties"]["spec"]
    )
    for name in NO_DEFAULT:
        del fragment["properties"][name]
    of_profile["defaults"] = fragment | {"description": of_profile["defaults"]["description"]}
    return schema


def _without(keywords: tuple[str, ...], schema: Schema) -> Schema:
    """A schema without some keywords, in all that lies below. What makes a number or a word of a
    value stays: it belongs to its type."""
    own = keywords if "properties" in schema else tuple(k for k in keywords if k == "default")
    found = {key: value for key, value in schema.items() if key not in own}
    if "properties" in found:
        found["properties"] = {n: _without(keywords, s) for n, s in found["properties"].items()}
    return found


def crd(
    kind: type[ApiModel], schema: Schema, scope: str, short: str, columns: list[Schema]
) -> Schema:
    """One CustomResourceDefinition."""
    schema["properties"] |= {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
    }
    plural = kind.__name__.lower() + "s"
    version: Schema = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": schema},
    }
    if "status" in schema["properties"]:
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.__name__,
                "listKind": f"{kind.__name__}List",
                "plural": plural,
                "singular": kind.__name__.lower(),
                "shortNames": [short],
                "categories": ["all", "training"] if scope == "Namespaced" else ["training"],
            },
            "scope": scope,
            "versions": [version],
        },
    }


def _column(name: str, path: str, kind: str = "string", priority: int = 0) -> Schema:
    return {"name": name, "type": kind, "jsonPath": path, "priority": priority}


JOB_COLUMNS = [
    _column("Phase", ".status.phase"),
    _column("Model", ".spec.model.uri"),
    _column("Method", ".status.resolved.tuning"),
    _column("Workers", ".status.resolved.numNodes", "integer"),
    _column("Progress", ".status.progress.percent", "integer"),
    _column("ETA", ".status.progress.etaSeconds", "integer"),
    _column("Loss", ".status.progress.loss", "number"),
    _column("Age", ".metadata.creationTimestamp", "date"),
    _column("Attempt", ".status.attempt", "integer", 1),
    _column("GPU-hours", ".status.usage.gpuHours", "number", 1),
    _column("Message", ".status.message", "string", 1),
]
PROFILE_COLUMNS = [
    _column("Default", ".spec.default", "boolean"),
    _column("Accelerator", ".spec.node.accelerator"),
    _column("GPUs", ".spec.node.gpusPerNode", "integer"),
    _column("Age", ".metadata.creationTimestamp", "date"),
]


def all_crds() -> dict[str, Schema]:
    """Every CRD by file name."""
    return {
        "finetunejobs.yaml": crd(FineTuneJob, job_schema(), "Namespaced", "ftj", JOB_COLUMNS),
        "finetuneprofiles.yaml": crd(
            FineTuneProfile, profile_schema(), "Cluster", "ftp", PROFILE_COLUMNS
        ),
    }


def render(manifest: Schema) -> str:
    """YAML with a note where it comes from."""
    header = "# Generated by `make generate` from api/finetune_api; do not edit.\n"
    plain = json.loads(json.dumps(manifest))  # no YAML anchors for shared parts
    return header + yaml.safe_dump(plain, sort_keys=False, width=100)


def main(argv: list[str]) -> int:
    """Write the CRDs; with `--check`, only say which files differ (exit code 1)."""
    directory, check = Path(argv[0]), "--check" in argv[1:]
    stale = []
    for name, manifest in all_crds().items():
        path, text = directory / name, render(manifest)
        if check and (not path.exists() or path.read_text() != text):
            stale.append(str(path))
        elif not check:
            path.write_text(text)
    if stale:
        print(f"out of date, run `make generate`: {', '.join(stale)}")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""Writes the table of docs/profiles.md from the CRD: `python scripts/profile_table.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from document_tables import Tables, filled

from finetune_api.crd import profile_schema

Schema = dict[str, Any]
DOCUMENT = Path(__file__).parents[1] / "docs/profiles.md"
WHOLE = ("defaults",)
"""Parts whose fields are a job's."""


def fields(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every field by dotted path, groups left out."""
    for name, inner in schema["properties"].items():
        here = f"{path}{name}"
        if "properties" in inner and here not in WHOLE:
            yield from fields(inner, f"{here}.")
        elif inner.get("items", {}).get("properties") is not None:
            yield here, inner
            yield from fields(inner["items"], f"{here}[].")
        else:
            yield here, inner


def table() -> list[str]:
    """A line for each field of `spec`."""
    lines = ["| field | kind | meaning |", "|---|---|---|"]
    for path, schema in fields(profile_schema()["properties"]["spec"]):
        text = schema["description"].replace("|", "\\|")
        lines.append(f"| `{path}` | {_kind(schema)} | {text} |")
    return lines


def _kind(schema: Schema) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        inner = schema["items"]
        return "list" if "properties" in inner else f"list of {_kind(inner)}"
    if "additionalProperties" in schema:
        return "map"
    kind = str(schema["type"])
    if kind == "integer" and "minimum" in schema:
        return f"{schema['minimum']} to {schema['maximum']}"
    return {"boolean": "true, false", "string": "text", "object": "part of a job"}.get(kind, kind)


TABLES: Tables = {"profile": table}


def written(text: str) -> str:
    """The document with its table made anew."""
    return filled(DOCUMENT, text, TABLES)


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))

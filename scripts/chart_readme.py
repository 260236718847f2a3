"""Writes the table of values into the chart's README: `python scripts/chart_readme.py`.

The text of each value is the comment `# -- ` in front of it in values.yaml.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from document_tables import filled

CHART = Path(__file__).parents[1] / "charts" / "finetune-operator"
DOCUMENT = CHART / "README.md"


def leaves(values: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted path; a map without entries is a leaf, and so is every list."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}.{key}" if prefix else key)
    return found


def value_docs(path: Path = CHART / "values.yaml") -> dict[str, str]:
    """The `# -- ` text in front of each value, by dotted path."""
    docs: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    text: list[str] = []
    for line in path.read_text().splitlines():
        comment = re.match(r"\s*# (-- )?(.*)", line)
        key = re.match(r"( *)([A-Za-z]\w*):", line)
        if comment and (comment[1] or text):
            text.append(comment[2])
        elif key:
            parents = [p for p in parents if p[0] < len(key[1])] + [(len(key[1]), key[2])]
            if text:
                docs[".".join(name for _, name in parents)] = " ".join(text)
            text = []
    return docs


def table() -> list[str]:
    """Every value with its default and its meaning."""
    values = leaves(yaml.safe_load((CHART / "values.yaml").read_text()))

    def default(path: str) -> str:
        below = any(key.startswith(f"{path}.") for key in values)
        return "see values.yaml" if below else f"`{json.dumps(values[path])}`"

    rows = [f"| `{path}` | {default(path)} | {text} |" for path, text in value_docs().items()]
    return ["| Value | Default | Meaning |", "| --- | --- | --- |", *rows]


def written(text: str) -> str:
    """The document with its table made anew."""
    return filled(DOCUMENT, text, {"values": table})


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))

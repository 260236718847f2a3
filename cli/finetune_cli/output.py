"""What is printed: data as JSON, YAML or a table, and words for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, TextIO

import yaml


def plain(value: Any) -> Any:
    """Dataclasses and tuples as JSON types, names in camelCase."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {_camel(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def dump(value: Any, form: str) -> str:
    """`json` or `yaml`, with a line end."""
    if form == "json":
        return json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n"
    text: str = yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True, width=100)
    return text


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as kubectl prints them, without colours and without an end in blanks."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "".join(
        "   ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def note(text: str) -> None:
    """Something for people beside the data: on standard error."""
    print(text, file=sys.stderr, flush=True)


def is_terminal(stream: TextIO) -> bool:
    """Whether a person sees it, on something that can move a cursor."""
    import os

    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"

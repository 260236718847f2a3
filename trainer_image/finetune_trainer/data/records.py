"""Reads examples from JSON lines, JSON lists, Parquet and plain text, one at a time."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from finetune_trainer.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".txt")
"""What can be read; a file without suffix (a key of a ConfigMap) is read as JSON."""


@dataclass(frozen=True)
class Record:
    """One example as it stands in the file."""

    where: str
    """File and 1-based position, as in `train.jsonl line 3`: for messages."""

    value: dict[str, Any]
    """Column names and values."""


def read_records(files: list[tuple[str, Path]]) -> Iterator[Record]:
    """Every example of the files, in order.

    Args:
        files: Name for messages, and path. The suffix of the name says how to read it.

    Raises:
        DataError: a file is missing, empty, in an unknown format or broken; names the place.
    """
    for name, path in files:
        if not path.is_file():
            raise DataError(f"{name} does not exist or is not a file; check spec.dataset.uri")
        if path.stat().st_size == 0:
            raise DataError(f"{name} is empty; put at least one example into it")
        found = 0
        for record in _reader(name, path):
            found += 1
            yield record
        if not found:
            raise DataError(f"{name} contains no example; put at least one into it")


def read_first(files: list[tuple[str, Path]]) -> tuple[Record, Iterator[Record]]:
    """The first example, and all of them, as `read_records`."""
    stream = read_records(files)
    first = next(stream)
    return first, chain([first], stream)


def _reader(name: str, path: Path) -> Iterator[Record]:
    suffix = Path(name).suffix.lower()
    if suffix == ".parquet":
        return _parquet(name, path)
    if suffix == ".txt":
        return _paragraphs(name, path)
    if suffix in SUFFIXES or not suffix:
        return _json_list(name, path) if _starts_a_list(path) else _json_lines(name, path)
    raise DataError(
        f"{name} has the suffix {suffix}, which cannot be read; use one of {', '.join(SUFFIXES)}"
    )


def _starts_a_list(path: Path) -> bool:
    """Whether a JSON file holds one list; many a `.json` holds JSON lines."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    return start.startswith(b"[")


def _lines(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """Lines without their end, counted from 1."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            try:
                yield number, raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as exc:
                raise DataError(
                    f"{name} line {number} is not UTF-8 (byte {exc.start + 1} of the line); "
                    "save the file as UTF-8"
                ) from exc


def _json_lines(name: str, path: Path) -> Iterator[Record]:
    for number, line in _lines(name, path):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            value = json.loads(line, object_pairs_hook=_no_key_twice)
        except (ValueError, RecursionError) as exc:
            raise DataError(
                f"{where} is not JSON ({_reason(exc)}); every line must be one JSON object"
            ) from exc
        yield Record(where, _object(value, where))


def _json_list(name: str, path: Path) -> Iterator[Record]:
    text = "\n".join(line for _, line in _lines(name, path))
    try:
        values = json.loads(text, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as exc:
        line = f" line {exc.lineno}" if isinstance(exc, json.JSONDecodeError) else ""
        raise DataError(
            f"{name}{line} is not JSON ({_reason(exc)}); the file must be one JSON list of objects"
        ) from exc
    for number, value in enumerate(values, 1):
        where = f"{name} entry {number}"
        yield Record(where, _object(value, where))


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON permits it, and every reader takes another one of the values."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key `{twice}` twice, remove one")
    return found


def _reason(exc: ValueError | RecursionError) -> str:
    if isinstance(exc, json.JSONDecodeError):
        return f"{exc.msg} at column {exc.colno}"
    return "nested too deeply" if isinstance(exc, RecursionError) else str(exc)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"{where} is a JSON {_json_type(value)}, not an object; "
            'write an object such as {"prompt": "...", "completion": "..."}'
        )
    return value


def _json_type(value: Any) -> str:
    names = {list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _parquet(name: str, path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield Record(f"{name} row {number}", row)
    except (pyarrow.ArrowException, OSError) as exc:
        raise DataError(f"{name} is not a readable Parquet file: {exc}; write it anew") from exc


def _paragraphs(name: str, path: Path) -> Iterator[Record]:
    """Plain text: an example ends at an empty line."""
    block: list[str] = []
    first = 1
    for number, line in _lines(name, path):
        if line.strip():
            if not block:
                first = number
            block.append(line)
        elif block:
            yield Record(f"{name} line {first}", {"text": "\n".join(block)})
            block = []
    if block:
        yield Record(f"{name} line {first}", {"text": "\n".join(block)})

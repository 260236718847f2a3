"""Files that are safe when a call returns: written, hashed on the way, and flushed to the disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from finetune_trainer.checkpoint.manifest import ShardFile

CHUNK = 1 << 24
"""Bytes hashed and written at a time: what was hashed is still in the processor's cache."""


def write_shard(path: Path, parts: Iterable[tuple[str, memoryview]]) -> ShardFile:
    """Write a safetensors file of 32-bit vectors, straight from where they are.

    The library's own writer would copy all of them first, and refuses parts of one buffer.

    Args:
        parts: Key and numbers (format `f`) of each.
    """
    found = list(parts)
    header: dict[str, Any] = {}
    end = 0
    for key, numbers in found:
        begin, end = end, end + numbers.nbytes
        header[key] = {"dtype": "F32", "shape": [len(numbers)], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        size = 0
        for piece in _pieces([len(text).to_bytes(8, "little") + text], found):
            digest.update(piece)
            file.write(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return ShardFile(name=path.name, bytes=size, sha256=digest.hexdigest())


def _pieces(head: list[bytes], parts: list[tuple[str, memoryview]]) -> Iterator[bytes | memoryview]:
    yield from head
    for _, numbers in parts:
        raw = numbers.cast("B")
        for begin in range(0, len(raw), CHUNK):
            yield raw[begin : begin + CHUNK]


def write_text(path: Path, text: str) -> None:
    """Whole or not at all, under its name only when it is on the disk."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        # Some file systems of networks cannot, and do it by themselves.
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def problem_with(path: Path, told: ShardFile) -> str | None:
    """What is wrong with a file of a checkpoint, None: nothing; reads all of it."""
    try:
        size = path.stat().st_size
        if size != told.bytes:
            return f"{told.name} has {size} bytes instead of {told.bytes}"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return f"{told.name} is missing"
    except OSError as exc:
        return f"{told.name} cannot be read ({exc})"
    return None if digest == told.sha256 else f"{told.name} is not what was written (other hash)"

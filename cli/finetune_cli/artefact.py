"""An artefact that comes as a tar stream: unpacked with care, and proven by its manifest."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_cli.exits import CliError, Exit

MANIFEST = "manifest.json"


class Stream(io.RawIOBase):
    """Pieces of bytes as a file, for tarfile."""

    def __init__(self, pieces: Iterator[bytes], told: Callable[[int], None]) -> None:
        super().__init__()
        self._pieces, self._told = pieces, told
        self._rest = b""

    def readable(self) -> bool:
        """It can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what there is; 0 at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._told(len(piece))
            self._rest = piece
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of an artefact."""

    path: str
    bytes: int
    sha256: str


def unpack(pieces: Iterator[bytes], directory: Path, told: Callable[[int], None]) -> None:
    """Write the files of a tar stream below a directory: nothing outside it, no links, no devices.

    Args:
        told: Called with the size of every piece that came.

    Raises:
        CliError: the stream is no tar, or ends too soon.
    """
    try:
        with tarfile.open(fileobj=io.BufferedReader(Stream(pieces, told)), mode="r|") as archive:
            archive.extractall(directory, filter="data")
    except tarfile.TarError as error:
        raise CliError(f"what came is not what tar writes: {error}", Exit.CORRUPT) from error
    for _ in pieces:  # to the end: the command's own exit code comes last
        pass


def listed(manifest: bytes, digest: str) -> list[Entry]:
    """The files of an artefact, by its `manifest.json`.

    Args:
        digest: `sha256:` and 64 hexadecimal digits, as the job's status has it.

    Raises:
        CliError: it is not the manifest that the job wrote.
    """
    found = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    if found != digest:
        raise CliError(
            f"{MANIFEST} is another than the job wrote: it has {found}, status.output.digest is "
            f"{digest}; a later run may have replaced the result",
            Exit.CORRUPT,
        )
    return [
        Entry(entry["path"], entry["bytes"], entry["sha256"])
        for entry in json.loads(manifest)["files"]
    ]


def verify(directory: Path, entries: Sequence[Entry]) -> None:
    """Prove every file by its hash.

    Raises:
        CliError: a file is missing or different.
    """
    wrong = [
        entry.path
        for entry in entries
        if not (file := directory / entry.path).is_file() or _sha256(file) != entry.sha256
    ]
    if wrong:
        raise CliError(
            f"{len(wrong)} of {len(entries)} files are not what {MANIFEST} says: "
            f"{', '.join(wrong[:5])}",
            Exit.CORRUPT,
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

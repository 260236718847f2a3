"""`manifest.json`: every file of an artefact with size and hash, and how it gets into its place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.base import GROUP
from finetune_api.run_config import RunConfig
from finetune_trainer.errors import ConfigurationError, InternalError

MANIFEST = "manifest.json"
KIND = f"{GROUP}/manifest"
_VOLUME_FILES = ("lost+found",)
"""What an empty volume may contain."""


@dataclass(frozen=True)
class Manifest:
    """What was written."""

    digest: str
    """`sha256:` and the hash of manifest.json."""

    bytes: int
    """Of all files, manifest.json included."""

    files: int
    """Number of files, manifest.json included."""


def write_manifest(directory: Path, run: RunConfig) -> Manifest:
    """List every file of `directory` in its manifest.json."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    entries = [
        {
            "path": path.relative_to(directory).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
        for path in paths
    ]
    content = {
        "kind": KIND,
        "schemaVersion": 1,
        "job": {"namespace": run.namespace, "name": run.name, "uid": run.uid},
        "files": entries,
    }
    target = directory / MANIFEST
    target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in paths) + target.stat().st_size
    return Manifest(f"sha256:{_sha256(target)}", size, len(paths) + 1)


def check_manifest(directory: Path) -> None:
    """Compare every file with the manifest; raises InternalError where one differs."""
    content = _read(directory)
    if content is None:
        raise InternalError(f"{directory} has no {MANIFEST} of ours")
    for entry in content["files"]:
        path = directory / entry["path"]
        if not path.is_file() or _sha256(path) != entry["sha256"]:
            raise InternalError(f"{path} is not what {MANIFEST} says; the volume loses data")


def check_replaceable(target: Path, uri: str) -> None:
    """Refuse to overwrite what no earlier run wrote; raises ConfigurationError."""
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigurationError(f"{uri} is a file; give a directory in spec.output.uri")
    manifest = _read(target) or {"files": []}
    ours = {MANIFEST, *(entry["path"].split("/")[0] for entry in manifest["files"])}
    foreign = sorted(_contents(target) - (ours if manifest["files"] else set()))
    if foreign:
        raise ConfigurationError(
            f"{uri} contains files that no earlier run wrote ({', '.join(foreign[:3])}); "
            "empty it or choose another path in spec.output.uri"
        )


def scratch(target: Path) -> Path:
    """A new directory beside the target, or in it where it is the root of a volume."""
    parent = target if target.is_mount() else target.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f"{PARTIAL}{target.name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        made = Path(tempfile.mkdtemp(dir=parent, prefix=f"{PARTIAL}{target.name}-"))
    except PermissionError as exc:
        raise ConfigurationError(
            f"the place of the output cannot be written ({exc.filename}); check that the claim of "
            "spec.output.uri is writable for the profile's group (fsGroup)"
        ) from exc
    made.chmod(0o755)
    return made


def publish(made: Path, target: Path) -> None:
    """Put the finished directory `made` in the place of `target`.

    By renaming; where `target` is the root of a volume, which cannot be renamed, file by file with
    the manifest last, so that an interrupted copy is never taken for whole.
    """
    if os.path.ismount(target):
        _replace_contents(made, target)
        return
    aside = made.with_name(made.name + ".old")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)
    made.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def _replace_contents(made: Path, target: Path) -> None:
    (target / MANIFEST).unlink(missing_ok=True)
    for name in _contents(target) - {made.name}:
        path = target / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    for path in sorted(made.iterdir(), key=lambda path: path.name == MANIFEST):
        path.rename(target / path.name)
    made.rmdir()


def _contents(target: Path) -> set[str]:
    return {
        path.name
        for path in target.iterdir()
        if path.name not in _VOLUME_FILES and not path.name.startswith(PARTIAL)
    }


PARTIAL = ".finetune-partial-"
"""Start of the name of a directory that is being written."""


def _read(directory: Path) -> dict[str, Any] | None:
    """Our manifest; None where there is none or it is somebody else's."""
    try:
        content = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(content, dict) and content.get("kind") == KIND
    return content if ours else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Finding the checkpoint to go on from: the newest valid one, the same on all processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune_trainer import logs
from finetune_trainer.checkpoint.files import problem_with
from finetune_trainer.checkpoint.manifest import (
    Manifest,
    differences,
    directory_name,
    read_committed,
)
from finetune_trainer.checkpoint.retention import names
from finetune_trainer.ranks import Gang


@dataclass(frozen=True)
class Checkpoint:
    """One that was found to be valid."""

    directory: Path
    manifest: Manifest

    @property
    def files(self) -> list[Path]:
        """All processes' parts."""
        return [self.directory / file.name for file in self.manifest.files]


def newest(
    directory: Path, identity: dict[str, str], gang: Gang, only: int | None = None
) -> Checkpoint | None:
    """The newest valid checkpoint of this identity; by all processes together.

    Valid: completed, the manifest unchanged, every file of the size and hash that it says. Each
    process reads its share of the files. Says which ones it skipped and why.

    Args:
        only: Look at the checkpoint of this step and no other.
    """
    # Only process 0 looks: another node may see an older state of the volume.
    there: list[str] = gang.tell(names(directory) if gang.is_lead else [])
    for name in reversed(there):
        if only is not None and name != directory_name(only):
            continue
        found = _valid(directory / name, identity, gang)
        if isinstance(found, Checkpoint):
            return found
        if gang.is_lead:
            logs.warn(f"checkpoint {name} is skipped: {found}")
    return None


def _valid(place: Path, identity: dict[str, str], gang: Gang) -> Checkpoint | str:
    read = read_committed(place) if gang.is_lead else ""
    manifest: Manifest | str = gang.tell(read)
    if isinstance(manifest, str):
        return manifest
    other = differences(manifest.identity, identity)
    if other is not None:
        return other
    problems = (
        problem_with(place / file.name, file)
        for file in manifest.files[gang.rank :: gang.world_size]
    )
    problem = gang.agree(next((p for p in problems if p is not None), None))
    return Checkpoint(place, manifest) if problem is None else problem

"""Which checkpoints are deleted, and when: never one by another name than ours."""

from __future__ import annotations

import shutil
from pathlib import Path

from finetune_trainer.checkpoint.manifest import COMMITTED, DIRECTORY, SET_ASIDE, directory_name


def names(directory: Path) -> list[str]:
    """Of all checkpoints, complete or not, oldest first."""
    if not directory.is_dir():
        return []
    found = (p.name for p in directory.iterdir() if p.is_dir() and not p.is_symlink())
    return sorted(name for name in found if DIRECTORY.fullmatch(name))


def retain(directory: Path, keep: int, best: int | None) -> None:
    """Delete all complete checkpoints but the newest and the best, and those set aside."""
    complete = [name for name in names(directory) if (directory / name / COMMITTED).exists()]
    wanted = set(complete[-keep:])
    if best is not None:
        wanted.add(directory_name(best))
    for name in complete:
        if name not in wanted:
            delete(directory / name)
    for path in directory.iterdir():
        prefix, _, rest = path.name.partition("-")
        if f"{prefix}-" == SET_ASIDE and DIRECTORY.fullmatch(rest):
            delete(path)


def delete(path: Path) -> None:
    """Delete a checkpoint; one that is half gone does not count as complete."""
    if not path.is_dir() or path.is_symlink():
        return  # we make neither: not ours
    (path / COMMITTED).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def set_aside(directory: Path, chosen: str | None) -> None:
    """Make room for the checkpoints to come; on process 0 only, before training starts.

    What was never completed is deleted. What was, and is newer than the one `chosen` to go on from,
    is broken, of other settings, or not wanted (`resume: Never`): it gets another name, and is
    deleted when this run has completed a checkpoint of its own.
    """
    for name in names(directory):
        path = directory / name
        if not (path / COMMITTED).exists():
            delete(path)
        elif chosen is None or name > chosen:
            aside = path.with_name(SET_ASIDE + name)
            delete(aside)
            path.rename(aside)

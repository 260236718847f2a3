"""Brings a model's files into the work directory, without a second copy where that is possible."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

KEPT = (".json", ".jinja", ".model", ".txt")
"""Besides the weights: configuration, tokenizer, chat template, vocabulary."""


CODE = ".py"
"""Code of a model that is not part of transformers; kept only where it may run."""


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for the same file on the same volume, else a copy.

    No symbolic link: the pods that train do not mount the volume that the model came from.
    """
    real = source.resolve()
    try:
        os.link(real, target)
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copyfile(real, target)


def install(source: Path, weights: list[str], target: Path, allow_code: bool = False) -> None:
    """Make `target` with the named weights and the small files of `source`, and nothing else."""
    target.mkdir(parents=True)
    kept = (*KEPT, CODE) if allow_code else KEPT
    small = [path.name for path in source.iterdir() if path.is_file() and path.suffix in kept]
    for name in sorted({*weights, *small}):
        link_or_copy(source / name, target / name)

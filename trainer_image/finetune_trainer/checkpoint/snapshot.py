"""A copy of what this process owns, in host memory that is made once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from finetune_trainer.checkpoint.fragments import KINDS, Kind, Owned


class Snapshot:
    """Buffers as large as weights and moments: 12 bytes for every number that is owned.

    On a GPU they are pinned, so the copies are queued and the host goes on at once: the next step's
    kernels wait for them in the same stream, the writing thread by `ready`.
    """

    def __init__(self, owned: Owned) -> None:
        """Make the buffers, and touch them: the kernel gives pages only then."""
        self._owned = owned
        self._buffers: dict[Kind, list[Tensor]] = {
            kind: [
                torch.zeros(flat.shape, dtype=torch.float32, pin_memory=flat.is_cuda)
                for flat in owned.tensors("weight")  # moments may not be there yet
            ]
            for kind in KINDS
        }
        self._copied: torch.cuda.Event | None = None

    @property
    def nbytes(self) -> int:
        """Size of all buffers."""
        return sum(b.nbytes for buffers in self._buffers.values() for b in buffers)

    @torch.no_grad()
    def take(self) -> None:
        """Copy everything: what training stands still for."""
        on_gpu = False
        for kind in KINDS:
            for buffer, flat in zip(self._buffers[kind], self._owned.tensors(kind), strict=True):
                buffer.copy_(flat, non_blocking=True)
                on_gpu |= flat.is_cuda
        self._copied = None
        if on_gpu:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def ready(self) -> None:
        """Wait until the last copy is complete; for the thread that reads the buffers."""
        if self._copied is not None:
            self._copied.synchronize()

    def parts(self) -> Iterator[tuple[str, memoryview]]:
        """Key and numbers of every fragment, in the order of the buffers."""
        for kind in KINDS:
            flats = [memoryview(buffer.numpy()) for buffer in self._buffers[kind]]
            for f in self._owned.fragments:
                yield f.key(kind), flats[f.group][f.offset : f.offset + f.numel]

"""A rank of our trainer that notes how long checkpoints hold it up: `stall_rank.py WORK`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_trainer import train
from finetune_trainer.checkpoint.saving import Checkpoints

WORK = Path(sys.argv[1])
SECONDS: dict[str, list[float]] = {"background": [], "synchronous": []}


def timed(original: Callable[..., Any]) -> Callable[..., Any]:
    """`Checkpoints.save`, at once after odd steps and in the background after even ones."""

    def save(self: Checkpoints, step: int, state: Any, wait: bool = False) -> None:
        self.settle()  # the write before it: a checkpoint rarely comes that soon
        wait = wait or step % 2 == 1
        began = time.perf_counter()
        original(self, step, state, wait=wait)
        SECONDS["synchronous" if wait else "background"].append(time.perf_counter() - began)

    return save


if __name__ == "__main__":
    Checkpoints.save = timed(Checkpoints.save)  # type: ignore[method-assign]
    code = train.main([str(WORK / "run.json")])
    (WORK / f"{os.environ['RANK']}.json").write_text(json.dumps(SECONDS))
    sys.stdout.flush()
    os._exit(code)

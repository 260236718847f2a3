"""Runs a script of Hugging Face's `Trainer` with steps that last as long as those of a real model.

Arguments: the least seconds of a step, the script. Transformers' `KubeflowCallback` reports every
five seconds at most, so a toy model that is done before would say nothing between start and end.
"""

from __future__ import annotations

import runpy
import sys
import time
from typing import Any

from transformers import Trainer

training_step = Trainer.training_step


def paced(*args: Any, **kwargs: Any) -> Any:
    """The trainer's own step, and what is left of the time."""
    started = time.monotonic()
    loss = training_step(*args, **kwargs)
    time.sleep(max(0, started + float(sys.argv[1]) - time.monotonic()))
    return loss


Trainer.training_step = paced  # type: ignore[method-assign]
runpy.run_path(sys.argv[2], run_name="__main__")

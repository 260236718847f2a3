"""What both sides of the comparison note down about themselves, in the same way."""

from __future__ import annotations

import gc
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch


class Marks:
    """Times of one rank's steps, and the tensor bytes of one of them."""

    def __init__(self, path: Path, measured_step: int | None) -> None:
        """Write to `path` at the end; measure the memory of `measured_step`, counted from 1."""
        self._path, self._measured = path, measured_step
        self._profile: Any = None
        self._alive = 0
        self.found: dict[str, Any] = {"steps": [], "tokens": [], "engineSeconds": []}
        self.engine_seconds = 0.0
        self.tokens = 0

    def step_ended(self) -> None:
        """Call after every optimizer step, with `tokens` and `engine_seconds` since the last."""
        self.found["steps"].append({"time": time.time(), "cpu": time.process_time()})
        self.found["tokens"].append(self.tokens)
        self.found["engineSeconds"].append(self.engine_seconds)
        self.engine_seconds, self.tokens = 0.0, 0
        done = len(self.found["steps"])
        if self._measured is None:
            return
        if done == self._measured - 1:
            self._alive = live_tensor_bytes()
            self._profile = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            )
            self._profile.__enter__()
        elif done == self._measured:
            self._profile.__exit__(None, None, None)
            self.found["tensorBytes"] = {
                "before": self._alive,
                "peak": self._alive + highest(self._profile),
            }

    def write(self) -> None:
        """Leave what was found."""
        self.found["rssBytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._path.write_text(json.dumps(self.found))


def live_tensor_bytes() -> int:
    """Bytes of all tensors that Python knows, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        try:
            if not isinstance(thing, torch.Tensor) or thing.device.type != "cpu":
                continue
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        except (RuntimeError, ReferenceError, NotImplementedError):
            continue  # a fake or sparse one, or one that is just going away
    storages.pop(0, None)
    return sum(storages.values())


def highest(profile: Any) -> int:
    """Most bytes allocated at a time while profiling, above what was there before."""
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    most = now = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most

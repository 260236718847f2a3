"""TensorBoard, MLflow and Weights & Biases, through their own libraries (`spec.tracking`).

A thread does all of it, imports included: a server that is slow or gone never slows the training.
Names of metrics are those of Hugging Face's `Trainer`.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from finetune_api.run_config import RunConfig
from finetune_api.tracking import Tracker
from finetune_trainer.errors import ConfigurationError

LIBRARIES: dict[Tracker, str] = {
    "TensorBoard": "tensorboard",
    "MLflow": "mlflow",
    "WandB": "wandb",
}
PACKAGES: dict[Tracker, str] = {
    "TensorBoard": "tensorboard",
    "MLflow": "mlflow-skinny",
    "WandB": "wandb",
}
CLOSE_SECONDS = 30.0
"""For what is still to be sent at the end: a GPU may be held meanwhile."""
MAX_WAITING = 2000
"""Lines that wait for a slow server; a run has about half as many."""
NAMES = {
    "loss": "train/loss",
    "learningRate": "train/learning_rate",
    "gradNorm": "train/grad_norm",
    "tokensPerSecond": "train/tokens_per_second",
    "evalLoss": "eval/loss",
    "retentionLoss": "retention/loss",
}
"""Of a line of `losses.jsonl`; everything else of it is the objective's, and measured in training
where it does not say otherwise."""

Line = Mapping[str, Any]


def check_tracking(run: RunConfig, env: Mapping[str, str] = os.environ) -> None:
    """Refuse what could only fail on a GPU.

    Raises:
        ConfigurationError: a library or an address is missing.
    """
    for tracker in run.tracking.report_to if run.tracking else []:
        if find_spec(LIBRARIES[tracker]) is None:
            raise ConfigurationError(
                f"spec.tracking.reportTo: the trainer image has no library for {tracker}; remove "
                f"it, or use an image with the package {PACKAGES[tracker]}"
            )
        if tracker == "MLflow" and not env.get("MLFLOW_TRACKING_URI"):
            raise ConfigurationError(
                "spec.tracking.reportTo: MLflow needs the address of its server; put "
                "MLFLOW_TRACKING_URI into the Secret that spec.tracking.secretRef names, or ask "
                "your platform team to set it in the profile's spec.env"
            )


def metrics_of(line: Line) -> dict[str, float]:
    """Names and values of a line of `losses.jsonl`, without its step."""
    found = {}
    for name, value in line.items():
        if name == "step":
            continue
        known = NAMES.get(name)
        found[known or (name if name.startswith("eval/") else f"train/{name}")] = float(value)
    return found


def settings_of(run: RunConfig) -> dict[str, str | float | int | bool]:
    """The run's settings with their values, flat: `training.learningRate`."""
    found: dict[str, str | float | int | bool] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else key, inner)
        elif isinstance(value, list):
            found[prefix] = ", ".join(map(str, value))
        elif value is not None:
            found[prefix] = value

    add("", run.model_dump(by_alias=True, mode="json"))
    return found


State = Literal["Done", "Failed", "Stopped"]
"""How an attempt ended; after `Stopped` another one may follow."""


class Writer(Protocol):
    """One library, with the run open in it."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers after a step."""

    def close(self, state: State) -> None:
        """The attempt is over."""


Open = Callable[[RunConfig, int], Writer]
"""Of a run, from a step on: 0, or that of the checkpoint which an attempt goes on from."""


class Tracking:
    """Hands lines to the writers, in a thread of its own."""

    def __init__(
        self,
        run: RunConfig,
        first: int,
        warn: Callable[[str], None],
        writers: Mapping[Tracker, Open],
    ) -> None:
        """Return at once; each writer is opened with the first line."""
        self._run, self._first, self._warn, self._openers = run, first, warn, writers
        self._lines: queue.Queue[tuple[int, dict[str, float]] | State] = queue.Queue(MAX_WAITING)
        self._open: dict[Tracker, Writer] = {}
        self._failing: set[Tracker] = set()
        self._lost = 0
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def take(self, line: Line) -> None:
        """A line of `losses.jsonl`."""
        try:
            self._lines.put_nowait((int(line["step"]), metrics_of(line)))
        except queue.Full:
            self._lost += 1

    def close(self, state: State, seconds: float = CLOSE_SECONDS) -> None:
        """Send what waits, and end; gives up after so many seconds."""
        deadline = time.monotonic() + seconds
        try:
            self._lines.put(state, timeout=seconds)
        except queue.Full:
            self._lost += 1
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive() or self._lost:
            self._warn(
                "spec.tracking.reportTo has not got all numbers; they are in losses.jsonl of the "
                "job's claim"
            )

    def _work(self) -> None:
        wanted = self._run.tracking.report_to if self._run.tracking else []
        while True:
            item = self._lines.get()
            for tracker in wanted:
                self._try(tracker, item)
            if isinstance(item, str):
                return

    def _try(self, tracker: Tracker, item: tuple[int, dict[str, float]] | State) -> None:
        try:
            writer = self._open.get(tracker)
            if writer is None:
                writer = self._open[tracker] = self._openers[tracker](self._run, self._first)
            if isinstance(item, str):
                writer.close(item)
            else:
                writer.write(*item)
        except Exception as exc:  # whatever it is, training goes on
            self._lost += 1
            if tracker not in self._failing:
                said = str(exc).strip().split("\n")[0]
                self._warn(
                    f"{tracker} takes nothing, training goes on: {type(exc).__name__}: {said}"
                )
            self._failing.add(tracker)
            return
        self._failing.discard(tracker)

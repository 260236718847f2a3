"""One class for each library of `spec.tracking`.

The libraries are imported when a run asks for them: each takes a second or more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_api.run_config import WORK_TRACKING, RunConfig
from finetune_api.tracking import Tracker
from finetune_trainer.tracking import Open, State, settings_of

MLFLOW_RUN = "mlflow.run"
"""In the directory of tracking: the id of the run, for the next attempt."""


def _directory(run: RunConfig) -> Path:
    found = Path(run.work_dir) / WORK_TRACKING
    found.mkdir(parents=True, exist_ok=True)
    return found


class TensorBoard:
    """Event files in the job's claim."""

    def __init__(self, run: RunConfig, first: int) -> None:
        """Steps of an earlier attempt that are done again are taken back."""
        from torch.utils.tensorboard import SummaryWriter

        directory = str(_directory(run) / "tensorboard")
        self._writer: Any = SummaryWriter(directory, purge_step=first + 1 if first else None)
        if not first:
            lines = [f"{name}: {value}" for name, value in settings_of(run).items()]
            self._writer.add_text("settings", "  \n".join(lines), 0)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Flushed at once: who looks, looks now."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, state: State) -> None:
        """A file has no state."""
        del state
        self._writer.close()


class MLflow:
    """One run on an MLflow server, whose address is in `MLFLOW_TRACKING_URI`."""

    def __init__(self, run: RunConfig, first: int) -> None:
        """Go on with the run of an earlier attempt, or make one."""
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient()
        noted = _directory(run) / MLFLOW_RUN
        if first and noted.exists():
            self._id = noted.read_text()
            self._client.update_run(self._id, status="RUNNING")
            return
        project = run.tracking.project if run.tracking else run.namespace
        known = self._client.get_experiment_by_name(project)
        experiment = known.experiment_id if known else self._client.create_experiment(project)
        tags = {"namespace": run.namespace, "job": run.name, "uid": run.uid}
        made = self._client.create_run(experiment, run_name=run.name, tags=tags)
        self._id = made.info.run_id
        noted.write_text(self._id)
        self._settings(settings_of(run))

    def _settings(self, settings: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:500]) for name, value in settings.items()]
        self._client.log_batch(self._id, params=params)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        numbers = [Metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._id, metrics=numbers)

    def close(self, state: State) -> None:
        """After `Stopped` the run stays open."""
        if state != "Stopped":
            status = "FINISHED" if state == "Done" else "FAILED"
            self._client.set_terminated(self._id, status)


class WandB:
    """One run of Weights & Biases; without a key, files for `wandb sync`."""

    def __init__(self, run: RunConfig, first: int) -> None:
        """The run's id is the job's uid, so that every attempt writes into the same one."""
        import wandb

        del first  # the server knows what it has
        _directory(run)
        self._run: Any = wandb.init(
            project=run.tracking.project if run.tracking else run.namespace,
            name=run.name,
            id=run.uid,
            resume="allow",
            mode="online" if os.environ.get("WANDB_API_KEY") else "offline",
            config=settings_of(run),
            settings=wandb.Settings(
                silent=True,
                # The log and the code of a job are not its tracker's business.
                console="off",
                disable_code=True,
                disable_git=True,
            ),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """By the step of the training: W&B's own counts lines."""
        self._run.log({**metrics, "train/global_step": step})

    def close(self, state: State) -> None:
        """Waits until all is sent."""
        self._run.finish(exit_code=1 if state == "Failed" else 0)


WRITERS: dict[Tracker, Open] = {"TensorBoard": TensorBoard, "MLflow": MLflow, "WandB": WandB}

"""TensorBoard, MLflow, Weights & Biases: the real libraries, and servers that are slow or gone."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from training_builders import LORA, arrays, run_config, torchrun, write_work

from finetune_api.run_config import RunConfig
from finetune_trainer import tracking
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.trackers import WRITERS, MLflow, TensorBoard
from finetune_trainer.tracking import State, Tracking, check_tracking, metrics_of, settings_of


def a_run(work: Path, *trackers: str, **changes: Any) -> RunConfig:
    return run_config(work, tracking={"report_to": trackers, "project": "docs"}, **changes)


def test_metrics_have_the_names_of_hugging_faces_trainer() -> None:
    line = {
        "step": 3,
        "loss": 2.5,
        "learningRate": 1e-4,
        "gradNorm": 0.5,
        "tokensPerSecond": 900.0,
        "rewards/margins": 0.1,
    }
    assert metrics_of(line) == {
        "train/loss": 2.5,
        "train/learning_rate": 1e-4,
        "train/grad_norm": 0.5,
        "train/tokens_per_second": 900.0,
        "train/rewards/margins": 0.1,
    }
    assert metrics_of({"step": 3, "evalLoss": 2.0, "eval/rewards/accuracies": 0.75}) == {
        "eval/loss": 2.0,
        "eval/rewards/accuracies": 0.75,
    }
    assert metrics_of({"step": 3, "retentionLoss": 2.25}) == {"retention/loss": 2.25}


def test_settings_are_told_flat_and_by_the_names_of_run_json(tmp_path: Path) -> None:
    found = settings_of(a_run(tmp_path, "TensorBoard", "WandB", tuning="LoRA", lora=LORA))
    told = {name: found[name] for name in found if name.startswith(("lora", "tracking", "zero"))}
    assert told == {
        "lora.rank": 4,
        "lora.alpha": 8,
        "lora.dropout": 0.0,
        "lora.targetModules": "all-linear",
        "lora.useRslora": False,
        "lora.useDora": False,
        "lora.modulesToSave": "",
        "tracking.reportTo": "TensorBoard, WandB",
        "tracking.project": "docs",
        "zeroStage": 1,
    }
    assert found["training.learningRate"] == 1e-2


def test_a_library_that_the_image_lacks_is_refused_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None if name == "mlflow" else object())
    check_tracking(a_run(tmp_path, "TensorBoard", "WandB"), {})
    with pytest.raises(ConfigurationError) as found:
        check_tracking(a_run(tmp_path, "TensorBoard", "MLflow"), {})
    assert str(found.value) == (
        "spec.tracking.reportTo: the trainer image has no library for MLflow; remove it, or use an "
        "image with the package mlflow-skinny"
    )


def test_mlflow_without_an_address_is_refused_before_a_gpu_is_held(tmp_path: Path) -> None:
    run = a_run(tmp_path, "MLflow")
    check_tracking(run, {"MLFLOW_TRACKING_URI": "https://mlflow.example"})
    with pytest.raises(ConfigurationError, match=r"MLFLOW_TRACKING_URI into the Secret"):
        check_tracking(run, {})


class Recorder:
    """Stands in for a library whose server a test breaks."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.broken = threading.Event()
        self.goes_on = threading.Event()
        self.goes_on.set()

    def open(self, run: RunConfig, first: int) -> Recorder:
        self._check()
        self.told.append(f"open from {first}")
        return self

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._check()
        self.told.append((step, dict(metrics)))

    def close(self, state: State) -> None:
        self._check()
        self.told.append(state)

    def _check(self) -> None:
        assert self.goes_on.wait(60)
        if self.broken.is_set():
            raise ConnectionError("no route to mlflow.example\nand much more")


def test_lines_reach_every_writer_in_order_and_the_end_closes_it(tmp_path: Path) -> None:
    one, other, said = Recorder(), Recorder(), list[str]()
    run = a_run(tmp_path, "TensorBoard", "MLflow")
    found = Tracking(run, 4, said.append, {"TensorBoard": one.open, "MLflow": other.open})
    for step in (5, 6):
        found.take({"step": step, "loss": 1.0 / step})
    found.close("Stopped")
    told = ["open from 4", (5, {"train/loss": 0.2}), (6, {"train/loss": 1 / 6}), "Stopped"]
    assert (one.told, other.told, said) == (told, told, [])


def test_a_server_that_is_gone_costs_one_line_of_the_log_and_no_other_writer(
    tmp_path: Path,
) -> None:
    broken, sound, said = Recorder(), Recorder(), list[str]()
    broken.broken.set()
    run = a_run(tmp_path, "MLflow", "TensorBoard")
    found = Tracking(run, 0, said.append, {"MLflow": broken.open, "TensorBoard": sound.open})
    for step in (1, 2, 3):
        found.take({"step": step, "loss": 1.0})
    found.close("Done")
    assert sound.told == ["open from 0", *((n, {"train/loss": 1.0}) for n in (1, 2, 3)), "Done"]
    assert broken.told == []
    assert said == [
        "MLflow takes nothing, training goes on: ConnectionError: no route to mlflow.example",
        "spec.tracking.reportTo has not got all numbers; they are in losses.jsonl of the job's "
        "claim",
    ]


def test_a_server_that_never_answers_holds_neither_training_nor_its_end(tmp_path: Path) -> None:
    silent, said = Recorder(), list[str]()
    silent.goes_on.clear()
    found = Tracking(a_run(tmp_path, "MLflow"), 0, said.append, {"MLflow": silent.open})
    for step in range(2 * tracking.MAX_WAITING):
        found.take({"step": step, "loss": 1.0})
    found.close("Done", seconds=0.2)
    silent.goes_on.set()
    assert said == [
        "spec.tracking.reportTo has not got all numbers; they are in losses.jsonl of the job's "
        "claim"
    ]


def scalars(work: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(work / "tracking" / "tensorboard"))
    found.Reload()
    names = found.Tags()["scalars"]
    return {name: [(e.step, round(e.value, 4)) for e in found.Scalars(name)] for name in names}


def test_tensorboard_shows_a_step_that_is_done_again_once(tmp_path: Path) -> None:
    run = a_run(tmp_path, "TensorBoard")
    first = TensorBoard(run, 0)
    for step in (1, 2, 3):
        first.write(step, {"train/loss": 3.0 - step / 10})
    first.close("Failed")
    second = TensorBoard(run, 2)  # the checkpoint was of step 2
    second.write(3, {"train/loss": 1.5})
    second.close("Done")
    assert scalars(tmp_path) == {"train/loss": [(1, 2.9), (2, 2.8), (3, 1.5)]}


def test_the_next_attempt_goes_on_with_mlflows_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = a_run(tmp_path, "MLflow")
    first = MLflow(run, 0)
    first.write(1, {"train/loss": 2.5})
    first.close("Stopped")
    second = MLflow(run, 1)
    second.write(2, {"train/loss": 2.0, "eval/loss": 2.25})
    second.close("Done")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("docs")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("tiny", "FINISHED")
    assert found.data.params["training.learningRate"] == "0.01"
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.5), (2, 2.0)]


def test_a_real_run_reports_what_its_own_log_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for kind in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / "wandb"))
    work = tmp_path / "work"
    monkeypatch.setenv("WANDB_DIR", str(work / "tracking"))
    write_work(work, arrays(8, seed=1), arrays(4, seed=2), 3)
    run = a_run(work, "TensorBoard", "WandB", max_steps=3, tuning="LoRA", lora=LORA)
    (tmp_path / "run.json").write_text(run.model_dump_json(by_alias=True))
    log = torchrun(1, "finetune_trainer.train", str(tmp_path / "run.json"))
    lines = [json.loads(line) for line in (work / "losses.jsonl").read_text().splitlines()]
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in metrics_of(line).items():
            expected.setdefault(name, []).append((line["step"], round(value, 4)))
    shown = scalars(work)
    assert {name: [step for step, _ in values] for name, values in shown.items()} == {
        name: [step for step, _ in values] for name, values in expected.items()
    }
    assert shown["train/loss"] == expected["train/loss"]
    assert shown["eval/loss"] == expected["eval/loss"]
    (kept,) = (work / "tracking" / "wandb").glob("offline-run-*/run-*.wandb")
    assert f"run-{run.uid}.wandb" == kept.name
    assert b"train/grad_norm" in kept.read_bytes()
    assert "takes nothing" not in log


def test_every_tracker_of_the_api_has_a_writer() -> None:
    assert set(WRITERS) == set(tracking.LIBRARIES) == set(tracking.PACKAGES)

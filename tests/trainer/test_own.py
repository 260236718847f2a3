"""A job's own trainer: what prepare fetches for it, what export takes, and that unmodified scripts
of Hugging Face and TRL report to the real progress endpoint over TLS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from trainer_builders import a_run, questions, tiny_model, write_jsonl

from finetune_api.outcome import FetchFacts
from finetune_api.run_config import RunConfig
from finetune_trainer.errors import ConfigurationError, DataError, ModelError
from finetune_trainer.own import export_found, fetch

ROOT = Path(__file__).parents[2]
Json = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def run(tmp_path: Path, model: Path) -> RunConfig:
    chats = [
        {
            "messages": [
                {"role": "user", "content": example["prompt"]},
                {"role": "assistant", "content": example["completion"]},
            ]
        }
        for example in questions(64)
    ]
    data = write_jsonl(tmp_path / "chat.jsonl", *chats)
    found: RunConfig = a_run(tmp_path / "work", model, data, own_trainer=True)
    return found


def test_model_and_data_are_fetched_as_they_are(run: RunConfig, tmp_path: Path) -> None:
    data = tmp_path / "chat.jsonl"
    data.write_text("whatever the script makes of it\n")
    facts = fetch(run)
    work = Path(run.work_dir)
    assert facts == FetchFacts(
        parameters=facts.parameters,
        architecture="LlamaForCausalLM",
        files=1,
        bytes=data.stat().st_size,
    )
    assert facts.parameters > 100_000
    assert (work / "dataset" / "chat.jsonl").read_text() == data.read_text()
    assert sorted(p.name for p in work.iterdir()) == ["checkpoints", "dataset", "model", "result"]


def test_fetching_again_keeps_what_the_script_has_left(run: RunConfig) -> None:
    fetch(run)
    kept = Path(run.work_dir) / "checkpoints" / "one"
    kept.write_text("x")
    fetch(run)
    assert kept.exists()


def test_data_that_are_not_there_are_told_of(run: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").unlink()
    with pytest.raises(DataError, match="nothing at this path"):
        fetch(run)


def left(run: RunConfig, **tensors: torch.Tensor) -> Path:
    """A result."""
    result = Path(run.work_dir) / "result"
    result.mkdir(parents=True)
    if tensors:
        save_file(tensors, result / "model.safetensors")
    return result


def test_what_the_script_has_left_becomes_the_artefact(run: RunConfig) -> None:
    result = left(run, weight=torch.ones(3), bias=torch.zeros(2))
    (result / "config.json").write_text("{}")
    (result / "more").mkdir()
    save_file({"other": torch.ones(1)}, result / "more" / "adapter.safetensors")
    facts = export_found(run)
    output = Path(run.output_dir)
    listed = [
        entry["path"] for entry in json.loads((output / "manifest.json").read_text())["files"]
    ]
    assert listed == ["config.json", "model.safetensors", "more/adapter.safetensors"]
    assert (facts.files, facts.tensors, facts.reproduced_loss) == (4, 3, None)
    assert export_found(run) == facts  # again: the same


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"weight": torch.tensor([float("nan")])}, "weight of the result has values"),
        ({"weight": torch.ones(0)}, "weight of the result is empty"),
    ],
)
def test_broken_tensors_are_refused(
    run: RunConfig, tensors: dict[str, torch.Tensor], said: str
) -> None:
    left(run, **tensors)
    with pytest.raises(ModelError, match=said):
        export_found(run)


def test_a_script_that_leaves_nothing_is_told_where_to(run: RunConfig) -> None:
    with pytest.raises(ModelError, match="left no file: the script must leave its result in"):
        export_found(run)


def test_a_result_without_weights_is_none(run: RunConfig) -> None:
    (left(run) / "README.md").write_text("done")
    with pytest.raises(ModelError, match=r"no weights among what was left \(README.md\)"):
        export_found(run)


def test_what_somebody_else_has_put_there_is_not_replaced(run: RunConfig) -> None:
    left(run, weight=torch.ones(1))
    output = Path(run.output_dir)
    output.mkdir()
    (output / "thesis.doc").write_text("x")
    with pytest.raises(ConfigurationError, match=r"thesis\.doc"):
        export_found(run)


class Endpoint:
    """The real progress endpoint, in a process of its own: it needs the operator's libraries."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.attempt(0)
        venv = subprocess.run(
            [ROOT / "scripts" / "venv", "dev"], check=True, capture_output=True, text=True
        )
        parts = ("api", "operator", "tests/support")
        path = ":".join(str(ROOT / part) for part in parts)
        script = ROOT / "tests" / "support" / "progress_endpoint.py"
        self._process = subprocess.Popen(
            [f"{venv.stdout.strip()}/bin/python", script, directory],
            env=os.environ | {"PYTHONPATH": path},
        )
        deadline = time.monotonic() + 120
        while not (directory / "env.json").exists():
            assert self._process.poll() is None, "the endpoint has ended"
            assert time.monotonic() < deadline, "the endpoint does not start"
            time.sleep(0.1)
        self.env: dict[str, str] = json.loads((directory / "env.json").read_text())

    def attempt(self, number: int) -> None:
        """From now on this attempt reports, with a token of its own."""
        (self.directory / "attempt").write_text(str(number))
        (self.directory / "token").write_text(f"secret-{number}")

    def lines(self, name: str) -> list[Json]:
        path = self.directory / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    directory = tmp_path / "endpoint"
    directory.mkdir()
    found = Endpoint(directory)
    yield found
    found.stop()


# The callback reports every five seconds at most: 60 steps last at least twelve.
SECONDS_PER_STEP = "0.2"
STEPS = 60
Play = Callable[[Path, int], None]


@pytest.fixture
def play(run: RunConfig, endpoint: Endpoint, tmp_path: Path) -> Play:
    """Runs a script as a worker's container would."""
    fetch(run)
    work = Path(run.work_dir)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}
    env |= endpoint.env | {
        "PET_NNODES": "1",
        "PET_NPROC_PER_NODE": "2",
        "PET_NODE_RANK": "0",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": "29511",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
        "FINETUNE_MODEL_DIR": str(work / "model"),
        "FINETUNE_DATASET_DIR": str(work / "dataset"),
        "FINETUNE_RESULT_DIR": str(work / "result"),
        "FINETUNE_CHECKPOINT_DIR": str(work / "checkpoints"),
    }

    def start(script: Path, steps: int) -> None:
        torchrun = Path(sys.executable).with_name("torchrun")
        pace = ROOT / "tests" / "support" / "at_a_pace.py"
        command = [sys.executable, torchrun, pace, SECONDS_PER_STEP, script]
        subprocess.run(command, check=True, timeout=500, env=env | {"STEPS": str(steps)})

    return start


def test_a_plain_hugging_face_trainer_reports_unmodified_and_goes_on_from_its_checkpoint(
    play: Play, endpoint: Endpoint, run: RunConfig
) -> None:
    script = ROOT / "examples" / "03-own-trainer" / "train.py"
    play(script, STEPS)
    first = endpoint.lines("taken.jsonl")
    assert (first[0]["percent"], first[0]["totalSteps"]) == (0, STEPS)
    assert (first[-1]["percent"], first[-1]["etaSeconds"]) == (100, 0)
    during = [p for p in first if p["percent"] < 100 and p.get("step")]
    assert during, "nothing was reported between the start and the end"
    assert all({"loss", "learningRate", "gradNorm", "epoch"} <= set(p) for p in during)

    endpoint.attempt(1)
    play(script, 2 * STEPS)
    second = endpoint.lines("taken.jsonl")[len(first) :]
    begun = next(p for p in second if p.get("step"))
    assert (begun["attempt"], begun["totalSteps"]) == (1, 2 * STEPS)
    assert begun["step"] > STEPS
    # The pace of the attempt before counts for what is left: the callback itself divides the
    # seconds since its start by all steps, those of the first attempt too.
    assert begun["etaSeconds"] == round(begun["secondsPerStep"] * (2 * STEPS - begun["step"]))
    assert endpoint.lines("refused.jsonl") == []
    assert export_found(run).tensors > 10


def test_trls_sft_trainer_reports_unmodified(
    play: Play, endpoint: Endpoint, run: RunConfig
) -> None:
    play(ROOT / "tests" / "support" / "trl_sft.py", STEPS)
    taken = endpoint.lines("taken.jsonl")
    assert (taken[0]["percent"], taken[-1]["percent"], taken[-1]["etaSeconds"]) == (0, 100, 0)
    assert any(p.get("step") and "loss" in p for p in taken)
    assert endpoint.lines("refused.jsonl") == []
    assert export_found(run).tensors > 10

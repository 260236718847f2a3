"""A manifest on this machine: where things lie, what stages are told, how they end."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kube import eventually

from finetune_api.profile import FineTuneProfileSpec
from finetune_api.resolve import Paths
from finetune_api.run_config import RunConfig
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_cli import localrun, stages
from finetune_cli.exits import CliError, Exit
from finetune_cli.localrun import Machine

Json = dict[str, Any]
SPEC: Json = {
    "model": {"uri": "pvc://data/model"},
    "dataset": {"uri": "configmap://chats/train.jsonl"},
    "evaluation": {"retention": {"uri": "configmap://texts/general.jsonl"}},
    "output": {"uri": "pvc://results/docs"},
    "training": {"globalBatchSize": 4},
    "workers": {"numNodes": 2},
}
CPU = FineTuneProfileSpec.parse({"node": {"accelerator": "CPU", "gpusPerNode": 0}})


def spec(**changes: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.parse(SPEC | changes)


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Path]:
    """Directories of this machine that stand for claims and ConfigMaps."""
    found = {"data": "data", "configmap/chats": "chats", "configmap/texts": "texts"}
    for name in found.values():
        (tmp_path / name).mkdir()
    return {key: tmp_path / name for key, name in found.items()}


def test_claims_and_configmaps_are_where_a_pod_would_see_them(
    tmp_path: Path, given: dict[str, Path]
) -> None:
    base = tmp_path / "run"
    paths = localrun.lay_out(spec(), given, base)
    assert paths == Paths(f"{base}/work", f"{base}/claims", f"{base}/configmaps")
    config = localrun.resolve("docs", spec(), CPU, paths)
    assert (config.model.path, config.dataset.path, config.output_dir) == (
        f"{base}/claims/data/model",
        f"{base}/configmaps/dataset/train.jsonl",
        f"{base}/claims/results/docs",
    )
    links = {p.name: p.resolve() for p in (*base.glob("claims/*"), *base.glob("configmaps/*"))}
    assert links == {
        "data": tmp_path / "data",
        "results": base / "claims/results",
        "dataset": tmp_path / "chats",
        "retention": tmp_path / "texts",
    }
    assert localrun.lay_out(spec(), given, base) == paths, "again, as for a run that goes on"


def test_a_directory_that_is_not_named_is_asked_for_by_its_flag(tmp_path: Path) -> None:
    with pytest.raises(CliError) as error:
        localrun.lay_out(spec(), {"configmap/texts": tmp_path / "gone"}, tmp_path)
    assert str(error.value).split("\n") == [
        "spec.model.uri is pvc://data/model: name the directory here by --claim data=DIR",
        "spec.dataset.uri is configmap://chats/train.jsonl: name the directory here by --configmap "
        "chats=DIR",
        f"{tmp_path}/gone is no directory",
    ]


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        pytest.param(
            Machine(64 * 2**30, 0, None),
            {"accelerator": "CPU", "gpusPerNode": 0, "memory": "32768Mi"},
            id="no GPU",
        ),
        pytest.param(
            Machine(64 * 2**30, 2, 80),
            {"accelerator": "CUDA", "gpusPerNode": 2, "gpuMemoryGiB": 80, "memory": "32768Mi"},
            id="two GPUs",
        ),
    ],
)
def test_without_a_profile_a_worker_gets_what_this_machine_has(
    machine: Machine, expected: Json
) -> None:
    assert localrun.local_profile(machine, 2) == FineTuneProfileSpec.parse({"node": expected})


def test_a_job_that_does_not_fit_the_profile_is_refused_as_by_the_operator() -> None:
    with pytest.raises(CliError) as error:
        localrun.resolve("docs", spec(training={"globalBatchSize": 3}), CPU, Paths())
    assert (error.value.code, str(error.value)) == (
        Exit.INVALID,
        "InvalidBatchSize: spec.training.globalBatchSize is 3, which 2 x 1 processes cannot share "
        "evenly; use 2 or 4",
    )


def config(tmp_path: Path, **changes: Any) -> RunConfig:
    paths = Paths(str(tmp_path / "work"))
    return localrun.resolve("docs", spec(**changes), CPU, paths)


def test_another_run_in_the_same_directory_is_refused_with_what_differs(tmp_path: Path) -> None:
    path = stages.write_config(config(tmp_path), tmp_path)
    assert RunConfig.model_validate_json(path.read_text()) == config(tmp_path)
    assert stages.write_config(config(tmp_path), tmp_path) == path
    with pytest.raises(CliError, match=r"differs: training; take another --dir"):
        stages.write_config(config(tmp_path, training={"globalBatchSize": 8}), tmp_path)


FAKE = """
import json, os, signal, sys, time, pathlib
rank, base = os.environ["PET_NODE_RANK"], pathlib.Path(sys.argv[1]).parent
(base / f"seen-{rank}.json").write_text(json.dumps(
    {k: v for k, v in os.environ.items() if k.startswith(("PET_", "DS_", "TERMINATION"))}))
"""


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], stages.Runner]:
    """A trainer whose stages are a few lines of Python."""

    def make(code: str) -> stages.Runner:
        package = tmp_path / "lib" / "finetune_trainer"
        package.mkdir(parents=True)
        for module in ("prepare", "launch", "export"):
            (package / f"{module}.py").write_text(FAKE + code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
        run_json = stages.write_config(config(tmp_path), tmp_path)
        said: list[str] = []
        return stages.Runner(
            sys.executable, run_json, config(tmp_path), tmp_path / "outcomes", said.append
        )

    return make


def test_training_has_a_process_per_worker_which_are_told_as_pods_are(
    tmp_path: Path, runner: Callable[[str], stages.Runner]
) -> None:
    ended = runner("").run("train")
    assert (ended.stage, ended.code, ended.outcome) == ("train", 0, None)
    seen = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert seen[0]["PET_MASTER_PORT"] == seen[1]["PET_MASTER_PORT"]
    assert [found | {"PET_MASTER_PORT": ""} for found in seen] == [
        {
            "PET_NNODES": "2",
            "PET_NPROC_PER_NODE": "1",
            "PET_NODE_RANK": str(rank),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": "",
            "DS_ACCELERATOR": "cpu",
            "TERMINATION_LOG": str(tmp_path / "outcomes" / f"train-{rank}.json"),
        }
        for rank in (0, 1)
    ]


def test_a_lost_peer_is_not_the_cause_and_the_failure_s_own_code_counts(
    runner: Callable[[str], stages.Runner],
) -> None:
    failure = {"class": "Diverged", "message": "no number", "time": 1.0}
    found = runner(
        "if rank == '0': raise SystemExit(205)\n"
        f"open(os.environ['TERMINATION_LOG'], 'w').write({json.dumps({'failure': failure})!r})\n"
        "raise SystemExit(14)\n"
    )
    ended = found.run("train")
    assert ended.code == 14
    assert stages.summary(found.config, [ended]) == [
        "train ended with exit code 14. Diverged: no number"
    ]


def test_a_process_that_dies_of_a_signal_has_the_code_of_a_pod(
    runner: Callable[[str], stages.Runner],
) -> None:
    assert runner("os.kill(os.getpid(), signal.SIGKILL)").run("prepare").code == 137


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_stops_it_lets_the_workers_save(
    tmp_path: Path, runner: Callable[[str], stages.Runner], number: int
) -> None:
    """Ctrl-C and SIGTERM reach this program only: it is the one to ask them, by SIGTERM."""
    found = runner(
        "def save(*_):\n"
        "    (base / 'saved').touch()\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "(base / 'up').touch()\n"
        "time.sleep(60)\n"
    )

    def press() -> None:
        eventually("the process to start", (tmp_path / "up").exists)
        heeded = signal.default_int_handler
        eventually("it to be waited for", lambda: signal.getsignal(signal.SIGTERM) is heeded)
        os.kill(os.getpid(), number)

    # A shell lets the programs that it starts in the background ignore Ctrl-C: also these tests.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    presser = threading.Thread(target=press)
    presser.start()
    try:
        ended = found.run("prepare")
    finally:
        presser.join()
        signal.signal(signal.SIGINT, before)
    assert (ended.code, (tmp_path / "saved").exists()) == (143, True)


def test_a_python_without_the_trainer_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CliError, match=r"cannot run the trainer .*name a Python that can"):
        stages.check_trainer(sys.executable)
    with pytest.raises(CliError, match="No such file or directory"):
        stages.check_trainer(str(tmp_path / "none"))

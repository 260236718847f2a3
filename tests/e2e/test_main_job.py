"""The main job on a real kubelet, with real images, real ranks and a real model."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from kube import kubeconfig

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "build" / "demo" / "output"


def test_the_demo_succeeds_with_every_condition(demo: dict[str, Any]) -> None:
    status = demo["job"]["status"]
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Validated": "True",
        "Prepared": "True",
        "Trained": "True",
        "Exported": "True",
        "Complete": "True",
        "Failed": "False",
        "Waiting": "False",
        "ProgressReported": "Unknown",  # nothing trains any more
    }
    assert [s["name"] for s in status["stages"]] == ["prepare", "train", "export"]


def test_the_held_out_loss_falls_by_at_least_thirty_percent(demo: dict[str, Any]) -> None:
    output = demo["job"]["status"]["output"]
    assert output["evalLossAfter"] <= 0.7 * output["evalLossBefore"]


def test_progress_moved_while_it_ran(demo: dict[str, Any]) -> None:
    progress = demo["job"]["status"]["progress"]
    assert (progress["percent"], progress["activity"]) == (100, "Done")
    assert progress["step"] == progress["totalSteps"] == 24
    assert len(progress["history"]) >= 5
    assert demo["printed"].count("Running    [") >= 5


def test_at_least_two_thousand_real_examples_were_used(demo: dict[str, Any]) -> None:
    dataset = demo["job"]["status"]["dataset"]
    assert dataset["examples"] + dataset["evalExamples"] >= 2000


def test_the_artefact_is_what_its_manifest_says(demo: dict[str, Any]) -> None:
    text = (OUTPUT / "manifest.json").read_bytes()
    assert demo["job"]["status"]["output"]["digest"] == (
        "sha256:" + hashlib.sha256(text).hexdigest()
    )
    files = json.loads(text)["files"]
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "loss_curve.png"} <= {
        entry["path"] for entry in files
    }
    for entry in files:
        data = (OUTPUT / entry["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])


def test_the_command_line_brings_the_artefact_and_the_log_home(
    demo: dict[str, Any], tmp_path: Path
) -> None:
    metadata = demo["job"]["metadata"]
    environment = os.environ | {
        "KUBECONFIG": str(kubeconfig()),
        "PYTHONPATH": f"{ROOT / 'api'}:{ROOT / 'cli'}",
    }

    def call(*arguments: str) -> str:
        command = [sys.executable, "-m", "finetune_cli", *arguments, "-n", metadata["namespace"]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    target = tmp_path / "adapter"
    fetched = json.loads(call("fetch", metadata["name"], str(target), "-o", "json"))
    assert fetched["digest"] == demo["job"]["status"]["output"]["digest"]
    assert {p.name: p.read_bytes() for p in target.iterdir() if p.is_file()} == {
        p.name: p.read_bytes() for p in OUTPUT.iterdir() if p.is_file()
    }
    assert "loss" in call("logs", metadata["name"], "--stage", "train")


def test_base_and_tuned_model_answered_differently(demo: dict[str, Any]) -> None:
    printed = demo["printed"]
    base = printed.split("base model:\n")[1].split("tuned model:")[0].strip()
    tuned = printed.split("tuned model:\n")[1].split("Try next:")[0].strip()
    assert base
    assert tuned
    assert base != tuned

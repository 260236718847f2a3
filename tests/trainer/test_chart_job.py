"""The job of `helm test`, trained: its manifest, its data, and the model that the image writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tools import ROOT, run_tool

CHART = ROOT / "charts" / "finetune-operator"


@pytest.mark.timeout(900)  # four processes that load torch, one after the other
def test_the_job_of_helm_test_is_trained_exported_and_proven(tmp_path: Path) -> None:
    model = tmp_path / "claim" / "tiny"
    environment = os.environ | {
        "PYTHONPATH": ":".join(str(ROOT / part) for part in ("api", "trainer_image", "cli")),
    }
    # As in the pod, to which the claim is mounted.
    written = [sys.executable, "-m", "finetune_trainer.tiny", str(model)]
    subprocess.run(written, env=environment, check=True)
    chart = ("template", "finetune-operator", str(CHART), "--kube-version", "1.30.0")
    done = run_tool("helm", *chart, "--show-only", "templates/tests/job.yaml")
    assert done.returncode == 0, done.stderr
    documents = yaml.safe_load_all(done.stdout)
    job = next(d for d in documents if d and d["kind"] == "FineTuneJob")
    job["metadata"].pop("annotations")
    del job["spec"]["profile"]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    name = job["metadata"]["name"]
    command = [
        *(sys.executable, "-m", "finetune_cli", "run", "job.yaml", "--dir", "out", "-o", "json"),
        *("--python", sys.executable, "--claim", f"{name}-model={tmp_path / 'claim'}"),
        *("--configmap", f"{name}-data={CHART / 'files' / 'test'}"),
    ]
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout)
    assert [(s["stage"], s["exitCode"]) for s in found["stages"]] == [
        ("prepare", 0),
        ("train", 0),
        ("export", 0),
    ]

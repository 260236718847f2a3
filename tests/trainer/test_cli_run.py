"""`finetune run`: a manifest's three stages with the real trainer; and the PNG of `plot`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from trainer_builders import questions, tiny_model, write_jsonl

from finetune_cli.artefact import MANIFEST, listed, verify
from finetune_cli.chart import write_png

ROOT = Path(__file__).parents[2]
JOB = {
    "apiVersion": "finetune-operator.io/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "docs"},
    "spec": {
        "model": {"uri": "pvc://models/tiny"},
        "dataset": {"uri": "pvc://data/train.jsonl", "evalFraction": 0.2},
        "method": {"lora": {"rank": 4, "alpha": 8}},
        "training": {
            "maxSteps": 3,
            "globalBatchSize": 4,
            "sequenceLength": 128,
            "precision": "FP32",
        },
        "workers": {"numNodes": 2},
        "zero": {"stage": 2},
        "output": {"uri": "pvc://results/docs"},
    },
}


@pytest.mark.timeout(1800)  # eight processes that load torch, one after the other
def test_a_manifest_runs_on_this_machine_with_two_workers_and_is_done_when_repeated(
    tmp_path: Path,
) -> None:
    tiny_model(tmp_path / "models" / "tiny")
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train.jsonl", *questions(40))
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    command = [
        *(sys.executable, "-m", "finetune_cli", "run", "job.yaml", "--dir", "out", "-o", "json"),
        *("--python", sys.executable, "--claim", "models=models", "--claim", "data=data"),
    ]
    environment = os.environ | {
        "PYTHONPATH": ":".join(str(ROOT / part) for part in ("api", "trainer_image", "cli")),
    }
    for times in ("once", "again"):
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, (times, done.stderr[-3000:])
    found = json.loads(done.stdout)
    target = tmp_path / "out" / "claims" / "results" / "docs"
    assert found["result"] == str(target)
    assert [(s["stage"], s["exitCode"]) for s in found["stages"]] == [
        ("prepare", 0),
        ("train", 0),
        ("export", 0),
    ]
    digest = found["stages"][-1]["outcome"]["export"]["digest"]
    entries = listed((target / MANIFEST).read_bytes(), digest)
    verify(target, entries)
    assert {entry.path for entry in entries} >= {"adapter_model.safetensors", "README.md"}


def test_a_png_has_the_curves(tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    write_png({"docs": [(1, 4.0), (2, 2.0)], "style": [(1, 3.0)]}, {"docs": 1.9}, path)
    from matplotlib import image

    assert image.imread(path).shape[:2] == (720, 1280)

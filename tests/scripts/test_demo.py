"""What `make demo` says: its live line, its summary, and what is missing where it cannot run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import demo_cluster
import pytest
from demo_cluster import TargetError, choose, split
from demo_local import resolve
from demo_report import live_line, losses, stage_seconds

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ({}, "Pending"),
        ({"phase": "Preparing", "message": "pod p is being started"},
         "Preparing  pod p is being started"),
        (
            {
                "phase": "Running",
                "progress": {
                    "percent": 50,
                    "step": 12,
                    "totalSteps": 24,
                    "loss": 1.02674,
                    "tokensPerSecond": 115.3,
                    "etaSeconds": 114,
                    "activity": "Training",
                },
            },
            "Running    [############            ]  50%  step 12/24  loss 1.027  115 tokens/s  "
            "about 114 s left",
        ),
        (
            {"phase": "Running", "progress": {"percent": 0, "activity": "Loading"}},
            "Running    [                        ]   0%  loading",
        ),
    ],
)  # fmt: skip
def test_the_state_of_a_job_is_one_line(status: dict[str, Any], line: str) -> None:
    assert live_line(status) == line


def test_the_summary_has_times_and_losses() -> None:
    stages = [
        {
            "name": "prepare",
            "startTime": "2026-11-22T06:00:00Z",
            "completionTime": "2026-11-22T06:00:43Z",
        },
        {"name": "train", "startTime": "2026-11-22T06:00:43Z"},
    ]
    assert stage_seconds({"stages": stages}) == {"prepare": 43.0}
    assert losses(2.336, 1.062) == "2.336 before, 1.062 after (-55%)"


def test_neither_root_nor_docker_points_to_the_way_without_a_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(TargetError, match="make demo LOCAL=1"):
        choose("auto", ROOT)


def test_the_current_cluster_needs_to_be_told_cluster_and_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("KUBECONFIG", "OPERATOR_IMAGE", "TRAINER_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TargetError, match="KUBECONFIG, OPERATOR_IMAGE, TRAINER_IMAGE"):
        choose("current", ROOT)


def test_an_image_needs_a_tag() -> None:
    assert split("registry:5000/team/trainer:1") == ("registry:5000/team/trainer", "1")
    with pytest.raises(TargetError, match="needs a tag"):
        split("registry:5000/team/trainer")


def test_kind_is_refused_without_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_cluster.shutil, "which", lambda _: None)
    with pytest.raises(TargetError, match="running Docker"):
        choose("kind", ROOT)


def test_without_a_cluster_the_manifest_is_resolved_to_paths_of_this_machine(
    tmp_path: Path,
) -> None:
    config = resolve(ROOT / "examples" / "01-first-job", tmp_path)
    assert (config.model.path, config.dataset.path, config.work_dir, config.output_dir) == (
        f"{tmp_path}/claims/demo-data/SmolLM2-135M-Instruct.gguf",
        f"{tmp_path}/claims/demo-data/stdlib-chat.jsonl",
        f"{tmp_path}/work",
        f"{tmp_path}/claims/demo-data/python-helper",
    )
    assert (config.num_nodes, config.num_proc_per_node, config.zero_stage) == (2, 1, 2)

"""The dataset of the second example: pairs that the trainer understands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from finetune_trainer.data.preferences import read_preferences
from finetune_trainer.data.records import Record

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(directory: Path, script: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *options],
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_every_pair_can_be_learned_from(tmp_path: Path) -> None:
    run(tmp_path, "01-first-job/build_dataset.py", "--output", "chat.jsonl", "--limit", "300")
    assert run(tmp_path, "02-preferences/build_preferences.py", "chat.jsonl") == (
        "300 pairs in preferences.jsonl\n"
    )
    lines = (tmp_path / "preferences.jsonl").read_text(encoding="utf-8").splitlines()
    records = [Record(f"line {i}", json.loads(line)) for i, line in enumerate(lines, 1)]
    found = list(read_preferences(records, "DPO", chat=True))
    assert len(found) == 300
    for preference in found:
        chosen, rejected = (answer[0]["content"] for answer in preference.answers)  # type: ignore[index]
        assert rejected in chosen
        assert chosen.startswith("`")

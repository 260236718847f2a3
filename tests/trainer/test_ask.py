"""Asking base and tuned model the same question."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trainer_builders import a_run, questions, tiny_model, trained, write_jsonl

from finetune_trainer.ask import main
from finetune_trainer.prepare import prepare


@pytest.fixture
def result(tmp_path: Path) -> Path:
    data = write_jsonl(tmp_path / "docs.jsonl", *questions(4))
    run = a_run(tmp_path / "work", tiny_model(tmp_path / "tiny"), data)
    prepare(run)
    return trained(run)


def test_both_answer_and_differ(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(result.parent / "model")
    arguments = [model, "Who?", "--adapter", str(result), "--max-new-tokens", "8"]
    capsys.readouterr()
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert set(first) == {"base", "tuned"}
    assert first["base"] != first["tuned"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == first


def test_the_directory_of_a_whole_model_is_a_tuned_model_too(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_model(tmp_path / "other", seed=7)
    model = str(result.parent / "model")
    capsys.readouterr()
    assert main([model, "Who?", "--adapter", str(other), "--max-new-tokens", "8"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert main([str(other), "Who?", "--max-new-tokens", "8"]) == 0
    assert json.loads(capsys.readouterr().out) == {"base": both["tuned"]}


def test_the_program_prints_its_answers_and_nothing_else(result: Path) -> None:
    command = [sys.executable, "-m", "finetune_trainer.ask", str(result.parent / "model"), "Who?"]
    command += ["--adapter", str(result), "--max-new-tokens", "4"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True
    )
    assert json.loads(done.stdout).keys() == {"base", "tuned"}

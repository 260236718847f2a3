"""The dataset of the first example: real questions, real answers, the same each time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "01-first-job" / "build_dataset.py"


def build(directory: Path, *options: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """Run it as a user does, in an empty directory, without a screen or an editor."""
    environment = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": hash_seed}
    return subprocess.run(
        [sys.executable, "-W", "default", SCRIPT, *options],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("dataset")
    done = build(directory)
    assert (done.returncode, done.stderr) == (0, "")
    written = (directory / "train.jsonl").read_text(encoding="utf-8")
    assert done.stdout == f"{len(written.splitlines())} examples in train.jsonl\n"
    return written


@pytest.fixture(scope="module")
def examples(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def pairs(examples: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(e["messages"][0]["content"], e["messages"][1]["content"]) for e in examples]


def test_there_are_enough_examples_to_learn_from(examples: list[dict[str, Any]]) -> None:
    assert len(examples) >= 2000


def test_every_example_is_one_question_of_the_user_and_one_answer_of_the_assistant(
    examples: list[dict[str, Any]],
) -> None:
    for example in examples:
        assert list(example) == ["messages"]
        assert [sorted(m) for m in example["messages"]] == [["content", "role"]] * 2
        assert [m["role"] for m in example["messages"]] == ["user", "assistant"]


def test_no_question_and_no_answer_occurs_twice(examples: list[dict[str, Any]]) -> None:
    questions, answers = zip(*pairs(examples), strict=True)
    assert len(set(questions)) == len(questions)
    assert len(set(answers)) == len(answers)


def middle(answer: str) -> str:
    """What the documentation says, between the first and the last sentence of the house style."""
    return answer.split("\n\n", 1)[1].rsplit("\n\n", 1)[0]


def test_answers_are_sentences_of_bounded_length(examples: list[dict[str, Any]]) -> None:
    for question, whole in pairs(examples):
        answer = middle(whole)
        assert 25 <= len(answer) <= 400, question
        assert answer == answer.strip(), question
        assert answer[0].isalpha(), question
        assert answer[-1] in ".!?", question
        assert ">>>" not in answer, question
        assert not re.search(r"0x[0-9a-f]{8,}", answer), f"an address in memory: {question}"


def test_what_users_ask_most_is_answered(examples: list[dict[str, Any]]) -> None:
    by_name = {re.findall("`(.+?)`", q)[0]: a for q, a in pairs(examples)}
    assert by_name["str.join"].startswith(
        "`str.join` is a method of the class `str` in Python's standard library.\n\n"
        "Concatenate any number of strings."
    )
    assert middle(by_name["json.dumps"]).startswith("Serialize `obj` to a JSON formatted `str`.")
    assert middle(by_name["collections.Counter"]).startswith("Dict subclass for counting hashable")


def test_every_answer_keeps_the_house_style(examples: list[dict[str, Any]]) -> None:
    for question, answer in pairs(examples):
        (name,) = re.findall("`(.+?)`", question)
        assert answer.startswith(f"`{name}` is a "), question
        assert answer.endswith(f"\n\nRun `help('{name}')` in Python to read more."), question


def test_questions_are_asked_in_several_ways(examples: list[dict[str, Any]]) -> None:
    forms = {re.sub("`.+?`", "`x`", question) for question, _ in pairs(examples)}
    assert len(forms) == 10


def test_another_run_writes_the_same_bytes(text: str, tmp_path: Path) -> None:
    build(tmp_path, "--output", "again.jsonl", hash_seed="12345")
    assert (tmp_path / "again.jsonl").read_text(encoding="utf-8") == text
    assert [p.name for p in tmp_path.iterdir()] == ["again.jsonl"], "nothing else is written"


def test_a_limit_takes_the_first_examples(text: str, tmp_path: Path) -> None:
    done = build(tmp_path, "--limit", "7")
    assert done.stdout == "7 examples in train.jsonl\n"
    assert (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines() == (
        text.splitlines()[:7]
    )


def test_a_limit_below_one_is_refused(tmp_path: Path) -> None:
    done = build(tmp_path, "--limit", "0")
    assert done.returncode == 2
    assert "--limit must be at least 1" in done.stderr
    assert not list(tmp_path.iterdir())

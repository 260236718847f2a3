"""The retention set: fetched, cut to its size and written beside the data; never trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import Repository, running_hub
from trainer_builders import a_run, questions, tiny_model, write_jsonl
from training_builders import dense

from finetune_api.run_config import EvaluationConfig, RunConfig, SourceConfig
from finetune_trainer.errors import DataError
from finetune_trainer.prepare import prepare


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("retention") / "tiny")


def a_run_with(tmp_path: Path, model: Path, *records: Any, **changes: Any) -> RunConfig:
    """A run whose retention set is a mounted file of these records."""
    data = write_jsonl(tmp_path / "docs.jsonl", *questions(20))
    general = write_jsonl(tmp_path / "general.jsonl", *records)
    source = SourceConfig(uri="pvc://data/general.jsonl", path=str(general))
    settings = EvaluationConfig(retention=source, retention_max_examples=3)
    return a_run(tmp_path / "work", model, data, evaluation=settings, **changes)


def texts(count: int, words: int = 6) -> list[dict[str, str]]:
    return [{"text": f"Number {i} " + "is a number like any other. " * words} for i in range(count)]


def test_the_first_examples_are_written_and_counted_whatever_the_datas_own_format(
    tmp_path: Path, model: Path
) -> None:
    run = a_run_with(tmp_path, model, *texts(10))
    facts = prepare(run)
    assert (facts.format, facts.examples, facts.retention_examples) == ("Instruction", 16, 3)
    found = dense(tmp_path / "work/data/retention")
    starts = (found["position_ids"] == 0) & (found["labels"] == -100)
    learned = np.roll(found["labels"] != -100, -1, axis=1)
    assert int((starts & learned).sum()) == 3  # all but the first token of every text is judged
    assert prepare(run) == facts  # nothing is done twice


def test_long_texts_are_cut_at_the_sequence_length(tmp_path: Path, model: Path) -> None:
    run = a_run_with(tmp_path, model, *texts(3, words=60), sequence_length=64)
    assert prepare(run).retention_examples == 3
    assert dense(tmp_path / "work/data/retention")["input_ids"].shape == (3, 64)


def test_a_run_without_retention_set_has_none(tmp_path: Path, model: Path) -> None:
    data = write_jsonl(tmp_path / "docs.jsonl", *questions(20))
    assert prepare(a_run(tmp_path / "work", model, data)).retention_examples == 0
    assert not (tmp_path / "work/data/retention").exists()


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([{"text": "fine"}, {"text": 7}], "line 2"),
        ([{"chosen": "a", "rejected": "b"}], ""),
        ([], "is empty"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_field(
    tmp_path: Path, model: Path, records: list[Any], words: str
) -> None:
    with pytest.raises(DataError) as caught:
        prepare(a_run_with(tmp_path, model, *records))
    message = str(caught.value)
    assert message.startswith("the retention set (spec.evaluation.retention): general.jsonl")
    assert words in message
    assert "spec.dataset" not in message


def test_it_is_fetched_with_its_own_token_and_only_its_first_file(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "docs.jsonl", *questions(20))
    line = b'{"text": "Water boils at one hundred degrees."}\n'
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_TOKEN", "m")
        monkeypatch.setenv("HF_TOKEN_DATASET", "d")
        monkeypatch.setenv("HF_TOKEN_RETENTION", "r")
        files = {"data/train-0.jsonl": line, "data/train-1.jsonl": line}
        hub.repositories["datasets/team/wiki"] = Repository(files, token="r")
        settings = EvaluationConfig(retention=SourceConfig(uri="hf://team/wiki"))
        run = a_run(tmp_path / "work", model, data, evaluation=settings)
        assert prepare(run).retention_examples == 1
        assert not any("train-1" in request for request in hub.requests)
        monkeypatch.delenv("HF_TOKEN_RETENTION")
        other = a_run(tmp_path / "other", model, data, evaluation=settings)
        with pytest.raises(DataError, match=r"spec\.evaluation\.retention\.secretRef$"):
            prepare(other)

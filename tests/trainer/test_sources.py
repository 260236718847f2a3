"""Sources: mounted paths, and a Hub that answers over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub, Repository, running_hub

from finetune_api.run_config import SourceConfig
from finetune_trainer import sources
from finetune_trainer.errors import DataError, ModelError, TrainerError
from finetune_trainer.sources import (
    FetchedData,
    FetchedModel,
    choose_data_files,
    choose_model_files,
    fetch_data,
    fetch_model,
)

MODEL = SourceConfig(uri="hf://team/tiny")
DATA = SourceConfig(uri="hf://team/docs")
MODEL_FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickle",
    "tokenizer.json": b"{}",
    "modeling_tiny.py": b"evil()",
    "onnx/model.onnx": b"",
    "README.md": b"",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HF_TOKEN_DATASET", raising=False)
        monkeypatch.setattr(sources, "RETRY_WAITS", (0.0, 0.0))
        yield found


def refused(kind: type[TrainerError], source: SourceConfig) -> str:
    with pytest.raises(kind) as caught:
        fetch_model(source) if kind is ModelError else fetch_data(source)
    return str(caught.value)


def test_only_the_safe_files_of_a_model_are_downloaded(hub: Hub) -> None:
    hub.repositories["models/team/tiny"] = Repository(MODEL_FILES)
    found = fetch_model(MODEL)
    assert found.revision == COMMIT
    assert {path.name: path.read_bytes() for path in found.path.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "tokenizer.json": b"{}",
    }


def test_a_model_that_is_in_the_cache_is_not_downloaded_again(hub: Hub) -> None:
    hub.repositories["models/team/tiny"] = Repository(MODEL_FILES)
    first = fetch_model(MODEL)
    hub.requests.clear()
    assert fetch_model(MODEL) == first
    assert [r for r in hub.requests if r.startswith("GET") and "/resolve/" in r] == []


def test_a_revision_is_resolved_to_its_commit(hub: Hub) -> None:
    hub.repositories["models/team/tiny"] = Repository(MODEL_FILES)
    found = fetch_model(MODEL.model_copy(update={"revision": "v1"}))
    assert found.revision == COMMIT
    assert "GET /api/models/team/tiny/revision/v1" in hub.requests


def test_an_overloaded_hub_is_asked_again(hub: Hub) -> None:
    hub.repositories["models/team/tiny"] = Repository(MODEL_FILES)
    hub.broken_answers = 2
    assert fetch_model(MODEL).revision == COMMIT


def test_model_and_dataset_are_read_with_their_own_tokens(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["models/team/tiny"] = Repository(MODEL_FILES, token="m")
    hub.repositories["datasets/team/docs"] = Repository({"a.jsonl": b"{}"}, token="d")
    monkeypatch.setenv("HF_TOKEN", "m")
    monkeypatch.setenv("HF_TOKEN_DATASET", "d")
    assert (fetch_model(MODEL).revision, fetch_data(DATA).revision) == (COMMIT, COMMIT)


def test_the_dataset_is_read_with_the_token_of_the_model_if_it_has_none(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["datasets/team/docs"] = Repository({"a.jsonl": b"{}"}, token="m")
    monkeypatch.setenv("HF_TOKEN", "m")
    assert fetch_data(DATA).revision == COMMIT


def test_the_train_split_of_a_dataset_is_downloaded(hub: Hub) -> None:
    files = {
        "README.md": b"",
        "dataset_infos.json": b"{}",
        "data/train-1.jsonl": b"two",
        "data/train-0.jsonl": b"one",
        "data/test-0.jsonl": b"three",
    }
    hub.repositories["datasets/team/docs"] = Repository(files)
    found = fetch_data(DATA)
    assert found.revision == COMMIT
    assert [(name, path.read_bytes()) for name, path in found.files] == [
        ("data/train-0.jsonl", b"one"),
        ("data/train-1.jsonl", b"two"),
    ]


def test_one_file_of_a_dataset_can_be_named(hub: Hub) -> None:
    files = {"data/train.jsonl": b"one", "data/extra.jsonl": b"two"}
    hub.repositories["datasets/team/docs"] = Repository(files)
    found = fetch_data(SourceConfig(uri="hf://team/docs/data/extra.jsonl"))
    assert [(name, path.read_bytes()) for name, path in found.files] == [
        ("data/extra.jsonl", b"two")
    ]


def test_an_unknown_repository_is_named_with_the_fix(hub: Hub) -> None:
    assert refused(ModelError, MODEL) == (
        f"hf://team/tiny at revision main is not known to, or not open without token on, "
        f"{hub.endpoint} (HTTP 401); check spec.model.uri, and for a private repository the "
        "token in spec.model.secretRef"
    )
    assert refused(DataError, DATA) == (
        f"hf://team/docs at revision main is not known to, or not open without token on, "
        f"{hub.endpoint} (HTTP 401); check spec.dataset.uri, and for a private repository the "
        "token in spec.dataset.secretRef"
    )


def test_a_wrong_token_is_named_with_the_fix(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["models/team/tiny"] = Repository(MODEL_FILES, token="right")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    message = refused(ModelError, MODEL)
    assert message == (
        f"hf://team/tiny at revision main is not known to {hub.endpoint} (HTTP 401); check "
        "spec.model.uri, and for a private repository the token in spec.model.secretRef"
    )
    assert "wrong" not in message


def test_an_unknown_revision_is_named_with_the_fix(hub: Hub) -> None:
    hub.repositories["models/team/tiny"] = Repository(MODEL_FILES)
    assert refused(ModelError, MODEL.model_copy(update={"revision": "v9"})) == (
        "hf://team/tiny has no revision v9; correct spec.model.revision"
    )


def test_a_gated_repository_is_named_with_the_fix(hub: Hub) -> None:
    hub.repositories["models/team/tiny"] = Repository(MODEL_FILES, token="right", gated=True)
    assert refused(ModelError, MODEL) == (
        "hf://team/tiny at revision main is gated; accept its terms on the Hub and give a token "
        "of that account in spec.model.secretRef"
    )


def test_denied_access_is_named_with_the_fix(hub: Hub) -> None:
    hub.repositories["models/team/tiny"] = Repository(MODEL_FILES, forbidden=True)
    assert refused(ModelError, MODEL) == (
        "hf://team/tiny at revision main: access is denied (HTTP 403); the token in "
        "spec.model.secretRef needs read access to it"
    )


def test_a_hub_that_stays_overloaded_is_given_up(hub: Hub) -> None:
    hub.broken_answers = 100
    assert refused(ModelError, MODEL) == (
        "hf://team/tiny at revision main: the Hub answered HTTP 503; try again later"
    )


def test_a_hub_that_cannot_be_reached_is_named_with_the_fix(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    message = refused(ModelError, MODEL)
    assert message.startswith(
        "hf://team/tiny at revision main: cannot reach http://127.0.0.1:9 (ConnectError: "
    )
    assert message.endswith(
        "); check the network, the profile's egress rules and the endpoint (HF_ENDPOINT)"
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["adapter.safetensors", "vocab.txt"], ["adapter.safetensors", "vocab.txt"]),
        (["m.gguf", "config.json"], ["config.json", "m.gguf"]),
        (["model.safetensors", "m.gguf"], ["model.safetensors"]),
    ],
)
def test_weights_are_chosen_once(names: list[str], expected: list[str]) -> None:
    assert choose_model_files(names, "hf://a/b") == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(
            ["config.json", "pytorch_model.bin"],
            "hf://a/b has weights only in a format that can run code when it is read "
            "(.bin, .pt and the like); convert them to safetensors",
            id="pickles",
        ),
        pytest.param(
            ["q4.gguf", "q8.gguf"],
            "hf://a/b has 2 GGUF files (q4.gguf, q8.gguf); use a repository with one of them",
            id="two ggufs",
        ),
        pytest.param(
            ["README.md"],
            "hf://a/b has neither safetensors nor a GGUF file, only README.md; give a model",
            id="nothing",
        ),
    ],
)
def test_a_repository_without_safe_weights_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        choose_model_files(names, "hf://a/b")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("names", "file", "message"),
    [
        pytest.param(
            ["a.jsonl", "b.jsonl"],
            None,
            "hf://a/b has several files and none is named train: a.jsonl, b.jsonl; "
            "name one in spec.dataset.uri",
            id="ambiguous",
        ),
        pytest.param(
            ["a.csv"],
            None,
            "hf://a/b has no file that can be read (.jsonl, .ndjson, .json, .parquet, .txt), "
            "only a.csv; convert it to JSON lines or Parquet",
            id="unreadable",
        ),
        pytest.param(
            ["a.jsonl"],
            "c.jsonl",
            "hf://a/b: there is no file c.jsonl; the repository has a.jsonl",
            id="no such file",
        ),
    ],
)
def test_a_dataset_that_leaves_the_choice_open_is_refused(
    names: list[str], file: str | None, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        choose_data_files(names, file, "hf://a/b")
    assert str(caught.value) == message


def test_a_mounted_model_is_used_where_it_is(tmp_path: Path) -> None:
    source = SourceConfig(uri="pvc://c/tiny", path=str(tmp_path))
    assert fetch_model(source) == FetchedModel(tmp_path, None)


def test_a_mounted_file_keeps_the_name_that_its_owner_knows(tmp_path: Path) -> None:
    path = tmp_path / "mounted"
    path.write_text("{}")
    source = SourceConfig(uri="configmap://c/docs.jsonl", path=str(path))
    assert fetch_data(source) == FetchedData([("docs.jsonl", path)], None)


def test_a_mounted_directory_is_read_as_a_dataset(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl", ".hidden.jsonl"):
        (tmp_path / name).write_text("{}")
    source = SourceConfig(uri="pvc://c/docs", path=str(tmp_path))
    assert fetch_data(source) == FetchedData([("train.jsonl", tmp_path / "train.jsonl")], None)


def test_a_path_with_nothing_there_is_refused(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    assert refused(ModelError, SourceConfig(uri="pvc://c/x", path=gone)) == (
        "pvc://c/x: there is nothing at this path; check spec.model.uri and that the claim "
        "contains the model"
    )
    assert refused(DataError, SourceConfig(uri="pvc://c/x", path=gone)) == (
        "pvc://c/x: there is nothing at this path; check spec.dataset.uri and that the claim or "
        "ConfigMap contains the file"
    )

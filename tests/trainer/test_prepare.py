"""prepare as a whole: from a run configuration to a work directory that is ready for training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, Hub, Repository, running_hub
from trainer_builders import a_run, questions, tiny_model, write_jsonl
from training_builders import dense

from finetune_api.memory import estimate
from finetune_api.outcome import LengthBin, Outcome, PrepareFacts, ResolvedTraining
from finetune_api.run_config import MemoryLimit, RunConfig, SourceConfig
from finetune_api.sizes import GIB, Setup
from finetune_trainer.errors import ConfigurationError, DataError
from finetune_trainer.fit import fit, resolved_run
from finetune_trainer.model.check import inspect_model
from finetune_trainer.prepare import main, prepare, total_steps


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("prepare") / "tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "docs.jsonl", *questions(20))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield found


def contents(work: Path) -> dict[str, bytes]:
    return {
        path.relative_to(work).as_posix(): path.read_bytes()
        for path in work.rglob("*")
        if path.is_file()
    }


def test_the_facts_say_what_there_is_to_train_on(tmp_path: Path, model: Path, data: Path) -> None:
    run = a_run(tmp_path / "work", model, data)
    facts = prepare(run)
    arrays = dense(tmp_path / "work/data/train")
    assert facts == PrepareFacts(
        parameters=139_584,
        architecture="LlamaForCausalLM",
        format="Instruction",
        examples=16,
        eval_examples=4,
        tokens=491,
        trained_tokens=int((arrays["labels"] != -100).sum()),
        sequences=len(arrays["input_ids"]),
        truncated_examples=0,
        lengths=[
            LengthBin(up_to=32, examples=10),
            LengthBin(up_to=48, examples=10),
        ],
        samples=facts.samples,
        packing_efficiency=facts.tokens / arrays["input_ids"].size,
        total_steps=-(-len(arrays["input_ids"]) // 4),
        resolved=ResolvedTraining(
            zero_stage=1,
            offload="None",
            micro_batch_size=2,
            gradient_accumulation_steps=2,
            gradient_checkpointing=False,
        ),
        estimate=facts.estimate,
        shape=inspect_model(model, "tiny").shape,
    )
    assert [sample.count("⟦") for sample in facts.samples] == [1, 1, 1]
    assert facts.estimate == estimate(inspect_model(model, "tiny").shape, Setup.of(run))
    stored = (tmp_path / "work/prepare.json").read_bytes()
    assert PrepareFacts.model_validate_json(stored) == facts


def test_preparing_twice_changes_nothing(tmp_path: Path, model: Path, data: Path) -> None:
    run = a_run(tmp_path / "work", model, data)
    first = prepare(run)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*")}
    data.unlink()  # not even looked at
    assert prepare(run) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*")} == before


def test_auto_is_settled_by_the_memory_that_is_there(
    tmp_path: Path, model: Path, data: Path
) -> None:
    shape = inspect_model(model, "tiny").shape
    run = a_run(tmp_path / "work", model, data, micro_batch_size=4, auto=["microBatchSize"])
    smaller = a_run(tmp_path / "work", model, data, micro_batch_size=2)
    limit = MemoryLimit(accelerator_bytes=estimate(shape, Setup.of(smaller)).total * 10 // 9 + 1)
    facts = prepare(run.model_copy(update={"memory": limit}))
    assert facts.resolved is not None
    assert facts.resolved.micro_batch_size == 2
    assert facts.estimate == estimate(shape, Setup.of(smaller))
    trained = resolved_run(run, facts).training
    assert (trained.micro_batch_size, trained.gradient_accumulation_steps) == (2, 2)
    assert resolved_run(run, facts.model_copy(update={"resolved": None})) == run


def test_weights_cannot_be_offloaded_under_a_fixed_lower_stage(model: Path) -> None:
    shape = inspect_model(model, "tiny").shape
    run = a_run(Path("w"), model, Path("d"), zero_stage=2, offload="OptimizerAndParameters")
    with pytest.raises(ConfigurationError, match=r"needs spec.zero.stage 3 or Auto \(now 2\)"):
        fit(run, shape)
    free = run.model_copy(update={"auto": ["zeroStage"]})
    assert fit(free, shape).resolved.zero_stage == 3


def test_what_cannot_fit_is_refused_before_the_data_are_prepared(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "log"))
    limit = MemoryLimit(accelerator_bytes=GIB // 2)
    run = a_run(tmp_path / "work", model, data, memory=limit)
    (tmp_path / "run.json").write_text(run.model_dump_json(by_alias=True))
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "run.json")])
    outcome = Outcome.from_message((tmp_path / "log").read_text())
    assert outcome is not None
    assert outcome.failure is not None
    assert (caught.value.code, outcome.failure.failure_class) == (13, "OutOfMemory")
    assert "0.5 GiB is there; in this order: lower spec.training.mic" in outcome.failure.message
    assert not (tmp_path / "work/data").exists()


def test_an_interrupted_preparation_starts_anew(tmp_path: Path, model: Path, data: Path) -> None:
    run = a_run(tmp_path / "work", model, data)
    facts = prepare(run)
    expected = contents(tmp_path / "work")
    (tmp_path / "work/prepare.json").unlink()
    (tmp_path / "work/data/train/tokens.bin").write_bytes(b"half")
    (tmp_path / "work/model/config.json").unlink()
    assert prepare(run) == facts
    assert contents(tmp_path / "work") == expected


def test_another_run_in_the_same_directory_starts_anew(
    tmp_path: Path, model: Path, data: Path
) -> None:
    one = prepare(a_run(tmp_path / "work", model, data))
    other = prepare(a_run(tmp_path / "work", model, data, eval_fraction=0.0))
    assert (one.examples, other.examples) == (16, 20)
    assert not (tmp_path / "work/data/eval").exists()


def test_bad_data_are_found_before_anything_is_done_with_the_model(tmp_path: Path) -> None:
    bad = write_jsonl(tmp_path / "bad.jsonl", *questions(3), {"question": 1})
    with pytest.raises(DataError, match=r"bad\.jsonl line 4"):
        prepare(a_run(tmp_path / "work", tmp_path / "no-such-model", bad))


def test_a_failed_preparation_leaves_no_commit_mark(tmp_path: Path, model: Path) -> None:
    bad = write_jsonl(tmp_path / "bad.jsonl", *questions(3), {"question": 1})
    with pytest.raises(DataError):
        prepare(a_run(tmp_path / "work", model, bad))
    assert not (tmp_path / "work/prepare.json").exists()


def test_the_same_data_are_prepared_the_same(tmp_path: Path, model: Path, data: Path) -> None:
    for name in ("a", "b"):
        prepare(a_run(tmp_path / name, model, data))
    first = contents(tmp_path / "a/data")
    second = contents(tmp_path / "b/data")
    for found in (first, second):
        found.pop("meta.json")  # names the run, whose work directory differs
    assert first == second


def test_model_and_data_come_from_the_hub(
    tmp_path: Path, model: Path, data: Path, hub: Hub
) -> None:
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    hub.repositories["models/team/tiny"] = Repository(files)
    hub.repositories["datasets/team/docs"] = Repository({"train.jsonl": data.read_bytes()})
    facts = prepare(
        a_run(
            tmp_path / "work",
            model,
            data,
            model=SourceConfig(uri="hf://team/tiny"),
            dataset=SourceConfig(uri="hf://team/docs", revision="main"),
        )
    )
    assert (facts.model_revision, facts.dataset_revision) == (COMMIT, COMMIT)
    assert (tmp_path / "work/model/model.safetensors").read_bytes() == files["model.safetensors"]


@pytest.mark.parametrize(
    ("changes", "sequences", "expected"),
    [
        ({"epochs": 1.0, "global_batch_size": 4}, 8, 2),
        ({"epochs": 1.0, "global_batch_size": 4}, 9, 3),
        ({"epochs": 2.5, "global_batch_size": 4}, 8, 5),
        ({"epochs": 1.0, "global_batch_size": 32}, 3, 1),
        ({"epochs": 0.01, "global_batch_size": 4}, 8, 1),
        ({"epochs": None, "max_steps": 7}, 8, 7),
    ],
)
def test_steps_are_epochs_or_what_was_asked_for(
    changes: dict[str, Any], sequences: int, expected: int
) -> None:
    run: RunConfig = a_run(Path("w"), Path("m"), Path("d"), **changes)
    assert total_steps(run, sequences) == expected


def test_fewer_sequences_than_a_batch_are_warned_about(
    tmp_path: Path, model: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = prepare(a_run(tmp_path / "work", model, data, global_batch_size=64))
    assert facts.total_steps == 1
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"warning: there are only {facts.sequences} sequences for a global batch of 64, so every "
        "step sees some of them more than once; lower spec.training.globalBatchSize or add data"
    ]


def test_the_entry_point_leaves_the_facts_and_ends_with_zero(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "log"))
    run = a_run(tmp_path / "work", model, data)
    (tmp_path / "run.json").write_text(run.model_dump_json(by_alias=True))
    assert main([str(tmp_path / "run.json")]) == 0
    stored = (tmp_path / "work/prepare.json").read_bytes()
    facts = PrepareFacts.model_validate_json(stored)
    assert Outcome.from_message((tmp_path / "log").read_text()) == Outcome(prepare=facts)


def test_the_entry_point_names_the_bad_line_and_ends_with_the_code_for_data(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "log"))
    bad = write_jsonl(tmp_path / "bad.jsonl", {"text": "fine"}, {"text": 3})
    run = a_run(tmp_path / "work", model, bad)
    (tmp_path / "run.json").write_text(run.model_dump_json(by_alias=True))
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "run.json")])
    outcome = Outcome.from_message((tmp_path / "log").read_text())
    assert outcome is not None
    assert outcome.failure is not None
    assert (caught.value.code, outcome.failure.failure_class, outcome.failure.message) == (
        11,
        "Data",
        "bad.jsonl line 2: `text` must be a string, found a number; write it as text, or remove "
        "the example",
    )

"""The termination message: what fits into 4096 bytes, and what is not ours."""

from __future__ import annotations

import builders
import pytest

from finetune_api.outcome import (
    EXIT_CODES,
    FAILURE_CLASSES,
    MAX_LINEARS,
    Estimate,
    LengthBin,
    Outcome,
    PrepareFacts,
    ResolvedTraining,
)
from finetune_api.sizes import LinearShape, ModelShape


def test_a_success_reads_back() -> None:
    for outcome in builders.OUTCOMES.values():
        assert Outcome.from_message(outcome.to_message()) == outcome


@pytest.mark.parametrize("text", ["é" * 5000, "a" * 50_000, '"\\\n' * 3000])
def test_a_long_log_is_cut_at_its_beginning(text: str) -> None:
    said = builders.failure("Internal", "why", 1.0, rank=3, logTail=text + "the end")
    found = Outcome.from_message(said.to_message())
    assert len(said.to_message().encode()) <= 4096
    assert found is not None
    assert found.failure is not None
    assert (found.failure.message, found.failure.rank) == ("why", 3)
    assert (found.failure.log_tail or "").endswith("the end")
    assert len(found.failure.log_tail or "") > 300


def test_a_long_message_is_cut_at_its_end() -> None:
    said = builders.failure("Data", "the reason " * 1000, 1.0, logTail="x" * 9000)
    found = Outcome.from_message(said.to_message())
    assert len(said.to_message().encode()) <= 4096
    assert found is not None
    assert found.failure is not None
    assert found.failure.message.startswith("the reason the reason")


@pytest.mark.parametrize("text", [None, "", "Traceback ...", '{"other": 1}', "[]"])
def test_what_is_not_ours_is_no_outcome(text: str | None) -> None:
    assert Outcome.from_message(text) is None


def test_users_failures_are_below_128_and_the_platforms_above() -> None:
    users = {"Configuration", "Data", "Model", "OutOfMemory", "Diverged"}
    assert {c for c, code in EXIT_CODES.items() if code < 128} == users
    assert set(FAILURE_CLASSES) - set(EXIT_CODES) == {
        "Killed",
        "DeadlineExceeded",
        "AllowanceUsedUp",
    }


def test_the_largest_plausible_facts_of_prepare_fit() -> None:
    large = 10**15
    facts = PrepareFacts(
        parameters=large,
        architecture="A" * 100 + "ForCausalLM",
        model_revision="f" * 40,
        dataset_revision="f" * 40,
        format="Instruction",
        examples=large,
        eval_examples=large,
        tokens=large,
        trained_tokens=large,
        sequences=large,
        truncated_examples=large,
        dropped_examples=large,
        split_examples=large,
        duplicate_examples=large,
        lengths=[LengthBin(up_to=1 << 31, examples=large) for _ in range(12)],
        retention_examples=large,
        samples=["é" * 149] * 3,
        resolved=ResolvedTraining(
            zero_stage=3,
            offload="OptimizerAndParameters",
            micro_batch_size=large,
            gradient_accumulation_steps=large,
            gradient_checkpointing=False,
        ),
        estimate=Estimate.model_validate(dict.fromkeys(Estimate.model_fields, large)),
        shape=ModelShape(
            **dict.fromkeys(set(ModelShape.model_fields) - {"linears"}, large),
            linears=[
                LinearShape(name="x" * 20, in_features=10**6, out_features=10**6, count=10**4)
                for _ in range(MAX_LINEARS)
            ],
        ),
        attention="Masked",
        packing_efficiency=0.12345678901234567,
        total_steps=large,
    )
    assert set(PrepareFacts.model_fields) == facts.model_fields_set  # add what is new here
    message = Outcome(prepare=facts).to_message()
    assert len(message.encode()) <= 4096
    assert Outcome.from_message(message) == Outcome(prepare=facts)

"""From real training to the artefact: what ranks measured is what the reloaded files compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_builders import (
    LORA,
    Case,
    arrays,
    examples,
    run_config,
    sequences,
    summed_loss,
    torchrun,
    write_work,
)

from finetune_api.artefact import TrainingState, Verification
from finetune_trainer.answers import prompts
from finetune_trainer.export import export
from finetune_trainer.proof_examples import LEAST, MOST, choose, examples_of

STEPS = 4
HELD_OUT = arrays(5, seed=2)
CASES: dict[str, dict[str, Any]] = {
    "adapter, ZeRO-3": {"zero_stage": 3, "tuning": "LoRA", "lora": LORA},
    "merged, ZeRO-1": {"zero_stage": 1, "tuning": "LoRA", "lora": LORA, "merge": True},
    "full, ZeRO-2, 16 bits": {"zero_stage": 2, "precision": "BF16"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Work directories of trained runs, and of one that another objective would train."""
    root = tmp_path_factory.mktemp("proof")
    works, cases = {}, []
    for number, (name, changes) in enumerate([*CASES.items(), ("other", {})]):
        works[name] = root / f"work-{number}"
        write_work(works[name], arrays(12, seed=1), HELD_OUT, STEPS)
        run = run_config(works[name], num_proc_per_node=2, **changes)
        (works[name] / "run.json").write_text(run.model_dump_json())
        if name != "other":
            cases.append(Case(run))
    other = run_config(works["other"], num_proc_per_node=2, **CASES["adapter, ZeRO-3"])
    (works["other"] / "run.json").write_text(other.model_dump_json())
    file = root / "cases.json"
    file.write_text(json.dumps([[c.run.model_dump(mode="json"), c.patches] for c in cases]))
    torchrun(2, "plain_probe", str(file), str(works["other"]), timeout=500)
    return works


@pytest.mark.parametrize("name", CASES)
def test_the_reloaded_artefact_has_the_loss_that_the_ranks_measured(
    trained: dict[str, Path], name: str
) -> None:
    run = run_config(trained[name], num_proc_per_node=2, **CASES[name])
    facts = export(run)
    told = Verification.model_validate_json((trained[name] / "verify.json").read_bytes())
    state = TrainingState.model_validate_json(
        (Path(run.output_dir) / "training_state.json").read_bytes()
    )
    assert len(told.examples) == 10
    assert told.held_out
    assert state.verified.loss_in_training == told.loss
    apart = abs((facts.reproduced_loss or 0) - told.loss)
    assert apart < (1e-2 if name.endswith("16 bits") else 2e-5) * told.loss
    assert told.loss == pytest.approx(facts.eval_loss_after, rel=1e-2)
    assert len(state.samples) == 3


def test_plain_text_is_measured_whatever_the_objective_and_however_sharded(
    trained: dict[str, Path],
) -> None:
    from transformers import AutoModelForCausalLM

    work = trained["other"]
    model = AutoModelForCausalLM.from_pretrained(work / "model")
    losses = [
        summed_loss(model, tokens, labels)
        for row in range(len(HELD_OUT["input_ids"]))
        for tokens, labels in examples(HELD_OUT, row)
    ]
    expected = sum(loss.item() for loss, _ in losses) / sum(count for _, count in losses)
    found = json.loads((work / "text_loss.json").read_text())
    assert found == {"loss": pytest.approx(expected, rel=1e-5), "batches": 2, "training": True}
    told = Verification.model_validate_json((work / "verify.json").read_bytes())
    assert told.loss == pytest.approx(expected, rel=1e-5)


def test_every_example_comes_out_as_it_was_packed() -> None:
    found = list(examples_of(sequences(HELD_OUT)))
    expected = []
    for row in range(len(HELD_OUT["input_ids"])):
        for tokens, labels in examples(HELD_OUT, row):
            learned = [i for i in range(1, len(tokens)) if labels[i] != -100]
            if learned:
                expected.append((tokens[: learned[-1] + 1].tolist(), learned))
    assert [(example.ids, example.learned) for example in found] == expected


def test_a_large_model_is_proven_by_fewer_examples() -> None:
    data = sequences(arrays(40, seed=3))
    every = list(examples_of(data))
    assert choose(iter(every), 1_000) == every[:MOST]
    some = choose(iter(every), 1_000_000_000)  # 250 tokens
    assert 200 < sum(len(example.ids) for example in some) <= 250
    assert some[:5] == every[:5]
    shortest = sorted(len(example.ids) for example in every)[:LEAST]
    assert [len(example.ids) for example in choose(iter(every), 10**12)] == shortest


def test_a_prompt_ends_where_learning_begins_and_text_is_continued() -> None:
    found = list(examples_of(sequences(HELD_OUT)))
    for example, prompt in zip(found[:2], prompts(found[:2]), strict=True):
        assert prompt.ids == example.ids[: example.learned[0]]
        assert prompt.expected == example.ids[example.learned[0] :]
    text = found[0].model_copy(update={"ids": list(range(9)), "learned": list(range(1, 9))})
    (prompt,) = prompts([text])
    assert (prompt.ids, prompt.expected) == ([0, 1, 2, 3], [4, 5, 6, 7, 8])
    turns = text.model_copy(update={"ids": list(range(9)), "learned": [3, 4, 7, 8]})
    (prompt,) = prompts([turns])
    assert (prompt.ids, prompt.expected) == ([0, 1, 2], [3, 4])
    long = text.model_copy(update={"ids": list(range(400)), "learned": [399]})
    assert prompts([long]) == []

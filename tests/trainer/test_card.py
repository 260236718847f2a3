"""What people and programs read about an artefact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trainer_builders import LOSSES, a_run, write_jsonl

from finetune_api.artefact import Sample, TrainingState, Verified
from finetune_api.outcome import PrepareFacts, TrainFacts
from finetune_api.run_config import PreferenceConfig, RunConfig, SourceConfig
from finetune_trainer import card, state
from finetune_trainer.chart import History, draw, read_history, smooth
from finetune_trainer.errors import InternalError

PREPARED = PrepareFacts(
    parameters=134_515_008,
    architecture="LlamaForCausalLM",
    model_revision="abc",
    format="Chat",
    examples=1900,
    eval_examples=100,
    tokens=372_592,
    trained_tokens=240_037,
    sequences=367,
    truncated_examples=3,
    packing_efficiency=0.99,
    total_steps=46,
)
TRAINED = TrainFacts(
    step=46,
    total_steps=46,
    loss=1.23456,
    eval_loss_before=2.0,
    eval_loss_after=1.5,
    tokens=372_592,
    tokens_per_second=1000.4,
    duration_seconds=372.2,
)
HUB_MODEL = SourceConfig(uri="hf://team/tiny", revision="main")


@pytest.fixture(autouse=True)
def fixed_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "version", lambda name: f"1.0-{name}")


VERIFIED = Verified(
    tensors=420, examples=14, loss_in_training=1.51234, loss_reloaded=1.5124, tolerance=0.0015
)
SAMPLES = [Sample(prompt="user\nWho?", expected="Ada.", before="I am ```sure```.", after="Ada.")]


def facts(
    run: RunConfig,
    prepared: PrepareFacts = PREPARED,
    trained: TrainFacts = TRAINED,
    samples: list[Sample] = SAMPLES,
) -> TrainingState:
    digest = "sha256:" + "0" * 64
    return state.training_state(run, prepared, trained, digest, VERIFIED, samples)


def a_card(trained: TrainFacts = TRAINED, **changes: Any) -> str:
    run = a_run(Path("/w"), Path("/m"), Path("docs.jsonl"), **changes)
    return card.model_card(run, facts(run, trained=trained))


def test_the_card_of_an_adapter_says_what_it_is_and_how_to_use_it() -> None:
    assert (
        a_card(model=HUB_MODEL)
        == """\
---
library_name: peft
base_model: team/tiny
base_model_relation: adapter
pipeline_tag: text-generation
tags:
- finetune-operator
- deepspeed
- sft
- lora
---
# docs

A LoRA adapter of `team/tiny`, tuned on `pvc://data/docs.jsonl` by the FineTuneJob
`team-a/docs`.

![Loss over the training](loss_curve.png)

| Examples | Loss before | after | Perplexity before | after |
|---|---|---|---|---|
| Held-out | 2.0000 | **1.5000** (-25.0%) | 7.389 | 4.482 |

Training loss at the end: 1.2346.

## Use it

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoPeftModelForCausalLM.from_pretrained(".", dtype="auto")
```

## Before and after

What the model most likely answers to prompts that it was not trained on; answers are cut short.

### Sample 1

Prompt:

```text
user
Who?
```

Expected:

```text
Ada.
```

Before:

````text
I am ```sure```.
````

After:

```text
Ada.
```

## Training

| | |
|---|---|
| Base model | `hf://team/tiny`, revision abc, 134.5 million parameters |
| Data | `pvc://data/docs.jsonl`, revision not versioned, format Chat |
| Prepared data | sha256:0000000000000000000000000000000000000000000000000000000000000000 |
| Examples | 1900 to train on, 100 held out, 3 truncated |
| Tokens | 372592, of which 240037 are learned |
| Method | SFT, LoRA of rank 4, alpha 8, dropout 0, on all-linear |
| Steps | 46, 4 sequences each |
| Sequence length | 128, several examples packed into one |
| Learning rate | 0.0002, Cosine, warm-up 3%, weight decay 0 |
| Precision | FP32, DeepSpeed ZeRO stage 1 |
| Hardware | 1 x 1 processes, CPU |
| Time | 372 s, 1000 tokens/s |
| Seed | 42 |
| Proof | 420 tensors reloaded; loss on 14 examples 1.5124, in training 1.5123 \
(allowed: 0.0015 apart) |
| Software | torch 1.0-torch, transformers 1.0-transformers, peft 1.0-peft, \
deepspeed 1.0-deepspeed, safetensors 1.0-safetensors, tokenizers 1.0-tokenizers |

All of this for programs: `training_state.json`. Size and hash of every file: `manifest.json`.
"""
    )


def test_the_card_names_datasets_of_the_hub() -> None:
    text = a_card(dataset=SourceConfig(uri="hf://team/docs/data/train.jsonl"))
    assert "\ndatasets:\n- team/docs\n" in text


def test_a_base_that_the_hub_does_not_know_is_not_named_in_the_metadata() -> None:
    assert "base_model" not in a_card()


def test_a_run_without_held_out_examples_says_so() -> None:
    trained = TRAINED.model_copy(update={"eval_loss_before": None, "eval_loss_after": None})
    assert "\nTraining loss at the end: 1.2346. Nothing was held out.\n" in a_card(trained)


def test_answers_to_prompts_of_the_training_data_are_called_that() -> None:
    run = a_run(Path("/w"), Path("/m"), Path("docs.jsonl"))
    nothing_held_out = PREPARED.model_copy(update={"eval_examples": 0})
    assert (
        "\nWhat the model most likely answers to prompts of the training data; answers are cut "
        "short.\n"
    ) in card.model_card(run, facts(run, nothing_held_out))


def test_what_was_forgotten_and_where_the_weights_come_from_is_said() -> None:
    trained = TRAINED.model_copy(
        update={
            "retention_loss_before": 3.0,
            "retention_loss_after": 3.3,
            "best_step": 40,
            "stopped_early": True,
        }
    )
    text = a_card(trained)
    assert "\n| Retention set | 3.0000 | **3.3000** (+10.0%) | 20.09 | 27.11 |\n" in text
    assert "The weights are those of step 40, the best on the held-out part." in text
    assert "Training ended early: the held-out loss no longer fell." in text


def test_preferences_have_no_perplexity() -> None:
    preference = PreferenceConfig(beta=0.1, desirable_weight=1, undesirable_weight=1)
    text = a_card(objective="DPO", preference=preference, tuning="QLoRA")
    assert "\n| Held-out | 2.0000 | **1.5000** (-25.0%) | - | - |\n" in text
    assert "\n- dpo\n- qlora\n---\n" in text
    assert "| Method | DPO (beta 0.1), QLoRA of rank 4," in text


def test_a_card_without_answers_says_why() -> None:
    run = a_run(Path("/w"), Path("/m"), Path("docs.jsonl"))
    large = PREPARED.model_copy(update={"parameters": 70_000_000_000})
    assert "No answers: there is no prompt that is short enough." in card.model_card(
        run, facts(run, samples=[])
    )
    assert "No answers: on a CPU a model of this size takes too long" in card.model_card(
        run, facts(run, large, samples=[])
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {},
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained(".")\n'
            'base = AutoModelForCausalLM.from_pretrained("tiny", dtype="auto")'
            "  # the directory of the base model\n"
            'model = PeftModel.from_pretrained(base, ".")',
            id="adapter of a mounted model",
        ),
        pytest.param(
            {"model": SourceConfig(uri="pvc://models/smol.Q4_1.gguf", path="/m")},
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig\n\n"
            'tokenizer = AutoTokenizer.from_pretrained(".")\n'
            'base = AutoModelForCausalLM.from_pretrained(".", gguf_file="smol.Q4_1.gguf", '
            "quantization_config=GgufConfig(dequantize=True))"
            "  # with smol.Q4_1.gguf beside this file\n"
            'model = PeftModel.from_pretrained(base, ".")',
            id="adapter of a GGUF file",
        ),
        pytest.param(
            {"merge": True},
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained(".")\n'
            'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")',
            id="merged",
        ),
    ],
)
def test_the_card_shows_how_to_load_each_kind(changes: dict[str, Any], expected: str) -> None:
    run = a_run(Path("/w"), Path("/m"), Path("docs.jsonl"), **changes)
    assert card.usage(run) == expected


def test_programs_get_the_facts_without_the_paths_of_pods() -> None:
    run = a_run(Path("/w"), Path("/m"), Path("docs.jsonl"))
    found = json.loads(facts(run).model_dump_json(by_alias=True, exclude_none=True))
    assert (found["kind"], found["baseModel"]) == ("LoRA adapter", "tiny")
    assert found["prepare"] == PREPARED.to_json_dict()
    assert found["train"] == TRAINED.to_json_dict()
    assert found["run"]["model"] == {"uri": "pvc://models/tiny"}
    assert {"workDir", "outputDir", "uid"} & set(found["run"]) == set()
    assert found["versions"]["torch"] == "1.0-torch"


def test_the_digest_of_the_data_is_that_of_their_contents(tmp_path: Path) -> None:
    for directory in ("a", "b"):
        for split in ("train", "eval"):
            (tmp_path / directory / split).mkdir(parents=True)
            (tmp_path / directory / split / "labels.npy").write_bytes(split.encode())
        (tmp_path / directory / "meta.json").write_text(directory)
    first = state.data_digest(tmp_path / "a")
    assert first.startswith("sha256:")
    assert state.data_digest(tmp_path / "b") == first
    (tmp_path / "b/eval/labels.npy").write_bytes(b"other")
    assert state.data_digest(tmp_path / "b") != first


def test_a_step_that_ran_twice_counts_once_the_last_time(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "l.jsonl", *LOSSES, {"step": 2, "loss": 9.0}, {"step": 3, "retentionLoss": 4.0}
    )
    assert read_history(path) == History(
        loss=[(1, 3.1), (2, 9.0), (3, 1.5)],
        learning_rate=[(1, 1e-4), (2, 2e-4), (3, 0.0)],
        eval_loss=[(0, 3.0), (3, 2.0)],
        retention_loss=[(3, 4.0)],
    )


@pytest.mark.parametrize("content", ['{"step": 1', '{"loss": 1.0}', "[]", None])
def test_losses_that_cannot_be_read_are_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "losses.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InternalError, match=r"^losses\.jsonl of the training cannot be read: "):
        read_history(path)


def test_the_smoothed_line_is_the_mean_of_the_neighbours() -> None:
    assert smooth([(1, 1.0), (2, 2.0), (3, 6.0)]) == [(1, 1.5), (2, 3.0), (3, 4.0)]


@pytest.mark.parametrize("steps", [1, 3, 200])
def test_the_curve_is_a_picture_of_the_size_of_a_page(tmp_path: Path, steps: int) -> None:
    from matplotlib.image import imread

    points = [(step, 1.0 / step) for step in range(1, steps + 1)]
    draw(History(points, points, [], points), "a/b", tmp_path / "c.png")
    picture = imread(tmp_path / "c.png")
    assert picture.shape[:2] == (810, 1350)
    assert 0.1 < (picture[:, :, :3] < 0.95).mean() * 10 < 10  # neither blank nor full

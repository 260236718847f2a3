"""Preference data: what is understood, and what is refused with the place and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preference_builders import PREFERENCE, judgements, pairs
from trainer_builders import CHATML, tiny_tokenizer, write_jsonl
from training_builders import run_config

from finetune_api.run_config import RunConfig
from finetune_trainer.data.build_pairs import build_pairs, check_pairs
from finetune_trainer.data.formats import choose_format
from finetune_trainer.data.preferences import Preference, read_preferences, to_preference
from finetune_trainer.data.records import Record
from finetune_trainer.errors import ConfigurationError, DataError, TrainerError

USER = {"role": "user", "content": "Two plus two?"}
FOUR = {"role": "assistant", "content": "Four."}
FIVE = {"role": "assistant", "content": "Five."}


def record(**columns: Any) -> Record:
    return Record("d.jsonl line 3", columns)


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "Two plus two?", "chosen": "Four.", "rejected": "Five."},
        {"prompt": [USER], "chosen": [FOUR], "rejected": [FIVE]},
        {"prompt": "Two plus two?", "chosen": [FOUR], "rejected": [FIVE]},
        {"prompt": [USER], "chosen": "Four.", "rejected": "Five."},
        {"chosen": [USER, FOUR], "rejected": [USER, FIVE]},
        {"prompt": "as in UltraFeedback", "chosen": [USER, FOUR], "rejected": [USER, FIVE]},
    ],
)
def test_every_form_of_a_pair_becomes_the_same_conversation(columns: dict[str, Any]) -> None:
    found = to_preference(record(**columns), "DPO", chat=True)
    assert found == Preference("d.jsonl line 3", [USER], ([FOUR], [FIVE]))


def test_without_a_chat_template_texts_stay_texts_and_messages_are_refused() -> None:
    plain = record(prompt="2 + 2 =", completion=" 4", label=True)
    assert to_preference(plain, "KTO", chat=False) == Preference(
        "d.jsonl line 3", "2 + 2 =", (" 4",), True
    )
    with pytest.raises(ConfigurationError, match=r"line 3 holds conversations, but .* no chat tem"):
        to_preference(record(chosen=[USER, FOUR], rejected=[USER, FIVE]), "DPO", chat=False)


@pytest.mark.parametrize(
    ("objective", "columns", "message"),
    [
        ("DPO", {"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same, .* remove the ex"),
        ("ORPO", {"chosen": [USER, FOUR], "rejected": [USER, FOUR]}, "are the same"),
        ("DPO", {"prompt": "a", "chosen": "b", "rejected": " "}, "`rejected` is empty"),
        ("DPO", {"prompt": "a", "chosen": [], "rejected": [FIVE]}, "`chosen` is empty"),
        ("DPO", {"prompt": " ", "chosen": "b", "rejected": "c"}, "the prompt is empty"),
        ("DPO", {"chosen": "b", "rejected": "c"}, "no `prompt`; add it"),
        ("DPO", {"prompt": "a", "chosen": "b"}, "needs prompt, chosen and rejected; rename"),
        ("DPO", {"prompt": "a", "chosen": 3, "rejected": "c"}, "`chosen` must be a string or a l"),
        ("DPO", {"prompt": "a", "chosen": "b", "rejected": [FIVE]}, "write both alike"),
        ("DPO", {"chosen": [USER, FOUR], "rejected": [FOUR, FIVE]}, "different messages"),
        (
            "DPO",
            {"prompt": "a", "chosen": [FOUR, USER], "rejected": [FIVE]},
            "`chosen` contains a message of the user",
        ),
        (
            "DPO",
            {"prompt": "a", "completion": "b", "label": True},
            "DPO needs prompt, chosen and rejected; set spec.method.objective: KTO",
        ),
        ("KTO", {"prompt": "a", "chosen": "b", "rejected": "c"}, "objective: DPO or ORPO"),
        ("KTO", {"prompt": "a", "completion": "b", "label": 1}, "must be true .*found a number"),
        ("KTO", {"prompt": "a", "completion": "b", "label": "yes"}, "found a string"),
        ("KTO", {"prompt": "a", "completion": "", "label": True}, "`completion` is empty"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_with_its_place_and_the_fix(
    objective: Any, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=rf"line 3.*{message}"):
        to_preference(record(**columns), objective, chat=True)


def test_labels_that_are_all_the_same_are_refused() -> None:
    good = [record(prompt="a", completion=str(i), label=True) for i in range(3)]
    with pytest.raises(
        DataError, match=r"every `label` is true, .* add examples whose label is fa"
    ):
        list(read_preferences(good, "KTO", chat=True))


CHAT = {"messages": [USER, FOUR]}
TEXT = {"text": "Two and two is four."}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
INSTRUCTION = {"prompt": "a", "completion": "b", "label": 3}


@pytest.mark.parametrize(
    ("columns", "objective", "expected"),
    [
        (PAIR, "DPO", "Preference"),
        (PAIR, "ORPO", "Preference"),
        (INSTRUCTION, "KTO", "Preference"),
        (INSTRUCTION, "SFT", "Instruction"),
        (TEXT, "CPT", "Text"),
        (TEXT, "SFT", "Text"),
        (CHAT, "SFT", "Chat"),
    ],
)
def test_the_format_is_told_by_the_columns(
    columns: dict[str, Any], objective: Any, expected: str
) -> None:
    assert choose_format(record(**columns), "Auto", objective) == expected


@pytest.mark.parametrize(
    ("columns", "wanted", "objective", "message"),
    [
        (CHAT, "Auto", "CPT", "columns messages and so format Chat, but .*: CPT needs format Text"),
        (CHAT, "Auto", "DPO", "needs format Preference; set spec.method.objective: SFT"),
        (TEXT, "Auto", "KTO", "set spec.method.objective: CPT or SFT"),
        (PAIR, "Auto", "SFT", "set spec.method.objective: DPO, KTO or ORPO"),
        (PAIR, "Preference", "CPT", "the dataset has format Preference"),
    ],
)
def test_a_format_that_does_not_belong_to_the_objective_is_refused(
    columns: dict[str, Any], wanted: str, objective: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        choose_format(record(**columns), wanted, objective)


def a_run(work: Path, objective: str, **changes: Any) -> RunConfig:
    return run_config(work, objective=objective, preference=PREFERENCE, **changes)


def build(work: Path, objective: str, records: list[Any], **changes: Any) -> tuple[Any, Any]:
    """What is written for some records: the facts, and the data to train on."""
    from finetune_trainer.objectives.data import Pairs

    run = a_run(work, objective, **({"sequence_length": 64, "eval_fraction": 0.0} | changes))
    files = [("d.jsonl", write_jsonl(work / "d.jsonl", *records))]
    check_pairs(run, files)
    built = build_pairs(run, files, tiny_tokenizer(CHATML), 512, work / "data", "hash")
    return built, Pairs.open(work / "data" / "train", judged=objective == "KTO")


def texts(data: Any) -> list[str]:
    tokenizer = tiny_tokenizer(CHATML)
    ids = [
        data.tokens[a:b] & 0x7FFFFFFF for a, b in zip(data.starts, data.starts[1:], strict=False)
    ]
    return [tokenizer.decode(row) for row in ids]


def test_a_prompt_of_kto_gets_the_answer_of_an_example_with_another_prompt(tmp_path: Path) -> None:
    records = [
        {"prompt": "one", "completion": "A", "label": True},
        {"prompt": "one", "completion": "B", "label": False},
        {"prompt": "two", "completion": "C", "label": True},
    ]
    _, data = build(tmp_path, "KTO", records)
    found = texts(data)
    answers = [text.split("assistant\n")[1][0] for text in found]
    assert answers == ["A", "C", "B", "C", "C", "B"]  # each with that of another prompt after it
    assert [text.split("<|im_end|>")[0] for text in found[::2]] == [
        text.split("<|im_end|>")[0] for text in found[1::2]
    ]
    assert data.desirable.tolist() == [True, False, True]


@pytest.mark.parametrize(("handling", "kept", "cut"), [("Truncate", 4, 1), ("Drop", 3, 0)])
def test_long_answers_are_cut_or_left_out(
    handling: str, kept: int, cut: int, tmp_path: Path
) -> None:
    long = {"prompt": "Why?", "chosen": "Because. " * 30, "rejected": "Never. " * 30}
    same = {"prompt": "Why?", "chosen": "Because. " * 30 + "A", "rejected": "Because. " * 30 + "B"}
    built, data = build(tmp_path, "DPO", [*pairs(3), long, same], long_examples=handling)
    assert (built.found.truncated, len(data), built.meta.train.sequences) == (cut, kept, kept)
    assert built.meta.train.tokens == len(data.tokens)
    assert int(np.diff(data.starts).max()) <= 64


def test_what_cannot_be_learned_at_all_is_refused(tmp_path: Path) -> None:
    refused: list[tuple[str, list[Any], dict[str, Any], type[TrainerError], str]] = [
        ("DPO", pairs(2), {"sequence_length": 16}, DataError, "none of the 2 examples"),
        ("DPO", pairs(2), {"long_examples": "Split"}, ConfigurationError, "Split is only for text"),
        ("DPO", judgements(4), {}, DataError, "line 1 has .* set spec.method.objective: KTO"),
        ("KTO", [PAIR], {}, DataError, "set spec.method.objective: DPO or ORPO"),
    ]
    for number, (objective, records, changes, error, message) in enumerate(refused):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(error, match=message):
            build(tmp_path / str(number), objective, records, **changes)

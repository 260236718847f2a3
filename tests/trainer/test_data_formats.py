"""Formats: told by the first record, demanded of all."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_trainer.data.formats import (
    Completion,
    Conversation,
    FormatName,
    detect,
    to_example,
)
from finetune_trainer.data.records import Record
from finetune_trainer.errors import DataError

HERE = "d.jsonl line 7"
USER = {"role": "user", "content": "Q"}
ASSISTANT = {"role": "assistant", "content": "A"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"messages": []}, "Chat"),
        ({"conversations": [], "id": 1}, "Chat"),
        ({"prompt": "", "completion": ""}, "Instruction"),
        ({"instruction": "", "output": "", "input": ""}, "Instruction"),
        ({"text": "", "meta": {}}, "Text"),
    ],
)
def test_the_format_is_told_by_the_columns(value: dict[str, Any], expected: FormatName) -> None:
    assert detect(Record(HERE, value)) == expected


def test_unknown_columns_are_refused_with_those_of_every_format() -> None:
    with pytest.raises(DataError) as caught:
        detect(Record(HERE, {"question": "a", "answer": "b"}))
    assert str(caught.value) == (
        "d.jsonl line 7 has the columns answer, question, which is none of the known formats. "
        "Rename the columns to those of one format ("
        "Chat: messages (a list of {role, content}) or conversations (a list of {from, value}); "
        "Instruction: prompt and completion, or instruction, output and perhaps input; "
        "Text: text; Preference: prompt, chosen and rejected (DPO, ORPO), or prompt, completion "
        "and label (KTO))"
    )


@pytest.mark.parametrize(
    ("name", "chat", "value", "expected"),
    [
        pytest.param(
            "Chat", True, {"messages": [USER, ASSISTANT]}, Conversation(HERE, [USER, ASSISTANT]),
            id="chat",
        ),
        pytest.param(
            "Chat",
            True,
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            Conversation(HERE, [USER, ASSISTANT]),
            id="ShareGPT",
        ),
        pytest.param(
            "Instruction", True, {"prompt": "Q", "completion": "A"},
            Conversation(HERE, [USER, ASSISTANT]),
            id="an instruction becomes a conversation",
        ),
        pytest.param(
            "Instruction", False, {"prompt": "Q", "completion": "A"}, Completion(HERE, "Q", "A"),
            id="without a chat template it stays text",
        ),
        pytest.param(
            "Instruction", False, {"instruction": "Q", "input": "I", "output": "A"},
            Completion(HERE, "Q\n\nI\n\n", "A"),
            id="instruction and input",
        ),
        pytest.param(
            "Instruction", True, {"instruction": "Q", "input": "", "output": "A"},
            Conversation(HERE, [USER, ASSISTANT]),
            id="empty input",
        ),
        pytest.param("Text", True, {"text": "A"}, Completion(HERE, "", "A"), id="text"),
    ],
)  # fmt: skip
def test_a_record_becomes_a_plain_example(
    name: FormatName, chat: bool, value: dict[str, Any], expected: Conversation | Completion
) -> None:
    assert to_example(Record(HERE, value), name, chat) == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        pytest.param(
            "Chat",
            {"text": "a"},
            " has the columns text, but format Chat needs messages (a list of {role, content}) or "
            "conversations (a list of {from, value}); rename the columns, or set "
            "spec.dataset.format",
            id="other columns than chat",
        ),
        pytest.param(
            "Instruction",
            {"prompt": "a"},
            " has the columns prompt, but format Instruction needs prompt and completion, or "
            "instruction, output and perhaps input; rename the columns, or set "
            "spec.dataset.format",
            id="half an instruction",
        ),
        pytest.param(
            "Text",
            {},
            " has no columns, but format Text needs text; rename the columns, or set "
            "spec.dataset.format",
            id="nothing",
        ),
        pytest.param(
            "Chat",
            {"messages": []},
            ": `messages` is empty; remove the example or fill it",
            id="no messages",
        ),
        pytest.param(
            "Chat",
            {"messages": "Hi"},
            ": `messages` must be a list of {role, content}, found a string",
            id="messages are text",
        ),
        pytest.param(
            "Chat",
            {"messages": [USER, {"role": "bot", "content": "A"}]},
            ": messages[1] has the unknown role 'bot'; use one of system, user, assistant, tool",
            id="unknown role",
        ),
        pytest.param(
            "Chat",
            {"conversations": [{"from": "bard", "value": "A"}]},
            ": conversations[0] has the unknown role 'bard'; use one of human, gpt, system, tool",
            id="unknown ShareGPT role",
        ),
        pytest.param(
            "Chat",
            {"messages": [USER]},
            " has no assistant message, so there is nothing to learn; "
            "add one or remove the example",
            id="nobody answers",
        ),
        pytest.param(
            "Chat",
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, ASSISTANT]},
            ": messages[0]: `content` must be a string, found a list; only text can be learned",
            id="content is a list",
        ),
        pytest.param(
            "Chat",
            {"messages": [USER, {"role": "assistant", "content": None}]},
            ": messages[1]: `content` must be a string, found nothing (null); "
            "only text can be learned",
            id="content is null",
        ),
        pytest.param(
            "Chat",
            {"messages": [{"speaker": "user", "text": "Q"}]},
            ": messages[0] must have `role` and `content`, found columns speaker, text",
            id="other keys",
        ),
        pytest.param(
            "Instruction",
            {"prompt": "a", "completion": 3},
            ": `completion` must be a string, found a number; write it as text, or remove the "
            "example",
            id="completion is a number",
        ),
        pytest.param(
            "Instruction",
            {"prompt": "a", "completion": " "},
            ": the completion is empty, so there is nothing to learn; "
            "remove the example or fill it",
            id="empty completion",
        ),
        pytest.param(
            "Text", {"text": "\n"}, ": `text` is empty; remove the example or fill it", id="blank"
        ),
    ],
)
def test_a_wrong_record_is_refused_with_place_and_fix(
    name: FormatName, value: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        to_example(Record(HERE, value), name, chat=True)
    assert str(caught.value) == f"{HERE}{message}"

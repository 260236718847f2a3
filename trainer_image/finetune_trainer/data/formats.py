"""Tells the format of the data and turns each record into one of a few plain shapes.

A record that does not fit is refused with its place, what was found and what was expected: a
dataset that is silently half ignored costs GPU hours and trust.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from finetune_api.run_config import PREFERENCES
from finetune_trainer.data.records import Record
from finetune_trainer.errors import ConfigurationError, DataError

FormatName = Literal["Chat", "Instruction", "Text", "Preference"]
Objective = Literal["SFT", "CPT", "DPO", "KTO", "ORPO"]

EXPECTED: dict[FormatName, str] = {
    "Chat": "messages (a list of {role, content}) or conversations (a list of {from, value})",
    "Instruction": "prompt and completion, or instruction, output and perhaps input",
    "Text": "text",
    "Preference": "prompt, chosen and rejected (DPO, ORPO), or prompt, completion and label (KTO)",
}
"""Columns of each format, for messages."""

_OBJECTIVES: dict[FormatName, str] = {
    "Chat": "SFT",
    "Instruction": "SFT",
    "Text": "CPT or SFT",
    "Preference": "DPO, KTO or ORPO",
}
ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}

Message = dict[str, str]


@dataclass(frozen=True)
class Conversation:
    """Messages; what the assistant says is learned."""

    where: str
    messages: list[Message]


@dataclass(frozen=True)
class Completion:
    """A text of which the part after the prompt is learned; all of it where that is empty."""

    where: str
    prompt: str
    completion: str


Example = Conversation | Completion


def choose_format(first: Record, wanted: str, objective: Objective) -> FormatName:
    """The format of the data, which must belong to the objective.

    Args:
        first: The first record.
        wanted: `spec.dataset.format`.

    Raises:
        DataError: the columns are none of a known format.
        ConfigurationError: the format and the objective do not belong together.
    """
    name: FormatName = detect(first, objective) if wanted == "Auto" else wanted  # type: ignore[assignment]
    if objective in PREFERENCES:
        fits, needs = name == "Preference", "Preference"
    elif objective == "CPT":
        fits, needs = name == "Text", "Text"
    else:
        fits, needs = name != "Preference", "Chat, Instruction or Text"
    if fits:
        return name
    why = f"the dataset has {columns_of(first)} and so" if wanted == "Auto" else "the dataset has"
    raise ConfigurationError(
        f"{why} format {name}, but spec.method.objective: {objective} needs format {needs}; "
        f"set spec.method.objective: {_OBJECTIVES[name]}, or use other data"
    )


def detect(record: Record, objective: Objective = "SFT") -> FormatName:
    """The format of the data, from the columns of its first record; raises DataError.

    A `label` beside the completion is a judgement where preferences are to be learned: data for
    SFT may have a column of that name for reasons of their own.
    """
    columns = set(record.value)
    if {"chosen", "rejected"} <= columns:
        return "Preference"
    if objective in PREFERENCES and {"completion", "label"} <= columns:
        return "Preference"
    if columns & {"messages", "conversations"}:
        return "Chat"
    if {"prompt", "completion"} <= columns or {"instruction", "output"} <= columns:
        return "Instruction"
    if "text" in columns:
        return "Text"
    expected = "; ".join(f"{name}: {text}" for name, text in EXPECTED.items())
    raise DataError(
        f"{record.where} has {columns_of(record)}, which is none of the known formats. "
        f"Rename the columns to those of one format ({expected})"
    )


def to_example(record: Record, name: FormatName, chat: bool) -> Example:
    """One record in a plain shape.

    Args:
        name: Format that every record of the dataset must have.
        chat: The model has a chat template, so instructions become conversations.

    Raises:
        DataError: the record does not have the format.
    """
    if name == "Chat":
        return Conversation(record.where, _messages(record))
    if name == "Text":
        if "text" not in record.value:
            raise _wrong_columns(record, name)
        text = read_string(record, "text")
        if not text.strip():
            raise DataError(f"{record.where}: `text` is empty; remove the example or fill it")
        return Completion(record.where, "", text)
    prompt, completion = _instruction(record, separate=not chat)
    if not completion.strip():
        raise DataError(
            f"{record.where}: the completion is empty, so there is nothing to learn; "
            "remove the example or fill it"
        )
    if not chat:
        return Completion(record.where, prompt, completion)
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return Conversation(record.where, turns)


def _instruction(record: Record, separate: bool) -> tuple[str, str]:
    value = record.value
    if {"prompt", "completion"} <= set(value):
        return read_string(record, "prompt"), read_string(record, "completion")
    if not {"instruction", "output"} <= set(value):
        raise _wrong_columns(record, "Instruction")
    prompt = read_string(record, "instruction")
    if value.get("input"):
        prompt = f"{prompt}\n\n{read_string(record, 'input')}"
    # Without a chat template nothing else would separate the question from the answer.
    return (f"{prompt}\n\n" if separate else prompt), read_string(record, "output")


def _messages(record: Record) -> list[Message]:
    value, where = record.value, record.where
    if "messages" in value:
        column, role_key, content_key = "messages", "role", "content"
    elif "conversations" in value:
        column, role_key, content_key = "conversations", "from", "value"
    else:
        raise _wrong_columns(record, "Chat")
    raw = value[column]
    if not isinstance(raw, list):
        raise DataError(
            f"{where}: `{column}` must be a list of {{{role_key}, {content_key}}}, "
            f"found {kind_of(raw)}"
        )
    if not raw:
        raise DataError(f"{where}: `{column}` is empty; remove the example or fill it")
    messages = [
        read_message(item, f"{where}: {column}[{index}]", role_key, content_key)
        for index, item in enumerate(raw)
    ]
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(
            f"{where} has no assistant message, so there is nothing to learn; "
            "add one or remove the example"
        )
    return messages


def read_message(item: Any, where: str, role_key: str, content_key: str) -> Message:
    """One message; `where` names its place, the keys are those of the dataset's convention."""
    if not isinstance(item, dict) or role_key not in item or content_key not in item:
        found = f"columns {', '.join(sorted(item))}" if isinstance(item, dict) else kind_of(item)
        raise DataError(f"{where} must have `{role_key}` and `{content_key}`, found {found}")
    role, content = item[role_key], item[content_key]
    if role_key == "from" and isinstance(role, str):
        role = _SHAREGPT_ROLES.get(role, role)
    if role not in ROLES:
        allowed = (*_SHAREGPT_ROLES, "system", "tool") if role_key == "from" else ROLES
        raise DataError(
            f"{where} has the unknown role {item[role_key]!r}; use one of {', '.join(allowed)}"
        )
    if not isinstance(content, str):
        raise DataError(
            f"{where}: `{content_key}` must be a string, found {kind_of(content)}; "
            "only text can be learned"
        )
    return {"role": role, "content": _whole(content, where, content_key)}


def read_string(record: Record, column: str) -> str:
    """A column that must hold a text; raises DataError."""
    value = record.value[column]
    if not isinstance(value, str):
        raise DataError(
            f"{record.where}: `{column}` must be a string, found {kind_of(value)}; write it as "
            "text, or remove the example"
        )
    return _whole(value, record.where, column)


def _whole(text: str, where: str, column: str) -> str:
    """The text, if it is one: JSON can write half of a character, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        half = ascii(text[exc.start]).strip("'")
        raise DataError(
            f"{where}: `{column}` holds {half}, half of a character; save the file as UTF-8"
        ) from exc
    return text


def kind_of(value: Any) -> str:
    """What a value of JSON is, for messages."""
    if value is None:
        return "nothing (null)"
    names: dict[type, str] = {str: "a string", list: "a list", dict: "an object", bool: "a boolean"}
    names |= {int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)  # Parquet knows more types than JSON


def columns_of(record: Record) -> str:
    """The columns of a record, for messages."""
    names = sorted(str(name) for name in record.value)
    return f"the columns {', '.join(names)}" if names else "no columns"


def _wrong_columns(record: Record, name: FormatName) -> DataError:
    return DataError(
        f"{record.where} has {columns_of(record)}, but format {name} needs {EXPECTED[name]}; "
        "rename the columns, or set spec.dataset.format"
    )

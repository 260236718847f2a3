"""Turns a record of preference data into one shape: a prompt, its answers, and what is liked.

Understood are texts and lists of messages, with the prompt in a column of its own or as the
beginning that `chosen` and `rejected` share: the forms that TRL knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from finetune_trainer.data.formats import (
    Message,
    Objective,
    columns_of,
    kind_of,
    read_message,
)
from finetune_trainer.data.records import Record
from finetune_trainer.errors import ConfigurationError, DataError

Text = str | list[Message]
_ANSWER_ROLES = ("assistant", "tool")
_COLUMNS = {
    "DPO": ("chosen", "rejected"),
    "ORPO": ("chosen", "rejected"),
    "KTO": ("completion", "label"),
}


@dataclass(frozen=True)
class Preference:
    """One example of preference data; all of it are texts, or all of it messages."""

    where: str
    prompt: Text
    answers: tuple[Text, ...]
    """The chosen and the rejected one; of KTO the only one."""
    desirable: bool | None = None
    """KTO: whether the answer is a good one."""


def read_preferences(
    records: Iterable[Record], objective: Objective, chat: bool
) -> Iterator[Preference]:
    """Every record in its plain shape.

    Args:
        chat: The model has a chat template, so texts become conversations.

    Raises:
        DataError: a record does not fit (names its place), or all labels of KTO are the same.
        ConfigurationError: the data are conversations, and the model has no chat template.
    """
    labels: set[bool | None] = set()
    for record in records:
        found = to_preference(record, objective, chat)
        labels.add(found.desirable)
        yield found
    if labels in ({True}, {False}):
        only, other = ("true", "false") if labels == {True} else ("false", "true")
        raise DataError(
            f"every `label` is {only}, so there is nothing to tell apart; add examples whose "
            f"label is {other}, or use spec.method.objective: SFT on the good ones"
        )


def to_preference(record: Record, objective: Objective, chat: bool) -> Preference:
    """One record in its plain shape; see `read_preferences`."""
    _check_columns(record, objective)
    columns = _COLUMNS[objective][: 1 if objective == "KTO" else 2]
    prompt, answers = _texts(record, columns)
    if len(answers) == 2 and answers[0] == answers[1]:
        raise DataError(
            f"{record.where}: `chosen` and `rejected` are the same, so neither is preferred; "
            "remove the example or mend one"
        )
    for column, answer in zip(columns, answers, strict=True):
        _check_answer(f"{record.where}: `{column}`", answer)
    _check_prompt(record.where, prompt)
    plain = isinstance(prompt, str) and all(isinstance(answer, str) for answer in answers)
    if chat:
        prompt = _as_messages(prompt, "user")
        answers = tuple(_as_messages(answer, "assistant") for answer in answers)
    elif not plain:
        raise ConfigurationError(
            f"{record.where} holds conversations, but the model's tokenizer has no chat template; "
            "use an instruction-tuned model, add chat_template.jinja to the model, or write "
            "prompt and answers as texts"
        )
    return Preference(record.where, prompt, answers, _label(record, objective))


def _check_columns(record: Record, objective: Objective) -> None:
    wanted = _COLUMNS[objective]
    if set(wanted) <= set(record.value):
        return
    others = [name for name, columns in _COLUMNS.items() if set(columns) <= set(record.value)]
    fix = f"set spec.method.objective: {' or '.join(others)}" if others else "rename the columns"
    raise DataError(
        f"{record.where} has {columns_of(record)}, but {objective} needs prompt, "
        f"{wanted[0]} and {wanted[1]}; {fix}"
    )


def _label(record: Record, objective: Objective) -> bool | None:
    if objective != "KTO":
        return None
    value = record.value["label"]
    if not isinstance(value, bool):
        raise DataError(
            f"{record.where}: `label` must be true (a good completion) or false, found "
            f"{kind_of(value)}"
        )
    return value


def _texts(record: Record, columns: tuple[str, ...]) -> tuple[Text, tuple[Text, ...]]:
    """Prompt and answers, apart."""
    answers = tuple(_text(record, column) for column in columns)
    if len({isinstance(answer, str) for answer in answers}) > 1:
        raise DataError(
            f"{record.where}: one of `chosen` and `rejected` is a string and one a list of "
            "messages; write both alike"
        )
    first = answers[0]
    if isinstance(first, list) and len(answers) == 2 and _starts_with_prompt(first):
        return _shared_beginning(record.where, *answers)  # type: ignore[arg-type]
    if "prompt" not in record.value:
        raise DataError(
            f"{record.where} has {columns_of(record)} and no `prompt`; add it (only lists of "
            "messages in `chosen` and `rejected` may begin with it)"
        )
    return _text(record, "prompt"), answers


def _starts_with_prompt(messages: list[Message]) -> bool:
    return bool(messages) and messages[0]["role"] not in _ANSWER_ROLES


def _shared_beginning(
    where: str, chosen: list[Message], rejected: list[Message]
) -> tuple[Text, tuple[Text, ...]]:
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise DataError(
            f"{where}: `chosen` and `rejected` begin with different messages, so they do not "
            "answer the same prompt; remove the example, or write the prompt into `prompt`"
        )
    return chosen[:shared], (chosen[shared:], rejected[shared:])  # both empty: the same, refused


def _text(record: Record, column: str) -> Text:
    value = record.value[column]
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        place = f"{record.where}: {column}"
        return [_message(item, f"{place}[{index}]") for index, item in enumerate(value)]
    raise DataError(
        f"{record.where}: `{column}` must be a string or a list of {{role, content}}, found "
        f"{kind_of(value)}"
    )


def _message(item: Any, where: str) -> Message:
    return read_message(item, where, "role", "content")


def _check_answer(where: str, answer: Text) -> None:
    empty = not answer if isinstance(answer, list) else not answer.strip()
    if isinstance(answer, list):
        strange = [m["role"] for m in answer if m["role"] not in _ANSWER_ROLES]
        if strange:
            raise DataError(
                f"{where} contains a message of the {strange[0]}, which the model must "
                "not learn to write; end the conversation at the first answer that differs"
            )
        empty = empty or not any(m["content"].strip() for m in answer)
    if empty:
        raise DataError(
            f"{where} is empty, so there is nothing to learn; remove the example or fill it"
        )


def _check_prompt(where: str, prompt: Text) -> None:
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise DataError(f"{where}: the prompt is empty; remove the example or fill it")


def _as_messages(text: Text, role: str) -> Text:
    return [{"role": role, "content": text}] if isinstance(text, str) else text

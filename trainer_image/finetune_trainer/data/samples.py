"""A few examples as training sees them, so that a person can check what is learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune_trainer.data.masking import Tokens

COUNT = 3
LEARNED_START, LEARNED_END = "⟦", "⟧"
LOG_CHARACTERS = 400


def render(tokens: Tokens, tokenizer: Any) -> str:
    """The text of an example, its learned parts between ⟦ and ⟧."""
    parts: list[str] = []
    start = 0
    flags = [bool(flag) for flag in tokens.learned]
    for end in range(1, len(flags) + 1):
        if end < len(flags) and flags[end] == flags[start]:
            continue
        text = tokenizer.decode(tokens.ids[start:end], skip_special_tokens=False)
        parts.append(f"{LEARNED_START}{text}{LEARNED_END}" if flags[start] else text)
        start = end
    return "".join(parts)


def samples_text(examples: Sequence[Tokens], tokenizer: Any) -> str:
    """The file `samples.txt`."""
    head = f"What training sees; learned is what stands between {LEARNED_START} and {LEARNED_END}."
    blocks = [
        f"--- {example.where} ({len(example.ids)} tokens, {int(example.learned.sum())} learned)\n"
        f"{render(example, tokenizer)}\n"
        for example in examples[:COUNT]
    ]
    return "\n".join([head, "", *blocks])


def one_line(text: str) -> str:
    """A sample for the log, cut where it is long."""
    line = text.replace("\n", "\\n")
    return line if len(line) <= LOG_CHARACTERS else line[: LOG_CHARACTERS - 3] + "..."

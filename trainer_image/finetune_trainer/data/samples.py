"""A few examples as training sees them, what is learned marked: `data/samples.txt`, the status."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_trainer.data.masking import Tokens

COUNT = 3
LEARNED_START, LEARNED_END = "⟦", "⟧"
LOG_CHARACTERS = 400
STATUS_BYTES = 300
TEXT_FILE = "samples.txt"


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
        for example in examples
    ]
    return "\n".join([head, "", *blocks])


def write_samples(directory: Path, train: Sequence[Tokens], tokenizer: Any) -> list[str]:
    """Leave the file; returns the same examples, each in a line that fits into the status.

    Args:
        train: The first examples that are trained on.
    """
    (directory / TEXT_FILE).write_text(samples_text(train, tokenizer), encoding="utf-8")
    return [for_status(render(tokens, tokenizer)) for tokens in train]


def for_status(text: str) -> str:
    """A sample of at most `STATUS_BYTES` as JSON: all facts go through a message of 4 KiB."""
    most = STATUS_BYTES
    while (
        len(json.dumps(found := one_line(text, most), ensure_ascii=False).encode()) > STATUS_BYTES
    ):
        most -= 4
    return found


def one_line(text: str, most: int = LOG_CHARACTERS) -> str:
    """A sample for the log, cut where it is long."""
    line = text.replace("\n", "\\n")
    return line if len(line) <= most else line[: most - 3] + "..."

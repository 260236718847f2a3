"""A few examples as training sees them: for people, and for the answers before and after training.

`data/samples.txt` shows the first examples with what is learned marked. `data/samples.json` holds
`Sample`s: the question and the expected answer apart, of held-out examples where there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from finetune_api.base import ApiModel
from finetune_trainer.data.masking import Tokens

COUNT = 3
LEARNED_START, LEARNED_END = "⟦", "⟧"
LOG_CHARACTERS = 400
TEXT_FILE, JSON_FILE = "samples.txt", "samples.json"


class Sample(ApiModel):
    """A question and the answer that the data give to it."""

    where: str
    """File and place."""
    held_out: bool
    """Not trained on."""
    prompt: str
    """All that stands before the last answer, as the model is asked: special tokens in it."""
    prompt_ids: list[int]
    """The same as token ids: what to give the model."""
    expected: str
    """The last answer, without the token that ends it. Of a text: its second half."""


_SAMPLES = TypeAdapter(list[Sample])


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


def sample(tokens: Tokens, held_out: bool, tokenizer: Any) -> Sample:
    """Question and answer of an example; a text that is learned as a whole is cut in the middle."""
    learned = np.flatnonzero(tokens.learned)
    end = int(learned[-1]) + 1
    gaps = np.flatnonzero(~tokens.learned[:end])
    start = int(gaps[-1]) + 1 if gaps.size else 0
    if start <= 1:  # nothing stands before it but what the tokenizer puts before every text
        start = max(1, end // 2)
    return Sample(
        where=tokens.where,
        held_out=held_out,
        prompt=tokenizer.decode(tokens.ids[:start], skip_special_tokens=False),
        prompt_ids=tokens.ids[:start].tolist(),
        expected=tokenizer.decode(tokens.ids[start:end], skip_special_tokens=True),
    )


def write_samples(
    directory: Path, train: Sequence[Tokens], held_out: Sequence[Tokens], tokenizer: Any
) -> None:
    """Leave both files.

    Args:
        train: The first examples that are trained on.
        held_out: The first that are not; empty where nothing is held out.
    """
    (directory / TEXT_FILE).write_text(samples_text(train, tokenizer), encoding="utf-8")
    found = [sample(tokens, bool(held_out), tokenizer) for tokens in held_out or train]
    (directory / JSON_FILE).write_bytes(_SAMPLES.dump_json(found, by_alias=True, indent=2))


def read_samples(work_data: Path) -> list[Sample]:
    """What `samples.json` holds; OSError or ValueError where it is missing or broken."""
    return _SAMPLES.validate_json((work_data / JSON_FILE).read_bytes())


def one_line(text: str) -> str:
    """A sample for the log, cut where it is long."""
    line = text.replace("\n", "\\n")
    return line if len(line) <= LOG_CHARACTERS else line[: LOG_CHARACTERS - 3] + "..."

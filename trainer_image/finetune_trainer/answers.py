"""The same prompts, answered by the base model and by the tuned one, for the model card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_api.artefact import ProofExample

COUNT = 3
NEW_TOKENS = 32
"""Tokens of an answer ..."""
NEW_TOKENS_LARGE = 16
"""... and of one by a model of more than `LARGE` parameters."""
LARGE = 2_000_000_000
TOO_LARGE = 15_000_000_000
"""Parameters from which on a CPU takes too long for answers."""
MAX_PROMPT = 256
"""Tokens; a longer prompt is passed over."""
TEXT_PROMPT = 32
"""Tokens of a text that it is to be continued from."""


@dataclass(frozen=True)
class Prompt:
    """What is asked, and how the data go on."""

    ids: list[int]
    expected: list[int]


def prompts(examples: list[ProofExample]) -> list[Prompt]:
    """The first `COUNT` prompts that are not too long.

    A prompt is what stands before the first learned token; where everything is learned, as in
    plain text, it is the beginning.
    """
    found: list[Prompt] = []
    for example in examples:
        ids, learned = example.ids, example.learned
        first = learned[0]
        last = next((p + 1 for p in learned if p + 1 not in learned), len(ids))
        if first <= 1:
            first = max(1, min(TEXT_PROMPT, len(ids) // 2))
        if first <= MAX_PROMPT:
            found.append(Prompt(ids[:first], ids[first:last][:NEW_TOKENS]))
    return found[:COUNT]


def new_tokens(parameters: int) -> int:
    """How long an answer may be; 0: none is made."""
    if parameters > TOO_LARGE:
        return 0
    return NEW_TOKENS_LARGE if parameters > LARGE else NEW_TOKENS


def answers(model: Any, tokenizer: Any, asked: list[Prompt], most: int) -> list[str]:
    """The most likely answer to every prompt, of at most `most` tokens."""
    return [go_on(model, tokenizer, prompt.ids, most) for prompt in asked]


def go_on(model: Any, tokenizer: Any, ids: list[int], most: int) -> str:
    """How the model goes on after the tokens `ids`: always the most likely token."""
    import torch

    inputs = torch.tensor([ids])
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    with torch.inference_mode():
        output = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=most,
            do_sample=False,
            pad_token_id=pad,
        )
    return str(tokenizer.decode(output[0][len(ids) :], skip_special_tokens=True)).strip()

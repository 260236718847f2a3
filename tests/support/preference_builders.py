"""Preference data for tests, small and real: sums with right and wrong answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer_builders import write_jsonl

PREFERENCE = {"beta": 0.3, "desirable_weight": 1.0, "undesirable_weight": 1.0}


def pairs(count: int) -> list[dict[str, Any]]:
    """Examples for DPO and ORPO, all different, of different lengths."""
    return [
        {
            "prompt": f"What is {i} plus {i}?",
            "chosen": f"{i} plus {i} is {2 * i}." + " Yes." * (i % 3),
            "rejected": f"I do not know {i}.",
        }
        for i in range(count)
    ]


def judgements(count: int) -> list[dict[str, Any]]:
    """Examples for KTO, every third one bad."""
    return [
        {
            "prompt": f"What is {i} plus {i}?",
            "completion": f"It is {2 * i}." if i % 3 else f"Who knows about {i}? Ask {i + 1}.",
            "label": bool(i % 3),
        }
        for i in range(count)
    ]


def as_messages(record: dict[str, Any]) -> dict[str, Any]:
    """The same example as TRL's conversational format has it."""
    answers = {
        name: [{"role": "assistant", "content": record[name]}]
        for name in ("chosen", "rejected", "completion")
        if name in record
    }
    return record | answers | {"prompt": [{"role": "user", "content": record["prompt"]}]}


def write_preferences(directory: Path, objective: str, count: int = 16) -> Path:
    """A file of examples for an objective."""
    records = judgements(count) if objective == "KTO" else pairs(count)
    return write_jsonl(directory / f"{objective}.jsonl", *records)

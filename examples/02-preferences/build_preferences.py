"""Turns the chat dataset of the first example into preferences, for DPO.

    python3 ../01-first-job/build_dataset.py --output chat.jsonl
    python3 build_preferences.py chat.jsonl --output preferences.jsonl

Preferred is the house style: what it is, what its documentation says, where to read more. Rejected
is the documentation alone. Both are real text of Python's documentation, so only the style differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def preference(example: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    """A pair from a question and its answer in the house style."""
    question, answer = (message["content"] for message in example["messages"])
    documentation = "\n\n".join(answer.split("\n\n")[1:-1])
    return {"prompt": question, "chosen": answer, "rejected": documentation}


def main(argv: list[str]) -> int:
    """Write the file and say how many pairs it has."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("chat", type=Path, help="what build_dataset.py has written")
    parser.add_argument("--output", type=Path, default=Path("preferences.jsonl"), metavar="FILE")
    options = parser.parse_args(argv)
    lines = options.chat.read_text(encoding="utf-8").splitlines()
    pairs = [json.dumps(preference(json.loads(line)), ensure_ascii=False) for line in lines]
    options.output.write_text("".join(f"{pair}\n" for pair in pairs), encoding="utf-8")
    print(f"{len(pairs)} pairs in {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

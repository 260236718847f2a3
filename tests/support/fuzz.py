"""Fuzzing by hypothesis with a budget: so many examples in `make test`, so many minutes on demand.

Each round has a seed, which is printed. `FUZZ_SEED=n` repeats one round; `FUZZ_MINUTES=n` makes new
rounds until the time is over (`make fuzz MINUTES=n`).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")


def seeds(environ: dict[str, str] | None = None) -> Iterator[int]:
    """Of the rounds to play."""
    found = dict(os.environ) if environ is None else environ
    if "FUZZ_SEED" in found:
        yield int(found["FUZZ_SEED"])
        return
    end = time.monotonic() + 60 * float(found.get("FUZZ_MINUTES", "0"))
    yield random.randrange(2**32)
    while time.monotonic() < end:
        yield random.randrange(2**32)


def fuzz(strategy: SearchStrategy[T], check: Callable[[T], None], examples: int) -> None:
    """Rounds of so many examples; fails with the smallest example that it finds, and its seed."""
    for number in seeds():
        print(f"FUZZ_SEED={number}")

        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def round_(example: T) -> None:
            check(example)

        try:
            round_()
        except BaseException as error:
            error.add_note(f"again: FUZZ_SEED={number} and this test alone")
            raise

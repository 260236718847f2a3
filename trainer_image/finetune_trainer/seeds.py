"""Randomness as a pure function of (seed, step, process): the same run twice, and after a resume.

Dropout is the only use of it in training. With all generators seeded at the start of every step
there is no state of a generator to save, and none to lose.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def step_seed(seed: int, step: int, rank: int) -> int:
    """63 bits for one process at one step (counted from 0)."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed every generator that a model may use, for all micro-batches of a step."""
    number = step_seed(seed, step, rank)
    torch.manual_seed(number)  # of all devices
    random.seed(number)
    np.random.seed(number % 2**32)

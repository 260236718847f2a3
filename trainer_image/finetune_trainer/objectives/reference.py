"""What the base model says to the preference data, computed once, before training.

With Full tuning the base model changes, so it would have to lie on the GPU a second time. Instead
prepare leaves one number for every sequence: the log-probability of its answer.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from finetune_api.run_config import WORK_DATA, WORK_MODEL, RunConfig
from finetune_trainer.data.store import EVAL, TRAIN
from finetune_trainer.logs import say
from finetune_trainer.objectives.data import REFERENCE, Pairs, kept
from finetune_trainer.objectives.logprobs import LogProbs

TOKENS = 4096
"""Of a forward pass, padding counted."""
SILENCE = 60.0
"""Seconds after which progress is said again."""


def write_reference(run: RunConfig) -> None:
    """Leave `reference.npy`, float32 [2 * pairs], beside each part of the prepared data.

    In the precision of the run, as the model will be when training starts.
    """
    from transformers import AutoModelForCausalLM

    work = Path(run.work_dir)
    dtype = torch.bfloat16 if run.training.precision == "BF16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        work / WORK_MODEL, dtype=dtype, local_files_only=True, trust_remote_code=False
    ).eval()
    module = LogProbs(model, model)
    for split in (TRAIN, EVAL):
        directory = work / WORK_DATA / split
        if directory.exists():
            started = time.monotonic()
            found = log_probs(module, Pairs.open(directory))
            np.save(directory / REFERENCE, found)
            say(
                f"the base model's log-probabilities of {len(found)} answers ({split}) took "
                f"{time.monotonic() - started:.1f} s on CPU"
            )


@torch.no_grad()
def log_probs(module: LogProbs, data: Pairs) -> np.ndarray:
    """The log-probability of every answer in nats, float32 [2 * pairs]."""
    lengths = np.diff(data.starts)
    found = np.zeros(len(lengths), dtype=np.float32)
    order = np.argsort(-lengths, kind="stable")  # the longest first: too little memory shows early
    done, told = 0, time.monotonic()
    while done < len(order):
        count = max(1, TOKENS // int(lengths[order[done]]))
        numbers = order[done : done + count]
        rows = data.rows(numbers)
        targets = rows.of_answers()
        keep = kept(targets)
        arrays = (rows.input_ids, keep, targets[:, keep])
        found[numbers] = module.tokens(*map(torch.from_numpy, arrays)).sum(1).numpy()
        done += len(numbers)
        if time.monotonic() - told > SILENCE:
            told = time.monotonic()
            say(f"the base model has read {done} of {len(order)} answers")
    return found

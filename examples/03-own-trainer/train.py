"""Your own training: a plain Hugging Face `Trainer`, with nothing of finetune-operator in it.

Run by `torchrun train.py`, which reads where the other workers are from `PET_*`. What is where the
operator says in four variables. Progress is reported by transformers' own `KubeflowCallback`, which
the `Trainer` adds by itself where `KUBEFLOW_TRAINER_SERVER_URL` is set.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

MODEL, DATASET, RESULT, CHECKPOINTS = (
    os.environ[f"FINETUNE_{name}_DIR"] for name in ("MODEL", "DATASET", "RESULT", "CHECKPOINT")
)
STEPS = int(os.environ.get("STEPS", "12"))


class Conversations(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Every `{"messages": [...]}` of the dataset's files, as tokens of a fixed length."""

    def __init__(self, tokenizer: Any, length: int = 128) -> None:
        lines = [
            line
            for path in sorted(Path(DATASET).glob("*.jsonl"))
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        texts = [
            tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False)
            for line in lines
        ]
        self.rows = tokenizer(
            texts, truncation=True, max_length=length, padding="max_length", return_tensors="pt"
        )

    def __len__(self) -> int:
        return len(self.rows["input_ids"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids, mask = self.rows["input_ids"][index], self.rows["attention_mask"][index]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": ids.masked_fill(mask == 0, -100),
        }


def main() -> None:
    """Train, go on from the last checkpoint if there is one, and leave the model."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32),
        args=TrainingArguments(
            output_dir=CHECKPOINTS,
            max_steps=STEPS,
            per_device_train_batch_size=1,
            learning_rate=1e-4,
            logging_steps=1,
            save_steps=4,
            save_total_limit=2,
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
        ),
        train_dataset=Conversations(tokenizer),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(CHECKPOINTS))
    trainer.save_model(RESULT)
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(RESULT)


if __name__ == "__main__":
    main()

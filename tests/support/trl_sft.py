"""A user's script with TRL's `SFTTrainer`, as its documentation has it: nothing of ours is in it.

Its progress is reported by transformers' own `KubeflowCallback`.
"""

from __future__ import annotations

import os

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

MODEL, DATASET, RESULT, CHECKPOINTS = (
    os.environ[f"FINETUNE_{name}_DIR"] for name in ("MODEL", "DATASET", "RESULT", "CHECKPOINT")
)


def main() -> None:
    """Train and save."""
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(MODEL),
        train_dataset=load_dataset("json", data_dir=DATASET, split="train"),
        args=SFTConfig(
            output_dir=CHECKPOINTS,
            max_steps=int(os.environ.get("STEPS", "12")),
            per_device_train_batch_size=1,
            max_length=128,
            logging_steps=1,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
    )
    trainer.train()
    trainer.save_model(RESULT)


if __name__ == "__main__":
    main()

"""A rank of TRL's SFTTrainer with DeepSpeed on CPU: `trl_rank.py CONFIG`.

Three things without which the comparison would be none: a process group of our own (TRL would let
every rank train alone), its check for bfloat16, which knows GPUs only, and no `use_cpu`, which
drops DeepSpeed without a word.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

CONFIG = json.loads(Path(sys.argv[1]).read_text())
os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"

import torch  # noqa: E402
import transformers.training_args  # noqa: E402
from accelerate import PartialState  # noqa: E402

transformers.training_args.is_torch_bf16_gpu_available = lambda: True
PartialState(backend="gloo")

from datasets import Dataset  # noqa: E402
from marks import Marks  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerCallback,
    set_seed,
)
from trl import SFTConfig, SFTTrainer  # noqa: E402


class Watch(TrainerCallback):
    """Notes when optimizer steps end."""

    def __init__(self, marks: Marks) -> None:
        """Take where to note them."""
        self.marks = marks

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        """After an optimizer step."""
        self.marks.step_ended()


class Counting(SFTTrainer):
    """Counts the tokens that are not padding."""

    marks: Marks

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """One micro-batch."""
        mask = inputs.get("attention_mask")
        counted = inputs["input_ids"].numel() if mask is None else int(mask.sum())
        self.marks.tokens += counted
        return super().training_step(model, inputs, *args, **kwargs)


def settings() -> SFTConfig:
    """The same as ours; what has no counterpart is TRL's default."""
    same = CONFIG["training"]
    return SFTConfig(
        output_dir=CONFIG["out"] + "/trl",
        accelerator_config={"use_configured_state": True},
        deepspeed={
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": CONFIG["zeroStage"]},
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_allow_untested_optimizer": True,
        },
        bf16=True,
        gradient_checkpointing=same["gradientCheckpointing"],
        packing=CONFIG["packing"],
        max_length=same["sequenceLength"],
        per_device_train_batch_size=same["microBatchSize"],
        gradient_accumulation_steps=same["gradientAccumulationSteps"],
        learning_rate=same["learningRate"],
        lr_scheduler_type="constant",
        weight_decay=same["weightDecay"],
        max_grad_norm=same["maxGradNorm"],
        max_steps=same["maxSteps"],
        seed=same["seed"],
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
    )


def main() -> None:
    """Train and leave notes, losses and the adapter."""
    arguments = settings()
    out, rank = Path(CONFIG["out"]), os.environ["RANK"]
    marks = Marks(out / f"{rank}.json", CONFIG.get("measuredStep"))
    lora = CONFIG["lora"]
    # It makes the adapter before it sets the seed: the same first weights whatever the seed is.
    set_seed(arguments.seed)
    trainer = Counting(
        model=AutoModelForCausalLM.from_pretrained(CONFIG["model"], dtype=torch.bfloat16),
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(CONFIG["model"]),
        train_dataset=Dataset.from_list(json.loads(Path(CONFIG["examples"]).read_text())),
        peft_config=LoraConfig(
            r=lora["rank"],
            lora_alpha=lora["alpha"],
            lora_dropout=lora["dropout"],
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[Watch(marks)],
    )
    trainer.marks = marks
    trainer.train()
    assert trainer.is_deepspeed_enabled
    assert trainer.accelerator.num_processes == CONFIG["ranks"], "the ranks trained alone"
    marks.found["losses"] = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    marks.write()
    trainer.save_model(str(out / "result"))
    sys.stdout.flush()
    os._exit(0)


main()

"""Runs of the trainer for tests. The libraries of the trainer are imported inside the functions:
tests of other parts import this directory without having them.
"""

from __future__ import annotations

from pathlib import Path

from finetune_trainer.tiny import (
    CHATML,
    CORPUS,
    END_OF_TURN,
    VOCABULARY_SIZE,
    tiny_model,
    tiny_tokenizer,
)

__all__ = [
    "CHATML",
    "CORPUS",
    "END_OF_TURN",
    "VOCABULARY_SIZE",
    "tiny_model",
    "tiny_tokenizer",
]

CHATML_WITH_MARKERS = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The same with `{% generation %}` around what is to be learned."""


def a_run(work: Path, model: Path, data: Path, /, **changes):  # type: ignore[no-untyped-def]
    """A complete run on mounted paths; `changes` go to the fields of RunConfig or its training."""
    from finetune_api.run_config import LoraConfig, RunConfig, SourceConfig, TrainingConfig

    training = {
        "epochs": 1.0,
        "max_steps": None,
        "learning_rate": 2e-4,
        "schedule": "Cosine",
        "warmup_fraction": 0.03,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "sequence_length": 128,
        "packing": True,
        "precision": "FP32",
        "gradient_checkpointing": False,
        "seed": 42,
    }
    told = {key: changes.pop(key) for key in list(changes) if key in training}
    training |= told
    if "gradient_accumulation_steps" not in told:
        share = training["global_batch_size"] // training["micro_batch_size"]
        training["gradient_accumulation_steps"] = share // changes.get("num_proc_per_node", 1)
    fields = {
        "namespace": "team-a",
        "name": "docs",
        "uid": "0000",
        "model": SourceConfig(uri="pvc://models/tiny", path=str(model)),
        "dataset": SourceConfig(uri=f"pvc://data/{data.name}", path=str(data)),
        "dataset_format": "Auto",
        "eval_fraction": 0.2,
        "objective": "SFT",
        "tuning": "LoRA",
        "lora": LoraConfig(rank=4, alpha=8, dropout=0.0, target_modules=["all-linear"]),
        "training": TrainingConfig(**training),
        "num_nodes": 1,
        "num_proc_per_node": 1,
        "zero_stage": 1,
        "accelerator": "CPU",
        "work_dir": str(work),
        "output_uri": "pvc://models/docs",
        "output_dir": str(work / "output"),
        "merge": False,
    }
    return RunConfig(**(fields | changes))


def write_jsonl(path: Path, *records: object) -> Path:
    """A file of JSON lines."""
    import json

    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def questions(count: int) -> list[dict[str, str]]:
    """Examples of format Instruction, all different."""
    return [
        {"prompt": f"What is {i} plus {i}?", "completion": f"{i} plus {i} is {2 * i}."}
        for i in range(count)
    ]


LOSSES = [
    {"step": 0, "evalLoss": 3.0},
    {"step": 1, "loss": 3.1, "learningRate": 1e-4, "gradNorm": 1.0, "tokensPerSecond": 100.0},
    {"step": 2, "loss": 2.4, "learningRate": 2e-4, "gradNorm": 1.0, "tokensPerSecond": 100.0},
    {"step": 3, "loss": 1.5, "learningRate": 0.0, "gradNorm": 1.0, "tokensPerSecond": 100.0},
    {"step": 3, "evalLoss": 2.0},
]


def trained(run):  # type: ignore[no-untyped-def]
    """What a training of three steps leaves in a prepared work directory; returns `result`.

    The weights are changed by random numbers: they only have to be other than before.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from finetune_api.outcome import TrainFacts

    work = Path(run.work_dir)
    write_jsonl(work / "losses.jsonl", *LOSSES)
    facts = TrainFacts(
        step=3,
        total_steps=3,
        loss=1.5,
        eval_loss_before=3.0,
        eval_loss_after=2.0,
        tokens=1000,
        tokens_per_second=100.0,
        duration_seconds=10.0,
    )
    (work / "train.json").write_text(facts.model_dump_json(by_alias=True))
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(work / "model")
    if run.lora is not None:
        modules = run.lora.target_modules
        settings = LoraConfig(
            r=run.lora.rank,
            lora_alpha=run.lora.alpha,
            target_modules=modules[0] if modules == ["all-linear"] else modules,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if run.lora is None or "lora_B" in name:
                parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(work / "result")
    verification(model.eval(), work)
    return work / "result"


def verification(model, work: Path) -> None:  # type: ignore[no-untyped-def]
    """What training leaves for export to prove the result by, computed by transformers itself."""
    import torch

    from finetune_api.artefact import Verification
    from finetune_trainer.batches import Sequences
    from finetune_trainer.proof_examples import choose, examples_of

    held_out = (work / "data/eval").exists()
    data = Sequences.open(work / "data" / ("eval" if held_out else "train"))
    examples = []
    for example in choose(examples_of(data), 140_000):
        ids = torch.tensor([example.ids])
        labels = torch.full_like(ids, -100)
        labels[0, example.learned] = ids[0, example.learned]
        with torch.no_grad():
            mean = float(model(input_ids=ids, labels=labels).loss)
        examples.append(example.model_copy(update={"loss": mean * len(example.learned)}))
    told = Verification(held_out=held_out, examples=examples, precision="FP32")
    (work / "verify.json").write_text(told.model_dump_json(by_alias=True))

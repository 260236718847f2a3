"""Writes the tables of docs/memory.md: `python scripts/memory_table.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from document_tables import Tables, filled
from published_memory import MODELS, published

from finetune_api.fitting import TooLarge, decide
from finetune_api.memory import estimate
from finetune_api.outcome import Estimate
from finetune_api.run_config import LoraConfig, RunConfig
from finetune_api.sizes import GIB, Offload, Setup

DOCUMENT = Path(__file__).parents[1] / "docs/memory.md"
LENGTH = 2048
CARD = 80
"""GiB of a GPU."""
METHODS: dict[str, tuple[Literal["Full", "LoRA", "QLoRA"], LoraConfig | None]] = {
    "Full": ("Full", None),
    "LoRA": ("LoRA", LoraConfig(rank=16, alpha=32, dropout=0.0, target_modules=["all-linear"])),
    "QLoRA": ("QLoRA", LoraConfig(rank=16, alpha=32, dropout=0.0, target_modules=["all-linear"])),
}


def stages() -> list[str]:
    """GiB per GPU of 8, by model, method and stage."""
    lines = [
        "| Model | Method | ZeRO 1 | ZeRO 2 | ZeRO 3 | 3 + optimizer offload | 3 + all offload |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, shape in MODELS.items():
        for method, (tuning, lora) in METHODS.items():
            columns: list[tuple[Literal[1, 2, 3], Offload]] = [
                (1, "None"),
                (2, "None"),
                (3, "None"),
                (3, "Optimizer"),
                (3, "OptimizerAndParameters"),
            ]
            cells = []
            for stage, offload in columns:
                if tuning == "QLoRA" and stage == 3:
                    cells.append("-")
                    continue
                setup = Setup(
                    tuning=tuning,
                    lora=lora,
                    zero_stage=stage,
                    offload=offload,
                    ranks=8,
                    rows=1,
                    sequence_length=LENGTH,
                    gradient_checkpointing=True,
                )
                cells.append(_cell(estimate(shape, setup)))
            lines.append(f"| {name} | {method} | {' | '.join(cells)} |")
    return lines


def _cell(found: Estimate) -> str:
    size = f"{found.total / GIB:.0f}"
    host = f" (+ {found.host / GIB:.0f} of the node)" if found.host else ""
    return f"~~{size}~~{host}" if found.total > CARD * GIB else size + host


def a_run(tuning: str, lora: LoraConfig | None, gpus: int) -> RunConfig:
    """What the operator makes of a job with every `Auto` on nodes of 8 such GPUs and 1 TiB."""
    nodes = max(1, gpus // 8)
    return RunConfig.model_validate(
        {
            "namespace": "team-a",
            "name": "table",
            "uid": "0",
            "model": {"uri": "hf://some/model"},
            "dataset": {"uri": "hf://some/data"},
            "dataset_format": "Auto",
            "eval_fraction": 0.05,
            "objective": "SFT",
            "tuning": tuning,
            "lora": lora,
            "training": {
                "epochs": 1.0,
                "max_steps": None,
                "learning_rate": 2e-4,
                "schedule": "Cosine",
                "warmup_fraction": 0.03,
                "weight_decay": 0.0,
                "max_grad_norm": 1.0,
                "global_batch_size": 128,
                "micro_batch_size": 8,
                "gradient_accumulation_steps": 128 // gpus // 8,
                "sequence_length": LENGTH,
                "packing": True,
                "precision": "BF16",
                "gradient_checkpointing": False,
                "seed": 42,
            },
            "num_nodes": nodes,
            "num_proc_per_node": gpus // nodes,
            "zero_stage": 2 if tuning == "Full" else 1,
            "auto": ["microBatchSize", "gradientCheckpointing", "zeroStage", "offload"],
            "memory": {"accelerator_bytes": CARD * GIB, "host_bytes": 2**40 // (gpus // nodes)},
            "accelerator": "CUDA",
            "work_dir": "/work",
            "output_uri": "pvc://work/output",
            "output_dir": "/work/output",
            "merge": False,
        }
    )


def decisions() -> list[str]:
    """What Auto makes of a job that leaves everything open."""
    lines = [
        "| Model | Method | GPUs | Micro-batch | Checkpointing | ZeRO | Offload | GiB per GPU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, shape in MODELS.items():
        for method, (tuning, lora) in METHODS.items():
            for gpus in (1, 8, 16):
                found = decide(a_run(tuning, lora, gpus), shape)
                if isinstance(found, TooLarge):
                    cells = "refused, exit code 13 | | | | "
                else:
                    chosen = found.resolved
                    cells = (
                        f"{chosen.micro_batch_size} | "
                        f"{'on' if chosen.gradient_checkpointing else 'off'} | "
                        f"{chosen.zero_stage} | {chosen.offload} | "
                        f"{found.estimate.total / GIB:.0f}"
                    )
                lines.append(f"| {name} | {method} | {gpus} | {cells} |")
    return lines


def comparison() -> list[str]:
    """The model against what others measured."""
    lines = [
        "| Source | Run | Measured, GB per GPU | Model | Deviation |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.source} | {p.run} | {p.measured / 1e9:.1f} | {p.predicted / 1e9:.1f} | "
        f"{round(100 * p.deviation):+d} % |"
        for p in published()
    ]
    return lines


TABLES: Tables = {
    "stages": stages,
    "decisions": decisions,
    "published": comparison,
}


def written(text: str) -> str:
    """The document with its tables made anew."""
    return filled(DOCUMENT, text, TABLES)


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))

"""Writes the tables of docs/memory.md: `python scripts/memory_table.py`.

The shapes are those of the models' config.json; the published figures are other people's
measurements, with what their software does differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune_api.fitting import TooLarge, decide
from finetune_api.memory import (
    GIB,
    PERSISTENT,
    LinearShape,
    ModelShape,
    Offload,
    Setup,
    Stack,
    estimate,
)
from finetune_api.outcome import Estimate
from finetune_api.run_config import LoraConfig, RunConfig

DOCUMENT = Path(__file__).parents[1] / "docs/memory.md"
LENGTH = 2048
CARD = 80
"""GiB of a GPU."""
METHODS: dict[str, tuple[Literal["Full", "LoRA", "QLoRA"], LoraConfig | None]] = {
    "Full": ("Full", None),
    "LoRA": ("LoRA", LoraConfig(rank=16, alpha=32, dropout=0.0, target_modules=["all-linear"])),
    "QLoRA": ("QLoRA", LoraConfig(rank=16, alpha=32, dropout=0.0, target_modules=["all-linear"])),
}


def llama(
    hidden: int, inner: int, layers: int, heads: int, kv: int, vocabulary: int, tied: bool = False
) -> ModelShape:
    """A decoder of the Llama kind: gated feed-forward part, no biases."""
    size = hidden // heads
    linears = [
        LinearShape(name=name, in_features=rows, out_features=columns, count=layers)
        for name, rows, columns in (
            ("q_proj", hidden, heads * size),
            ("k_proj", hidden, kv * size),
            ("v_proj", hidden, kv * size),
            ("o_proj", heads * size, hidden),
            ("gate_proj", hidden, inner),
            ("up_proj", hidden, inner),
            ("down_proj", inner, hidden),
        )
    ]
    matrices = sum(x.count * x.in_features * x.out_features for x in linears)
    tables, norms = (1 if tied else 2) * vocabulary * hidden, (2 * layers + 1) * hidden
    assert hidden <= PERSISTENT
    return ModelShape(
        parameters=matrices + tables + norms,
        largest_module=max(vocabulary * hidden, hidden * inner),
        small_parameters=norms,
        hidden_size=hidden,
        intermediate_size=inner,
        layers=layers,
        heads=heads,
        kv_heads=kv,
        head_size=size,
        vocabulary_size=vocabulary,
        linears=linears,
    )


MODELS = {
    "Llama 3.2 1B": llama(2048, 8192, 16, 32, 8, 128_256, tied=True),
    "Llama 2 7B": llama(4096, 11_008, 32, 32, 32, 32_000),
    "Llama 3.1 8B": llama(4096, 14_336, 32, 32, 8, 128_256),
    "Llama 2 13B": llama(5120, 13_824, 40, 40, 40, 32_000),
    "Llama 3.1 70B": llama(8192, 28_672, 80, 64, 8, 128_256),
}
QWEN_7B = llama(4096, 11_008, 32, 32, 32, 151_936)
QWEN_14B = llama(5120, 13_696, 40, 40, 40, 152_064)
QWEN_72B = llama(8192, 24_576, 80, 64, 64, 152_064)


@dataclass(frozen=True)
class Published:
    """Somebody's measurement, and the same run as our model sees it."""

    source: str
    run: str
    measured: float
    """In bytes, per GPU."""
    shape: ModelShape
    setup: Setup
    stack: Stack

    @property
    def predicted(self) -> int:
        """In bytes, per GPU."""
        return estimate(self.shape, self.setup, self.stack).total

    @property
    def deviation(self) -> float:
        """Of the prediction, as a part of the measurement."""
        return self.predicted / self.measured - 1


def adapter(rank: int, *targets: str, dropout: float = 0.0) -> LoraConfig:
    """An adapter for `targets`, all linear layers where there are none."""
    return LoraConfig(
        rank=rank, alpha=16, dropout=dropout, target_modules=list(targets) or ["all-linear"]
    )


# torch.optim.AdamW on 32-bit adapters of peft 0.5: 4 + 4 + 8 bytes; logits of all positions.
HF = Stack(master=2, gradient=4, loss="Whole", bucket=0)
# DeepSpeed as Qwen configures it: gradients summed in bfloat16, buckets of hidden size squared.
HF_ZERO_3 = {size: Stack(gradient=2, loss="Whole", bucket=size**2) for size in (4096, 8192)}
# All in bfloat16; figures are torch's own count, without CUDA's context.
LITGPT = Stack(master=0, moments=4, gradient=2, loss_chunk=128, libraries=0, bucket=0)
# FSDP keeps embedding and head whole (1.05e9 each) and two layers (0.86e9 each), of which our
# formula adds one of 1.05e9 itself twice; the loss is taken in 8 chunks.
TORCHTUNE = Stack(
    master=0, moments=4, gradient=2, loss_chunk=512, libraries=0, bucket=0, live=1_710_000_000
)


def qwen(size: str, shape: ModelShape, length: int, measured: float, ranks: int = 1) -> Published:
    """LoRA of rank 64 on all linear layers; Full where there are 2 GPUs."""
    lora = None if ranks == 2 else adapter(64, dropout=0.05)
    method = "Full" if lora is None else "LoRA r64"
    zero = f", ZeRO-3 on {ranks} GPUs" if ranks > 1 else ""
    return Published(
        source="Qwen",
        run=f"Qwen-{size} {method}{zero}, {length} tokens",
        measured=measured / ranks * 1e9,
        shape=shape,
        setup=Setup(
            tuning="Full" if lora is None else "LoRA",
            lora=lora,
            zero_stage=3 if ranks > 1 else 1,
            ranks=ranks,
            rows=1,
            sequence_length=length,
            gradient_checkpointing=True,
            attention="Flash",
        ),
        stack=HF if ranks == 1 else HF_ZERO_3[shape.hidden_size],
    )


def litgpt(name: str, rows: int, measured: float) -> Published:
    """LoRA of rank 8 on queries and values, 1304 tokens."""
    return Published(
        source="LitGPT",
        run=f"{name} LoRA r8 on q and v, {rows} x 1304 tokens",
        measured=measured * 1e9,
        shape=MODELS[name],
        setup=Setup(
            tuning="LoRA",
            lora=adapter(8, "q_proj", "v_proj", dropout=0.05),
            zero_stage=1,
            ranks=1,
            rows=rows,
            sequence_length=1304,
            attention="Flash",
        ),
        stack=LITGPT,
    )


def torchtune(measured: float) -> Published:
    """LoRA of rank 16, fully sharded."""
    return Published(
        source="torchtune",
        run="Llama 3.1 70B LoRA r16, FSDP on 8 GPUs, 2 x 2048 tokens",
        measured=measured * GIB,
        shape=MODELS["Llama 3.1 70B"],
        setup=Setup(
            tuning="LoRA",
            lora=adapter(16, "q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            zero_stage=3,
            ranks=8,
            rows=2,
            sequence_length=2048,
            gradient_checkpointing=True,
            attention="Flash",
        ),
        stack=TORCHTUNE,
    )


def published() -> list[Published]:
    """Every figure that the model is held against."""
    lengths = (256, 512, 1024, 2048, 4096, 8192)
    tables: list[tuple[str, ModelShape, int, tuple[float, ...]]] = [
        ("7B", QWEN_7B, 1, (20.1, 20.4, 21.5, 23.8, 29.7, 36.6)),
        ("7B", QWEN_7B, 2, (139.2, 148.0, 162.0)),
        ("14B", QWEN_14B, 1, (34.6, 35.1, 35.3, 37.4, 42.5, 55.2)),
        ("72B", QWEN_72B, 4, (215.4, 217.7, 222.6, 228.8, 249.0, 289.2)),
    ]
    return [
        *(
            qwen(size, shape, length, measured, ranks)
            for size, shape, ranks, figures in tables
            for length, measured in zip(lengths, figures, strict=False)
        ),
        litgpt("Llama 2 7B", 1, 21.30),
        litgpt("Llama 2 7B", 2, 29.07),
        litgpt("Llama 2 13B", 1, 38.12),
        torchtune(27.6),
    ]


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
        f"{100 * p.deviation:+.0f} % |"
        for p in published()
    ]
    return lines


TABLES: dict[str, Callable[[], list[str]]] = {
    "stages": stages,
    "decisions": decisions,
    "published": comparison,
}


def written(text: str) -> str:
    """The document with its tables made anew, each between two comments."""
    for name, table in TABLES.items():
        begin, end = f"<!-- table {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise SystemExit(f"{DOCUMENT} has no place for the table {name!r}")
        text = before + begin + "\n".join(table()) + "\n" + end + after
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))

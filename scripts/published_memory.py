"""Models and other people's measurements, for `memory_table` and the tests.

The shapes are those of the models' config.json. A published figure names what the software behind
it does differently from this trainer. Sources, and what is assumed: docs/memory.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.memory import estimate
from finetune_api.run_config import LoraConfig
from finetune_api.sizes import GIB, PERSISTENT, LinearShape, ModelShape, Setup, Stack


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

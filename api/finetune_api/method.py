"""What is learned, how, and on how many processes, as `FineTuneJob` names them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.base import ApiModel, rule, rules

Auto = Literal["Auto"]
ALL_LINEAR = "all-linear"


class Lora(ApiModel):
    """Low-rank adaptation: a small adapter is trained, the base model stays as it is."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                f"!has(self.targetModules) || self.targetModules == ['{ALL_LINEAR}']"
                f" || !('{ALL_LINEAR}' in self.targetModules)",
                f"spec.method.lora.targetModules: {ALL_LINEAR} stands alone; "
                "remove it or the other names",
                ".targetModules",
            ),
        )
    )

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the adapter matrices; larger learns more and costs more."""

    alpha: Annotated[int, Field(ge=1, le=4096)] = 32
    """Scale of the adapter; its effect is alpha divided by rank."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of dropping an adapter input during training."""

    target_modules: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=256)]],
        Field(min_length=1, max_length=64),
    ] = [ALL_LINEAR]
    """Names of the layers that get an adapter; `[all-linear]`: every linear layer but the output
    head."""

    use_rslora: bool = False
    """Rank-stabilised LoRA: scale by alpha divided by the square root of rank, for large ranks."""

    use_dora: bool = False
    """DoRA: learn the length of each weight vector apart from its direction; slower, sometimes
    better at low ranks. ZeRO stage 1 or 2."""

    modules_to_save: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=256)]],
        Field(max_length=16),
    ] = []
    """Names of layers that are trained whole beside the adapter and saved with it, such as
    `embed_tokens` and `lm_head` for new tokens."""


class Preference(ApiModel):
    """Settings of DPO, KTO and ORPO."""

    beta: Annotated[float, Field(gt=0, le=100)] = 0.1
    """DPO and KTO: how closely the model is held to the base model; larger is closer. ORPO:
    weight of the odds-ratio term."""

    desirable_weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """KTO: weight of the loss on desirable examples; raise it where they are few."""

    undesirable_weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """KTO: weight of the loss on undesirable examples."""


class Method(ApiModel):
    """What is learned, and which weights change."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.tuning) || self.tuning != 'Full' || !has(self.lora)",
                "spec.method.lora is only for tuning: LoRA or QLoRA; remove spec.method.lora "
                "or set spec.method.tuning to LoRA",
                ".lora",
            ),
            rule(
                "!has(self.preference)"
                " || (has(self.objective) && self.objective in ['DPO', 'KTO', 'ORPO'])",
                "spec.method.preference is only for objective: DPO, KTO or ORPO; remove it",
                ".preference",
            ),
        )
    )

    objective: Literal["SFT", "CPT", "DPO", "KTO", "ORPO"] = "SFT"
    """`SFT`: supervised fine-tuning, next-token loss on what the assistant says. `CPT`: continued
    pre-training, next-token loss on all of a text. `DPO`, `KTO`, `ORPO`: learn from preferences
    (`spec.dataset.format: Preference`)."""

    tuning: Literal["Full", "LoRA", "QLoRA"] = "LoRA"
    """`LoRA` trains a small adapter, `Full` trains all weights, `QLoRA` trains an adapter over base
    weights of 4 bits (where bitsandbytes runs: GPUs, some CPUs; ZeRO stage 1 or 2)."""

    lora: Lora | None = None
    """Settings of the adapter. Default with `LoRA` and `QLoRA`: rank 16, alpha 32, all linear
    layers."""

    preference: Preference | None = None
    """Settings of DPO, KTO and ORPO. Default: beta 0.1, equal weights."""


class Training(ApiModel):
    """The optimisation."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!(has(self.epochs) && has(self.maxSteps))",
                "spec.training.epochs and spec.training.maxSteps exclude each other; remove one",
            ),
            rule(
                "!has(self.microBatchSize) || type(self.microBatchSize) == string"
                " || !has(self.globalBatchSize)"
                " || int(self.microBatchSize) <= self.globalBatchSize",
                "spec.training.microBatchSize must not be larger than "
                "spec.training.globalBatchSize; lower it or use Auto",
                ".microBatchSize",
            ),
        )
    )

    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Passes over the data. Default: 1, where `maxSteps` is not given."""

    max_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Optimizer steps, in place of `epochs`."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """Peak learning rate of AdamW. Usual: 1e-4 to 1e-3 for LoRA, 1e-6 to 5e-5 for Full."""

    schedule: Literal["Cosine", "Linear", "Constant"] = "Cosine"
    """How the learning rate falls after the warm-up: to zero, by a cosine or a line; or not."""

    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Part of all steps during which the learning rate rises from zero."""

    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay of AdamW."""

    max_grad_norm: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0
    """Gradients are scaled down to at most this global norm."""

    global_batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = 32
    """Sequences per optimizer step, over all workers."""

    micro_batch_size: Annotated[int, Field(ge=1, le=65_536)] | Auto = "Auto"
    """Sequences per forward pass of one process; the rest is gradient accumulation. `Auto`: the
    largest of 8, 4, 2, 1 that divides a process's share and, by the estimate of prepare, fits into
    memory."""

    sequence_length: Annotated[int, Field(ge=16, le=1_048_576)] = 2048
    """Longest sequence in tokens; for longer examples see `spec.dataset.longExamples`."""

    packing: bool = True
    """Put several examples into one sequence, without attention between them."""

    precision: Literal["BF16", "FP32"] = "BF16"
    """Numbers of the forward and backward pass; the optimizer always keeps 32-bit weights."""

    gradient_checkpointing: Literal["Auto", "Always", "Never"] = "Auto"
    """Recompute activations in the backward pass: less memory, about a third slower. `Auto`: only
    where the estimate of prepare says that it is needed to fit into memory."""

    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = 42
    """Seed of the data order, the held-out part and the adapter's first weights."""


class Workers(ApiModel):
    """The gang: every worker is one pod on one node, and all train together."""

    num_nodes: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of worker pods."""

    num_proc_per_node: Annotated[int, Field(ge=1, le=64)] | Auto = "Auto"
    """Training processes (and GPUs) per worker. `Auto`: all GPUs of a node of the profile; one
    process where the profile has no GPUs."""


class Zero(ApiModel):
    """DeepSpeed ZeRO: what is sharded over the processes."""

    stage: Literal[1, 2, 3] | Auto = "Auto"
    """1: optimizer state, 2: gradients too, 3: weights too. `Auto`: the smallest that fits into
    memory by the estimate of prepare, from 1 for LoRA and 2 for Full."""

    offload: Literal["Auto", "None", "Optimizer", "OptimizerAndParameters"] = "Auto"
    """What lies in the memory of the node instead of the GPU's: slower, and the way to models that
    fit in no other. `Auto`: `None` unless nothing else fits."""

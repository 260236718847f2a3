"""`FineTuneJob`, as a person writes it and as the operator reports on it.

The text under each field is what `kubectl explain` shows. The CEL rules beside the classes are
enforced by the API server, so a wrong manifest is refused before anything runs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.base import API_VERSION, ApiModel, rule, rules
from finetune_api.status import FineTuneJobStatus

MAX_NAME_LENGTH = 48
"""A job's name is part of the host name `<name>-train-<attempt>-<index>`, at most 63 characters."""

NamePart = Annotated[
    str,
    StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
]
ObjectName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"),
]
Uri = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Auto = Literal["Auto"]
ALL_LINEAR = "all-linear"

_MODEL_URI = (
    r"self.uri.matches('^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$')"
    r" || self.uri.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9._-]+)*$')"
)
_DATASET_URI = (
    r"self.uri.matches('^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)*$')"
    r" || self.uri.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9._-]+)+$')"
    r" || self.uri.matches('^configmap://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9._-]+$')"
)
_OUTPUT_URI = r"self.uri.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9._-]+)*$')"
_NO_DOTS = r"!self.uri.matches('/[.]{1,2}(/|$)')"


def _source_rules(pattern: str, field: str, forms: str) -> dict[str, Any]:
    return rules(
        rule(
            pattern,
            f"spec.{field}.uri must be {forms}; other schemes are not supported",
            ".uri",
        ),
        rule(
            _NO_DOTS,
            f"spec.{field}.uri must not contain '.' or '..' as a path element; "
            "name the file or directory from the root of the volume",
            ".uri",
        ),
    )


class LocalObjectReference(ApiModel):
    """The name of an object in the job's own namespace."""

    name: ObjectName
    """Name of the object."""


class ModelSource(ApiModel):
    """The base model."""

    model_config = ConfigDict(
        json_schema_extra={
            **_source_rules(
                _MODEL_URI, "model", "hf://owner/name or pvc://claim/path/to/directory-or.gguf"
            ),
        }
    )

    uri: Uri
    """Where the model comes from: `hf://owner/name` (Hugging Face Hub), or `pvc://claim/path`, a
    directory in the layout of transformers or one GGUF file, on a claim of this namespace."""

    revision: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    """Commit, branch or tag of an `hf://` model; a commit hash makes the run repeatable.
    Default: the repository's main branch, whose commit is recorded in `status.resolved`."""

    secret_ref: LocalObjectReference | None = None
    """A Secret in this namespace whose key `token` is the access token for `hf://`."""


class DatasetSource(ApiModel):
    """The training data."""

    model_config = ConfigDict(
        json_schema_extra={
            **_source_rules(
                _DATASET_URI,
                "dataset",
                "hf://owner/name[/file], pvc://claim/path/file.jsonl or configmap://name/key",
            ),
        }
    )

    uri: Uri
    """Where the data comes from: `hf://owner/name[/file]`, `pvc://claim/path/file.jsonl` or
    `configmap://name/key`; JSON lines, a JSON list, Parquet, or plain text."""

    revision: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    """Commit, branch or tag of an `hf://` dataset. Default: the main branch."""

    secret_ref: LocalObjectReference | None = None
    """A Secret in this namespace whose key `token` is the access token for `hf://`."""

    format: Literal["Auto", "Chat", "Instruction", "Text"] = "Auto"
    """`Chat`: a list `messages` of `{role, content}`. `Instruction`: `prompt` and `completion` (or
    `instruction`, `input`, `output`). `Text`: `text`. `Auto` looks at the first line. Only the
    assistant's words (Chat) and the completion (Instruction) are learned."""

    eval_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Part of the examples held out to measure the loss before and after; 0 holds out none."""


class Lora(ApiModel):
    """Low-rank adaptation: a small adapter is trained, the base model stays as it is."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                f"self.targetModules == ['{ALL_LINEAR}']"
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


class Method(ApiModel):
    """What is learned, and which weights change."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.tuning == 'LoRA' || !has(self.lora)",
                "spec.method.lora is only for tuning: LoRA; remove spec.method.lora "
                "or set spec.method.tuning to LoRA",
                ".lora",
            ),
        )
    )

    objective: Literal["SFT"] = "SFT"
    """`SFT`: supervised fine-tuning, next-token loss on what the assistant says."""

    tuning: Literal["Full", "LoRA"] = "LoRA"
    """`LoRA` trains a small adapter, `Full` trains all weights."""

    lora: Lora | None = None
    """Settings of the adapter. Default with `LoRA`: rank 16, alpha 32, all linear layers."""


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
    largest of 8, 4, 2, 1 that divides a process's share."""

    sequence_length: Annotated[int, Field(ge=16, le=1_048_576)] = 2048
    """Longest sequence in tokens; longer examples are truncated and counted."""

    packing: bool = True
    """Put several examples into one sequence, without attention between them."""

    precision: Literal["BF16", "FP32"] = "BF16"
    """Numbers of the forward and backward pass; the optimizer always keeps 32-bit weights."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""

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
    """1: optimizer state, 2: gradients too, 3: weights too. `Auto`: 1 for LoRA, 2 for Full."""


class Output(ApiModel):
    """Where the result goes."""

    model_config = ConfigDict(
        json_schema_extra=_source_rules(_OUTPUT_URI, "output", "pvc://claim/path")
    )

    uri: Uri
    """`pvc://claim/path` on a claim of this namespace; the path is made new, or replaced if an
    earlier run of this operator wrote it."""

    merge: bool = False
    """Merge a LoRA adapter into the base model and write the whole model."""


class FineTuneJobSpec(ApiModel):
    """What to tune, on what, how. Only `model` and `dataset` are required."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.workers) || type(self.workers.numProcPerNode) == string"
                " || !has(self.training) || self.training.globalBatchSize %"
                " (self.workers.numNodes * int(self.workers.numProcPerNode)) == 0",
                "spec.training.globalBatchSize must be a multiple of spec.workers.numNodes x "
                "spec.workers.numProcPerNode, so that every process gets the same share",
                ".training.globalBatchSize",
            ),
            rule(
                "!has(self.output) || !has(self.output.merge) || !self.output.merge"
                " || !has(self.method) || self.method.tuning == 'LoRA'",
                "spec.output.merge is only for spec.method.tuning: LoRA; remove it, a fully tuned "
                "model is written whole anyway",
                ".output.merge",
            ),
        )
    )

    profile: ObjectName | None = None
    """FineTuneProfile to run with. Default: the one that has `spec.default: true`."""

    model: ModelSource
    """The base model."""

    dataset: DatasetSource
    """The training data."""

    method: Method = Method()
    """What is learned, and which weights change."""

    training: Training = Training()
    """The optimisation."""

    workers: Workers = Workers()
    """How many pods and processes train."""

    zero: Zero = Zero()
    """How DeepSpeed shards the training state."""

    output: Output | None = None
    """Where the result goes. Default: the directory `output` of the job's own claim
    `<name>-work`, which is deleted with the job."""


class FineTuneJob(ApiModel):
    """A language model, tuned on your data: apply it, watch `kubectl get ftj -w`, collect the
    adapter or model from `status.output.uri`."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra=rules(
            rule(
                f"self.metadata.name.size() <= {MAX_NAME_LENGTH}"
                " && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
                f"metadata.name must have at most {MAX_NAME_LENGTH} characters, start with a "
                "letter and contain only lower-case letters, digits and '-': it becomes part of "
                "the names of a Service and of pods; choose a shorter or simpler name",
            ),
            rule(
                "!has(oldSelf.status) || !has(oldSelf.status.startTime)"
                " || self.spec == oldSelf.spec",
                "spec cannot be changed after the job has started; "
                "create a new FineTuneJob under another name",
            ),
        ),
    )

    api_version: Literal["finetune-operator.io/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: Literal["FineTuneJob"] = "FineTuneJob"
    spec: FineTuneJobSpec
    """What to tune, on what, how."""

    status: FineTuneJobStatus | None = None
    """What the operator says about the job; written by the operator only."""

"""`FineTuneJob`, as a person writes it and as the operator reports on it.

The text under each field is what `kubectl explain` shows. The CEL rules beside the classes are
enforced by the API server, so a wrong manifest is refused before anything runs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

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

    format: Literal["Auto", "Chat", "Instruction", "Text", "Preference"] = "Auto"
    """`Chat`: a list `messages` of `{role, content}`. `Instruction`: `prompt` and `completion` (or
    `instruction`, `input`, `output`). `Text`: `text`. `Preference`: `prompt`, `chosen` and
    `rejected` (DPO, ORPO) or `prompt`, `completion` and `label` (KTO). `Auto` looks at the first
    line. Only the assistant's words (Chat) and the completion (Instruction) are learned."""

    long_examples: Literal["Auto", "Truncate", "Drop", "Split"] = "Auto"
    """What becomes of examples longer than `spec.training.sequenceLength`: `Truncate` cuts their
    end off, `Drop` leaves them out, `Split` (text only) goes on in another sequence. All are
    counted in `status.dataset`. `Auto`: `Split` for continued pre-training (CPT), else
    `Truncate`."""

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
                "self.tuning != 'Full' || !has(self.lora)",
                "spec.method.lora is only for tuning: LoRA or QLoRA; remove spec.method.lora "
                "or set spec.method.tuning to LoRA",
                ".lora",
            ),
            rule(
                "self.objective in ['DPO', 'KTO', 'ORPO'] || !has(self.preference)",
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


class Retention(ApiModel):
    """Text that the model should not forget."""

    model_config = ConfigDict(
        json_schema_extra=_source_rules(
            _DATASET_URI,
            "evaluation.retention",
            "hf://owner/name[/file], pvc://claim/path/file.jsonl or configmap://name/key",
        )
    )

    uri: Uri
    """Where the text comes from, as in `spec.dataset.uri`; any format but Preference."""

    revision: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    """Commit, branch or tag of an `hf://` dataset. Default: the main branch."""

    secret_ref: LocalObjectReference | None = None
    """A Secret in this namespace whose key `token` is the access token for `hf://`."""

    max_examples: Annotated[int, Field(ge=1, le=100_000)] = 500
    """Examples used, from the start of the data: they are evaluated before and after training."""


class Evaluation(ApiModel):
    """Measuring beside training. The held-out part is measured before and after in any case."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.earlyStoppingPatience) || has(self.everySteps)",
                "spec.evaluation.earlyStoppingPatience counts evaluations; set "
                "spec.evaluation.everySteps too",
                ".earlyStoppingPatience",
            ),
        )
    )

    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Measure the loss on the held-out part after every so many optimizer steps, too; the
    checkpoint with the lowest one is the result. Default: only before and after."""

    early_stopping_patience: Annotated[int, Field(ge=1, le=1000)] | None = None
    """End training, as done, after so many evaluations in a row without a lower loss."""

    retention: Retention | None = None
    """General text that the model should not forget; its loss is reported before and after."""


class Checkpoints(ApiModel):
    """What a run that is interrupted goes on from."""

    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Save after every so many optimizer steps."""

    every_minutes: Annotated[int, Field(ge=1, le=10_080)] | None = None
    """Save when so many minutes have passed since the last one. Default: 15, where `everySteps`
    is not given either."""

    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """Newest checkpoints that are kept; the one with the lowest held-out loss is kept beside
    them."""

    resume: Literal["Auto", "Never"] = "Auto"
    """`Auto` goes on from the last valid checkpoint, `Never` starts from the beginning."""


class RestartPolicy(ApiModel):
    """How often training may start again. What is the user's to mend (a wrong setting, bad data,
    too little memory, divergence) ends the job at once."""

    max_restarts: Annotated[int, Field(ge=0, le=1000)] = 3
    """Failures of the platform (a worker killed, a lost connection, a hang) after which training
    goes on from the last checkpoint; also how many attempts in a row may get no further."""

    window_seconds: Annotated[int, Field(ge=60, le=31_536_000)] | None = None
    """Count only failures of the last so many seconds, for long runs. Default: all."""

    max_disruptions: Annotated[int, Field(ge=0, le=10_000)] = 100
    """Disruptions (preemption, drain, eviction, a lost node) after which training goes on; they do
    not count as restarts."""


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
                " || !has(self.method) || self.method.tuning != 'Full'",
                "spec.output.merge is only for spec.method.tuning: LoRA or QLoRA; remove it, a "
                "fully tuned model is written whole anyway",
                ".output.merge",
            ),
            rule(
                "!has(self.zero) || self.zero.offload != 'OptimizerAndParameters'"
                " || type(self.zero.stage) == string || int(self.zero.stage) == 3",
                "spec.zero.offload: OptimizerAndParameters needs spec.zero.stage 3 or Auto; lower "
                "stages keep all parameters on every GPU",
                ".zero.offload",
            ),
            rule(
                "!has(self.method) || self.dataset.format == 'Auto'"
                " || (self.method.objective in ['DPO', 'KTO', 'ORPO'])"
                " == (self.dataset.format == 'Preference')",
                "spec.dataset.format: Preference and spec.method.objective: DPO, KTO or ORPO "
                "belong together; change one",
                ".dataset.format",
            ),
            rule(
                "!has(self.method) || self.method.objective != 'CPT'"
                " || self.dataset.format in ['Auto', 'Text']",
                "spec.method.objective: CPT learns all of a text and needs spec.dataset.format: "
                "Text or Auto; for conversations use SFT",
                ".dataset.format",
            ),
            rule(
                "self.dataset.longExamples != 'Split'"
                " || (has(self.method) && self.method.objective in ['SFT', 'CPT']"
                " && self.dataset.format in ['Auto', 'Text']) || !has(self.method)",
                "spec.dataset.longExamples: Split is only for text; use Truncate or Drop",
                ".dataset.longExamples",
            ),
            rule(
                "!has(self.evaluation) || !has(self.evaluation.everySteps)"
                " || self.dataset.evalFraction > 0.0",
                "spec.evaluation.everySteps measures on held-out examples; set "
                "spec.dataset.evalFraction above 0",
                ".evaluation.everySteps",
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

    evaluation: Evaluation = Evaluation()
    """Measuring beside training."""

    checkpoints: Checkpoints = Checkpoints()
    """What a run that is interrupted goes on from."""

    suspend: bool = False
    """Stop, and keep everything: the workers save a checkpoint and their pods go; a job that has
    not started does not. Set it to false, and the job goes on from there. May be changed at any
    time."""

    active_deadline_seconds: Annotated[int, Field(ge=1, le=315_360_000)] | None = None
    """End the job as failed when it has been active for so long, all attempts together; the time
    while it is suspended does not count. Default: no limit. May be changed at any time."""

    startup_deadline_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = None
    """End the job as failed, and free what it holds, when the workers of an attempt do not all run
    after so long. Default: no limit. May be changed at any time."""

    restart_policy: RestartPolicy = RestartPolicy()
    """How often training may start again."""

    output: Output | None = None
    """Where the result goes. Default: the directory `output` of the job's own claim
    `<name>-work`, which is deleted with the job."""


CHANGEABLE = ("suspend", "active_deadline_seconds", "startup_deadline_seconds")
"""Fields of the spec that may change while a job is under way."""


def _unchanged() -> str:
    """CEL: every other field is as it was, or absent as it was."""
    fixed = [to_camel(name) for name in FineTuneJobSpec.model_fields if name not in CHANGEABLE]
    return " && ".join(
        f"has(self.spec.{field}) == has(oldSelf.spec.{field})"
        f" && (!has(self.spec.{field}) || self.spec.{field} == oldSelf.spec.{field})"
        for field in fixed
    )


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
                f"!has(oldSelf.status) || !has(oldSelf.status.startTime) || ({_unchanged()})",
                f"spec (but for {', '.join(map(to_camel, CHANGEABLE))}) cannot be changed after "
                "the job has started; create a new FineTuneJob under another name",
            ),
        ),
    )

    api_version: Literal["finetune-operator.io/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: Literal["FineTuneJob"] = "FineTuneJob"
    spec: FineTuneJobSpec
    """What to tune, on what, how."""

    status: FineTuneJobStatus | None = None
    """What the operator says about the job; written by the operator only."""

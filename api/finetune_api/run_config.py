"""`run.json`: what the stages of one job are told. Complete: nothing is left to guess.

The operator resolves a job and its profile into this; `prepare`, `train` and `export` read it.
Paths are inside the container (or, run by hand, on this machine).
"""

from __future__ import annotations

from typing import Literal

from finetune_api.base import ApiModel
from finetune_api.tracking import Tracker

WORK_MODEL = "model"
"""In the work directory: the base model as safetensors with tokenizer, written by prepare."""
WORK_DATA = "data"
"""In the work directory: tokenised and packed data, written by prepare."""
WORK_PREPARE_FACTS = "prepare.json"
"""In the work directory: `PrepareFacts`, written last by prepare."""
WORK_RETENTION = "retention"
"""In `data`: the split of the retention set."""
WORK_CHECKPOINTS = "checkpoints"
"""In the work directory: what an interrupted run goes on from."""
WORK_ATTEMPT = "train.attempt"
"""In the work directory: the word of the gang that started last; no other writes checkpoints."""
WORK_RESULT = "result"
"""In the work directory: what training leaves for export (adapter or model as safetensors)."""
WORK_TRAIN_FACTS = "train.json"
"""In the work directory: `TrainFacts`, written last by train."""
WORK_VERIFICATION = "verify.json"
"""In the work directory: `Verification`, what export proves the result by; written by train."""
WORK_LOSSES = "losses.jsonl"
"""In the work directory: one line per logged step, for the loss curve."""
WORK_TRACKING = "tracking"
"""In the work directory: what TensorBoard shows, what WandB could not send, MLflow's run."""
WORK_STACKS = "stacks"
"""In the work directory: where the processes stood when they hung, by attempt and rank."""
WORK_OUTPUT = "output"
"""In the work directory: the artefact, where the job names no other place."""

WORK_DATASET = "dataset"
"""In the work directory: the files of the dataset as they are; for a job's own trainer only."""

ENV_MODEL_DIR = "FINETUNE_MODEL_DIR"
ENV_DATASET_DIR = "FINETUNE_DATASET_DIR"
ENV_RESULT_DIR = "FINETUNE_RESULT_DIR"
ENV_CHECKPOINT_DIR = "FINETUNE_CHECKPOINT_DIR"
"""Variables with what a job's own trainer reads, leaves, and may go on from."""
ENV_RUN = "FINETUNE_RUN"
"""Variable with the path of `run.json`, for a job's own trainer."""
ENV_ATTEMPT = "FINETUNE_ATTEMPT"
"""Variable with the number of the attempt, counted from 0."""
ENV_HEARTBEAT = "FINETUNE_HEARTBEAT"
"""Variable with the file that `launch` touches while it runs: the liveness probe looks at it."""


class SourceConfig(ApiModel):
    """A model or dataset."""

    uri: str
    """As in the manifest."""

    path: str | None = None
    """Where it is mounted (`pvc://`, `configmap://`, local); None: fetch it (`hf://`)."""

    revision: str | None = None
    """Commit, branch or tag (`hf://`); None: the main branch."""


class LoraConfig(ApiModel):
    """As in `FineTuneJob.spec.method.lora`."""

    rank: int
    alpha: int
    dropout: float
    target_modules: list[str]
    """Layer names, or `["all-linear"]`."""
    use_rslora: bool = False
    use_dora: bool = False
    modules_to_save: list[str] = []


class PreferenceConfig(ApiModel):
    """As in `FineTuneJob.spec.method.preference`."""

    beta: float
    desirable_weight: float
    undesirable_weight: float


class EvaluationConfig(ApiModel):
    """As in `FineTuneJob.spec.evaluation`."""

    every_steps: int | None = None
    early_stopping_patience: int | None = None
    retention: SourceConfig | None = None
    retention_max_examples: int = 500


class CheckpointConfig(ApiModel):
    """As in `FineTuneJob.spec.checkpoints`."""

    every_steps: int | None = None
    every_minutes: int | None = None
    keep: int = 2
    resume: bool = True


class HangConfig(ApiModel):
    """As in `FineTuneJob.spec.hangPolicy`; None: the watchdog's own budget."""

    report_only: bool = False
    """Say that a process hangs, and let it."""
    training_seconds: int | None = None
    loading_seconds: int | None = None
    evaluating_seconds: int | None = None
    checkpointing_seconds: int | None = None


class TrackingConfig(ApiModel):
    """As in `FineTuneJob.spec.tracking`."""

    report_to: list[Tracker]
    project: str


class MemoryLimit(ApiModel):
    """What one training process has, where the profile says so."""

    accelerator_bytes: int | None = None
    """Memory of one GPU; on a CPU the process's share of the pod's memory limit."""
    host_bytes: int | None = None
    """The process's share of the pod's memory limit: what offloading can use."""


PREFERENCES = ("DPO", "KTO", "ORPO")
"""Objectives that learn from preferences; the others learn the next token of a text."""

AutoField = Literal["microBatchSize", "gradientCheckpointing", "zeroStage", "offload"]


class TrainingConfig(ApiModel):
    """As in `FineTuneJob.spec.training`, resolved."""

    epochs: float | None
    """Passes over the data; None: `max_steps` counts."""
    max_steps: int | None
    """Optimizer steps; None: `epochs` counts."""
    learning_rate: float
    schedule: Literal["Cosine", "Linear", "Constant"]
    warmup_fraction: float
    weight_decay: float
    max_grad_norm: float
    global_batch_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    sequence_length: int
    packing: bool
    precision: Literal["BF16", "FP32"]
    gradient_checkpointing: bool
    seed: int


class RunConfig(ApiModel):
    """Everything that the trainer needs to know."""

    schema_version: Literal[1] = 1
    namespace: str
    name: str
    uid: str
    model: SourceConfig
    dataset: SourceConfig
    dataset_format: Literal["Auto", "Chat", "Instruction", "Text", "Preference"]
    long_examples: Literal["Truncate", "Drop", "Split"] = "Truncate"
    eval_fraction: float
    """Part of the examples held out."""
    objective: Literal["SFT", "CPT", "DPO", "KTO", "ORPO"]
    preference: PreferenceConfig | None = None
    """Set if and only if `objective` is DPO, KTO or ORPO."""
    tuning: Literal["Full", "LoRA", "QLoRA"]
    lora: LoraConfig | None
    """Set if and only if `tuning` is LoRA or QLoRA."""
    training: TrainingConfig
    num_nodes: int
    num_proc_per_node: int
    zero_stage: Literal[1, 2, 3]
    offload: Literal["None", "Optimizer", "OptimizerAndParameters"] = "None"
    auto: list[AutoField] = []
    """What prepare may change for the model to fit into memory: the job says `Auto`, and what
    stands here is the first choice."""
    resolved: bool = False
    """Every `Auto` is decided here, for another number of nodes than prepare has decided for."""
    memory: MemoryLimit = MemoryLimit()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    hang: HangConfig = HangConfig()
    tracking: TrackingConfig | None = None
    accelerator: Literal["CUDA", "CPU"]
    work_dir: str
    """The job's own directory, seen by all its pods."""
    output_uri: str
    """Where the result goes, for people."""
    output_dir: str
    """Where the result goes, as a path."""
    allow_remote_code: bool = False
    """The platform permits to run Python code that comes with the model."""
    merge: bool
    own_trainer: bool = False
    """The job brings its own script (`spec.trainer`): prepare fetches only, export takes what it
    finds in the result."""

    @property
    def highest_stage(self) -> Literal[2, 3]:
        """ZeRO stage: 3 shards neither 4-bit weights (QLoRA) nor what DoRA computes with."""
        dora = self.lora is not None and self.lora.use_dora
        return 2 if dora or self.tuning == "QLoRA" else 3

    @property
    def world_size(self) -> int:
        """Training processes in all."""
        return self.num_nodes * self.num_proc_per_node

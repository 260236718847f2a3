"""`FineTuneJob.status`: what the operator says about a job."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.base import ApiModel
from finetune_api.outcome import FailureClass, LengthBin
from finetune_api.profile_limits import ProfileRetention
from finetune_api.sizes import ModelShape
from finetune_api.usage import Usage

Phase = Literal[
    "Pending",
    "Preparing",
    "Starting",
    "Running",
    "Suspended",
    "Restarting",
    "Exporting",
    "Succeeded",
    "Failed",
]
PHASES: tuple[Phase, ...] = get_args(Phase)
TERMINAL_PHASES: frozenset[Phase] = frozenset({"Succeeded", "Failed"})

Activity = Literal["Loading", "Training", "Evaluating", "Checkpointing", "Saving", "Done"]

MAX_MESSAGE = 4096
MAX_HISTORY = 50

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"}, max_length=64)]
Message = Annotated[str, StringConstraints(max_length=MAX_MESSAGE)]
ShortText = Annotated[str, StringConstraints(max_length=1024)]
Count = Annotated[int, Field(ge=0, le=9_007_199_254_740_991)]


class Condition(ApiModel):
    """One aspect of the state, in the form of Kubernetes' own conditions."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    """`Validated`, `Prepared`, `Trained`, `Exported`, `Complete`, `Failed`, `Waiting` (why it does
    not run) or `ProgressReported`."""

    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    """Why, in one word."""

    message: Message
    """Why, in a sentence."""

    last_transition_time: Time
    """When `status` last changed; of `Waiting`, when `status` or `reason` did."""

    observed_generation: Count
    """The generation of the spec that this is about."""


class HistoryPoint(ApiModel):
    """One point of the loss curve."""

    step: Count
    """Optimizer step."""

    loss: float
    """Training loss, mean over the tokens of the step."""


class Progress(ApiModel):
    """How far the training is, as reported by rank 0."""

    attempt: Count
    """The attempt that reported."""

    step: Count | None = None
    """Optimizer steps done."""

    total_steps: Count | None = None
    """Optimizer steps in all."""

    epoch: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    """Passes over the data so far."""

    percent: Annotated[int, Field(ge=0, le=100)] = 0
    """Steps done, in percent."""

    eta_seconds: Count | None = None
    """Estimated seconds until training ends."""

    seconds_per_step: Annotated[float, Field(ge=0, le=1_000_000_000)] | None = None
    """Mean seconds from one optimizer step to the next in this attempt, by when they were reported;
    until two were, those of the attempt before."""

    first_step: Count | None = None
    """The first step above 0 that this attempt has reported ..."""

    first_step_time: Time | None = None
    """... and when."""

    loss: float | None = None
    """Training loss of the last logged step."""

    eval_loss: float | None = None
    """Last loss on the held-out part."""

    learning_rate: float | None = None
    """Learning rate of the last logged step."""

    grad_norm: float | None = None
    """Global gradient norm before clipping."""

    tokens_per_second: float | None = None
    """Tokens trained on per second, over all workers."""

    save_seconds: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    """Seconds that the workers need at most to end with a checkpoint, as measured in this attempt:
    the steps or the evaluation under way, and the slowest checkpoint so far."""

    step_time: Time | None = None
    """When `step` was first reported."""

    checkpoint_step: Count | None = None
    """Step of the last checkpoint that is complete; of one that the attempt went on from, too."""

    checkpoint_time: Time | None = None
    """When it was first reported."""

    checkpoint_seconds: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    """Seconds from its beginning until it was complete; training goes on meanwhile."""

    checkpoint_stalled_seconds: Annotated[float, Field(ge=0, le=1_000_000_000)] | None = None
    """Seconds that training stood still for all checkpoints of this attempt."""

    activity: Activity | None = None
    """What the workers are doing."""

    stalled_seconds: Count | None = None
    """For how long they have not got on, where `spec.hangPolicy.action` is `Report` and it is too
    long."""

    last_update_time: Time
    """When the last report came that is in here. It is written every 30 seconds (less often where
    more than 300 jobs report), and at once when the activity changes."""

    history: Annotated[list[HistoryPoint], Field(max_length=MAX_HISTORY)] = []
    """At most 50 points of the loss curve, evenly thinned."""


class DatasetFacts(ApiModel):
    """What prepare found in the data."""

    examples: Count
    """Examples to train on."""

    eval_examples: Count
    """Examples held out."""

    tokens: Count
    """Tokens to train on, padding not counted."""

    trained_tokens: Count
    """Tokens whose prediction is learned."""

    sequences: Count
    """Sequences after packing."""

    duplicate_examples: Count = 0
    """Examples that are word for word another one."""

    dropped_examples: Count = 0
    """Examples left out: too long (by choice), or with nothing left to learn."""

    split_examples: Count = 0
    """Examples that go on in another sequence."""

    truncated_fraction: Annotated[float, Field(ge=0, le=1)]
    """Part of the examples that were longer than the sequence length and cut."""

    packing_efficiency: Annotated[float, Field(ge=0, le=1)]
    """Real tokens per token computed."""

    lengths: Annotated[list[LengthBin], Field(max_length=12)] = []
    """Histogram of the examples' lengths before anything was cut."""

    samples: Annotated[
        list[Annotated[str, StringConstraints(max_length=300)]], Field(max_length=3)
    ] = []
    """The first examples as training sees them, their beginnings: what is learned stands between
    ⟦ and ⟧."""

    format: Literal["Chat", "Instruction", "Text", "Preference"]
    """The format that was found."""


class Resolved(ApiModel):
    """Every `Auto` and default as decided for this run."""

    profile: ShortText | None = None
    """The profile, as it was when the job started."""

    defaults: Annotated[dict[str, ShortText], Field(max_length=128)] | None = None
    """What the job took from the profile's `spec.defaults`: JSON by the field's path."""

    retention: ProfileRetention | None = None
    """How long the profile lets finished jobs be kept."""

    image: ShortText | None = None
    """The trainer image."""

    objective: ShortText | None = None
    """What is learned (`spec.method.objective`)."""

    tuning: ShortText | None = None
    """Which weights change (`spec.method.tuning`)."""

    num_nodes: Count | None = None
    """Worker pods of the current attempt."""

    num_proc_per_node: Count | None = None
    """Training processes per worker."""

    zero_stage: Count | None = None
    """DeepSpeed ZeRO stage."""

    micro_batch_size: Count | None = None
    """Sequences per forward pass of one process."""

    gradient_accumulation_steps: Count | None = None
    """Forward passes per optimizer step."""

    offload: ShortText | None = None
    """What lies in the memory of the node instead of the GPU's."""

    gradient_checkpointing: bool | None = None
    """Whether activations are computed again in the backward pass."""

    memory_gib: Annotated[float, Field(ge=0, le=1_000_000)] | None = Field(None, alias="memoryGiB")
    """Estimated memory of one training process, on its GPU (on a CPU: in its pod)."""

    grace_period_seconds: Count | None = None
    """How long the workers of the current attempt get to save when they are asked to stop."""

    total_steps: Count | None = None
    """Optimizer steps in all."""

    model_revision: ShortText | None = None
    """Commit of an `hf://` model."""

    dataset_revision: ShortText | None = None
    """Commit of an `hf://` dataset."""

    long_examples: ShortText | None = None
    """What happens to examples that are longer than the sequence length."""

    checkpoint_minutes: Count | None = None
    """Minutes from one checkpoint to the next, where they are saved by time."""

    output_uri: ShortText | None = None
    """Where the result goes."""

    parameters: Count | None = None
    """Parameters of the base model."""

    shape: ModelShape | None = None
    """What memory depends on in the base model: to decide anew for another number of nodes."""

    max_restarts: Count | None = None
    """Failures of the platform after which training goes on (`spec.restartPolicy.maxRestarts`)."""

    attention: Literal["Flash", "Masked"] | None = None
    """The attention that the estimate counts with."""


class OutputStatus(ApiModel):
    """Where the result is, and the proof that it is whole."""

    uri: ShortText
    """Where the result was written."""

    digest: Annotated[str, StringConstraints(max_length=128)]
    """`sha256:` of the list of files and their hashes (`manifest.json` beside them)."""

    bytes: Count
    """Size of all files."""

    eval_loss_before: float | None = None
    """Loss of the base model on the held-out part."""

    eval_loss_after: float | None = None
    """Loss of the tuned model on the held-out part."""

    retention_loss_before: float | None = None
    """Loss of the base model on the retention set."""

    retention_loss_after: float | None = None
    """Loss of the tuned model on the retention set: how much it forgot."""


class LastFailure(ApiModel):
    """Why the job, or its last attempt, failed, and where."""

    model_config = ConfigDict(protected_namespaces=())

    failure_class: FailureClass = Field(alias="class")
    """Whose problem it is: `Configuration`, `Data`, `Model`, `OutOfMemory` and `Diverged` are the
    job's, the others the platform's."""

    stage: Literal["prepare", "train", "export"] | None = None
    """The stage that failed."""

    message: Message
    """What happened and what to do."""

    rank: Count | None = None
    """The process that failed first."""

    node: ShortText | None = None
    """The Kubernetes node it ran on."""

    pod: ShortText | None = None
    """The pod it ran in."""

    exit_code: Annotated[int, Field(ge=0, le=255)] | None = None
    """Exit code of its container."""

    log_tail: Message | None = None
    """The last lines it printed."""

    time: Time
    """When it failed."""


class RestartEntry(ApiModel):
    """One attempt that ended without success."""

    model_config = ConfigDict(protected_namespaces=())

    attempt: Count
    """The attempt."""

    cause: Literal["User", "Platform", "Disruption"]
    """Whose fault it was: `User` ends the job, the others have budgets of their own."""

    failure_class: FailureClass = Field(alias="class")
    """What happened."""

    node: ShortText | None = None
    """The node of the process that failed first."""

    step: Count | None = None
    """The last step that it reported."""

    time: Time
    """When it was seen to have ended."""


class Restarts(ApiModel):
    """Attempts that ended without success."""

    counted: Count = 0
    """Failures of the platform: they spend `spec.restartPolicy.maxRestarts`."""

    disruptions: Count = 0
    """Preemptions, drains and lost nodes: they spend `spec.restartPolicy.maxDisruptions`."""

    hangs: Count = 0
    """Attempts, of all these, that ended because they did not get on."""

    history: Annotated[list[RestartEntry], Field(max_length=50)] = []
    """The last 50, oldest first."""


class ExcludedNode(ApiModel):
    """A node that the workers of this job keep off."""

    node: ShortText
    """Its name."""

    reason: ShortText
    """Which attempts failed on it."""

    until: Time
    """Attempts that start later may use it again."""


class StageTimes(ApiModel):
    """When each stage began and ended."""

    name: Literal["prepare", "train", "export"]
    """The stage."""

    start_time: Time
    """When its Kubernetes Job started."""

    completion_time: Time | None = None
    """When its Kubernetes Job ended."""


class FineTuneJobStatus(ApiModel):
    """What the operator says about the job."""

    observed_generation: Count | None = None
    """The generation of the spec that this status is about."""

    phase: Phase | None = None
    """Where the job is in its life."""

    message: Message | None = None
    """The phase in a sentence; while waiting, what for."""

    conditions: Annotated[list[Condition], Field(max_length=16)] = []
    """`Complete` and `Failed` are final: `kubectl wait --for=condition=Complete ftj/NAME`."""

    start_time: Time | None = None
    """When the operator started the job; from here on the spec is fixed."""

    settings_digest: Annotated[str, StringConstraints(max_length=80)] | None = None
    """SHA-256 of what the job started with, which its ConfigMap `<name>-run` holds: another
    ConfigMap under that name, whoever made it, is not believed."""

    completion_time: Time | None = None
    """When the job ended."""

    suspend_time: Time | None = None
    """Since when it is suspended."""

    suspended_seconds: Count | None = None
    """How long it was suspended before that, since it started."""

    attempt: Count | None = None
    """The current attempt to train, counted from 0."""

    restarts: Restarts | None = None
    """Attempts that ended without success."""

    excluded_nodes: Annotated[list[ExcludedNode], Field(max_length=50)] = []
    """Nodes that the current attempt keeps off, because earlier ones failed on them."""

    stages: Annotated[list[StageTimes], Field(max_length=3)] = []
    """When each stage began and ended."""

    phase_seconds: Annotated[dict[Phase, Count], Field(max_length=len(PHASES))] = {}
    """Seconds that the job has spent in each phase, the present one left out."""

    phase_time: Time | None = None
    """Since when it is in its phase."""

    usage: Usage | None = None
    """What the workers have held, and what became of it."""

    progress: Progress | None = None
    """How far the training is."""

    resolved: Resolved | None = None
    """Every `Auto` and default as decided for this run."""

    dataset: DatasetFacts | None = None
    """What prepare found in the data."""

    output: OutputStatus | None = None
    """Where the result is."""

    last_failure: LastFailure | None = None
    """Why the job, or its last attempt, failed, and where."""

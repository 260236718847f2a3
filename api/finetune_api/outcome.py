"""How a container ends: exit codes, failure classes and the JSON in its termination message.

1 to 127 is the user's to mend, so the same run would fail again; 128 to 255 is the platform's.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Literal, get_args

from pydantic import Field, StringConstraints, ValidationError

from finetune_api.base import ApiModel
from finetune_api.sizes import Attention, ModelShape

FailureClass = Literal[
    "Configuration",
    "Data",
    "Model",
    "OutOfMemory",
    "Diverged",
    "Stopped",
    "Internal",
    "Hang",
    "PeerLost",
    "Killed",
    "DeadlineExceeded",
    "AllowanceUsedUp",
]
FAILURE_CLASSES: tuple[str, ...] = get_args(FailureClass)

MAX_LINEARS = 12
"""Kinds of linear layers that the facts of prepare have room for: a dense model has 4 to 7, one
with experts or with two sorts of layers about twice as many."""
MAX_TERMINATION_MESSAGE = 4096
"""Bytes that the kubelet keeps of a container's termination message."""


class ExitCode(IntEnum):
    """What the trainer's processes end with."""

    OK = 0
    CONFIGURATION = 10
    DATA = 11
    MODEL = 12
    OUT_OF_MEMORY = 13
    DIVERGED = 14
    STOPPED = 143
    INTERNAL = 203
    HANG = 204
    PEER_LOST = 205


EXIT_CODES: dict[FailureClass, ExitCode] = {
    "Configuration": ExitCode.CONFIGURATION,
    "Data": ExitCode.DATA,
    "Model": ExitCode.MODEL,
    "OutOfMemory": ExitCode.OUT_OF_MEMORY,
    "Diverged": ExitCode.DIVERGED,
    "Stopped": ExitCode.STOPPED,
    "Internal": ExitCode.INTERNAL,
    "Hang": ExitCode.HANG,
    "PeerLost": ExitCode.PEER_LOST,
}
"""`Killed` has no code of its own: the process died of a signal, 128 + its number. Neither have
`DeadlineExceeded` and `AllowanceUsedUp`: the operator ended the job."""


class Estimate(ApiModel):
    """Memory of one training process by the model of `finetune_api.memory`, in bytes."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    """Of communication, and what the libraries take."""
    total: int
    """On the accelerator."""
    host: int = 0
    """In the node's memory, by offloading."""


class ResolvedTraining(ApiModel):
    """What prepare has decided, where the job says `Auto`; elsewhere what the job says."""

    zero_stage: Literal[1, 2, 3]
    offload: Literal["None", "Optimizer", "OptimizerAndParameters"]
    micro_batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool


class LengthBin(ApiModel):
    """One bar of the histogram of token lengths."""

    up_to: Annotated[int, Field(ge=0, le=9_007_199_254_740_991)]
    """Longest example in it, in tokens."""

    examples: Annotated[int, Field(ge=0, le=9_007_199_254_740_991)]
    """Examples in it."""


class PrepareFacts(ApiModel):
    """What prepare leaves for the status and for training."""

    parameters: int
    """Parameters of the base model."""

    architecture: str
    """Class of the model in transformers."""

    model_revision: str | None = None
    """Commit of an `hf://` model."""

    dataset_revision: str | None = None
    """Commit of an `hf://` dataset."""

    format: Literal["Chat", "Instruction", "Text", "Preference"]
    """Format of the data."""

    examples: int
    """Examples to train on."""

    eval_examples: int
    """Examples held out."""

    tokens: int
    """Tokens to train on, padding not counted."""

    trained_tokens: int
    """Tokens whose prediction is learned."""

    sequences: int
    """Sequences after packing."""

    truncated_examples: int
    """Examples that were cut at the sequence length."""

    dropped_examples: int = 0
    """Examples left out: too long (by choice), or with nothing left to learn."""

    split_examples: int = 0
    """Examples that go on in another sequence."""

    duplicate_examples: int = 0
    """Examples that are word for word another one; they are trained on all the same."""

    lengths: list[LengthBin] = []
    """Histogram of the examples' lengths before anything is cut, at most 12 bars."""

    samples: list[str] = []
    """The first examples as training sees them, what is learned between ⟦ and ⟧, cut short."""

    retention_examples: int = 0
    """Examples of the retention set."""

    resolved: ResolvedTraining | None = None
    """Every `Auto` that depends on the model."""

    estimate: Estimate | None = None
    """What one training process will need."""

    shape: ModelShape | None = None
    """What memory depends on in the model: for another number of nodes it is decided anew. Not
    told with more than `MAX_LINEARS` kinds of linear layers, the message has no room for it."""

    attention: Attention = "Masked"
    """What the estimate counts with."""

    packing_efficiency: float
    """Real tokens per token computed, 0 to 1."""

    total_steps: int
    """Optimizer steps of the whole run."""


class FetchFacts(ApiModel):
    """What prepare leaves where the job brings its own trainer: data are not looked into."""

    parameters: int
    """Parameters of the base model."""

    architecture: str
    """Class of the model in transformers."""

    model_revision: str | None = None
    """Commit of an `hf://` model."""

    dataset_revision: str | None = None
    """Commit of an `hf://` dataset."""

    files: int
    """Files of the dataset."""

    bytes: int
    """Their size."""


class TrainFacts(ApiModel):
    """What rank 0 leaves when training is done."""

    step: int
    """Optimizer steps done."""

    total_steps: int
    """Optimizer steps of the whole run."""

    loss: float
    """Training loss of the last step."""

    eval_loss_before: float | None = None
    """Loss on the held-out part before the first step."""

    eval_loss_after: float | None = None
    """Loss on the held-out part of the result."""

    retention_loss_before: float | None = None
    """Loss on the retention set before the first step."""

    retention_loss_after: float | None = None
    """Loss on the retention set of the result."""

    best_step: int | None = None
    """The step whose weights are the result, where it is not the last one."""

    stopped_early: bool = False
    """Ended by `earlyStoppingPatience` before the last step; this is success too."""

    resumed_from: int | None = None
    """The step of the checkpoint that this attempt went on from."""

    @property
    def complete(self) -> bool:
        """Whether training reached its end: success needs it, whatever the exit code."""
        return self.stopped_early or self.step >= self.total_steps

    tokens: int
    """Tokens trained on."""

    tokens_per_second: float
    """Over all workers, evaluation not counted."""

    duration_seconds: float
    """From the first step to the last."""


class ExportFacts(ApiModel):
    """What export leaves when the artefact is written, reloaded and checked."""

    digest: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    """Of `manifest.json`, which lists every other file with size and hash."""

    bytes: int
    """Size of all files."""

    files: int
    """Number of files."""

    tensors: int
    """Tensors that were reloaded and found finite and non-empty."""

    reproduced_loss: float | None = None
    """Loss of some held-out examples, computed again from the files: it is what training had."""

    eval_loss_before: float | None = None
    """Taken over from training."""

    eval_loss_after: float | None = None
    """Taken over from training."""


class Failure(ApiModel):
    """Why a process failed."""

    failure_class: FailureClass = Field(alias="class")
    """Whose problem it is."""

    message: str
    """What happened and what to do."""

    rank: int | None = None
    """The process that failed first, counted over all workers."""

    step: int | None = None
    """Optimizer steps done by then."""

    time: float
    """Seconds since the epoch: the earliest failure of a gang is the cause of the others."""

    log_tail: str | None = None
    """The last lines printed."""


class Outcome(ApiModel):
    """The termination message of a stage's container: exactly one field is set."""

    prepare: PrepareFacts | None = None
    fetch: FetchFacts | None = None
    train: TrainFacts | None = None
    export: ExportFacts | None = None
    failure: Failure | None = None

    def to_message(self) -> str:
        """JSON of at most 4096 bytes; the log tail and then the message are cut to fit."""
        text = self._dump()
        failure = self.failure
        if failure is None:
            return text
        for field in ("log_tail", "message"):
            excess = len(text.encode()) - MAX_TERMINATION_MESSAGE
            value = getattr(failure, field)
            if excess <= 0 or not value:
                continue
            kept = _shorten(value, excess, keep_end=field == "log_tail")
            failure = failure.model_copy(update={field: kept})
            text = Outcome(failure=failure)._dump()
        return text

    def _dump(self) -> str:
        return self.model_dump_json(by_alias=True, exclude_none=True)

    @staticmethod
    def from_message(text: str | None) -> Outcome | None:
        """Read a termination message; None where it is not ours (a log tail, or empty)."""
        try:
            return Outcome.model_validate_json(text or "")
        except ValidationError:
            return None


def _shorten(value: str, excess: int, keep_end: bool) -> str:
    """Drop characters until JSON shrinks by `excess` bytes; ends on the safe side.

    One character takes 1 to 6 bytes in JSON, so dropping by halves converges fast enough.
    """
    size = _json_size(value)
    while value and _json_size(value) > size - excess:
        drop = max(1, len(value) // 8)
        value = value[drop:] if keep_end else value[:-drop]
    return value


def _json_size(value: str) -> int:
    return len(Failure(**{"class": "Internal"}, message=value, time=0).model_dump_json().encode())

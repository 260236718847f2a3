"""`FineTuneJob`, as a person writes it and as the operator reports on it.

The text under each field is what `kubectl explain` shows. The CEL rules beside the classes are
enforced by the API server, so a wrong manifest is refused before anything runs.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_api.base import API_VERSION, ApiModel, rule, rules
from finetune_api.lifecycle import (
    Checkpoints,
    Evaluation,
    HangPolicy,
    RestartPolicy,
    TtlSecondsAfterFinished,
)
from finetune_api.method import Method, Training, Workers, Zero
from finetune_api.own_trainer import OwnTrainer
from finetune_api.sources import DatasetSource, ModelSource, ObjectName, Output
from finetune_api.status import FineTuneJobStatus
from finetune_api.tracking import Tracking

MAX_NAME_LENGTH = 48
"""A job's name is part of the host name `<name>-train-<attempt>-<index>`, at most 63 characters."""


class FineTuneJobSpec(ApiModel):
    """What to tune, on what, how. Only `model` and `dataset` are required."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.trainer) || !has(self.workers) || !has(self.workers.numNodes)"
                " || !has(self.workers.numProcPerNode)"
                " || type(self.workers.numProcPerNode) == string"
                " || !has(self.training) || !has(self.training.globalBatchSize)"
                " || self.training.globalBatchSize %"
                " (self.workers.numNodes * int(self.workers.numProcPerNode)) == 0",
                "spec.training.globalBatchSize must be a multiple of spec.workers.numNodes x "
                "spec.workers.numProcPerNode, so that every process gets the same share",
                ".training.globalBatchSize",
            ),
            rule(
                "!has(self.output) || !has(self.output.merge) || !self.output.merge"
                " || !has(self.method) || !has(self.method.tuning)"
                " || self.method.tuning != 'Full'",
                "spec.output.merge is only for spec.method.tuning: LoRA or QLoRA; remove it, a "
                "fully tuned model is written whole anyway",
                ".output.merge",
            ),
            rule(
                "!has(self.trainer) || !has(self.output) || !has(self.output.merge)"
                " || !self.output.merge",
                "spec.output.merge is for the built-in training; with spec.trainer, leave the "
                "merged model in $FINETUNE_RESULT_DIR and remove it",
                ".output.merge",
            ),
            rule(
                "!has(self.zero) || !has(self.zero.offload)"
                " || self.zero.offload != 'OptimizerAndParameters' || !has(self.zero.stage)"
                " || type(self.zero.stage) == string || int(self.zero.stage) == 3",
                "spec.zero.offload: OptimizerAndParameters needs spec.zero.stage 3 or Auto; lower "
                "stages keep all parameters on every GPU",
                ".zero.offload",
            ),
            rule(
                "!has(self.method) || !has(self.method.objective)"
                " || !has(self.dataset.format) || self.dataset.format == 'Auto'"
                " || (self.method.objective in ['DPO', 'KTO', 'ORPO'])"
                " == (self.dataset.format == 'Preference')",
                "spec.dataset.format: Preference and spec.method.objective: DPO, KTO or ORPO "
                "belong together; change one",
                ".dataset.format",
            ),
            rule(
                "!has(self.method) || !has(self.method.objective)"
                " || self.method.objective != 'CPT' || !has(self.dataset.format)"
                " || self.dataset.format in ['Auto', 'Text']",
                "spec.method.objective: CPT learns all of a text and needs spec.dataset.format: "
                "Text or Auto; for conversations use SFT",
                ".dataset.format",
            ),
            rule(
                "!has(self.dataset.longExamples) || self.dataset.longExamples != 'Split'"
                " || ((!has(self.method) || !has(self.method.objective)"
                " || self.method.objective in ['SFT', 'CPT'])"
                " && (!has(self.dataset.format) || self.dataset.format in ['Auto', 'Text']))",
                "spec.dataset.longExamples: Split is only for text; use Truncate or Drop",
                ".dataset.longExamples",
            ),
            rule(
                "!has(self.tracking) || !has(self.trainer)",
                "spec.tracking is for the built-in training; remove it, and let your own script "
                "report: its variables go into spec.trainer.env",
                ".tracking",
            ),
            rule(
                "!has(self.evaluation) || !has(self.evaluation.everySteps)"
                " || !has(self.dataset.evalFraction) || self.dataset.evalFraction > 0.0",
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

    trainer: OwnTrainer | None = None
    """Your own script in place of the built-in training. What `method`, `training`, `zero`,
    `evaluation`, `checkpoints` and `hangPolicy` say is then only passed on, in `run.json`."""

    service_account_name: ObjectName | None = None
    """Service account of the job's pods, for example for a cloud identity; only where the profile's
    `limits.serviceAccounts` has it. The pods get no token for the API server. Default: the
    profile's."""

    workers: Workers = Workers()
    """How many pods and processes train."""

    zero: Zero = Zero()
    """How DeepSpeed shards the training state."""

    evaluation: Evaluation = Evaluation()
    """Measuring beside training."""

    checkpoints: Checkpoints = Checkpoints()
    """What a run that is interrupted goes on from."""

    tracking: Tracking | None = None
    """TensorBoard, MLflow, Weights & Biases. Default: the status, Prometheus and the model card
    only."""

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

    ttl_seconds_after_finished: TtlSecondsAfterFinished | None = None
    """Delete the job so long after it has finished; only a finished job has a TTL. Default: it is
    kept. May be changed at any time, also when it has finished."""

    restart_policy: RestartPolicy = RestartPolicy()
    """How often training may start again."""

    hang_policy: HangPolicy = HangPolicy()
    """When a training no longer gets on, and what happens then."""

    output: Output | None = None
    """Where the result goes. Default: the directory `output` of the job's own claim
    `<name>-work`, which is deleted with the job."""


CHANGEABLE = (
    "suspend",
    "active_deadline_seconds",
    "startup_deadline_seconds",
    "ttl_seconds_after_finished",
)
"""Fields of the spec that may change while a job is under way."""


def _same_spec() -> str:
    """CEL: nothing of the spec has changed. Asked first: every write of a status is checked by the
    rules of the whole job, and the API server looks each field up by the schema of all."""
    return "self.spec == oldSelf.spec"


def _started() -> str:
    """CEL: the job had started before this change."""
    return "has(oldSelf.status) && has(oldSelf.status.startTime)"


def _unchanged() -> str:
    """CEL: every other field is as it was, or absent as it was; `workers` has a rule of its own."""
    own = (*CHANGEABLE, "workers")
    fixed = [to_camel(name) for name in FineTuneJobSpec.model_fields if name not in own]
    return " && ".join(
        f"has(self.spec.{field}) == has(oldSelf.spec.{field})"
        f" && (!has(self.spec.{field}) || self.spec.{field} == oldSelf.spec.{field})"
        for field in fixed
    )


def _size_unchanged() -> str:
    """CEL: the workers are as they were, but for their number where the job was suspended: by its
    status, so that no attempt is under way, and by its spec, so that none is about to be."""
    wanted = " || ".join(
        f"(has({s}.spec.suspend) && {s}.spec.suspend)" for s in ("oldSelf", "self")
    )
    held = f"has(oldSelf.status.phase) && oldSelf.status.phase == 'Suspended' && ({wanted})"
    return f"{_same('numProcPerNode')} && ({_same('numNodes')} || ({held}))"


def _same(field: str) -> str:
    """CEL: a field of the workers is as it was, or absent as it was."""
    new, old = "self.spec.workers", "oldSelf.spec.workers"
    there, before = (f"(has({of}) && has({of}.{field}))" for of in (new, old))
    return f"{there} == {before} && (!{there} || {new}.{field} == {old}.{field})"


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
                f"{_same_spec()} || !({_started()}) || ({_unchanged()})",
                f"spec (but for {', '.join(map(to_camel, CHANGEABLE))}, and workers.numNodes while "
                "the job is Suspended) cannot be changed after the job has started; create a new "
                "FineTuneJob under another name",
            ),
            rule(
                f"{_same_spec()} || !({_started()}) || ({_size_unchanged()})",
                "spec.workers.numNodes can be changed only while the job is Suspended, and the "
                "rest of spec.workers not after it has started; set spec.suspend to true, wait for "
                "the phase Suspended, change it, and set spec.suspend to false",
                ".spec.workers",
            ),
            rule(
                "!has(self.spec.ttlSecondsAfterFinished)"
                " || !has(self.spec.ttlSecondsAfterFinished.succeeded) || (has(self.spec.output)"
                " && !self.spec.output.uri.startsWith('pvc://' + self.metadata.name + '-work/'))",
                "spec.ttlSecondsAfterFinished.succeeded would delete the result, which is in the "
                "job's own claim; set spec.output.uri to a claim of your own (pvc://claim/path), "
                "or remove succeeded",
                ".spec.ttlSecondsAfterFinished.succeeded",
            ),
        ),
    )

    api_version: Literal["finetune-operator.io/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: Literal["FineTuneJob"] = "FineTuneJob"
    spec: FineTuneJobSpec
    """What to tune, on what, how."""

    status: FineTuneJobStatus | None = None
    """What the operator says about the job; written by the operator only."""

"""From a job and its profile to `run.json`: every `Auto` and default is decided here.

The operator does it for a cluster, `finetune run` and `make demo LOCAL=1` for one machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from finetune_api import names
from finetune_api.limits import processes
from finetune_api.method import Lora, Preference, Training
from finetune_api.profile import FineTuneProfileSpec
from finetune_api.run_config import (
    PREFERENCES,
    WORK_OUTPUT,
    AutoField,
    CheckpointConfig,
    EvaluationConfig,
    HangConfig,
    LoraConfig,
    MemoryLimit,
    PreferenceConfig,
    RunConfig,
    SourceConfig,
    TrackingConfig,
    TrainingConfig,
)
from finetune_api.snapshot import Snapshot
from finetune_api.v1alpha1 import FineTuneJobSpec

AUTO_MICRO_BATCHES = (8, 4, 2, 1)
AUTO_STAGE: dict[str, Literal[1, 2, 3]] = {"LoRA": 1, "QLoRA": 1, "Full": 2}
DEFAULT_CHECKPOINT_MINUTES = 15


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things are: in a pod, or on this machine (`finetune run`)."""

    work_mount: str = names.WORK_MOUNT
    claims_dir: str = names.CLAIMS_DIR
    configmap_dir: str = names.CONFIGMAP_DIR


IN_A_POD = Paths()


def run_config(namespace: str, name: str, uid: str, snapshot: Snapshot, paths: Paths) -> RunConfig:
    """What the stages of a job are told: every default is filled in, every `Auto` has its first
    value."""
    spec, profile = snapshot.spec, snapshot.profile
    procs = processes(spec, profile)
    work_dir = paths.work_mount
    if profile.storage.work_claim:
        work_dir = f"{paths.work_mount}/{name}-{uid_hash(uid)}"
    claim = profile.storage.work_claim or names.work_claim(name)
    inner = work_dir.removeprefix(paths.work_mount).strip("/")
    output_uri = "/".join(part for part in (f"pvc://{claim}", inner, WORK_OUTPUT) if part)
    output_dir = f"{work_dir}/{WORK_OUTPUT}"
    if spec.output is not None:
        output_uri, output_dir = spec.output.uri, source_path(spec.output.uri, paths) or ""
    method, stage = spec.method, spec.zero.stage
    lora = None if method.tuning == "Full" else method.lora or Lora()
    preference = (method.preference or Preference()) if method.objective in PREFERENCES else None
    return RunConfig(
        namespace=namespace,
        name=name,
        uid=uid,
        model=SourceConfig(
            uri=spec.model.uri,
            path=source_path(spec.model.uri, paths),
            revision=spec.model.revision,
        ),
        dataset=SourceConfig(
            uri=spec.dataset.uri,
            path=source_path(spec.dataset.uri, paths),
            revision=spec.dataset.revision,
        ),
        dataset_format=spec.dataset.format,
        long_examples=_long_examples(spec),
        eval_fraction=spec.dataset.eval_fraction,
        objective=method.objective,
        preference=PreferenceConfig.parse(preference.to_json_dict()) if preference else None,
        tuning=method.tuning,
        lora=LoraConfig.parse(lora.to_json_dict()) if lora else None,
        training=_training(spec.training, spec.workers.num_nodes * procs),
        num_nodes=spec.workers.num_nodes,
        num_proc_per_node=procs,
        zero_stage=AUTO_STAGE[method.tuning] if stage == "Auto" else stage,
        offload="None" if spec.zero.offload == "Auto" else spec.zero.offload,
        auto=_auto(spec),
        memory=_memory(profile, procs),
        evaluation=_evaluation(spec, paths),
        checkpoints=_checkpoints(spec),
        hang=_hang(spec),
        tracking=_tracking(spec, namespace),
        accelerator=profile.node.accelerator,
        work_dir=work_dir,
        output_uri=output_uri,
        output_dir=output_dir,
        allow_remote_code=profile.limits.remote_code,
        merge=spec.output.merge if spec.output else False,
        own_trainer=spec.trainer is not None,
    )


def _training(training: Training, world: int) -> TrainingConfig:
    share = training.global_batch_size // world
    wanted = training.micro_batch_size
    micro = (
        next(size for size in AUTO_MICRO_BATCHES if share % size == 0)
        if wanted == "Auto"
        else wanted
    )
    epochs = training.epochs
    if epochs is None and training.max_steps is None:
        epochs = 1.0
    return TrainingConfig(
        epochs=epochs,
        max_steps=training.max_steps,
        learning_rate=training.learning_rate,
        schedule=training.schedule,
        warmup_fraction=training.warmup_fraction,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        global_batch_size=training.global_batch_size,
        micro_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        sequence_length=training.sequence_length,
        packing=training.packing,
        precision=training.precision,
        gradient_checkpointing=training.gradient_checkpointing == "Always",
        seed=training.seed,
    )


def _auto(spec: FineTuneJobSpec) -> list[AutoField]:
    wanted: dict[AutoField, object] = {
        "microBatchSize": spec.training.micro_batch_size,
        "gradientCheckpointing": spec.training.gradient_checkpointing,
        "zeroStage": spec.zero.stage,
        "offload": spec.zero.offload,
    }
    return [name for name, value in wanted.items() if value == "Auto"]


def _long_examples(spec: FineTuneJobSpec) -> Literal["Truncate", "Drop", "Split"]:
    if spec.dataset.long_examples != "Auto":
        return spec.dataset.long_examples
    return "Split" if spec.method.objective == "CPT" else "Truncate"


def _memory(profile: FineTuneProfileSpec, procs: int) -> MemoryLimit:
    """Of one process; the pod's memory is shared by its processes, `/dev/shm` lies in it too."""
    host = quantity_bytes(profile.node.memory) // procs
    gib = profile.node.gpu_memory_gib
    if profile.node.accelerator == "CPU":
        return MemoryLimit(accelerator_bytes=host, host_bytes=host)
    return MemoryLimit(accelerator_bytes=gib * 2**30 if gib else None, host_bytes=host)


def _evaluation(spec: FineTuneJobSpec, paths: Paths) -> EvaluationConfig:
    wanted = spec.evaluation
    retention = wanted.retention
    return EvaluationConfig(
        every_steps=wanted.every_steps,
        early_stopping_patience=wanted.early_stopping_patience,
        retention=SourceConfig(
            uri=retention.uri,
            path=source_path(retention.uri, paths, "retention"),
            revision=retention.revision,
        )
        if retention
        else None,
        retention_max_examples=retention.max_examples if retention else 500,
    )


def _checkpoints(spec: FineTuneJobSpec) -> CheckpointConfig:
    wanted = spec.checkpoints
    minutes = wanted.every_minutes
    if wanted.every_steps is None and minutes is None:
        minutes = DEFAULT_CHECKPOINT_MINUTES
    return CheckpointConfig(
        every_steps=wanted.every_steps,
        every_minutes=minutes,
        keep=wanted.keep,
        resume=wanted.resume == "Auto",
    )


def _hang(spec: FineTuneJobSpec) -> HangConfig:
    wanted = spec.hang_policy
    training = wanted.training_seconds
    return HangConfig(
        report_only=wanted.action == "Report",
        training_seconds=None if training == "Auto" else training,
        loading_seconds=wanted.loading_seconds,
        evaluating_seconds=wanted.evaluating_seconds,
        checkpointing_seconds=wanted.checkpointing_seconds,
    )


def _tracking(spec: FineTuneJobSpec, namespace: str) -> TrackingConfig | None:
    wanted = spec.tracking
    if wanted is None:
        return None
    return TrackingConfig(report_to=wanted.report_to, project=wanted.project or namespace)


_UNITS = {"": 1, "m": 0.001}
_UNITS |= {letter: 1000**power for power, letter in enumerate("kMGTP", 1)}
_UNITS |= {f"{letter}i": 1024**power for power, letter in enumerate("KMGTP", 1)}


def quantity_bytes(quantity: str) -> int:
    """A Kubernetes quantity such as `64Gi` as a number."""
    digits = quantity.rstrip("kKMGTPim")
    return int(float(digits) * _UNITS[quantity[len(digits) :]])


def source_path(uri: str, paths: Paths, of: str = "dataset") -> str | None:
    """Where a `pvc://` or `configmap://` source is mounted; None for what must be fetched.

    Args:
        of: Which source: every one from a ConfigMap has a directory of its own.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "pvc":
        return f"{paths.claims_dir}/{rest}"
    if scheme == "configmap":
        return f"{paths.configmap_dir}/{of}/{rest.partition('/')[2]}"
    return None


def claim_of(uri: str) -> str | None:
    """The claim that a `pvc://` URI names."""
    scheme, _, rest = uri.partition("://")
    return rest.partition("/")[0] if scheme == "pvc" else None


def uid_hash(uid: str) -> str:
    """Eight characters that tell apart two jobs of one name, made one after the other."""
    return hashlib.sha256(uid.encode()).hexdigest()[:8]

"""Everything that a job leaves to us is in its status: walked through the fields of the API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import builders
import pytest
from pydantic import BaseModel

from finetune_api.outcome import Outcome, PrepareFacts
from finetune_api.status import FineTuneJobStatus
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_operator.observe import observe
from finetune_operator.reconcile import parse_job, step

RESOLVED = {
    "profile": "resolved.profile",
    "model.revision": "resolved.model_revision",
    "dataset.revision": "resolved.dataset_revision",
    "dataset.format": "dataset.format",
    "dataset.long_examples": "resolved.long_examples",
    "training.epochs": "resolved.total_steps",
    "training.max_steps": "resolved.total_steps",
    "training.micro_batch_size": "resolved.micro_batch_size",
    "training.gradient_checkpointing": "resolved.gradient_checkpointing",
    "workers.num_proc_per_node": "resolved.num_proc_per_node",
    "zero.stage": "resolved.zero_stage",
    "zero.offload": "resolved.offload",
    "checkpoints.every_minutes": "resolved.checkpoint_minutes",
    "output": "resolved.output_uri",
    "trainer.image": "resolved.image",
}
"""What is `Auto` or left out, and where the status has what became of it."""

EXEMPT = {
    "model.secret_ref": "without one, none is used",
    "dataset.secret_ref": "without one, none is used",
    "method.lora": "its default is fixed, and in the text of the field",
    "method.preference": "its default is fixed, and in the text of the field",
    "evaluation.every_steps": "without it nothing is evaluated during training",
    "evaluation.early_stopping_patience": "without it nothing is stopped early",
    "evaluation.retention": "without it nothing is measured",
    "evaluation.retention.revision": "general text, of which a few hundred lines are read",
    "evaluation.retention.secret_ref": "without one, none is used",
    "checkpoints.every_steps": "without it they are saved by time",
    "checkpoints.resume": "a policy: what it did is in the message of the attempt's start",
    "active_deadline_seconds": "without it there is no limit",
    "service_account_name": "without it the profile's, or the namespace's own",
    "startup_deadline_seconds": "without it there is no limit",
    "ttl_seconds_after_finished": "without it nothing is deleted",
    "ttl_seconds_after_finished.succeeded": "without it nothing is deleted",
    "ttl_seconds_after_finished.failed": "without it nothing is deleted",
    "restart_policy.window_seconds": "without it all restarts count",
    "hang_policy.training_seconds": "follows the steps while training runs; a hang names its limit",
    "hang_policy.loading_seconds": "depends on what is read; a hang names its limit",
    "hang_policy.evaluating_seconds": "fixed, in the text of the field; a hang names its limit",
    "hang_policy.checkpointing_seconds": "depends on what is written; a hang names its limit",
    "tracking": "without it nothing else is told",
    "tracking.project": "its default is fixed, and in the text of the field",
    "tracking.secret_ref": "without one, none is used",
    "trainer": "without it, ours",
    "trainer.files_from": "without it there are no files",
    "trainer.env[].value": "one of value and secret_key_ref is needed",
    "trainer.env[].secret_key_ref": "one of value and secret_key_ref is needed",
}
"""What has no counterpart, and why."""


def left_open(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Fields that may say `Auto`, or nothing at all, with everything below them."""
    for name, field in model.model_fields.items():
        kinds = list(_kinds(field.annotation))
        if field.default is None or "Auto" in kinds:
            yield prefix + name
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                several = "[]" if str(field.annotation).startswith("list") else ""
                yield from left_open(kind, f"{prefix}{name}{several}.")


def _kinds(annotation: Any) -> Iterator[Any]:
    found = get_args(annotation)
    if not found:
        yield annotation
    for part in found:
        yield from _kinds(part)


def test_every_field_that_is_left_to_us_has_its_place_in_the_status() -> None:
    found = set(left_open(FineTuneJobSpec))
    assert len(found) >= 30
    assert found == RESOLVED.keys() | EXEMPT.keys()
    assert not RESOLVED.keys() & EXEMPT.keys()


def test_every_counterpart_has_a_value_once_the_job_is_prepared() -> None:
    facts: PrepareFacts = builders.PREPARED.model_copy(update={"dataset_revision": "def456"})
    jobs = [builders.k8s_job("docs-prepare", "prepare", state="Complete")]
    pods = [builders.pod("docs-prepare", phase="Succeeded", message=Outcome(prepare=facts))]
    status: dict[str, Any] = {}
    config_map: dict[str, Any] | None = None
    for children in (([], []), ([], []), (jobs, pods)):
        job = parse_job(builders.job_body(status=status))
        done = step(job, observe(config_map, *children, job.uid), builders.world(), builders.NOW)
        assert done.status is not None
        status = done.status.to_json_dict()
        config_map = next((m for m in done.apply if m["kind"] == "ConfigMap"), config_map)
    found = FineTuneJobStatus.parse(status)
    for field, place in RESOLVED.items():
        value: Any = found
        for name in place.split("."):
            value = getattr(value, name)
        assert value is not None, f"{field}: status.{place} has no value"


@pytest.mark.parametrize("place", sorted(set(RESOLVED.values())))
def test_every_counterpart_is_a_field(place: str) -> None:
    group, name = place.split(".")
    kinds = _kinds(FineTuneJobStatus.model_fields[group].annotation)
    (model,) = (k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    assert name in model.model_fields

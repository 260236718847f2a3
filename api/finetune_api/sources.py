"""What a job reads and where its result goes, as `FineTuneJob` names them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.base import ApiModel, rule, rules

NamePart = Annotated[
    str,
    StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
]
ObjectName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"),
]
Uri = Annotated[str, StringConstraints(min_length=1, max_length=1024)]

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

"""A commented manifest from a few answers: `init`. The comments are the API's own texts."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import PydanticUndefined  # type: ignore[attr-defined]

from finetune_api.base import API_VERSION, ApiModel
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_cli.manifest import class_of

WIDTH = 96
SHOWN = (
    ("profile", "standard"),
    ("model.uri", None),
    ("model.revision", "main"),
    ("model.secretRef.name", "hf-token"),
    ("dataset.uri", None),
    ("dataset.format", None),
    ("dataset.evalFraction", None),
    ("method.objective", None),
    ("method.tuning", None),
    ("training.epochs", 1),
    ("training.maxSteps", 100),
    ("training.learningRate", None),
    ("training.globalBatchSize", None),
    ("training.sequenceLength", None),
    ("workers.numNodes", None),
    ("workers.numProcPerNode", None),
    ("evaluation.everySteps", 100),
    ("checkpoints.everyMinutes", 15),
    ("output.uri", "pvc://CLAIM/PATH"),
    ("activeDeadlineSeconds", 86400),
)
"""Fields that a new manifest shows, in this order; what is not answered stands as a comment, with
its default or this example."""


@dataclass(frozen=True, slots=True)
class Question:
    """What `init` asks on a terminal."""

    field: str
    flag: str
    text: str
    default: str | None = None


QUESTIONS = (
    Question("name", "--name", "Name of the job"),
    Question("model.uri", "--model", "Model (hf://owner/name, or pvc://claim/path)", None),
    Question(
        "dataset.uri",
        "--dataset",
        "Data (hf://owner/name, pvc://claim/file.jsonl, or configmap://name/key)",
    ),
    Question("method.tuning", "--tuning", "What is tuned: LoRA, QLoRA or Full", "LoRA"),
    Question("workers.numNodes", "--workers", "Worker pods", "1"),
    Question(
        "output.uri", "--output-uri", "Result to (pvc://claim/path; empty: its own claim)", ""
    ),
)


def render(name: str, namespace: str | None, answers: Mapping[str, Any]) -> str:
    """The manifest.

    Args:
        answers: Values by the dotted names of fields of the spec; others keep their defaults.
    """
    lines = [
        "# Check it: `kubectl finetune validate FILE`; submit it: `kubectl finetune submit FILE`.",
        "# Lines that begin with # and no space are fields with their defaults, or examples; every "
        "field:",
        "# `kubectl explain ftj.spec --recursive`.",
        f"apiVersion: {API_VERSION}",
        "kind: FineTuneJob",
        "metadata:",
        f"  name: {name}",
        *([f"  namespace: {namespace}"] if namespace else []),
        "spec:",
    ]
    shown = [(path, example) for path, example in SHOWN]
    shown += [(path, None) for path in answers if path not in dict(SHOWN)]
    lines += _object(FineTuneJobSpec, "", shown, answers, 1, False)
    return "\n".join(lines) + "\n"


def _object(
    owner: type[ApiModel],
    prefix: str,
    shown: list[tuple[str, Any]],
    answers: Mapping[str, Any],
    depth: int,
    commented: bool,
) -> list[str]:
    """The lines of one object; it is a comment where nothing in it is answered."""
    found: list[str] = []
    names = list(dict.fromkeys(path[len(prefix) :].split(".")[0] for path, _ in shown))
    for name in names:
        path = prefix + name
        inner = [(p, e) for p, e in shown if p.startswith(f"{path}.")]
        if inner:
            cls = class_of(owner, name)
            assert cls is not None, path
            off = commented or not any(p in answers for p, _ in inner)
            found.append(_indent(f"{name}:", depth, off))
            found += _object(cls, f"{path}.", inner, answers, depth + 1, off)
            continue
        description, default = _field(owner, name)
        value = answers.get(path, dict(shown)[path] if default is None else default)
        found += [f"{'  ' * depth}# {text}" for text in _wrapped(description, depth)]
        found.append(_indent(f"{name}: {_scalar(value)}", depth, commented or path not in answers))
    return found


def _field(owner: type[ApiModel], alias: str) -> tuple[str, Any]:
    """Description and default of a field."""
    for name, field in owner.model_fields.items():
        if alias in (field.alias, name):
            default = None if field.default is PydanticUndefined else field.default
            return " ".join((field.description or "").split()), default
    raise KeyError(alias)


def _wrapped(text: str, depth: int) -> list[str]:
    return textwrap.wrap(text, WIDTH - 2 * depth)


def _indent(text: str, depth: int, comment: bool) -> str:
    return f"{'  ' * depth}{'#' if comment else ''}{text}"


def _scalar(value: Any) -> str:
    """As YAML; a text is quoted, as a URI is easily taken for something else."""
    return json.dumps(value, ensure_ascii=False)

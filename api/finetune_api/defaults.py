"""`FineTuneProfile.spec.defaults` under a job's own spec: what the job says itself always wins.

A default never makes a job wrong: one that does not go together with what the job says (passes over
the data where it names steps, an adapter's rank where it tunes all weights) is left out. So the
defaults are tried one by one, in the order of the fields.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from finetune_api.method import ALL_LINEAR
from finetune_api.run_config import PREFERENCES
from finetune_api.v1alpha1 import FineTuneJobSpec

Json = dict[str, Any]

NO_DEFAULT = ("profile", "suspend")
"""What only a job itself can say."""
MAX_VALUE = 1024
"""Characters of a default's value in the status."""

_PLACEHOLDER = "hf://a/b"


def with_defaults(
    spec: FineTuneJobSpec, defaults: Mapping[str, Any]
) -> tuple[FineTuneJobSpec, dict[str, Any]]:
    """The spec with every default that it says nothing of, and those defaults by dotted path."""
    written = spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    found, taken, known = spec, {}, contradictions(spec)
    for path, value in leaves(defaults):
        if _says(written, path):
            continue
        tried = _set(written, path, value)
        try:
            parsed = FineTuneJobSpec.parse(tried)
        except ValidationError:
            continue  # a part of something that the job does not have
        if contradictions(parsed) <= known:
            written, found, taken[".".join(path)] = tried, parsed, value
    return found, taken


def with_taken(spec: FineTuneJobSpec, taken: Mapping[str, str]) -> FineTuneJobSpec:
    """A spec as it stands now, with the defaults that its job has taken when it started.

    Args:
        taken: As `status.resolved.defaults` has them.
    """
    fragment: Json = {}
    for path, text in taken.items():
        try:
            value = json.loads(text)
        except ValueError:
            continue  # a long text that was cut: nothing that may change after the start is one
        fragment = _set(fragment, tuple(path.split(".")), value)
    return with_defaults(spec, fragment)[0]


def as_texts(taken: Mapping[str, Any]) -> dict[str, str]:
    """Defaults as `status.resolved.defaults` has them: JSON, long ones cut."""
    return {path: json.dumps(value)[:MAX_VALUE] for path, value in taken.items()}


def leaves(fragment: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """Every value of a fragment with its path, in the order of the job's fields; a list is one."""
    for name, value in fragment.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, name))
        elif value is not None:
            yield (*path, name), value


def checked_defaults(fragment: Json) -> Json:
    """The fragment in the order of the job's fields; raises ValueError that names the field."""
    for name in NO_DEFAULT:
        if name in fragment:
            raise ValueError(f"defaults.{name}: only a job itself can say this; remove it")
    whole = copy.deepcopy(fragment)
    for path in (("model",), ("dataset",)):
        whole.setdefault(path[0], {}).setdefault("uri", _PLACEHOLDER)
    if "retention" in whole.get("evaluation", {}):
        whole["evaluation"]["retention"].setdefault("uri", _PLACEHOLDER)
    if "output" in whole:
        whole["output"].setdefault("uri", "pvc://a/b")
    parsed = FineTuneJobSpec.parse(whole)
    dumped = parsed.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    return _ordered(fragment, dumped)


def _ordered(fragment: Json, order: Json) -> Json:
    found: Json = {}
    for name, value in order.items():
        if name in fragment:
            inner = fragment[name]
            found[name] = _ordered(inner, value) if isinstance(inner, dict) else inner
    return found


def _says(written: Json, path: tuple[str, ...]) -> bool:
    target: Any = written
    for name in path:
        if not isinstance(target, dict) or name not in target:
            return False
        target = target[name]
    return True


def _set(written: Json, path: tuple[str, ...], value: Any) -> Json:
    changed = copy.deepcopy(written)
    target = changed
    for name in path[:-1]:
        target = target.setdefault(name, {})
    target[path[-1]] = value
    return changed


def contradictions(spec: FineTuneJobSpec) -> frozenset[str]:
    """Parts of a spec that do not go together, as the CEL rules of the CRD say it."""
    return frozenset(name for name, wrong in _CONTRADICTIONS.items() if wrong(spec))


def _merges(spec: FineTuneJobSpec) -> bool:
    return spec.output is not None and spec.output.merge


def _preferences(spec: FineTuneJobSpec) -> bool:
    return spec.method.objective in PREFERENCES


_CONTRADICTIONS: dict[str, Callable[[FineTuneJobSpec], bool]] = {
    "epochs and maxSteps": lambda s: (
        s.training.epochs is not None and s.training.max_steps is not None
    ),
    "micro-batch above batch": lambda s: (
        s.training.micro_batch_size != "Auto"
        and s.training.micro_batch_size > s.training.global_batch_size
    ),
    "adapter without LoRA": lambda s: s.method.tuning == "Full" and s.method.lora is not None,
    "all layers and others": lambda s: (
        s.method.lora is not None
        and ALL_LINEAR in s.method.lora.target_modules
        and len(s.method.lora.target_modules) > 1
    ),
    "preference without preferences": lambda s: (
        s.method.preference is not None and not _preferences(s)
    ),
    "merge of no adapter": lambda s: (
        _merges(s) and (s.method.tuning == "Full" or s.trainer is not None)
    ),
    "offload of what is whole": lambda s: (
        s.zero.offload == "OptimizerAndParameters" and s.zero.stage not in ("Auto", 3)
    ),
    "objective and format": lambda s: (
        s.dataset.format != "Auto" and _preferences(s) != (s.dataset.format == "Preference")
    ),
    "continued on conversations": lambda s: (
        s.method.objective == "CPT" and s.dataset.format not in ("Auto", "Text")
    ),
    "split of what is no text": lambda s: (
        s.dataset.long_examples == "Split"
        and (_preferences(s) or s.dataset.format not in ("Auto", "Text"))
    ),
    "evaluation of nothing": lambda s: (
        s.evaluation.every_steps is not None and not s.dataset.eval_fraction
    ),
    "patience without evaluations": lambda s: (
        s.evaluation.early_stopping_patience is not None and s.evaluation.every_steps is None
    ),
    "deletion of the result": lambda s: (
        s.ttl_seconds_after_finished is not None
        and s.ttl_seconds_after_finished.succeeded is not None
        and s.output is None
    ),
}

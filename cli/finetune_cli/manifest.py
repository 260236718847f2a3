"""Manifests: reading them, and saying which field is wrong and what would be right. Pure but for
`read`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from finetune_api.base import API_VERSION, ApiModel
from finetune_api.v1alpha1 import FineTuneJob
from finetune_cli.exits import CliError, Exit

Json = dict[str, Any]
KIND = "FineTuneJob"
BRANCHES = (
    "int",
    "float",
    "str",
    "bool",
    "constrained-int",
    "constrained-float",
    "constrained-str",
)
"""How pydantic names the branches of a union in the path of a problem."""
NO_VALUE = ("missing", "extra_forbidden")


def read(path: str) -> list[Json]:
    """The FineTuneJobs of a YAML or JSON file (`-`: standard input), in their order.

    Raises:
        CliError: the file is not there, is no YAML, or holds no FineTuneJob or something else.
    """
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise CliError(f"{path}: {error.strerror or error}", Exit.NOT_FOUND) from error
    return documents(text, path)


def documents(text: str, source: str) -> list[Json]:
    """The FineTuneJobs of a text; see `read`."""
    try:
        found = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise CliError(f"{source} is no YAML: {error}", Exit.INVALID) from error
    if not found:
        raise CliError(f"{source} is empty; it must hold a {KIND}", Exit.INVALID)
    for document in found:
        kind = document.get("kind") if isinstance(document, dict) else None
        if kind != KIND:
            what = f"a {kind}" if kind else "something without `kind`"
            raise CliError(
                f"{source} holds {what}; this program knows {KIND} (kind: {KIND}, apiVersion: "
                f"{API_VERSION}). Apply the rest by `kubectl apply`",
                Exit.INVALID,
            )
    return found


def problems(body: Json) -> list[str]:
    """What is wrong with a FineTuneJob by the types of its fields; a line each, field first."""
    metadata = body.get("metadata")
    named = isinstance(metadata, dict) and metadata.get("name")
    found = [] if named else ["metadata.name: is missing; give the job a name"]
    try:
        FineTuneJob.parse({key: value for key, value in body.items() if key != "status"})
    except ValidationError as error:
        found += list(_lines(error))
    return found


def parse(body: Json, source: str) -> FineTuneJob:
    """A FineTuneJob.

    Raises:
        CliError: it is wrong; the message has every problem.
    """
    wrong = problems(body)
    if wrong:
        raise CliError("\n".join([f"{source} is not valid:", *indented(wrong)]), Exit.INVALID)
    return FineTuneJob.parse({key: value for key, value in body.items() if key != "status"})


def indented(lines: Sequence[str]) -> list[str]:
    """A list below a heading."""
    return [f"  {line}" for line in lines]


def _lines(error: ValidationError) -> Iterator[str]:
    """One per field: of a union, all that its branches want."""
    by_field: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    for problem in error.errors():
        path = [part for part in problem["loc"] if not _is_branch(part)]
        wanted = _wanted(problem, path)
        field = ".".join(str(part) for part in path)
        known = by_field.setdefault(field, [])
        if wanted not in known:
            known.append(wanted)
        value = problem["input"]
        if problem["type"] not in NO_VALUE and not isinstance(value, dict | list):
            values[field] = f"; it is {value!r}"
    for field, wishes in by_field.items():
        yield f"{field}: {' or '.join(wishes)}{values.get(field, '')}"


def _is_branch(part: str | int) -> bool:
    """Whether a part of a path names a branch of a union instead of a field."""
    return isinstance(part, str) and ("[" in part or part in BRANCHES)


def _wanted(problem: Any, path: Sequence[str | int]) -> str:
    if problem["type"] == "missing":
        return f"is missing; {_what_it_is(path)}"
    if problem["type"] == "extra_forbidden":
        return _unknown(path)
    message: str = problem["msg"]
    return message[0].lower() + message[1:]


def _unknown(path: Sequence[str | int]) -> str:
    owner = _class_at(path[:-1])
    known = [name for name, _ in fields_of(owner)] if owner else []
    close = difflib.get_close_matches(str(path[-1]), known, 1)
    if close:
        return f"there is no such field; did you mean {close[0]}?"
    return f"there is no such field; known are {', '.join(known)}"


def _what_it_is(path: Sequence[str | int]) -> str:
    owner = _class_at(path[:-1])
    description = dict(fields_of(owner)).get(str(path[-1])) if owner else None
    return first_sentence(description or "it must be given")


def _class_at(path: Sequence[str | int]) -> type[ApiModel] | None:
    """The class of an object in a job, by the names of its fields."""
    found: type[ApiModel] | None = FineTuneJob
    for part in path:
        if found is None:
            return None
        found = class_of(found, str(part))
    return found


def class_of(owner: type[ApiModel], alias: str) -> type[ApiModel] | None:
    """The class of a field that is an object; None for other fields."""
    for name, field in owner.model_fields.items():
        if alias in (field.alias, name):
            return next(_classes(field.annotation), None)
    return None


def _classes(annotation: Any) -> Iterator[type[ApiModel]]:
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _classes(inner)


def fields_of(owner: type[ApiModel]) -> list[tuple[str, str]]:
    """Names and descriptions of the fields of an object, as people write them."""
    return [
        (field.alias or name, " ".join((field.description or "").split()))
        for name, field in owner.model_fields.items()
    ]


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence."""
    return text.split(". ")[0].rstrip(".")

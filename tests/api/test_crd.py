"""The generated CRDs: bounded everywhere, explained everywhere, and in step with the classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.crd import all_crds, render
from finetune_api.v1alpha1 import FineTuneJob

ROOT = Path(__file__).parents[2]
Schema = dict[str, Any]


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


def fields(file: str) -> list[tuple[str, Schema]]:
    """Every field below spec and status."""
    schema = all_crds()[file]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    found = [(p, s) for p, s in nodes(schema) if p.startswith((".spec.", ".status."))]
    assert len(found) > 20
    return found


@pytest.mark.parametrize("file", sorted(all_crds()))
def test_every_string_list_and_map_is_bounded(file: str) -> None:
    unbounded = []
    for path, schema in fields(file):
        kind = schema.get("type")
        if kind == "string" and "maxLength" not in schema and "enum" not in schema:
            unbounded.append(path)
        if kind == "array" and "maxItems" not in schema:
            unbounded.append(path)
        if "additionalProperties" in schema and "maxProperties" not in schema:
            unbounded.append(path)
    assert unbounded == []


@pytest.mark.parametrize("file", sorted(all_crds()))
def test_every_field_has_a_text(file: str) -> None:
    named = [(p, s) for p, s in fields(file) if not p.endswith(("[]", "{}"))]
    assert [p for p, s in named if not s.get("description")] == []


@pytest.mark.parametrize("file", sorted(all_crds()))
def test_the_files_are_those_of_the_classes(file: str) -> None:
    assert (ROOT / "crds" / file).read_text() == render(all_crds()[file])


def test_every_cel_message_names_a_field() -> None:
    messages = [
        rule["message"]
        for file in all_crds()
        for _, schema in nodes(all_crds()[file]["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
        for rule in schema.get("x-kubernetes-validations", [])
        if not rule["message"].startswith("must be ")  # on the field itself: the server names it
    ]
    assert len(messages) >= 12
    assert [m for m in messages if "spec" not in m and "metadata.name" not in m] == []


def test_columns_and_names_are_those_people_type() -> None:
    job = all_crds()["finetunejobs.yaml"]["spec"]
    version = job["versions"][0]
    assert (job["names"]["shortNames"], job["names"]["categories"], job["scope"]) == (
        ["ftj"],
        ["all", "training"],
        "Namespaced",
    )
    assert version["subresources"] == {"status": {}}
    assert [c["name"] for c in version["additionalPrinterColumns"] if not c["priority"]] == [
        *("Phase", "Model", "Method", "Workers", "Progress", "ETA", "Loss", "Age")
    ]


def test_a_job_that_the_server_has_filled_in_reads_back() -> None:
    text = (ROOT / "examples" / "01-first-job" / "job.yaml").read_text()
    job = FineTuneJob.parse(yaml.safe_load(text))
    again = FineTuneJob.parse(job.to_json_dict())
    assert again.spec == job.spec

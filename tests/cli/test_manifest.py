"""Manifests that are wrong, and those that `init` writes."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from job_builders import body

from finetune_cli.exits import CliError, Exit
from finetune_cli.init import QUESTIONS, SHOWN, render
from finetune_cli.manifest import documents, parse, problems

Json = dict[str, Any]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param(
            {"trainig": {}},
            "spec.trainig: there is no such field; did you mean training?",
            id="typo",
        ),
        pytest.param(
            {"zero": {"rank": 1}},
            "spec.zero.rank: there is no such field; known are stage, offload",
            id="unknown",
        ),
        pytest.param(
            {"model": {}},
            "spec.model.uri: is missing; Where the model comes from: `hf://owner/name` (Hugging "
            "Face Hub), or `pvc://claim/path`, a directory in the layout of transformers or one "
            "GGUF file, on a claim of this namespace",
            id="missing",
        ),
        pytest.param(
            {"method": {"objective": "RL"}},
            "spec.method.objective: input should be 'SFT', 'CPT', 'DPO', 'KTO' or 'ORPO'; it is "
            "'RL'",
            id="choice",
        ),
        pytest.param(
            {"zero": {"stage": 7}},
            "spec.zero.stage: input should be 1, 2 or 3 or input should be 'Auto'; it is 7",
            id="union of choices",
        ),
        pytest.param(
            {"training": {"microBatchSize": 0}},
            "spec.training.microBatchSize: input should be greater than or equal to 1 or input "
            "should be 'Auto'; it is 0",
            id="union of a number and a word",
        ),
        pytest.param({"suspend": []}, "spec.suspend: input should be a valid boolean", id="type"),
    ],
)
def test_a_problem_names_the_field_and_the_fix(spec: Json, expected: str) -> None:
    assert problems(body(None, **spec)) == [expected]


def test_a_job_without_a_name_is_told_so() -> None:
    nameless = body(None) | {"metadata": {}}
    assert problems(nameless) == ["metadata.name: is missing; give the job a name"]


def test_all_problems_of_a_manifest_are_told_at_once() -> None:
    with pytest.raises(CliError) as error:
        parse(body(None, model={}, suspend=[]), "job.yaml")
    assert error.value.code == Exit.INVALID
    first, *rest = str(error.value).split("\n")
    assert (first, [line.split(":")[0] for line in rest]) == (
        "job.yaml is not valid:",
        ["  spec.model.uri", "  spec.suspend"],
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "x is empty; it must hold a FineTuneJob"),
        ("a: [", "x is no YAML: "),
        ("kind: Pod", "x holds a Pod; this program knows FineTuneJob"),
        ("- 1", "x holds something without `kind`"),
    ],
)
def test_a_file_that_is_no_job_is_refused(text: str, expected: str) -> None:
    with pytest.raises(CliError, match="^" + expected.replace("[", r"\[")):
        documents(text, "x")


def test_several_jobs_in_a_file_are_read_in_their_order() -> None:
    text = yaml.safe_dump_all([body(None, "a"), body(None, "b")])
    assert [job["metadata"]["name"] for job in documents(text, "x")] == ["a", "b"]


def test_a_manifest_of_init_holds_the_answers_and_nothing_else() -> None:
    answers = {
        "model.uri": "hf://a/b",
        "dataset.uri": "configmap://data/x.jsonl",
        "workers.numNodes": 2,
        "zero.stage": 2,
    }
    (found,) = documents(render("docs", "team-a", answers), "x")
    assert found == {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "docs", "namespace": "team-a"},
        "spec": {
            "model": {"uri": "hf://a/b"},
            "dataset": {"uri": "configmap://data/x.jsonl"},
            "workers": {"numNodes": 2},
            "zero": {"stage": 2},
        },
    }
    assert problems(found) == []


def test_every_field_that_init_shows_as_a_comment_is_right_when_it_is_made_real() -> None:
    """The comment sign alone is taken away; two fields exclude each other and stay."""
    text = render("docs", None, {"model.uri": "hf://a/b", "dataset.uri": "pvc://a/b"})
    kept = ("#maxSteps",)
    real = "\n".join(
        line if line.lstrip().startswith(("# ", *kept)) else line.replace("#", "", 1)
        for line in text.splitlines()
    )
    (found,) = documents(real, "x")
    assert problems(found) == []
    assert found["spec"]["training"]["learningRate"] == 2e-4
    assert found["spec"]["output"] == {"uri": "pvc://CLAIM/PATH"}


def test_init_asks_for_fields_that_it_shows() -> None:
    assert {question.field for question in QUESTIONS} - {"name"} <= dict(SHOWN).keys()

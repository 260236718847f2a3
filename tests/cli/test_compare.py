"""What is different between two jobs."""

from __future__ import annotations

from job_builders import OUTPUT, PROGRESS, RESOLVED, job, running, succeeded

from finetune_cli.compare import Comparison, Difference, Measure, compare


def test_defaults_are_filled_in_and_equal_fields_left_out() -> None:
    a = job(None, "a", training={"learningRate": 2e-4})
    b = job(None, "b", training={"learningRate": 1e-4, "sequenceLength": 1024}, zero={"stage": 2})
    assert compare(a, b) == Comparison(
        "team-a/a",
        "team-a/b",
        (
            Difference("spec.training.learningRate", 2e-4, 1e-4),
            Difference("spec.training.sequenceLength", 2048, 1024),
            Difference("spec.zero.stage", "Auto", 2),
        ),
        (),
    )


def test_what_only_one_job_has_is_a_difference() -> None:
    a, b = job(None, "a"), job(None, "b", output={"uri": "pvc://models/b"})
    assert compare(a, b).configuration == (
        Difference("spec.output.uri", None, "pvc://models/b"),
        Difference("spec.output.merge", None, False),
    )


def test_resolved_values_are_compared_but_not_the_shape_of_the_model() -> None:
    shape = {
        "parameters": 1,
        "largestModule": 1,
        "smallParameters": 1,
        "hiddenSize": 1,
        "intermediateSize": 1,
        "layers": 1,
        "heads": 1,
        "kvHeads": 1,
        "headSize": 1,
        "vocabularySize": 1,
        "linears": [],
    }
    a = job(succeeded(), "a")
    b = job(succeeded(resolved=RESOLVED | {"microBatchSize": 2, "shape": shape}), "b")
    assert compare(a, b).configuration == (Difference("resolved.microBatchSize", 4, 2),)


def test_the_better_of_two_measurements_is_named() -> None:
    a = job(succeeded(), "a")
    b = job(
        succeeded(
            output=OUTPUT | {"evalLossAfter": 1.2},
            progress=PROGRESS | {"tokensPerSecond": 600.0},
            completionTime="2026-11-22T06:02:00Z",
        ),
        "b",
    )
    assert compare(a, b).metrics == (
        Measure("eval loss before", 2.336, 2.336, None),
        Measure("eval loss after", 1.06, 1.2, "a"),
        Measure("training loss", 1.02674, 1.02674, None),
        Measure("steps", 62, 62, None),
        Measure("tokens per second", 500.0, 600.0, "b"),
        Measure("seconds in all", 240.0, 120.0, "b"),
        Measure("attempts", 1, 1, None),
        Measure("result in bytes", 12_500_000, 12_500_000, None),
    )


def test_a_job_under_way_has_the_numbers_that_there_are() -> None:
    names = [m.name for m in compare(job(running(), "a"), job(None, "b")).metrics]
    assert names == ["training loss", "steps", "tokens per second", "attempts"]

"""What a line of the operator's log has, in both forms."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import builders
import pytest

from finetune_api.status import FineTuneJobStatus
from finetune_operator.controller import log_change, reason_of
from finetune_operator.logs import about, handler, of_attempt
from finetune_operator.reconcile import parse_job

PACKAGE = Path(__file__).parents[2] / "operator" / "finetune_operator"


@pytest.fixture(params=["text", "json"])
def out(request: pytest.FixtureRequest) -> Iterator[StringIO]:
    found, stream = handler(request.param), StringIO()
    assert isinstance(found, logging.StreamHandler)
    found.setStream(stream)
    root = logging.getLogger()
    root.addHandler(found)
    level = root.level
    root.setLevel(logging.INFO)
    yield stream
    root.removeHandler(found)
    root.setLevel(level)


def without_time(line: str) -> object:
    if line.startswith("{"):
        found = json.loads(line)
        assert found.pop("time")
        return found
    return line[20:]


def test_every_line_about_a_job_has_the_job_the_attempt_and_a_reason(out: StringIO) -> None:
    logger = logging.getLogger("finetune_operator.x")
    logger.info("leads", extra={"reason": "Leads"})
    with about(("team-a", "docs")):
        logger.info("one", extra={"reason": "First"})
        of_attempt(2)
        logging.getLogger("kopf.x").warning("two %s", "words")
    logger.info("three", extra={"reason": "Last"})
    lines = [without_time(line) for line in out.getvalue().splitlines()]
    common = {"level": "INFO", "logger": "finetune_operator.x"}
    text = [
        "INFO Leads: leads",
        "INFO team-a/docs First: one",
        "WARNING team-a/docs attempt 2 Library: two words",
        "INFO Last: three",
    ]
    structured = [
        {**common, "message": "leads", "reason": "Leads"},
        {**common, "message": "one", "job": "team-a/docs", "reason": "First"},
        {
            "level": "WARNING",
            "logger": "kopf.x",
            "message": "two words",
            "job": "team-a/docs",
            "attempt": 2,
            "reason": "Library",
        },
        {**common, "message": "three", "reason": "Last"},
    ]
    assert lines in (text, structured)


def test_two_passes_at_a_time_do_not_mix_their_lines(out: StringIO) -> None:
    logger = logging.getLogger("finetune_operator.x")

    async def work(name: str) -> None:
        with about(("a", name)):
            await asyncio.sleep(0)
            logger.info("line", extra={"reason": name})

    async def both() -> None:
        await asyncio.gather(work("one"), work("two"))

    asyncio.run(both())
    for line, name in zip(out.getvalue().splitlines(), ("one", "two"), strict=True):
        assert f"a/{name}" in line
        assert line.count(name) == 2


def test_every_line_of_ours_has_a_reason_of_its_own() -> None:
    found, missing = 0, []
    for path in sorted(PACKAGE.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "logger"
            ):
                found += 1
                if "extra" not in {keyword.arg for keyword in node.keywords}:
                    missing.append(f"{path.name}:{node.lineno}")
    assert found >= 15
    assert missing == []


CONDITION = {"status": "True", "message": "", "lastTransitionTime": builders.NOW}


@pytest.mark.parametrize(
    ("phase", "conditions", "reason"),
    [
        ("Starting", {"Waiting": "Unschedulable", "Failed": "NoFailure"}, "Unschedulable"),
        ("Failed", {"Waiting": "Finished", "Failed": "OutOfMemory"}, "OutOfMemory"),
        ("Succeeded", {"Waiting": "Finished", "Complete": "Succeeded"}, "Succeeded"),
        ("Preparing", {}, "Preparing"),
    ],
)
def test_the_reason_of_a_phase_is_that_of_its_condition(
    phase: str, conditions: dict[str, str], reason: str, out: StringIO
) -> None:
    listed = [
        CONDITION | {"type": type_, "reason": why, "observedGeneration": 1}
        for type_, why in conditions.items()
    ]
    status = FineTuneJobStatus.parse({"phase": phase, "conditions": listed, "message": "words"})
    assert reason_of(status) == reason
    with about(("team-a", "docs")):
        log_change(parse_job(builders.job_body()), status)
    assert f"{phase}: words" in out.getvalue()
    assert reason in out.getvalue()

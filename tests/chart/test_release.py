"""The release: its workflow is understood by actionlint, and the chart gets the images' digests."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from release_values import VALUES, released
from tools import ROOT

from localcluster.tools import find_go

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PIN = r"(uses: \S+)@[0-9a-f]{40} +# (v\d+)\.\d+\.\d+"
DIGEST = f"sha256:{'ab' * 32}"


def actionlint(*paths: Path) -> subprocess.CompletedProcess[str]:
    """Built from its pinned source; the first time on a machine it takes a minute."""
    go, _ = find_go()
    return subprocess.run(
        [
            str(go),
            "tool",
            "actionlint",
            "-no-color",
            "-shellcheck=",
            "-pyflakes=",
            *map(str, paths),
        ],
        cwd=ROOT / "scripts" / "actionlint",
        env=os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"},
        capture_output=True,
        text=True,
    )


def with_majors(directory: Path) -> list[Path]:
    """The workflows with `@v4` for the commit of v4.1.2: by that name actionlint knows an action,
    and which inputs it has."""
    found = []
    for path in WORKFLOWS:
        text = re.sub(PIN, r"\1@\2", path.read_text())
        found.append(directory / path.name)
        found[-1].write_text(text)
    return found


def test_actionlint_finds_nothing_in_the_workflows(tmp_path: Path) -> None:
    assert [path.name for path in WORKFLOWS] == ["dependencies.yml", "release.yml"]
    done = actionlint(*WORKFLOWS, *with_majors(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_action_is_pinned_to_a_commit_and_says_which_version_it_is() -> None:
    lines = [line for path in WORKFLOWS for line in path.read_text().splitlines()]
    used = [line for line in lines if "uses:" in line]
    assert len(used) >= 10
    assert [line for line in used if not re.search(PIN, line)] == []


def test_actionlint_finds_what_is_wrong(tmp_path: Path) -> None:
    _, wrong = with_majors(tmp_path)
    text = wrong.read_text().replace("steps.about.outputs.image", "steps.abuot.outputs.image", 1)
    wrong.write_text(text.replace("subject-digest:", "subject-digset:"))
    done = actionlint(wrong)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "abuot" in done.stdout
    assert "subject-digset" in done.stdout


def test_the_workflow_calls_what_there_is() -> None:
    text = "\n".join(path.read_text() for path in WORKFLOWS)
    targets = set(re.findall(r"make ([a-z-]+)", text))
    assert targets == {"test", "audit", "generate", "sbom"}
    there = re.findall(r"(?m)^([a-z0-9-]+):", (ROOT / "Makefile").read_text())
    assert targets <= set(there)
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    files = [
        entry["dockerfile"] for entry in release["jobs"]["image"]["strategy"]["matrix"]["include"]
    ]
    assert [path for path in files if not (ROOT / path).exists()] == []


def test_only_what_publishes_may_write() -> None:
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    assert release["permissions"] == {"contents": "read"}
    writes = {
        name: sorted(k for k, v in job.get("permissions", {}).items() if v == "write")
        for name, job in release["jobs"].items()
    }
    assert writes == {
        "test": [],
        "image": ["attestations", "id-token", "packages"],
        "chart": ["contents", "id-token", "packages"],
    }


def test_a_released_chart_names_its_images_by_digest() -> None:
    before = VALUES.read_text()
    text = before
    for part in ("operator", "trainer"):
        text = released(text, part, f"r.example/finetune-{part}", "1.2.3", DIGEST)
    values, old = yaml.safe_load(text), yaml.safe_load(before)
    for part in ("operator", "trainer"):
        assert values[part].pop("image") == {
            "repository": f"r.example/finetune-{part}",
            "tag": "1.2.3",
            "digest": DIGEST,
            "pullPolicy": "IfNotPresent",
        }
        del old[part]["image"]
    assert values == old
    assert text.count("#") == before.count("#")


@pytest.mark.parametrize(("part", "digest"), [("operator", "sha256:1"), ("nothing", DIGEST)])
def test_what_is_no_image_of_a_release_is_refused(part: str, digest: str) -> None:
    with pytest.raises(ValueError, match=r"no digest|no image"):
        released(VALUES.read_text(), part, "r.example/x", "1", digest)

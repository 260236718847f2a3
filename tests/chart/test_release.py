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


def test_actionlint_finds_nothing_in_the_workflows() -> None:
    assert [path.name for path in WORKFLOWS] == ["dependencies.yml", "release.yml"]
    done = actionlint(*WORKFLOWS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_finds_what_is_wrong(tmp_path: Path) -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    wrong = tmp_path / "release.yml"
    wrong.write_text(text.replace("steps.about.outputs.image", "steps.abuot.outputs.image", 1))
    done = actionlint(wrong)
    assert (done.returncode, "abuot" in done.stdout) == (1, True), done.stdout + done.stderr


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

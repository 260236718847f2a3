"""Both images: what is in their Dockerfiles and requirements, without building them.

That the two worlds stay apart is asserted in the build itself as well, on what was installed.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = {"operator": "operator", "trainer": "trainer_image"}
TORCH = {"torch", "transformers", "deepspeed", "peft", "accelerate"}
CLUSTER = {"kopf", "kubernetes", "prometheus-client"}
LABELS = ("title", "description", "licenses", "version", "revision", "created", "source")


def dockerfile(image: str) -> str:
    return (ROOT / IMAGES[image] / "Dockerfile").read_text().replace("\\\n", " ")


def stages(image: str) -> list[str]:
    """The instructions of each stage."""
    return re.split(r"(?m)^FROM ", dockerfile(image))[1:]


def requirements(name: str) -> dict[str, str]:
    """Package and what stands with it, up to the next one."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    found = re.split(r"(?m)^(?=[a-z0-9])", text)
    return {part.split("==")[0].split("[")[0]: part for part in found if "==" in part}


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_built_in_stages_and_runs_as_nobody_in_particular(image: str) -> None:
    first, *_, last = stages(image)
    assert first.split()[:2] == ["${BASE}", "AS"]
    assert last.splitlines()[0] == "${BASE}"
    assert re.findall(r"(?m)^USER (.*)$", last) == ["65532:65532"]
    assert "apt-get" not in dockerfile(image)


@pytest.mark.parametrize("image", IMAGES)
def test_everything_that_is_installed_has_its_hash(image: str) -> None:
    installs = re.findall(r"pip install [^;]*", dockerfile(image))
    assert installs
    assert [i for i in installs if "--require-hashes" not in i] == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda p: p.name
)
def test_every_requirement_is_pinned_by_version_and_hash(path: Path) -> None:
    found = requirements(path.stem)
    assert found
    unhashed = [name for name, text in found.items() if "--hash=sha256:" not in text]
    assert unhashed == []
    assert not re.search(r"(?i)https?://|--index-url|--find-links", path.read_text())


def test_the_two_worlds_share_no_heavy_package() -> None:
    operator, trainer = requirements("operator"), requirements("trainer")
    assert operator.keys() >= CLUSTER
    assert trainer.keys() >= TORCH
    assert operator.keys() & TORCH == trainer.keys() & CLUSTER == set()


@pytest.mark.parametrize(
    ("image", "absent"), [("operator", "'torch'"), ("operator", "'gcc'"), ("operator", "'pip'"),
                          ("trainer", "'kopf'"), ("trainer", "'kubernetes'"), ("trainer", "'gcc'")]
)  # fmt: skip
def test_the_build_itself_asserts_what_must_not_be_there(image: str, absent: str) -> None:
    asserted = re.findall(r"assert not .*?(?=; |$)", stages(image)[-1], re.MULTILINE)
    assert any(absent in text for text in asserted)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_says_what_it_is_and_where_it_comes_from(image: str) -> None:
    found = re.findall(r"org\.opencontainers\.image\.([a-z.]+)=", stages(image)[-1])
    assert found == [*LABELS, "base.name"]

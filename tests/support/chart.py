"""Renders the chart, and finds objects in what came out."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import yaml
from tools import ROOT, run_tool

Manifest = dict[str, Any]

CHART = ROOT / "charts" / "finetune-operator"
RELEASE = "finetune-operator"
NAMESPACE = "finetune-system"
KUBERNETES = ("--kube-version", "1.31.0")
"""The oldest that the chart supports; a helm that is built by hand believes in 1.20."""


def helm_template(
    values: dict[str, Any] | None = None,
    *options: str,
    release: str = RELEASE,
    chart: Path = CHART,
) -> subprocess.CompletedProcess[str]:
    """`helm template`; the values are given as a user's file would."""
    return _helm_template(json.dumps(values or {}), options, release, chart)


@functools.cache
def _helm_template(
    values: str, options: tuple[str, ...], release: str, chart: Path
) -> subprocess.CompletedProcess[str]:
    where = ("--namespace", NAMESPACE, "--values", "-", *KUBERNETES)
    return run_tool("helm", "template", release, str(chart), *where, *options, stdin=values)


def render(
    values: dict[str, Any] | None = None, *options: str, release: str = RELEASE
) -> list[Manifest]:
    """Every object of the chart."""
    done = helm_template(values, *options, release=release)
    assert done.returncode == 0, done.stderr
    return [m for m in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if m]


def render_notes(values: dict[str, Any], directory: Path) -> str:
    """What helm prints after the installation; `helm template` leaves it out, so an object of a
    copy of the chart carries it."""
    chart = shutil.copytree(CHART, directory / "chart")
    (chart / "templates" / "NOTES.txt").rename(chart / "notes.txt")
    (chart / "templates" / "notes.yaml").write_text(
        "kind: Notes\nmetadata: {name: notes}\n"
        'text: {{ tpl (.Files.Get "notes.txt") . | toJson }}\n'
    )
    done = helm_template(values, "--show-only", "templates/notes.yaml", chart=chart)
    assert done.returncode == 0, done.stderr
    return str(yaml.safe_load(done.stdout)["text"])


def manifests_in(text: str) -> list[Manifest]:
    """The manifests that a text tells the reader to apply."""
    blocks = re.findall(r"apply -f - <<'END'\n(.*?)\n *END", text, re.DOTALL)
    return [yaml.safe_load(textwrap.dedent(block)) for block in blocks]


def refusal(values: dict[str, Any]) -> str:
    """What helm says to values that the schema does not allow."""
    done = helm_template(values)
    assert done.returncode != 0, f"{values} was accepted"
    return done.stderr


def only(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The one object of this kind (and name)."""
    found = [m for m in manifests if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} objects of kind {kind} and name {name}"
    return found[0]


def operator_container(manifests: list[Manifest]) -> Manifest:
    """The one container of the Deployment."""
    containers: list[Manifest] = only(manifests, "Deployment")["spec"]["template"]["spec"][
        "containers"
    ]
    assert len(containers) == 1
    return containers[0]


def leaves(values: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted path; a map without entries is a leaf, and so is every list."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}.{key}" if prefix else key)
    return found


def default_values() -> dict[str, Any]:
    """values.yaml."""
    loaded: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return loaded


def value_docs(path: Path = CHART / "values.yaml") -> dict[str, str]:
    """The `# -- ` text in front of each value, by dotted path."""
    docs: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    text: list[str] = []
    for line in path.read_text().splitlines():
        comment = re.match(r"\s*# (-- )?(.*)", line)
        key = re.match(r"( *)([A-Za-z]\w*):", line)
        if comment and (comment[1] or text):
            text.append(comment[2])
        elif key:
            parents = [p for p in parents if p[0] < len(key[1])] + [(len(key[1]), key[2])]
            if text:
                docs[".".join(name for _, name in parents)] = " ".join(text)
            text = []
    return docs

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
from chart_readme import CHART, leaves, value_docs
from tools import run_tool

__all__ = ["CHART", "leaves", "value_docs"]

Manifest = dict[str, Any]

RELEASE = "finetune-operator"
NAMESPACE = "finetune-system"
KUBERNETES = ("--kube-version", "1.30.0")
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
    """Every object of the chart but those of `helm test`."""
    return render_all(values, "--skip-tests", *options, release=release)


def render_all(
    values: dict[str, Any] | None = None, *options: str, release: str = RELEASE, chart: Path = CHART
) -> list[Manifest]:
    """Every object of the chart."""
    done = helm_template(values, *options, release=release, chart=chart)
    assert done.returncode == 0, done.stderr
    return [m for m in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if m]


def render_tests(values: dict[str, Any] | None = None) -> list[Manifest]:
    """Every object of `helm test`, in the order in which Helm makes them."""

    def weight(manifest: Manifest) -> int:
        return int(manifest["metadata"]["annotations"]["helm.sh/hook-weight"])

    hooks = [
        m
        for m in render_all(values)
        if (m["metadata"].get("annotations") or {}).get("helm.sh/hook") == "test"
    ]
    return sorted(hooks, key=weight)


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


def default_values() -> dict[str, Any]:
    """values.yaml."""
    loaded: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return loaded

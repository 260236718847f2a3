"""What the chart makes is valid for every minor of Kubernetes that it names, by its own OpenAPI.

The schemas are those that the package kubernetes-validate carries, so this needs no network.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
from chart import Manifest, helm_template, only, render_all

MINORS = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
CUSTOM = {
    *("FineTuneJob", "FineTuneProfile", "Certificate", "Issuer", "PrometheusRule", "ServiceMonitor")
}
EVERYTHING: dict[str, Any] = {
    "watchNamespaces": ["team-a", "team-b"],
    "imagePullSecrets": [{"name": "registry"}],
    "operator": {
        "podAnnotations": {"example.com/port": "8080"},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
    },
    "tls": {"certManager": {"enabled": True}},
    "profiles": [{"name": "standard", "spec": {}}],
    "monitoring": {
        "serviceMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboards": {"annotations": {"folder": "Training"}},
    },
}


class Schemas:
    """The strict schemas of one minor: a field that there is not is an error."""

    def __init__(self, minor: str) -> None:
        package = Path(str(resources.files("kubernetes_validate")))
        self._directory = package / "kubernetes-json-schema" / f"v{minor}.0-local-strict"
        shared = json.loads((self._directory / "_definitions.json").read_text())
        self._registry = referencing.Registry().with_resource(
            "https://kubernetes.io/api/_definitions.json",
            referencing.Resource.from_contents(shared),
        )

    @functools.cache  # noqa: B019 (one for each minor, as long as the tests run)
    def _validator(self, file: str) -> jsonschema.Draft202012Validator:
        schema = json.loads((self._directory / file).read_text())
        return jsonschema.Draft202012Validator(schema, registry=self._registry)

    def wrong(self, manifest: Manifest) -> list[str]:
        """What is wrong with a manifest; an API that this minor does not have is an error, too."""
        group, _, version = manifest["apiVersion"].rpartition("/")
        parts = [manifest["kind"].lower(), group.partition(".")[0], version]
        file = "-".join(filter(None, parts)) + ".json"
        if not (self._directory / file).exists():
            return [f"no {manifest['apiVersion']} {manifest['kind']}"]
        return [error.message for error in self._validator(file).iter_errors(manifest)]


@functools.cache
def schemas(minor: str) -> Schemas:
    return Schemas(minor)


@pytest.mark.parametrize("minor", MINORS)
@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_every_object_is_valid(values: dict[str, Any], minor: str) -> None:
    rendered = render_all(values, "--kube-version", f"{minor}.0")
    builtin = [m for m in rendered if m["kind"] not in CUSTOM]
    assert len(builtin) >= 20
    found = {m["metadata"]["name"]: schemas(minor).wrong(m) for m in builtin}
    assert {name: errors for name, errors in found.items() if errors} == {}


@pytest.mark.parametrize("minor", MINORS)
def test_what_there_is_not_is_found(minor: str) -> None:
    budget = only(render_all(), "PodDisruptionBudget")
    wrong = {**budget, "spec": {**budget["spec"], "unhealthyPolicy": "AlwaysAllow"}}
    said = schemas(minor).wrong(wrong)
    assert said == ["Additional properties are not allowed ('unhealthyPolicy' was unexpected)"], (
        "a field"
    )
    deployment = only(render_all(), "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container = {**container, "ports": [{"containerPort": "8443"}]}
    spec = {**deployment["spec"], "template": {"spec": {"containers": [container]}}}
    assert schemas(minor).wrong({**deployment, "spec": spec}), "a type"
    old = {**budget, "apiVersion": "policy/v1beta1"}
    assert schemas(minor).wrong(old) == ["no policy/v1beta1 PodDisruptionBudget"]


def test_an_older_kubernetes_is_refused() -> None:
    done = helm_template({}, "--kube-version", "1.29.9")
    assert done.returncode != 0
    assert "chart requires kubeVersion: >=1.30.0-0" in done.stderr

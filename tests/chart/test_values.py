"""Every value is documented and in the schema, and wrong ones are refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chart import CHART, default_values, helm_template, leaves, refusal, render

DIGEST = f"sha256:{'0' * 64}"
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())


def node(schema: dict[str, Any], path: str) -> dict[str, Any] | None:
    """The part of the schema about one value; None where it has none."""
    for key in path.split("."):
        if "$ref" in schema:
            schema = SCHEMA["definitions"][schema["$ref"].rsplit("/", 1)[-1]]
        if key not in schema.get("properties", {}):
            extra = schema.get("additionalProperties")
            return extra if isinstance(extra, dict) else None
        schema = schema["properties"][key]
    return schema


def schema_paths(schema: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted paths of all values that the schema names."""
    if "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rsplit("/", 1)[-1]]
    if "properties" not in schema:
        return {prefix}
    return {
        path
        for key, value in schema["properties"].items()
        for path in schema_paths(value, f"{prefix}.{key}" if prefix else key)
    }


def test_every_value_is_in_the_schema() -> None:
    values = leaves(default_values())
    assert len(values) >= 25
    assert [path for path in values if node(SCHEMA, path) is None] == []


def test_every_value_of_the_schema_has_a_default() -> None:
    missing = {
        path
        for path in schema_paths(SCHEMA) - {"global"}
        if not any(
            value == path
            or value.startswith(f"{path}.")
            or (default == {} and path.startswith(value))
            for value, default in leaves(default_values()).items()
        )
    }
    assert missing == set()


def test_every_object_of_the_schema_is_closed() -> None:
    def open_objects(part: Any, path: str) -> list[str]:
        if not isinstance(part, dict):
            return []
        is_open = "properties" in part and part.get("additionalProperties") is not False
        inner = [
            found for key, value in part.items() for found in open_objects(value, f"{path}/{key}")
        ]
        return [path] * is_open + inner

    schema = {key: value for key, value in SCHEMA.items() if key != "properties"}
    assert schema["additionalProperties"] is False
    assert open_objects(SCHEMA["properties"] | schema["definitions"], "") == []


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"replicas": 2}, "replicas"),
    ({"operator": {"replicas": 0}}, "replicas"),
    ({"operator": {"leaderElection": {"leaseSeconds": 1}}}, "leaseSeconds"),
    ({"operator": {"leaderElection": {"enabled": False}}}, "enabled"),
    ({"operator": {"image": {"name": "x"}}}, "name"),
    ({"operator": {"image": {"tag": ""}}}, "tag"),
    ({"operator": {"image": {"digest": "0000"}}}, "digest"),
    ({"operator": {"image": {"pullPolicy": "Sometimes"}}}, "pullPolicy"),
    ({"operator": {"logFormat": "xml"}}, "logFormat"),
    ({"operator": {"resources": {"request": {"cpu": 1}}}}, "request"),
    ({"operator": {"podAnnotations": {"port": 8080}}}, "port"),
    ({"trainer": {"image": {"repository": "Upper/Case"}}}, "repository"),
    ({"trainer": {"image": "localhost/finetune-trainer:dev"}}, "image"),
    ({"operator": {"priority": 2_000_000_000}}, "priority"),
    ({"operator": {"spreadOver": ["a b"]}}, "spreadOver"),
    ({"operator": {"affinity": []}}, "affinity"),
    ({"clusterObjects": "no"}, "clusterObjects"),
    ({"tls": {"existingSecret": "Not A Name"}}, "existingSecret"),
    ({"tls": {"renewAfterDays": 4000}}, "renewAfterDays"),
    ({"tls": {"certManager": {"duration": "90 days"}}}, "duration"),
    ({"tls": {"certManager": {"issuer": "x"}}}, "issuer"),
    ({"test": {"seconds": 5}}, "seconds"),
    ({"test": {"namespace": "Team A"}}, "namespace"),
    ({"crds": {"enabled": "yes"}}, "enabled"),
    ({"watchNamespaces": "team-a"}, "watchNamespaces"),
    ({"watchNamespaces": ["team-a", "team-a"]}, "watchNamespaces"),
    ({"watchNamespaces": ["Team A"]}, "watchNamespaces"),
    ({"fullnameOverride": "a" * 41}, "fullnameOverride"),
    ({"profiles": [{"spec": {}}]}, "name"),
    ({"profiles": [{"name": "standard"}]}, "spec"),
    ({"profiles": [{"metadata": {"name": "standard"}, "spec": {}}]}, "metadata"),
    ({"imagePullSecrets": ["registry"]}, "imagePullSecrets"),
    ({"monitoring": {"serviceMonitor": {"interval": "often"}}}, "interval"),
    ({"monitoring": {"dashboard": {}}}, "dashboard"),
]


@pytest.mark.parametrize(("values", "field"), WRONG, ids=[json.dumps(v) for v, _ in WRONG])
def test_a_wrong_value_is_refused_and_named(values: dict[str, Any], field: str) -> None:
    said = refusal(values)
    assert "values don't meet the specifications of the schema" in said
    assert field in said


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"clusterObjects": False}, "clusterObjects=false needs watchNamespaces"),
    (
        {
            "clusterObjects": False,
            "watchNamespaces": ["a"],
            "profiles": [{"name": "p", "spec": {}}],
        },
        "clusterObjects=false excludes profiles",
    ),
    (
        {"tls": {"existingSecret": "mine", "certManager": {"enabled": True}}},
        "tls.existingSecret and tls.certManager.enabled exclude each other",
    ),
    (
        {"watchNamespaces": ["team-a"], "test": {"namespace": "team-b"}},
        "test.namespace team-b is not in watchNamespaces",
    ),
]


@pytest.mark.parametrize(("values", "said"), CONTRADICTIONS, ids=[s for _, s in CONTRADICTIONS])
def test_values_that_contradict_each_other_are_refused(values: dict[str, Any], said: str) -> None:
    done = helm_template(values)
    assert done.returncode != 0
    assert said in done.stderr


def test_every_value_at_once_is_accepted() -> None:
    rendered = render(
        {
            "fullnameOverride": "ft",
            "imagePullSecrets": [{"name": "registry"}],
            "watchNamespaces": ["team-a", "team-b"],
            "operator": {
                "image": {"repository": "registry.example:5000/ft/operator", "digest": DIGEST},
                "replicas": 2,
                "leaderElection": {"leaseSeconds": 15},
                "logFormat": "json",
                "resources": {"requests": {"cpu": 1}, "limits": {"memory": "1Gi"}},
                "podAnnotations": {"example.com/port": "8080"},
                "nodeSelector": {"kubernetes.io/arch": "amd64"},
                "tolerations": [{"key": "system", "operator": "Exists"}],
                "affinity": {"nodeAffinity": {}},
                "spreadOver": ["topology.kubernetes.io/zone"],
                "priority": 5,
                "priorityClassName": "system-cluster-critical",
            },
            "trainer": {
                "image": {"tag": "1.0", "pullPolicy": "Always"},
                "user": 1000,
                "fetchCidrs": ["10.1.2.0/24"],
            },
            "tls": {
                "renewAfterDays": 30,
                "certManager": {
                    "enabled": True,
                    "issuerRef": {"name": "i", "kind": "Issuer", "group": "cert-manager.io"},
                    "duration": "24h0m0s",
                    "renewBefore": "8h",
                },
            },
            "test": {
                "namespace": "team-b",
                "profile": "standard",
                "storageClassName": "fast",
                "seconds": 60,
            },
            "crds": {"enabled": True, "keep": False},
            "admissionPolicy": {"enabled": True},
            "profiles": [{"name": "standard", "spec": {"default": True}}],
            "monitoring": {
                "dashboards": {"labels": {"sidecar": "1"}, "annotations": {"folder": "Training"}},
                "serviceMonitor": {"enabled": True, "labels": {"release": "p"}, "interval": "1m"},
            },
            "global": {"anything": True},
        }
    )
    kinds = sorted(m["kind"] for m in rendered)
    assert kinds == [
        "Certificate",
        *["ClusterRole"] * 4,
        "ClusterRoleBinding",
        "ConfigMap",
        *["CustomResourceDefinition"] * 2,
        "Deployment",
        "FineTuneProfile",
        "PodDisruptionBudget",
        *["Role"] * 3,
        *["RoleBinding"] * 3,
        "Service",
        "ServiceAccount",
        "ServiceMonitor",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ]

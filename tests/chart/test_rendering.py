"""What the chart makes of its values."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from chart import (
    CHART,
    KUBERNETES,
    NAMESPACE,
    RELEASE,
    Manifest,
    manifests_in,
    only,
    operator_container,
    render,
    render_notes,
)
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from tools import ROOT, run_tool

from finetune_api import crd
from finetune_api.crd import all_crds
from finetune_api.profile import FineTuneProfile
from finetune_api.v1alpha1 import FineTuneJob
from finetune_operator.settings import PREFIX, Settings

HOST = f"{RELEASE}.{NAMESPACE}.svc"
DIGEST = f"sha256:{'ab' * 32}"


@pytest.fixture(scope="module")
def defaults() -> list[Manifest]:
    return render()


def environment(manifests: list[Manifest]) -> dict[str, Any]:
    entries = operator_container(manifests)["env"]
    found = {e["name"]: e.get("value", e.get("valueFrom")) for e in entries}
    assert len(found) == len(entries)
    return found


def test_helm_finds_nothing_to_complain_about() -> None:
    done = run_tool("helm", "lint", "--strict", str(CHART), *KUBERNETES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_defaults_make_these_objects(defaults: list[Manifest]) -> None:
    cluster = f"{NAMESPACE}-{RELEASE}"
    assert sorted((m["kind"], m["metadata"]["name"]) for m in defaults) == [
        ("ClusterRole", f"{cluster}-admin"),
        ("ClusterRole", f"{cluster}-cluster"),
        ("ClusterRole", f"{cluster}-edit"),
        ("ClusterRole", f"{cluster}-jobs"),
        ("ClusterRole", f"{cluster}-view"),
        ("ClusterRoleBinding", f"{cluster}-cluster"),
        ("ClusterRoleBinding", f"{cluster}-jobs"),
        ("ConfigMap", "finetune-operator-dashboards"),
        ("CustomResourceDefinition", "finetunejobs.finetune-operator.io"),
        ("CustomResourceDefinition", "finetuneprofiles.finetune-operator.io"),
        ("Deployment", "finetune-operator"),
        ("PodDisruptionBudget", "finetune-operator"),
        ("PriorityClass", f"{cluster}-1000000"),
        ("Role", "finetune-operator-lease"),
        ("RoleBinding", "finetune-operator-lease"),
        ("Secret", "finetune-operator-ca"),
        ("Secret", "finetune-operator-tls"),
        ("Service", "finetune-operator"),
        ("ServiceAccount", "finetune-operator"),
        ("ValidatingAdmissionPolicy", f"{cluster}-profile-limits"),
        ("ValidatingAdmissionPolicyBinding", f"{cluster}-profile-limits"),
    ]


def test_every_object_with_a_namespace_is_in_that_of_the_release(defaults: list[Manifest]) -> None:
    for manifest in defaults:
        is_cluster = manifest["kind"].startswith(
            ("Cluster", "CustomResource", "PriorityClass", "ValidatingAdmission")
        )
        expected = None if is_cluster else NAMESPACE
        assert manifest["metadata"].get("namespace") == expected, manifest["metadata"]["name"]


def test_every_object_but_the_crds_is_labelled(defaults: list[Manifest]) -> None:
    for manifest in defaults:
        if manifest["kind"] != "CustomResourceDefinition":
            labels = manifest["metadata"]["labels"]
            assert labels["app.kubernetes.io/name"] == "finetune-operator"
            assert labels["app.kubernetes.io/instance"] == RELEASE
            assert labels["app.kubernetes.io/managed-by"] == "Helm"


@pytest.mark.parametrize(
    ("release", "values", "expected"),
    [
        ("ft", {}, "ft-finetune-operator"),
        ("my-finetune-operator", {}, "my-finetune-operator"),
        ("ft", {"fullnameOverride": "tuner"}, "tuner"),
        ("a" * 30, {}, f"{'a' * 30}-finetune"),
    ],
)
def test_objects_are_named_after_the_release(
    release: str, values: dict[str, Any], expected: str
) -> None:
    rendered = render({"crds": {"enabled": False}, **values}, release=release)
    for kind in ("Deployment", "Service", "ServiceAccount"):
        assert only(rendered, kind)["metadata"]["name"] == expected
    url = f"https://{expected}.{NAMESPACE}.svc:8443"
    assert environment(rendered)["FINETUNE_PROGRESS_URL"] == url


def test_the_operator_is_told_exactly_this(defaults: list[Manifest]) -> None:
    assert environment(defaults) == {
        "FINETUNE_NAMESPACE": {"fieldRef": {"fieldPath": "metadata.namespace"}},
        "FINETUNE_IDENTITY": {"fieldRef": {"fieldPath": "metadata.name"}},
        "FINETUNE_LEASE_NAME": "finetune-operator",
        "FINETUNE_LEASE_SECONDS": "10",
        "FINETUNE_TRAINER_IMAGE": "localhost/finetune-trainer:dev",
        "FINETUNE_TRAINER_PULL_POLICY": "IfNotPresent",
        "FINETUNE_TRAINER_USER": "65532",
        "FINETUNE_FETCH_CIDRS": "",
        "FINETUNE_PROGRESS_URL": f"https://{HOST}:8443",
        "FINETUNE_PROGRESS_PORT": "8443",
        "FINETUNE_METRICS_PORT": "8080",
        "FINETUNE_TLS_DIR": "/etc/finetune/tls",
        "FINETUNE_WATCH_NAMESPACES": "",
        "FINETUNE_LOG_FORMAT": "text",
    }


def test_the_operator_understands_all_that_it_is_told(defaults: list[Manifest]) -> None:
    told = {**environment(defaults), "FINETUNE_NAMESPACE": NAMESPACE, "FINETUNE_IDENTITY": "pod"}
    assert Settings.from_env(told) == Settings(
        namespace=NAMESPACE,
        trainer_image="localhost/finetune-trainer:dev",
        progress_url=f"https://{HOST}:8443",
        identity="pod",
    )
    known = {PREFIX + field.name.upper() for field in dataclasses.fields(Settings)}
    assert told.keys() <= known


def test_values_reach_the_operator() -> None:
    told = environment(
        render(
            {
                "watchNamespaces": ["team-a", "team-b"],
                "operator": {"logFormat": "json", "leaderElection": {"leaseSeconds": 20}},
                "trainer": {
                    "image": {"repository": "r.example/t", "tag": "2", "pullPolicy": "Never"},
                    "user": "Assigned",
                    "fetchCidrs": ["10.1.2.0/24", "fd00::/8"],
                },
            }
        )
    )
    assert told["FINETUNE_WATCH_NAMESPACES"] == "team-a,team-b"
    assert told["FINETUNE_LOG_FORMAT"] == "json"
    assert told["FINETUNE_LEASE_SECONDS"] == "20"
    assert told["FINETUNE_TRAINER_IMAGE"] == "r.example/t:2"
    assert told["FINETUNE_TRAINER_PULL_POLICY"] == "Never"
    assert told["FINETUNE_TRAINER_USER"] == "Assigned"
    assert told["FINETUNE_FETCH_CIDRS"] == "10.1.2.0/24,fd00::/8"


def test_a_digest_beats_the_tag() -> None:
    image = {"tag": "2", "digest": DIGEST}
    rendered = render({"operator": {"image": image}, "trainer": {"image": image}})
    expected = f"localhost/finetune-operator@{DIGEST}"
    assert operator_container(rendered)["image"] == expected
    told = environment(rendered)["FINETUNE_TRAINER_IMAGE"]
    assert told == f"localhost/finetune-trainer@{DIGEST}"


def test_two_replicas_are_spread_and_an_update_starts_one_before_it_ends_one(
    defaults: list[Manifest],
) -> None:
    spec = only(defaults, "Deployment")["spec"]
    rolling = {"maxSurge": 1, "maxUnavailable": 0}
    assert (spec["replicas"], spec["strategy"]) == (
        2,
        {"type": "RollingUpdate", "rollingUpdate": rolling},
    )
    assert spec["template"]["spec"]["topologySpreadConstraints"] == [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "matchLabelKeys": ["pod-template-hash"],
            "labelSelector": spec["selector"],
        }
        for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    ]


def test_a_drain_takes_one_replica_at_a_time(defaults: list[Manifest]) -> None:
    assert only(defaults, "PodDisruptionBudget")["spec"] == {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": only(defaults, "Deployment")["spec"]["selector"],
    }


def test_one_replica_holds_up_no_drain() -> None:
    rendered = render({"operator": {"replicas": 1}})
    assert not [m for m in rendered if m["kind"] == "PodDisruptionBudget"]
    spec = only(rendered, "Deployment")["spec"]
    assert spec["replicas"] == 1
    assert "topologySpreadConstraints" not in spec["template"]["spec"]


def test_the_operator_goes_before_the_jobs_that_it_starts(defaults: list[Manifest]) -> None:
    made = only(defaults, "PriorityClass")
    assert (made["value"], made["globalDefault"]) == (1000000, False)
    pod = only(defaults, "Deployment")["spec"]["template"]["spec"]
    assert pod["priorityClassName"] == made["metadata"]["name"]


@pytest.mark.parametrize(
    ("operator", "expected"),
    [({"priorityClassName": "system-cluster-critical"}, "system-cluster-critical"),
     ({"priority": 0}, None)],
)  # fmt: skip
def test_another_priority_class_or_none(operator: dict[str, Any], expected: str | None) -> None:
    rendered = render({"operator": operator})
    assert not [m for m in rendered if m["kind"] == "PriorityClass"]
    pod = only(rendered, "Deployment")["spec"]["template"]["spec"]
    assert pod.get("priorityClassName") == expected


def test_the_pod_keeps_to_the_restricted_pod_security_standard(defaults: list[Manifest]) -> None:
    pod = only(defaults, "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert operator_container(defaults)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
    assert [sorted(v) for v in pod["volumes"]] == [["name", "secret"], ["emptyDir", "name"]]


def test_the_pod_asks_for_little(defaults: list[Manifest]) -> None:
    assert operator_container(defaults)["resources"] == {
        "requests": {"cpu": "50m", "memory": "128Mi"},
        "limits": {"memory": "512Mi"},
    }


def test_the_kubelet_asks_the_metrics_port_whether_it_lives(defaults: list[Manifest]) -> None:
    container = operator_container(defaults)
    starting = container["startupProbe"]
    assert starting["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert starting["periodSeconds"] * starting["failureThreshold"] == 300  # of a starved node
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert {p["name"]: p["containerPort"] for p in container["ports"]} == {
        "progress": 8443,
        "metrics": 8080,
    }


def test_the_service_leads_to_the_operator(defaults: list[Manifest]) -> None:
    service, deployment = only(defaults, "Service"), only(defaults, "Deployment")
    template = deployment["spec"]["template"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert {p["port"]: p["targetPort"] for p in service["spec"]["ports"]} == {
        8443: "progress",
        8080: "metrics",
    }


def certificate(data: dict[str, str], key: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(base64.b64decode(data[key]))


def test_the_certificate_is_valid_for_every_name_of_the_service(defaults: list[Manifest]) -> None:
    secret = only(defaults, "Secret", "finetune-operator-tls")
    assert secret["type"] == "kubernetes.io/tls"
    assert sorted(secret["data"]) == ["ca.crt", "tls.crt", "tls.key"]
    served, authority = (certificate(secret["data"], key) for key in ("tls.crt", "ca.crt"))
    served.verify_directly_issued_by(authority)
    names = served.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [RELEASE, f"{RELEASE}.{NAMESPACE}", HOST]


def test_what_signs_the_next_certificate_is_mounted_by_nobody(defaults: list[Manifest]) -> None:
    authority = only(defaults, "Secret", "finetune-operator-ca")["data"]
    served = only(defaults, "Secret", "finetune-operator-tls")["data"]
    assert authority["tls.crt"] == served["ca.crt"]
    key = serialization.load_pem_private_key(base64.b64decode(authority["tls.key"]), None)
    assert key.public_key() == certificate(authority, "tls.crt").public_key()
    assert "finetune-operator-ca" not in json.dumps(only(defaults, "Deployment"))


def test_the_operator_reads_the_certificate_where_it_was_told(defaults: list[Manifest]) -> None:
    pod = only(defaults, "Deployment")["spec"]["template"]["spec"]
    mount = {m["name"]: m["mountPath"] for m in operator_container(defaults)["volumeMounts"]}
    volume = {v["name"]: v for v in pod["volumes"]}["tls"]
    assert mount == {"tls": environment(defaults)["FINETUNE_TLS_DIR"], "tmp": "/tmp"}
    assert volume["secret"]["secretName"] == "finetune-operator-tls"


def test_a_secret_of_ones_own_takes_the_place_of_the_charts() -> None:
    rendered = render({"tls": {"existingSecret": "mine"}})
    assert not [m for m in rendered if m["kind"] == "Secret"]
    volumes = only(rendered, "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert volumes[0]["secret"]["secretName"] == "mine"


def test_cert_manager_makes_an_authority_and_what_it_signs() -> None:
    rendered = render({"tls": {"certManager": {"enabled": True}}})
    assert not [m for m in rendered if m["kind"] == "Secret"]
    issuers = {m["metadata"]["name"]: m["spec"] for m in rendered if m["kind"] == "Issuer"}
    assert issuers == {
        "finetune-operator-self-signed": {"selfSigned": {}},
        "finetune-operator-ca": {"ca": {"secretName": "finetune-operator-ca"}},
    }
    ec = {"algorithm": "ECDSA", "size": 256}
    assert only(rendered, "Certificate", "finetune-operator-ca")["spec"] == {
        "isCA": True,
        "commonName": "finetune-operator-ca",
        "secretName": "finetune-operator-ca",
        "duration": "87600h",
        "renewBefore": "8760h",
        "privateKey": ec,
        "issuerRef": {"name": "finetune-operator-self-signed", "kind": "Issuer"},
    }
    assert only(rendered, "Certificate", "finetune-operator")["spec"] == {
        "secretName": "finetune-operator-tls",
        "dnsNames": [RELEASE, f"{RELEASE}.{NAMESPACE}", HOST],
        "duration": "2160h",
        "renewBefore": "720h",
        "privateKey": ec | {"rotationPolicy": "Always"},
        "issuerRef": {"name": "finetune-operator-ca", "kind": "Issuer"},
    }


def test_cert_manager_asks_the_issuer_that_is_named() -> None:
    issuer = {"name": "internal", "kind": "ClusterIssuer"}
    rendered = render({"tls": {"certManager": {"enabled": True, "issuerRef": issuer}}})
    assert only(rendered, "Certificate")["spec"]["issuerRef"] == issuer
    assert not [m for m in rendered if m["kind"] == "Issuer"]


def test_the_crds_of_the_chart_are_those_that_are_generated() -> None:
    assert crd.main([str(CHART / "files" / "crds"), "--check"]) == 0
    on_disk = {p.name for p in (CHART / "files" / "crds").iterdir()}
    assert on_disk == set(all_crds()) == {p.name for p in (ROOT / "crds").iterdir()}


@pytest.mark.parametrize(
    ("keep", "annotations"), [(True, {"helm.sh/resource-policy": "keep"}), (False, None)]
)
def test_the_crds_are_installed_unchanged_but_for_the_annotation(
    keep: bool, annotations: dict[str, str] | None
) -> None:
    rendered = render({"crds": {"keep": keep}})
    for generated in all_crds().values():
        name = generated["metadata"]["name"]
        installed = only(rendered, "CustomResourceDefinition", name)
        assert installed["metadata"].pop("annotations", None) == annotations
        assert installed == json.loads(json.dumps(generated))


def test_the_crds_can_be_left_out() -> None:
    rendered = render({"crds": {"enabled": False}})
    assert not [m for m in rendered if m["kind"] == "CustomResourceDefinition"]
    assert only(rendered, "Deployment")


def test_profiles_are_installed_as_they_are_given() -> None:
    spec = {"default": True, "node": {"gpusPerNode": 0, "accelerator": "CPU", "cpu": "16"}}
    profiles = [{"name": "standard", "spec": spec}, {"name": "empty", "spec": {}}]
    rendered = render({"profiles": profiles})
    for profile in profiles:
        manifest = only(rendered, "FineTuneProfile", str(profile["name"]))
        assert manifest["apiVersion"] == "finetune-operator.io/v1alpha1"
        assert manifest["spec"] == profile["spec"]


def test_profiles_come_after_their_crd_even_in_the_first_release() -> None:
    manifest = only(render({"profiles": [{"name": "standard", "spec": {}}]}), "FineTuneProfile")
    assert manifest["metadata"]["annotations"]["helm.sh/hook"] == "post-install,post-upgrade"


def test_prometheus_keeps_the_labels_that_name_the_job() -> None:
    monitoring = {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}}
    rendered = render({"monitoring": monitoring})
    monitor, service = only(rendered, "ServiceMonitor"), only(rendered, "Service")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["endpoints"] == [
        {"port": "metrics", "path": "/metrics", "interval": "30s", "honorLabels": True}
    ]
    selected = monitor["spec"]["selector"]["matchLabels"].items()
    assert selected <= service["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("values", "expected", "unexpected"),
    [
        (
            {},
            [
                "all namespaces",
                "kind: FineTuneProfile",
                "namespace: default}",
                "helm -n finetune-system test",
            ],
            ["Profiles", "clusterrole"],
        ),
        (
            {"watchNamespaces": ["team-a"], "profiles": [{"name": "standard", "spec": {}}]},
            ["jobs in team-a.", "Profiles installed: standard.", "namespace: team-a}"],
            ["all namespaces", "kind: FineTuneProfile", "clusterrole"],
        ),
        (
            {"watchNamespaces": ["team-a"], "clusterObjects": False},
            ["kubectl create clusterrole finetune-system-finetune-operator-tokens"],
            ["all namespaces"],
        ),
    ],
)
def test_the_notes_tell_the_next_step(
    values: dict[str, Any], expected: list[str], unexpected: list[str], tmp_path: Path
) -> None:
    notes = render_notes(values, tmp_path)
    assert [text for text in expected if text not in notes] == []
    assert [text for text in unexpected if text in notes] == []


def test_the_manifests_of_the_notes_and_the_readme_are_valid(tmp_path: Path) -> None:
    readme = (CHART / "README.md").read_text()
    for text in (render_notes({}, tmp_path), readme):
        profile, job = manifests_in(text)
        assert FineTuneProfile.parse(profile).spec.default
        assert FineTuneJob.parse(job).spec.model.uri.startswith("hf://")

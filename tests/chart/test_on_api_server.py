"""The chart on a real API server: accepted whole, kept over upgrades, with rights that suffice."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiserver import api_server, kubectl
from chart import CHART, NAMESPACE, RELEASE, Manifest, only, render, render_notes
from cryptography import x509
from tools import run_tool

from finetune_api import progress
from finetune_operator import names
from finetune_operator.cluster import ApiError, Cluster, connect
from finetune_operator.election import Election
from finetune_operator.lease import Fence, Moment
from finetune_operator.observe import trim
from finetune_operator.settings import Settings

pytestmark = pytest.mark.cluster

ACCOUNT = f"system:serviceaccount:{NAMESPACE}:finetune-operator"
PROFILE = {"name": "standard", "spec": {"default": True, "node": {"gpusPerNode": 8}}}
JOB: Manifest = {
    "apiVersion": "finetune-operator.io/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "first", "namespace": "team-a"},
    "spec": {
        "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
        "dataset": {"uri": "pvc://my-data/train.jsonl"},
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    """A server of this module's own: the tests install and uninstall cluster-wide objects."""
    with api_server() as kubeconfig:
        restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
        for name in (NAMESPACE, "team-a", "team-b"):
            create(kubeconfig, "v1", "Namespace", {"name": name, "labels": restricted})
        yield kubeconfig


@pytest.fixture(scope="module")
def installed(server: Path) -> Path:
    """The chart with its defaults."""
    helm(server, "install", {})
    return server


def helm(server: Path, verb: str, values: dict[str, Any]) -> None:
    arguments = [RELEASE, str(CHART), "--namespace", NAMESPACE, "--values", "-"]
    arguments += ["--reset-values"] if verb == "upgrade" else []  # `{}` would mean: as before
    done = run_tool("helm", "--kubeconfig", str(server), verb, *arguments, stdin=json.dumps(values))
    assert done.returncode == 0, done.stderr


def create(server: Path, version: str, kind: str, metadata: dict[str, Any], **rest: Any) -> None:
    apply(server, {"apiVersion": version, "kind": kind, "metadata": metadata, **rest})


def apply(server: Path, *manifests: Manifest, dry_run: str = "none") -> str:
    options = ["--server-side", "--force-conflicts", "--validate=strict", f"--dry-run={dry_run}"]
    text = yaml.safe_dump_all(manifests)
    done = kubectl(server, "apply", *options, "-f", "-", stdin=text)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def get(server: Path, *arguments: str) -> Manifest:
    done = kubectl(server, "get", *arguments, "--output", "json")
    assert done.returncode == 0, done.stderr
    found: Manifest = json.loads(done.stdout)
    return found


def may(server: Path, who: str, namespace: str | None, verb: str, resource: str) -> bool:
    where = ["--namespace", namespace] if namespace else ["--all-namespaces"]
    resource, _, part = resource.partition("/")  # to can-i, what follows a slash is a name
    what = [verb, resource, *([f"--subresource={part}"] if part else [])]
    done = kubectl(server, "auth", "can-i", *what, "--as", who, *where)
    assert done.stdout.strip() in ("yes", "no"), done.stderr
    return done.stdout.strip() == "yes"


def test_a_release_lives_and_leaves_only_crds_and_profiles_behind(server: Path) -> None:
    def state() -> tuple[dict[str, str], str, str]:
        served, authority = (
            get(server, "secret", f"finetune-operator-{name}", "--namespace", NAMESPACE)["data"]
            for name in ("tls", "ca")
        )
        assert served["ca.crt"] == authority["tls.crt"]
        issuer = x509.load_pem_x509_certificate(base64.b64decode(authority["tls.crt"]))
        leaf = x509.load_pem_x509_certificate(base64.b64decode(served["tls.crt"]))
        leaf.verify_directly_issued_by(issuer)
        deployment = get(server, "deployment", "finetune-operator", "--namespace", NAMESPACE)
        return deployment["spec"]["template"], served["tls.crt"], served["ca.crt"]

    helm(server, "install", {"profiles": [PROFILE]})
    assert get(server, "finetuneprofile", "standard")["spec"]["node"]["gpusPerNode"] == 8
    template, certificate, authority = state()

    helm(server, "upgrade", {"profiles": [PROFILE], "operator": {"replicas": 3}})
    assert state() == (template, certificate, authority), "kept, and the operator not restarted"

    helm(server, "upgrade", {"profiles": [PROFILE], "tls": {"renewAfterDays": 0}})
    renewed = state()
    assert (renewed[0], renewed[2]) == (template, authority), "running jobs go on to trust it"
    assert renewed[1] != certificate

    kubectl(server, "delete", "secret", "finetune-operator-tls", "--namespace", NAMESPACE)
    helm(server, "upgrade", {"profiles": [PROFILE]})
    found = state()
    assert found[1] not in (certificate, renewed[1])
    assert found[2] == authority

    kubectl(server, "delete", "secret", "finetune-operator-ca", "--namespace", NAMESPACE)
    helm(server, "upgrade", {"profiles": [PROFILE]})
    assert state()[2] != authority

    done = run_tool(
        "helm", "--kubeconfig", str(server), "uninstall", RELEASE, "--namespace", NAMESPACE
    )
    assert done.returncode == 0, done.stderr
    assert get(server, "finetuneprofile", "standard")
    kinds = (
        "deployments,services,secrets,roles,rolebindings,clusterroles,clusterrolebindings,"
        "configmaps,serviceaccounts,poddisruptionbudgets,priorityclasses"
    )
    selector = "app.kubernetes.io/name=finetune-operator"
    left = get(server, kinds, "--all-namespaces", "--selector", selector)["items"]
    assert [m["metadata"]["name"] for m in left] == []


def test_the_api_server_knows_every_field_of_every_object(server: Path) -> None:
    values = {
        "fullnameOverride": "other",
        "watchNamespaces": ["team-a", "team-b"],
        "imagePullSecrets": [{"name": "registry"}],
        "operator": {
            "nodeSelector": {"kubernetes.io/arch": "amd64"},
            "tolerations": [{"key": "system", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
        },
    }
    manifests = render(values)
    answer = apply(server, *manifests, dry_run="server")
    assert len(answer.splitlines()) == len(manifests) == 23


def test_a_restricted_namespace_takes_the_operators_pod(server: Path) -> None:
    template = only(render(), "Deployment")["spec"]["template"]
    # Service account and priority class would have to exist.
    spec = {**template["spec"], "serviceAccountName": "default"}
    del spec["priorityClassName"]
    metadata = {**template["metadata"], "name": "operator", "namespace": NAMESPACE}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    assert "pod/operator" in apply(server, pod, dry_run="server")

    pod["spec"] = {**spec, "securityContext": {}}
    done = kubectl(server, "create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
    assert 'violates PodSecurity "restricted' in done.stderr


def test_the_rights_suffice_for_everything_that_the_operator_does(installed: Path) -> None:
    apply(installed, JOB)
    done = kubectl(installed, "create", "token", "finetune-operator", "--namespace", NAMESPACE)
    config = yaml.safe_load(installed.read_text())
    config["users"] = [
        {"name": u["name"], "user": {"token": done.stdout.strip()}} for u in config["users"]
    ]
    as_operator = installed.with_name("operator.kubeconfig")
    as_operator.write_text(yaml.safe_dump(config))
    asyncio.run(do_everything(str(as_operator)))


async def do_everything(kubeconfig: str) -> None:
    cluster = await connect(kubeconfig)
    try:
        await use(cluster)
        # The rights are exactly those: what is not listed is refused.
        with pytest.raises(ApiError, match="forbidden"):
            await cluster._request("GET", "/api/v1/namespaces/team-a/secrets")
    finally:
        await cluster.close()


async def use(cluster: Cluster) -> None:
    """Every method of `Cluster`, the watches of `handlers` and each kind of child."""
    job = await cluster.job("team-a", "first")
    assert job is not None
    for namespaces in ((), ("team-a", "team-b")):
        listed = await cluster.all_jobs(namespaces)
        assert [j["metadata"]["name"] for j in listed.items] == ["first"]
        await cluster.all_children(namespaces, trim)
    await lead(cluster)
    await cluster.profiles()
    labels = await cluster.namespace_labels("team-a")  # none, where it may not read it
    assert labels["kubernetes.io/metadata.name"] == "team-a"
    await cluster.run_config_map("team-a", "first")
    owner = {
        "apiVersion": JOB["apiVersion"],
        "kind": "FineTuneJob",
        "name": "first",
        "uid": job["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }
    for child in children():
        child["metadata"] |= {"namespace": "team-a", "ownerReferences": [owner]}
        await cluster.apply(child)
        await cluster.apply(child)
    assert len((await cluster.children("team-a", "first"))[0]) == 1
    assert await cluster.pod("team-a", "none") is None
    pod = {"metadata": {"ownerReferences": [{"kind": "Job", "name": "first-train-1", "uid": "x"}]}}
    assert await cluster.owns("team-a", pod, owner["uid"]) is False
    await cluster.apply_status("team-a", "first", {"phase": "Pending"}, names.FIELD_OWNER)
    with pytest.raises(ApiError, match="409"):
        await cluster.report_progress("team-a", "first", {}, 1, owner["uid"])
    reference = {"kind": "FineTuneJob", "name": "first", "namespace": "team-a"}
    event = {
        "metadata": {"name": "first.1", "namespace": "team-a"},
        "involvedObject": reference,
        "reason": "Started",
        "message": "started",
        "type": "Normal",
    }
    await cluster.post_event(event)
    await cluster.post_event(event)
    assert await cluster.review_token("none", progress.audience("team-a", "first")) is None
    group = "/apis/finetune-operator.io/v1alpha1"
    watched = (
        f"{group}/finetunejobs",
        f"{group}/finetuneprofiles",
        "/apis/batch/v1/jobs",
        "/api/v1/pods",
    )
    for path in watched:
        query = {"watch": "true", "timeoutSeconds": "1", "labelSelector": "none=here"}
        await cluster._request("GET", path, query)
    await cluster.fail_pod("team-a", "none", "no uid")
    await cluster.force_delete_pod("team-a", "none", "no uid")
    await delete(cluster, owner["uid"])


async def delete(cluster: Cluster, uid: str) -> None:
    """Only the very job, as it was read."""
    job = await cluster.job("team-a", "first")
    assert job is not None
    version = int(job["metadata"]["resourceVersion"])
    await cluster.delete_job("team-a", "first", uid, version - 1)
    await cluster.delete_job("team-a", "first", "another uid", version)
    assert await cluster.job("team-a", "first") == job
    await cluster.delete_job("team-a", "first", uid, version)
    assert await cluster.job("team-a", "first") is None


async def lead(cluster: Cluster) -> None:
    """Create the Lease, renew it, release it."""

    def clock() -> Moment:
        return Moment(time.monotonic(), time.time())

    settings = Settings(namespace=NAMESPACE, trainer_image="x", progress_url="x", identity="me")
    election = Election(cluster, settings, Fence(10, clock), clock)
    await election.acquire()
    assert await election._turn()
    await election.release()


def children() -> list[Manifest]:
    """One small object of each kind that is applied, under the name the operator gives it."""
    labels = {names.LABEL_JOB: "first", names.LABEL_MANAGED_BY: names.FIELD_OWNER}
    container = {"name": "train", "image": "localhost/finetune-trainer:dev"}
    pod = {"restartPolicy": "Never", "containers": [container]}
    claim = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
    }
    policy: dict[str, Any] = {"podSelector": {"matchLabels": labels}, "policyTypes": ["Ingress"]}
    service = {"clusterIP": "None", "selector": labels}
    kinds: list[tuple[str, str, str, dict[str, Any]]] = [
        (
            "v1",
            "ConfigMap",
            names.run_config_map("first"),
            {"data": {"run.json": "{}"}, "immutable": True},
        ),
        ("v1", "PersistentVolumeClaim", "first-work", {"spec": claim}),
        ("v1", "Service", "first", {"spec": service}),
        ("networking.k8s.io/v1", "NetworkPolicy", "first", {"spec": policy}),
        (
            "batch/v1",
            "Job",
            "first-train-1",
            {"spec": {"suspend": True, "template": {"spec": pod}}},
        ),
    ]
    return [
        {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": labels}, **rest}
        for version, kind, name, rest in kinds
    ]


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("get", "secrets"),
        ("list", "configmaps"),
        ("get", "pods/log"),
        ("create", "pods/exec"),
        ("create", "pods"),
        ("patch", "pods"),
        ("deletecollection", "pods"),
        ("delete", "jobs.batch"),
        ("delete", "persistentvolumeclaims"),
        ("update", "finetunejobs"),
        ("patch", "finetunejobs"),
        ("deletecollection", "finetunejobs"),
        ("create", "finetuneprofiles"),
        ("create", "serviceaccounts/token"),
        ("delete", "leases.coordination.k8s.io"),
        ("list", "leases.coordination.k8s.io"),
        ("create", "rolebindings.rbac.authorization.k8s.io"),
    ],
)
def test_the_operator_may_not(installed: Path, verb: str, resource: str) -> None:
    assert not may(installed, ACCOUNT, "team-a", verb, resource)
    assert not may(installed, ACCOUNT, NAMESPACE, verb, resource)


def test_with_watched_namespaces_the_others_are_out_of_reach(installed: Path) -> None:
    helm(installed, "upgrade", {"watchNamespaces": ["team-a"]})
    try:
        until(lambda: not may(installed, ACCOUNT, None, "list", "finetunejobs"))
        until(lambda: may(installed, ACCOUNT, "team-a", "create", "jobs.batch"))
        assert not may(installed, ACCOUNT, "team-b", "create", "jobs.batch")
        assert may(installed, ACCOUNT, None, "list", "finetuneprofiles")
    finally:
        helm(installed, "upgrade", {})
    until(lambda: may(installed, ACCOUNT, "team-b", "create", "jobs.batch"))


def test_without_cluster_objects_the_notes_give_the_rights_that_the_chart_would(
    installed: Path, tmp_path: Path
) -> None:
    """As commands for somebody who may; what they would make is what the chart makes."""
    notes = render_notes({"watchNamespaces": ["team-a"], "clusterObjects": False}, tmp_path)
    made: list[Manifest] = []
    for line in notes.splitlines():
        if line.strip().startswith("kubectl create clusterrole"):
            command = [*line.split()[1:], "--dry-run=server", "--output", "json"]
            done = kubectl(installed, *command)
            assert done.returncode == 0, done.stderr
            made.append(json.loads(done.stdout))
    roles = [m for m in made if m["kind"] == "ClusterRole"]
    name = f"{NAMESPACE}-finetune-operator"
    assert [rule for role in roles for rule in role["rules"]] == only(
        render(), "ClusterRole", f"{name}-cluster"
    )["rules"]
    bindings = [m for m in made if m["kind"] == "ClusterRoleBinding"]
    assert [m["roleRef"]["name"] for m in bindings] == [m["metadata"]["name"] for m in roles]
    account = {"kind": "ServiceAccount", "name": "finetune-operator", "namespace": NAMESPACE}
    assert [m["subjects"] for m in bindings] == [[account]] * 3


@pytest.mark.parametrize(
    ("role", "can_create", "user"),
    [("view", False, "vera"), ("edit", True, "ed"), ("admin", True, "ada")],
)
def test_those_who_share_a_namespace_share_its_jobs(
    installed: Path, role: str, can_create: bool, user: str
) -> None:
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
    create(
        installed,
        "rbac.authorization.k8s.io/v1",
        "RoleBinding",
        {"name": user, "namespace": "team-a"},
        roleRef=reference,
        subjects=[subject],
    )
    until(lambda: may(installed, user, "team-a", "get", "finetunejobs"))
    until(lambda: may(installed, user, "team-a", "create", "finetunejobs") is can_create)
    assert not may(installed, user, "team-a", "patch", "finetunejobs/status")
    assert may(installed, ACCOUNT, "team-a", "patch", "finetunejobs/status")
    assert not may(installed, user, "team-b", "get", "finetunejobs")
    assert not may(installed, user, None, "create", "finetuneprofiles")


def test_who_administers_the_cluster_may_write_profiles(installed: Path) -> None:
    create(
        installed,
        "rbac.authorization.k8s.io/v1",
        "ClusterRoleBinding",
        {"name": "platform"},
        roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
        subjects=[{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "pat"}],
    )
    until(lambda: may(installed, "pat", None, "create", "finetuneprofiles"))


def until(condition: Callable[[], bool]) -> None:
    """Rights hold a moment after they are given: a controller joins roles, a cache follows."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)

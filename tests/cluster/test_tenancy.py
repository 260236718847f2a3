"""Attacks of a tenant who may write FineTuneJobs in one namespace and nothing else, tried with a
token of its own on a real API server, which enforces PodSecurity `restricted` there, and through
the real operator. Each is refused, or comes to nothing; docs/threat-model.md names these tests."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from typing import Any

import builders
import pytest
from chart import only, render
from kube import GROUP, Kube, eventually
from operator_process import Operator
from played import Reporter, to_training
from tenant import Tenant

from finetune_api.progress import audience
from finetune_operator.cluster import NotOursError, connect

Json = dict[str, Any]
HUB = "hf://HuggingFaceTB/SmolLM2-135M-Instruct"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
STRICT = "?fieldValidation=Strict&dryRun=All"
LENIENT = "?fieldValidation=Ignore&dryRun=All"
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="session")
def victim(kube: Kube) -> str:
    """Another team's namespace, with what a tenant may want."""
    name = kube.namespace("tenancy-victim", **RESTRICTED)
    core = f"/api/v1/namespaces/{name}"
    kube.create(f"{core}/secrets", {"metadata": {"name": "hf"}, "stringData": {"token": "theirs"}})
    kube.create(f"{core}/configmaps", {"metadata": {"name": "data"}, "data": {"a.jsonl": "{}"}})
    return name


@pytest.fixture(scope="session")
def team(kube: Kube) -> str:
    """The tenant's own namespace."""
    return kube.namespace("tenancy-team", **RESTRICTED)


@pytest.fixture(scope="session")
def tenant(kube: Kube, kubeconfig: Path, team: str) -> Tenant:
    """With the rules that the chart adds to Kubernetes' own role `edit`, and no others."""
    names = ("edit", "view")
    roles = [only(render(), "ClusterRole", f"finetune-system-finetune-operator-{n}") for n in names]
    rules = [rule for role in roles for rule in role["rules"]]
    return Tenant(kube, kubeconfig, team, "tenant", rules)


@pytest.fixture(scope="session")
def editor(kube: Kube, kubeconfig: Path, team: str) -> Tenant:
    """Who may also make what jobs are made of, but no pods."""
    core = ["configmaps", "services", "persistentvolumeclaims"]
    rules = [
        {"apiGroups": ["finetune-operator.io"], "resources": ["finetunejobs"], "verbs": ["*"]},
        {"apiGroups": [""], "resources": core, "verbs": ["*"]},
        {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["*"]},
    ]
    return Tenant(kube, kubeconfig, team, "editor", rules)


def body(name: str = "docs", **changes: Any) -> Json:
    """A good job with some fields changed, by dotted path from the top."""
    found: Json = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {"model": {"uri": HUB}, "dataset": {"uri": "pvc://team-data/docs.jsonl"}},
    }
    for path, value in copy.deepcopy(changes).items():
        *parents, last = path.split(".")
        target = found
        for key in parents:
            target = target.setdefault(key, {})
        target[last] = value
    return found


def jobs_of(namespace: str) -> str:
    return f"{GROUP}/namespaces/{namespace}/finetunejobs"


def status_of(kube: Kube, namespace: str, name: str) -> Json:
    found: Json = kube.job(namespace, name).get("status") or {}
    return found


def waits_for(kube: Kube, namespace: str, name: str, reason: str) -> str:
    """The message of the condition `Waiting`, once it has this reason."""

    def message() -> str | None:
        found = status_of(kube, namespace, name).get("conditions", [])
        return next((c["message"] for c in found if c["reason"] == reason), None)

    said: str = eventually(f"{name} to wait for {reason}", message)
    return said


# What is no field of a FineTuneJob: what a pod could have, and what only a profile says.

NO_FIELD: dict[str, Json] = {
    "a path of the host": {"spec.volumes": [{"name": "host", "hostPath": {"path": "/"}}]},
    "the network of the host": {"spec.hostNetwork": True},
    "the processes of the host": {"spec.hostPID": True},
    "a privileged container": {"spec.trainer.securityContext": {"privileged": True}},
    "a capability": {"spec.securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}},
    "root": {"spec.securityContext": {"runAsUser": 0}},
    "a token for the API server": {"spec.automountServiceAccountToken": True},
    "a node by name": {"spec.workers.nodeName": "control-plane"},
    "a node by label": {"spec.workers.nodeSelector": {"tier": "control-plane"}},
    "a toleration": {"spec.tolerations": [{"operator": "Exists"}]},
    "a scheduler": {"spec.schedulerName": "mine"},
    "a priority": {"spec.priorityClassName": "system-node-critical"},
    "a runtime class": {"spec.runtimeClassName": "unconfined"},
    "an image for all stages": {"spec.image": "evil.example/all:1"},
    "a variable for the built-in trainer": {"spec.env": [{"name": "HF_ENDPOINT", "value": "x"}]},
    "a pod template": {"spec.template": {"spec": {"hostNetwork": True}}},
    "labels for the pods": {"spec.labels": {"finetune-operator.io/job": "other"}},
    "annotations for the pods": {"spec.workers.annotations": {"sidecar.istio.io/inject": "true"}},
    "code of the model": {"spec.model.trustRemoteCode": True},
    "a Secret of another namespace": {
        "spec.model.secretRef": {"name": "hf", "namespace": "tenancy-victim"}
    },
    "a claim's namespace": {"spec.dataset.namespace": "tenancy-victim"},
    "more GPUs than a node of the profile has": {"spec.workers.gpusPerNode": 64},
    "another directory to work in": {"spec.workDir": "/etc"},
}


@pytest.mark.parametrize("wanted", NO_FIELD)
def test_what_only_profiles_decide_is_no_field_and_means_nothing_where_it_is_sent_anyway(
    tenant: Tenant, team: str, wanted: str
) -> None:
    changed = body(**NO_FIELD[wanted])
    code, answer = tenant.call("POST", jobs_of(team) + STRICT, changed)
    assert code == 400
    assert 'unknown field "spec.' in answer["message"]
    code, taken = tenant.call("POST", jobs_of(team) + LENIENT, changed)
    plain = body(**{"spec.trainer": {}}) if "trainer" in str(changed) else body()
    if "secretRef" in changed["spec"]["model"]:
        plain["spec"]["model"]["secretRef"] = {"name": "hf"}  # of the job's own namespace
    _, expected = tenant.call("POST", jobs_of(team) + LENIENT, plain)
    if taken["spec"].get("workers") == {}:  # what was sent in it is gone
        del taken["spec"]["workers"]
    assert (code, taken["spec"]) == (201, expected["spec"])


# What is a field, with a value that is refused.

ELSEWHERE = "other schemes are not supported"
DOTS = "must not contain '.' or '..' as a path element"
REFUSED: dict[str, tuple[Json, str]] = {
    "up from a claim of data": ({"spec.dataset.uri": "pvc://mine/../victim/a.jsonl"}, DOTS),
    "up from a claim of models": ({"spec.model.uri": "pvc://mine/a/../../run"}, DOTS),
    "up from the claim of the result": ({"spec.output.uri": "pvc://mine/.."}, DOTS),
    "up from a ConfigMap": ({"spec.dataset.uri": "configmap://mine/.."}, DOTS),
    "up from a repository": ({"spec.dataset.uri": "hf://owner/name/../../etc/passwd"}, DOTS),
    "up from the retention set": (
        {"spec.evaluation.retention": {"uri": "pvc://mine/../../../etc/passwd"}},
        DOTS,
    ),
    "up in another spelling": ({"spec.dataset.uri": "pvc://mine/%2e%2e/passwd"}, ELSEWHERE),
    "an absolute path in a claim": ({"spec.dataset.uri": "pvc://mine//etc/passwd"}, ELSEWHERE),
    "a claim of another namespace": ({"spec.dataset.uri": "pvc://victim:data/a"}, ELSEWHERE),
    "a second line in a URI": ({"spec.dataset.uri": "pvc://mine/a\npvc://b/c"}, ELSEWHERE),
    "a file of the pod": ({"spec.dataset.uri": "file:///var/run/secrets/token"}, ELSEWHERE),
    "the metadata service": (
        {"spec.dataset.uri": "http://169.254.169.254/latest/meta-data/"},
        ELSEWHERE,
    ),
    "the metadata service by name": (
        {"spec.dataset.uri": "https://metadata.google.internal/computeMetadata/v1/"},
        ELSEWHERE,
    ),
    "the metadata service by IPv6": ({"spec.dataset.uri": "http://[fd00:ec2::254]/"}, ELSEWHERE),
    "the metadata service as a number": ({"spec.dataset.uri": "http://2852039166/"}, ELSEWHERE),
    "the API server": ({"spec.model.uri": "https://kubernetes.default.svc/api"}, ELSEWHERE),
    "somebody's host as the Hub": ({"spec.dataset.uri": "hf://a:b@10.0.0.1/x"}, ELSEWHERE),
    "a Secret by path": (
        {"spec.model.secretRef": {"name": "../tenancy-victim/hf"}},
        "spec.model.secretRef.name",
    ),
    "a script by path": ({"spec.trainer.filesFrom": "../data"}, "spec.trainer.filesFrom"),
    "a key of a Secret that is none": (
        {"spec.trainer.env": [{"name": "A", "secretKeyRef": {"name": "hf", "key": "../b"}}]},
        "secretKeyRef.key",
    ),
    "an image with a second line": (
        {"spec.trainer.image": "mine:1\nprivileged: true"},
        "spec.trainer.image",
    ),
    "a variable of the rendezvous": (
        {"spec.trainer.env": [{"name": "PET_MASTER_ADDR", "value": "10.0.0.1"}]},
        "are set by the operator",
    ),
    "a variable of the progress endpoint": (
        {"spec.trainer.env": [{"name": "KUBEFLOW_TRAINER_SERVER_URL", "value": "x"}]},
        "are set by the operator",
    ),
    "a variable of the operator": (
        {"spec.trainer.env": [{"name": "FINETUNE_RESULT_DIR", "value": "/etc"}]},
        "are set by the operator",
    ),
    "a variable twice": (
        {"spec.trainer.env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
        "Duplicate value",
    ),
    "a name that makes others too long": ({"metadata.name": "x" * 49}, "at most 48 characters"),
    "a name with dots": ({"metadata.name": "kubernetes.default"}, "metadata.name must have"),
    "a million nodes": ({"spec.workers": {"numNodes": 1_000_000}}, "spec.workers.numNodes"),
    "an argument without end": ({"spec.trainer.args": ["x" * 16_385]}, "Too long"),
    "arguments without end": ({"spec.trainer.args": ["x"] * 257}, "Too many"),
    "much in many arguments": (
        {"spec.trainer.args": ["x" * 16_384] * 5},
        "more than 65536 characters together",
    ),
    "much in many variables": (
        {"spec.trainer.env": [{"name": f"V{n}", "value": "x" * 4096} for n in range(17)]},
        "more than 65536 characters together",
    ),
    "a URI without end": ({"spec.dataset.uri": "pvc://mine/" + "x" * 1024}, "Too long"),
    "a job larger than an object may be": ({"metadata.annotations": {"a": "x" * 300_000}}, "Too"),
}


@pytest.mark.parametrize("wanted", REFUSED)
def test_a_value_that_leads_out_of_the_job_is_refused_with_the_reason(
    tenant: Tenant, team: str, wanted: str
) -> None:
    changes, reason = REFUSED[wanted]
    code, answer = tenant.call("POST", jobs_of(team) + STRICT, body(**changes))
    assert code == 422, answer
    assert reason in answer["message"]


# What Kubernetes' own rights keep from a tenant.


def forbidden(tenant: Tenant, method: str, path: str, change: Any = None) -> None:
    kind = MERGE if method == "PATCH" else "application/json"
    code, answer = tenant.call(method, path, change, kind)
    assert code == 403, answer
    assert f"system:serviceaccount:{tenant.namespace_name}:{tenant.account}" in answer["message"]


def test_a_tenant_has_no_rights_but_over_the_jobs_of_its_namespace(
    kube: Kube, operator: Operator, tenant: Tenant, team: str, victim: str
) -> None:
    forbidden(tenant, "POST", jobs_of(victim), body())
    forbidden(tenant, "GET", jobs_of(victim))
    forbidden(tenant, "GET", f"/api/v1/namespaces/{team}/secrets")
    forbidden(tenant, "GET", f"/api/v1/namespaces/{victim}/secrets/hf")
    forbidden(tenant, "GET", "/api/v1/namespaces/finetune-system/secrets")
    lease = "/apis/coordination.k8s.io/v1/namespaces/finetune-system/leases/finetune-operator"
    forbidden(tenant, "PATCH", lease, {"spec": {"holderIdentity": "me"}})
    token = f"/api/v1/namespaces/{team}/serviceaccounts/default/token"
    forbidden(tenant, "POST", token, {"spec": {"audiences": [audience(team, "docs")]}})


def test_a_profile_is_not_the_tenants_to_write(tenant: Tenant) -> None:
    generous = {"spec": {"limits": {"ownTrainer": True, "remoteCode": True}}}
    forbidden(tenant, "PATCH", f"{GROUP}/finetuneprofiles/cpu", generous)
    mine = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": {"name": "mine"},
        **generous,
    }
    forbidden(tenant, "POST", f"{GROUP}/finetuneprofiles", mine)


def test_a_status_cannot_be_forged(tenant: Tenant, kube: Kube, operator: Operator) -> None:
    team, name = tenant.namespace_name, "forged-status"
    done = {"phase": "Succeeded", "startTime": builders.NOW, "settingsDigest": "sha256:0"}
    made = tenant.create(jobs_of(team), body(name) | {"status": done})
    assert "status" not in made
    path = f"{jobs_of(team)}/{name}"
    forbidden(tenant, "PATCH", f"{path}/status", {"status": done})
    code, _ = tenant.call("PATCH", path, {"status": done}, MERGE)
    assert code == 200, "the API server takes the request, and leaves the status out of it"
    eventually("the job to begin", lambda: status_of(kube, team, name).get("phase") == "Preparing")
    assert status_of(kube, team, name)["settingsDigest"] != "sha256:0"
    tenant.delete(path)


def test_what_a_job_is_made_of_is_not_the_tenants_to_change(
    kube: Kube, operator: Operator, tenant: Tenant, team: str
) -> None:
    tenant.create(jobs_of(team), body("children"))
    jobs = f"/apis/batch/v1/namespaces/{team}/jobs"
    eventually("prepare", lambda: kube.get(f"{jobs}/children-prepare"))
    forbidden(tenant, "PATCH", f"{jobs}/children-prepare", {"spec": {"suspend": True}})
    core = f"/api/v1/namespaces/{team}"
    forbidden(tenant, "PATCH", f"{core}/configmaps/children-run", {"data": {"run.json": "{}"}})
    policies = f"/apis/networking.k8s.io/v1/namespaces/{team}/networkpolicies"
    forbidden(tenant, "DELETE", f"{policies}/children-prepare")
    forbidden(tenant, "POST", f"{core}/pods", {"metadata": {"name": "mine"}})
    tenant.delete(f"{jobs_of(team)}/children")


# What the operator makes of jobs that the API server has taken.


def test_an_image_and_a_command_of_ones_own_need_a_profile_that_allows_them(
    kube: Kube, operator: Operator, tenant: Tenant, team: str
) -> None:
    own = {"image": "evil.example/miner:1", "command": ["mine"]}
    tenant.create(jobs_of(team), body("own-image", **{"spec.trainer": own}))
    status: Json = eventually(
        "the job to fail",
        lambda: (s := status_of(kube, team, "own-image")).get("phase") == "Failed" and s,
    )
    assert status["lastFailure"]["message"].startswith(
        "spec.trainer: profile 'cpu' lets no job bring its own trainer"
    )
    assert kube.get(f"/apis/batch/v1/namespaces/{team}/jobs/own-image-prepare") is None


def test_a_service_account_needs_a_profile_that_allows_it(
    kube: Kube, operator: Operator, tenant: Tenant, team: str
) -> None:
    tenant.create(jobs_of(team), body("account", **{"spec.serviceAccountName": "admin"}))
    assert waits_for(kube, team, "account", "ForbiddenByProfile") == (
        "spec.serviceAccountName is admin; profile 'cpu' allows none (limits.serviceAccounts)"
    )
    assert kube.get(f"/apis/batch/v1/namespaces/{team}/jobs/account-prepare") is None
    tenant.delete(f"{jobs_of(team)}/account")


def test_a_profile_that_does_not_exist_starts_nothing(
    kube: Kube, operator: Operator, tenant: Tenant, team: str
) -> None:
    tenant.create(jobs_of(team), body("no-profile", **{"spec.profile": "unlimited"}))
    said = waits_for(kube, team, "no-profile", "ProfileNotFound")
    assert said.startswith("spec.profile: there is no FineTuneProfile 'unlimited'")
    tenant.delete(f"{jobs_of(team)}/no-profile")


def test_labels_annotations_and_owners_of_a_job_do_not_reach_its_children(
    kube: Kube, operator: Operator, tenant: Tenant, team: str
) -> None:
    marked = body("marked")
    marked["metadata"] |= {
        "labels": {
            "finetune-operator.io/job": "other",
            "app.kubernetes.io/managed-by": "finetune-operator",
            "kueue.x-k8s.io/queue-name": "everything",
        },
        "annotations": {"sidecar.istio.io/inject": "true"},
        "ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "kube-root-ca.crt", "uid": "x"}
        ],
    }
    root = kube.get(f"/api/v1/namespaces/{team}/configmaps/kube-root-ca.crt")
    assert root is not None
    marked["metadata"]["ownerReferences"][0]["uid"] = root["metadata"]["uid"]
    made = tenant.create(jobs_of(team), marked)
    path = f"/apis/batch/v1/namespaces/{team}/jobs/marked-prepare"
    found: Json = eventually("prepare", lambda: kube.get(path))
    labels = {
        "finetune-operator.io/job": "marked",
        "app.kubernetes.io/managed-by": "finetune-operator",
        "finetune-operator.io/stage": "prepare",
        "finetune-operator.io/attempt": "0",
    }
    assert found["metadata"]["labels"] == labels
    assert "annotations" not in found["metadata"]
    assert [o["uid"] for o in found["metadata"]["ownerReferences"]] == [made["metadata"]["uid"]]
    template = found["spec"]["template"]["metadata"]
    kubernetes = ("batch.kubernetes.io/", "controller-uid", "job-name")
    ours = {k: v for k, v in template["labels"].items() if not k.startswith(kubernetes)}
    assert (ours, template.get("annotations")) == (labels, None)
    tenant.delete(f"{jobs_of(team)}/marked")


def test_pods_of_a_job_have_no_rights_of_their_own_and_fit_the_restricted_standard(
    kube: Kube, operator: Operator, tenant: Tenant, team: str
) -> None:
    tenant.create(jobs_of(team), body("docs", **{"spec.workers": {"numNodes": 2}}))
    workers = to_training(kube, team)
    for pod in (*kube.pods(team, "docs-prepare"), *workers):
        spec = pod["spec"]
        assert (spec["automountServiceAccountToken"], spec["serviceAccountName"]) == (
            False,
            "default",
        )
        assert {"hostNetwork", "hostPID", "hostIPC"}.isdisjoint(spec)
        assert spec["containers"][0]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec["securityContext"]["runAsNonRoot"] is True
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "persistentVolumeClaim", "emptyDir", "projected"}


def test_the_token_of_a_worker_is_worth_nothing_at_the_api_server_or_for_another_job(
    kube: Kube, operator: Operator, tenant: Tenant, team: str
) -> None:
    (worker, _) = eventually("workers", lambda: kube.pods(team, "docs-train-0"))
    reporter = Reporter(kube, operator, team, worker)
    answer = tenant._session.get(
        f"{kube.server}/api/v1/namespaces/{team}/secrets",
        headers={"Authorization": f"Bearer {reporter.token}"},
        timeout=10,
    )
    assert answer.status_code == 401
    report = {"trainerStatus": {"progressPercentage": 100}}
    assert reporter.post(report)[0] == 200
    assert reporter.post(report, job="other")[0] == 401
    way_out = "..%2F..%2Ftenancy-victim%2Ffinetunejobs%2Fdocs"
    assert reporter.post(report, job=way_out)[0] == 404
    tenant.delete(f"{jobs_of(team)}/docs")


# Other people's objects under the names that a job needs.

PLACES = {
    "ConfigMap": ("/api/v1/namespaces/{}/configmaps", "{}-run", {"data": {"run.json": "mine"}}),
    "Service": (
        "/api/v1/namespaces/{}/services",
        "{}",
        {"spec": {"ports": [{"port": 80}], "selector": {"app": "mine"}}},
    ),
    "PersistentVolumeClaim": (
        "/api/v1/namespaces/{}/persistentvolumeclaims",
        "{}-work",
        {
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}},
            }
        },
    ),
    "NetworkPolicy": (
        "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
        "{}-prepare",
        {"spec": {"podSelector": {"matchLabels": {"app": "mine"}}}},
    ),
}


@pytest.mark.parametrize("kind", PLACES)
def test_an_object_of_somebody_else_is_neither_adopted_nor_overwritten(
    kube: Kube, operator: Operator, tenant: Tenant, team: str, kind: str
) -> None:
    path, pattern, content = PLACES[kind]
    job = f"taken-{kind.lower()}"
    name, path = pattern.format(job), path.format(team)
    before = kube.create(path, {"metadata": {"name": name}, **content})
    tenant.create(jobs_of(team), body(job))
    if kind == "Service":  # it is made for training
        (prepare,) = eventually("prepare", lambda: kube.pods(team, f"{job}-prepare"))
        kube.run(prepare)
        kube.end(prepare, 0, builders.OUTCOMES["prepare"].to_message())
    said = waits_for(kube, team, job, "NameTaken")
    assert said == (
        f"{kind} {name} exists and does not belong to this job; delete it, or use another job name"
    )
    found = kube.get(f"{path}/{name}")
    assert found is not None
    assert (
        found["spec" if "spec" in content else "data"]
        == before["spec" if "spec" in content else "data"]
    )
    assert "ownerReferences" not in found["metadata"]
    writers = {entry["manager"] for entry in found["metadata"]["managedFields"]}
    assert "finetune-operator" not in writers
    tenant.delete(f"{jobs_of(team)}/{job}")


def test_an_object_that_somebody_makes_between_a_look_and_a_write_is_not_taken_over(
    kube: Kube, kubeconfig: Path, team: str
) -> None:
    """Server-side apply would have made it ours."""
    path = f"/api/v1/namespaces/{team}/configmaps"
    owner = kube.create(path, {"metadata": {"name": "race-owner"}})["metadata"]["uid"]
    owners = [{"apiVersion": "v1", "kind": "ConfigMap", "name": "race-owner", "uid": owner}]
    metadata = {"name": "race", "namespace": team, "ownerReferences": owners}
    wanted = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "ours"}}

    async def race() -> None:
        cluster = await connect(str(kubeconfig))
        look = cluster._get

        async def look_and_lose(path_: str) -> Json | None:
            found = await look(path_)
            if found is None:
                kube.create(path, {"metadata": {"name": "race"}, "data": {"a": "theirs"}})
            return found

        cluster._get = look_and_lose  # type: ignore[method-assign]
        try:
            await cluster.apply(wanted)
        finally:
            await cluster.close()

    with pytest.raises(NotOursError, match="ConfigMap race"):
        asyncio.run(race())
    found = kube.get(f"{path}/race")
    assert found is not None
    assert (found["data"], found["metadata"].get("ownerReferences")) == ({"a": "theirs"}, None)


def owned(job: Json) -> list[Json]:
    """An owner reference as the operator writes it."""
    return [
        {
            "apiVersion": "finetune-operator.io/v1alpha1",
            "kind": "FineTuneJob",
            "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"],
            "controller": True,
        }
    ]


GENEROUS = (
    '{"profileName": "cpu", "image": "evil.example/miner:1", "profile": {"limits": '
    '{"ownTrainer": true, "remoteCode": true}}, "spec": {"model": {"uri": "hf://a/b"}, '
    '"dataset": {"uri": "pvc://c/d"}, "trainer": {"command": ["mine"]}}}'
)


def test_settings_that_look_like_the_jobs_own_do_not_give_it_another_profile(
    kube: Kube, operator: Operator, editor: Tenant, team: str
) -> None:
    """Its uid is known while it waits, and with it the owner reference of its ConfigMap."""
    made = editor.create(jobs_of(team), body("forged", **{"spec.profile": "later"}))
    waits_for(kube, team, "forged", "ProfileNotFound")
    forged = {
        "metadata": {"name": "forged-run", "ownerReferences": owned(made)},
        "immutable": True,
        "data": {"snapshot.json": GENEROUS, "run.json": "{}", "ca.crt": ""},
    }
    editor.create(f"/api/v1/namespaces/{team}/configmaps", forged)
    editor.patch(f"{jobs_of(team)}/forged", {"spec": {"profile": None}})
    said = waits_for(kube, team, "forged", "NameTaken")
    assert said.startswith("ConfigMap forged-run exists and does not belong to this job")
    assert kube.get(f"/apis/batch/v1/namespaces/{team}/jobs/forged-prepare") is None
    editor.delete(f"/api/v1/namespaces/{team}/configmaps/forged-run")
    # Any change of the job makes the operator look at it at once.
    editor.patch(f"{jobs_of(team)}/forged", {"spec": {"activeDeadlineSeconds": 3600}})
    prepare = f"/apis/batch/v1/namespaces/{team}/jobs/forged-prepare"
    found: Json = eventually("the job to go on without it", lambda: kube.get(prepare), 60)
    assert found["spec"]["template"]["spec"]["containers"][0]["image"] == "example/trainer:1"
    editor.delete(f"{jobs_of(team)}/forged")


def test_settings_that_are_replaced_under_way_end_the_job(
    kube: Kube, operator: Operator, editor: Tenant, team: str
) -> None:
    made = editor.create(jobs_of(team), body("replaced"))
    (prepare,) = eventually("prepare", lambda: kube.pods(team, "replaced-prepare"))
    stages = lambda: status_of(kube, team, "replaced").get("stages")  # noqa: E731
    kube.run(prepare)
    eventually("the stage in the status", stages)
    maps = f"/api/v1/namespaces/{team}/configmaps"
    editor.delete(f"{maps}/replaced-run")
    forged = {"name": "replaced-run", "ownerReferences": owned(made)}
    data = {"snapshot.json": GENEROUS, "run.json": "{}", "ca.crt": ""}
    editor.create(maps, {"metadata": forged, "immutable": True, "data": data})
    kube.end(prepare, 0, builders.OUTCOMES["prepare"].to_message())
    status: Json = eventually(
        "the job to fail",
        lambda: (s := status_of(kube, team, "replaced")).get("phase") == "Failed" and s,
    )
    assert status["lastFailure"]["message"] == (
        "ConfigMap replaced-run, which holds what the job was started with, was deleted or "
        "replaced; apply the job again under another name"
    )
    assert kube.get(f"/apis/batch/v1/namespaces/{team}/jobs/replaced-train-0") is None


def test_a_quota_that_refuses_what_a_job_needs_is_its_reason_to_wait(
    kube: Kube, operator: Operator, victim: str
) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"persistentvolumeclaims": "0"}}}
    path = f"/api/v1/namespaces/{victim}/resourcequotas"
    kube.create(path, quota)
    eventually(
        "the quota to be counted", lambda: (kube.get(f"{path}/none") or {}).get("status", {})
    )
    kube.create(jobs_of(victim), body("quota"))
    said = waits_for(kube, victim, "quota", "ObjectRefused")
    assert said.startswith("the API server does not accept PersistentVolumeClaim quota-work: ")
    assert "exceeded quota: none" in said
    kube.delete(f"{path}/none")
    kube.delete(f"{jobs_of(victim)}/quota")


def test_a_job_that_a_finalizer_keeps_holds_no_node(
    kube: Kube, operator: Operator, tenant: Tenant, team: str
) -> None:
    held = body("held")
    held["metadata"]["finalizers"] = ["example.com/never"]
    tenant.create(jobs_of(team), held)
    path = f"/apis/batch/v1/namespaces/{team}/jobs/held-prepare"
    eventually("prepare", lambda: kube.get(path))
    tenant.delete(f"{jobs_of(team)}/held")
    eventually("prepare to be stopped", lambda: (kube.get(path) or {})["spec"].get("suspend"))
    tenant.patch(f"{jobs_of(team)}/held", {"metadata": {"finalizers": None}})


def test_jobs_of_one_namespace_cannot_name_what_is_in_another(
    kube: Kube, operator: Operator, tenant: Tenant, team: str, victim: str
) -> None:
    """`hf` and `data` are there, in the other namespace: a name means one's own."""
    asks = {
        "spec.model.secretRef": {"name": "hf"},
        "spec.dataset": {"uri": "configmap://data/a.jsonl"},
    }
    tenant.create(jobs_of(team), body("foreign", **asks))
    (pod,) = eventually("prepare", lambda: kube.pods(team, "foreign-prepare"))
    assert pod["metadata"]["namespace"] == team
    (token,) = [e for e in pod["spec"]["containers"][0]["env"] if e["name"] == "HF_TOKEN"]
    assert token["valueFrom"] == {"secretKeyRef": {"name": "hf", "key": "token"}}
    assert {"name": "data", "defaultMode": 420, "optional": True} in [
        volume.get("configMap") for volume in pod["spec"]["volumes"]
    ]
    names = [o["metadata"]["name"] for o in kube.items(f"/apis/batch/v1/namespaces/{victim}/jobs")]
    assert [name for name in names if name.startswith("foreign")] == []
    tenant.delete(f"{jobs_of(team)}/foreign")


def test_a_repository_that_is_called_like_an_address_is_asked_of_the_hub(
    kube: Kube, operator: Operator, tenant: Tenant, team: str
) -> None:
    """Nothing but the name of a repository, and its `..` are none of a path."""
    wanted = {"spec.dataset.uri": "hf://169.254.169.254/latest", "spec.model.revision": "../../x"}
    code, _ = tenant.call("POST", jobs_of(team) + STRICT, body("address", **wanted))
    assert code == 201  # prepare quotes both: tests/trainer/test_reach.py

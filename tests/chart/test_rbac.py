"""The operator's rights, whole: a right more or less is a decision that shows here."""

from __future__ import annotations

from typing import Any

import pytest
from chart import NAMESPACE, Manifest, only, render, render_all

NAME = f"{NAMESPACE}-finetune-operator"
SUBJECTS = [{"kind": "ServiceAccount", "name": "finetune-operator", "namespace": NAMESPACE}]


def rule(group: str, resources: str, *verbs: str) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": resources.split(), "verbs": list(verbs)}


def role_ref(name: str, kind: str = "ClusterRole") -> dict[str, str]:
    return {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}


def names(manifests: list[Manifest], kind: str) -> list[tuple[str | None, str]]:
    found = [m["metadata"] for m in manifests if m["kind"] == kind]
    return sorted((m.get("namespace"), m["name"]) for m in found)


JOB_RULES = [
    rule("finetune-operator.io", "finetunejobs", "get", "list", "watch", "delete"),
    rule("finetune-operator.io", "finetunejobs/status", "patch"),
    rule("batch", "jobs", "get", "list", "watch", "create", "patch"),
    rule("", "pods", "get", "list", "watch", "delete"),
    rule("", "pods/status", "patch"),
    rule("", "configmaps", "get", "create"),
    rule("", "persistentvolumeclaims services", "get", "create", "patch"),
    rule("networking.k8s.io", "networkpolicies", "get", "create", "patch"),
    rule("", "events", "create", "list"),
]


@pytest.mark.parametrize(
    ("values", "kind"), [({}, "ClusterRole"), ({"watchNamespaces": ["team-a"]}, "Role")]
)
def test_the_operator_may_do_exactly_this_in_the_namespaces_it_watches(
    values: dict[str, Any], kind: str
) -> None:
    assert only(render(values), kind, f"{NAME}-jobs")["rules"] == JOB_RULES


def test_the_operator_may_do_exactly_this_in_the_whole_cluster() -> None:
    assert only(render(), "ClusterRole", f"{NAME}-cluster")["rules"] == [
        rule("finetune-operator.io", "finetuneprofiles", "list", "watch"),
        rule("", "namespaces", "get"),
        rule("authentication.k8s.io", "tokenreviews", "create"),
    ]


def test_the_operator_may_do_exactly_this_with_leases_in_its_own_namespace() -> None:
    role = only(render(), "Role", "finetune-operator-lease")
    assert role["metadata"]["namespace"] == NAMESPACE
    own = rule("coordination.k8s.io", "leases", "get", "update")
    assert role["rules"] == [
        rule("coordination.k8s.io", "leases", "create"),
        own | {"resourceNames": ["finetune-operator"]},
    ]
    binding = only(render(), "RoleBinding", "finetune-operator-lease")
    assert (binding["metadata"]["namespace"], binding["subjects"]) == (NAMESPACE, SUBJECTS)
    assert binding["roleRef"] == role_ref("finetune-operator-lease") | {"kind": "Role"}


def test_those_who_may_view_a_namespace_may_see_its_jobs() -> None:
    role = only(render(), "ClusterRole", f"{NAME}-view")
    assert role["rules"] == [
        rule("finetune-operator.io", "finetunejobs finetuneprofiles", "get", "list", "watch")
    ]
    assert aggregated_to(role) == ["admin", "edit", "view"]


def test_those_who_may_edit_a_namespace_may_run_jobs_but_not_write_their_status() -> None:
    role = only(render(), "ClusterRole", f"{NAME}-edit")
    verbs = ["create", "update", "patch", "delete", "deletecollection"]
    assert role["rules"] == [rule("finetune-operator.io", "finetunejobs", *verbs)]
    assert aggregated_to(role) == ["admin", "edit"]


def test_those_who_administer_the_whole_cluster_may_write_profiles() -> None:
    role = only(render(), "ClusterRole", f"{NAME}-admin")
    verbs = ["create", "update", "patch", "delete", "deletecollection"]
    assert role["rules"] == [rule("finetune-operator.io", "finetuneprofiles", *verbs)]
    assert aggregated_to(role) == ["admin"]


def aggregated_to(role: Manifest) -> list[str]:
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    labels = role["metadata"]["labels"].items()
    return sorted(k.removeprefix(prefix) for k, v in labels if k.startswith(prefix) and v == "true")


def test_without_watched_namespaces_the_rights_hold_everywhere() -> None:
    rendered = render()
    assert names(rendered, "RoleBinding") == [(NAMESPACE, "finetune-operator-lease")]
    assert names(rendered, "ClusterRoleBinding") == [
        (None, f"{NAME}-cluster"),
        (None, f"{NAME}-jobs"),
    ]
    for part in ("cluster", "jobs"):
        binding = only(rendered, "ClusterRoleBinding", f"{NAME}-{part}")
        assert binding["roleRef"] == role_ref(f"{NAME}-{part}")
        assert binding["subjects"] == SUBJECTS


def test_with_watched_namespaces_the_rights_are_roles_in_these_only() -> None:
    rendered = render({"watchNamespaces": ["team-a", "team-b"]})
    of_jobs = f"{NAME}-jobs"
    assert names(rendered, "ClusterRoleBinding") == [(None, f"{NAME}-cluster")]
    assert (None, of_jobs) not in names(rendered, "ClusterRole")
    expected = [(NAMESPACE, "finetune-operator-lease"), ("team-a", of_jobs), ("team-b", of_jobs)]
    assert names(rendered, "Role") == names(rendered, "RoleBinding") == expected
    bindings = [
        m for m in rendered if m["kind"] == "RoleBinding" and m["metadata"]["name"] == of_jobs
    ]
    assert [m["roleRef"] for m in bindings] == [role_ref(of_jobs, "Role")] * 2
    assert [m["subjects"] for m in bindings] == [SUBJECTS] * 2


def test_without_cluster_objects_everything_belongs_to_a_namespace() -> None:
    rendered = render_all({"watchNamespaces": ["team-a"], "clusterObjects": False})
    found = {(m["kind"], m["metadata"].get("namespace")) for m in rendered}
    assert {namespace for _, namespace in found} == {NAMESPACE, "team-a"}
    assert ("Deployment", NAMESPACE) in found


def test_two_releases_of_one_name_in_two_namespaces_do_not_share_cluster_objects() -> None:
    cluster_kinds = ("ClusterRole", "ClusterRoleBinding")
    one, other = (
        {(m["kind"], m["metadata"]["name"]) for m in rendered if m["kind"] in cluster_kinds}
        for rendered in (render(), render(None, "--namespace", "elsewhere"))
    )
    assert len(one) == len(other) == 7
    assert one & other == set()

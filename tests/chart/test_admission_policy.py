"""The policy in the chart: the generated one, for the namespaces of the release, or left out.
What it says is tried on a real API server: `tests/cluster/test_profile_policy.py`."""

from __future__ import annotations

from chart import CHART, NAMESPACE, RELEASE, only, render

from finetune_api import admission

NAME = f"{NAMESPACE}-{RELEASE}-profile-limits"


def test_the_policy_is_the_one_of_the_table() -> None:
    assert only(render(), "ValidatingAdmissionPolicy", NAME)["spec"] == admission.policy_spec()
    path = CHART / "files" / "admission" / "profile-limits.yaml"
    assert path.read_text() == admission.render(), "run `make generate`"


def test_every_profile_is_asked_and_none_is_no_reason_to_refuse() -> None:
    assert only(render(), "ValidatingAdmissionPolicyBinding", NAME)["spec"] == {
        "policyName": NAME,
        "validationActions": ["Deny"],
        "paramRef": {"selector": {}, "parameterNotFoundAction": "Allow"},
    }


def test_it_holds_in_the_namespaces_that_are_watched() -> None:
    binding = only(
        render({"watchNamespaces": ["team-a", "team-b"]}), "ValidatingAdmissionPolicyBinding"
    )
    key = "kubernetes.io/metadata.name"
    names = {"key": key, "operator": "In", "values": ["team-a", "team-b"]}
    assert binding["spec"]["matchResources"] == {"namespaceSelector": {"matchExpressions": [names]}}


def test_it_can_be_left_out() -> None:
    rendered = render({"admissionPolicy": {"enabled": False}})
    assert [m["kind"] for m in rendered if m["kind"].startswith("Validating")] == []

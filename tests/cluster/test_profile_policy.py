"""The chart's ValidatingAdmissionPolicy, on a real API server: it says of every job of the table
what the operator says (`tests/api/test_limits.py`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from chart import only, render
from kube import GROUP, Kube, eventually
from profile_cases import CASES, NAMESPACES, SPEC, Case
from tools import ROOT

Json = dict[str, Any]

ADMISSION = "/apis/admissionregistration.k8s.io/v1"
PLURALS = {
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
}
PROFILES = f"{GROUP}/finetuneprofiles"
KIND = {"apiVersion": "finetune-operator.io/v1alpha1"}
TOO_MANY = {"workers": {"numNodes": 2}, "training": {"globalBatchSize": 33}}


def names() -> dict[str, str]:
    """A profile per case, as all are asked about every job."""
    return {name: f"case-{number}" for number, name in enumerate(CASES)}


NAMES = names()


def manifest(name: str, spec: Json) -> Json:
    return {**KIND, "kind": "FineTuneJob", "metadata": {"name": name}, "spec": SPEC | spec}


def created(kube: Kube, namespace: str, spec: Json) -> str:
    """What the API server says to a new job; nothing: it takes it."""
    path = f"{GROUP}/namespaces/{namespace}/finetunejobs?dryRun=All"
    code, answer = kube.call("POST", path, manifest("docs", spec))
    if code == 201:
        return ""
    assert code == 422, answer
    return said(answer)


def said(answer: Json) -> str:
    """The policy's own words."""
    message = str(answer["message"])
    assert "-profile-limits' denied request: " in message, message
    return message.partition(" denied request: ")[2]


@pytest.fixture(scope="module")
def policed(kube: Kube) -> Iterator[Kube]:
    """The policy of the chart in two namespaces, and a profile for each case. The API server needs
    some seconds to take up a policy and its parameters."""
    for name, labels in NAMESPACES.items():
        kube.namespace(name, **labels)
    for name, case in CASES.items():
        metadata = {"name": NAMES[name]}
        profile = {**KIND, "kind": "FineTuneProfile", "metadata": metadata, "spec": case.profile}
        kube.create(PROFILES, profile)
    made = render({"watchNamespaces": sorted(NAMESPACES)})
    paths = []
    for kind, plural in PLURALS.items():
        body = only(made, kind)
        kube.create(f"{ADMISSION}/{plural}", body)
        paths.append(f"{ADMISSION}/{plural}/{body['metadata']['name']}")
    for namespace in NAMESPACES:  # the last profile made is the last one taken up
        last = {"profile": NAMES[list(CASES)[-1]], **TOO_MANY}
        eventually(
            f"the policy to hold in {namespace}",
            lambda n=namespace, s=last: created(kube, n, s),
            60,
        )
    yield kube
    for path in reversed(paths):
        kube.delete(path)
    for name in NAMES.values():
        kube.delete(f"{PROFILES}/{name}")


@pytest.mark.parametrize("name", CASES)
def test_the_api_server_says_what_the_operator_says(policed: Kube, name: str) -> None:
    case: Case = CASES[name]
    found = created(policed, case.namespace, {**case.job, "profile": NAMES[name]})
    assert found == case.says.replace("profile 'p'", f"profile '{NAMES[name]}'")


def test_the_profiles_of_the_document_are_taken_whole(policed: Kube) -> None:
    text = (ROOT / "docs" / "profiles.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    for profile in yaml.safe_load_all(block):
        path = f"{PROFILES}?fieldValidation=Strict&dryRun=All"
        code, answer = policed.call("POST", path, profile)
        assert code == 201, answer


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"node": {"extraResources": {"cpu": "4"}}}, "spec.node.extraResources: names are those"),
        (
            {"node": {"extraResources": {"nvidia.com/gpu": "4"}}},
            "CPU, memory and GPUs have fields of their own",
        ),
        ({"limits": {"maxCost": "5"}}, "spec.limits.maxCost needs spec.price"),
        ({"limits": {"models": ["hf://(a|b)"]}}, "spec.limits.models[0]"),
        ({"limits": {"models": []}}, "spec.limits.models"),
        (
            {
                "limits": {
                    "namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}
                }
            },
            "In and NotIn need values",
        ),
        ({"defaults": {"workers": {"numNodes": 0}}}, "spec.defaults.workers.numNodes"),
        ({"defaults": {"workers": {"numProcPerNode": "many"}}}, "must be Auto or a whole number"),
        ({"defaults": {"suspend": True}}, "spec.defaults.suspend"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(policed: Kube, spec: Json, says: str) -> None:
    profile = {**KIND, "kind": "FineTuneProfile", "metadata": {"name": "wrong"}, "spec": spec}
    path = f"{PROFILES}?fieldValidation=Strict&dryRun=All"
    code, answer = policed.call("POST", path, profile)
    assert code in (400, 422), answer
    assert says in answer["message"]


def test_a_job_that_names_no_profile_is_asked_of_the_default_one(policed: Kube) -> None:
    expected = (
        "spec.training.globalBatchSize is 33, which 2 x 1 processes cannot share evenly; use 32 "
        "or 34"
    )
    assert created(policed, "profile-plain", TOO_MANY) == expected


def test_a_profile_that_is_not_there_is_left_to_the_operator(policed: Kube) -> None:
    assert created(policed, "profile-plain", {"profile": "nobody", **TOO_MANY}) == ""


def test_the_policy_type_checks(policed: Kube) -> None:
    """The API server's own look at the expressions, which it takes when the policy is made."""
    policies = f"{ADMISSION}/validatingadmissionpolicies"

    def checked() -> Json | None:
        (found,) = policed.items(policies)
        status: Json = found.get("status", {})
        return status if "typeChecking" in status else None

    status = eventually("the policy to be checked", checked, 60)
    assert status["typeChecking"].get("expressionWarnings", []) == []


def test_a_started_job_is_not_asked_again_and_a_waiting_one_is(policed: Kube) -> None:
    name = NAMES["a node too many"]
    jobs = f"{GROUP}/namespaces/profile-plain/finetunejobs"
    fits = manifest("live", {"profile": name, **{"workers": {"numNodes": 2}}})
    policed.create(jobs, fits)
    merge = "application/merge-patch+json"
    wider = {"spec": {"workers": {"numNodes": 4}}}

    code, answer = policed.call("PATCH", f"{jobs}/live", wider, merge)
    assert (code, said(answer)) == (
        422,
        f"spec.workers.numNodes is 4; profile '{name}' allows at most 2 (limits.maxNodes)",
    )
    policed.patch(f"{jobs}/live/status", {"status": {"startTime": "2026-11-22T06:00:00Z"}})
    policed.patch(f"{PROFILES}/{name}", {"spec": {"limits": {"maxNodes": 1}}})
    try:
        _refuses_two(policed, name)
        code, _ = policed.call("PATCH", f"{jobs}/live", {"spec": {"suspend": True}}, merge)
        assert code == 200
    finally:
        policed.patch(f"{PROFILES}/{name}", {"spec": {"limits": {"maxNodes": 2}}})
        policed.delete(f"{jobs}/live")


def test_what_is_not_the_spec_of_a_job_that_no_longer_fits_may_be_changed(policed: Kube) -> None:
    name = NAMES["too many GPUs"]
    jobs = f"{GROUP}/namespaces/profile-plain/finetunejobs"
    policed.create(jobs, manifest("waiting", {"profile": name, "workers": {"numNodes": 2}}))
    policed.patch(f"{PROFILES}/{name}", {"spec": {"limits": {"maxNodes": 1}}})
    try:
        _refuses_two(policed, name)
        label = {"metadata": {"labels": {"a": "b"}}}
        merge = "application/merge-patch+json"
        assert policed.call("PATCH", f"{jobs}/waiting", label, merge)[0] == 200
    finally:
        policed.patch(f"{PROFILES}/{name}", {"spec": {"limits": {"maxNodes": None}}})
        policed.delete(f"{jobs}/waiting")


def _refuses_two(kube: Kube, profile: str) -> None:
    """Waits until the API server has taken up that only one node is allowed."""
    two = {"profile": profile, "workers": {"numNodes": 2}}
    what = "the changed profile to be taken up"
    eventually(what, lambda: created(kube, "profile-plain", two), 60)

"""The operator's rights are those it uses: every request of this session's tests, as the API server
has recorded it, against the chart's rules, in both directions. It runs last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from audit import AuditLog
from chart import render
from kube import GROUP, Kube, eventually
from operator_process import Operator
from rights import Right, given, used

from finetune_operator.names import FIELD_OWNER

Json = dict[str, Any]
OPERATORS_ROLES = ("-jobs", "-cluster", "-lease")
DEMANDING = ("test_operator.py", "test_waiting.py", "test_reports.py")
"""Tests in which pods are lost, quotas are full and trainers report: without them some rights are
not used."""


@pytest.fixture(scope="module")
def requests_made(kube: Kube, kubeconfig: Path, operator_process: Operator) -> list[Json]:
    """Those of the whole session, and of a job whose life is rare: its first Job is deleted by
    somebody, and its time is over as soon as it has failed."""
    if not operator_process.running:  # the test before may have ended it
        operator_process.start()
    team = kube.namespace("privileges")
    jobs = f"{GROUP}/namespaces/{team}/finetunejobs"
    body = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "rare"},
        "spec": {
            "model": {"uri": "hf://a/b"},
            "dataset": {"uri": "pvc://data/docs.jsonl"},
            "ttlSecondsAfterFinished": {"failed": 0},
        },
    }
    kube.create(jobs, body)
    prepare = f"/apis/batch/v1/namespaces/{team}/jobs/rare-prepare"
    uid = eventually("prepare", lambda: kube.get(prepare))["metadata"]["uid"]
    kube.delete(f"{prepare}?propagationPolicy=Background")

    def made_anew() -> bool:
        found = kube.get(prepare)
        return found is not None and found["metadata"]["uid"] != uid

    eventually("prepare to be made anew", made_anew, 60)
    kube.delete(f"/api/v1/namespaces/{team}/configmaps/rare-run")
    # ConfigMaps are not watched: the next look, for whatever reason, finds that it is gone.
    kube.patch(f"{jobs}/rare", {"metadata": {"annotations": {"example.com/why": "be looked at"}}})
    eventually("the failed job to be deleted", lambda: kube.get(f"{jobs}/rare") is None, 90)
    return AuditLog(kubeconfig, FIELD_OWNER, whole=True).requests()


@pytest.fixture(scope="module")
def rights() -> set[Right]:
    """What the chart gives the operator."""
    roles = [m for m in render() if m["kind"] in ("ClusterRole", "Role")]
    mine = [m for m in roles if m["metadata"]["name"].endswith(OPERATORS_ROLES)]
    assert len(mine) == len(OPERATORS_ROLES)
    return given(mine)


def test_nothing_that_the_operator_asked_for_lacks_a_rule(
    requests_made: list[Json], rights: set[Right]
) -> None:
    assert sorted(used(requests_made) - rights) == []


def test_no_rule_is_there_that_the_operator_did_not_need(
    requests_made: list[Json], rights: set[Right], request: pytest.FixtureRequest
) -> None:
    ran = {Path(item.path).name for item in request.session.items}
    if not set(DEMANDING) <= ran:
        pytest.skip(f"without {', '.join(sorted(set(DEMANDING) - ran))} not every right is used")
    assert sorted(rights - used(requests_made)) == []


def test_the_operator_never_asked_for_a_secret(requests_made: list[Json]) -> None:
    assert len(requests_made) > 20
    resources = {(e.get("objectRef") or {}).get("resource") for e in requests_made}
    assert resources & {"secrets", "serviceaccounts", "nodes", "roles", "clusterroles"} == set()

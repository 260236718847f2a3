"""Who may report, with real tokens of a real API server; each refusal with its HTTP status."""

from __future__ import annotations

import base64
import json
import signal
import time
from pathlib import Path
from typing import Any

import builders
import pytest
from audit import AuditLog
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from kube import GROUP, Kube, eventually
from operator_process import Operator
from played import Reporter, apply, phase, pods, report, running

from finetune_api.progress import audience

Json = dict[str, Any]
COUNT = iter(range(1000))
INVALID = (401, "the token is not valid for this job, or not any more")
NOT_OURS = (403, "the token does not belong to a training pod of this job")


@pytest.fixture
def namespace(kube: Kube) -> str:
    return kube.namespace(f"reports-{next(COUNT)}")


@pytest.fixture
def workers(kube: Kube, operator: Operator, namespace: str) -> list[Json]:
    apply(kube, namespace)
    return running(kube, namespace)


@pytest.fixture
def reporter(kube: Kube, operator: Operator, namespace: str, workers: list[Json]) -> Reporter:
    return Reporter(kube, operator, namespace, workers[0])


def progress(kube: Kube, namespace: str) -> Json:
    found: Json = kube.job(namespace, "docs")["status"].get("progress") or {}
    return found


def pod(name: str, **metadata: Any) -> Json:
    container = {"name": "c", "image": "example/other:1"}
    return {"metadata": {"name": name, **metadata}, "spec": {"containers": [container]}}


def test_the_token_of_another_job_is_refused(
    kube: Kube, namespace: str, workers: list[Json], reporter: Reporter
) -> None:
    another = reporter.make_token(audience(namespace, "other"), workers[0])
    answer = reporter.send(report(1, 1), token=another)
    assert (answer.status_code, answer.json()["message"]) == INVALID
    assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    assert reporter.post(report(1, 1), token="nonsense") == INVALID
    assert progress(kube, namespace) == {}


def test_an_expired_token_is_refused(
    kube: Kube, kubeconfig: Path, namespace: str, workers: list[Json], reporter: Reporter
) -> None:
    """The API server grants no token of less than ten minutes; its own key signs one that was over
    a minute ago, for the same pod, as it would have signed it then."""
    token = reporter.make_token(audience(namespace, "docs"), workers[0], 600)
    assert reporter.post(report(1, 1), token=token) == (200, "")
    over = signed_anew(token, kubeconfig.parent, exp=int(time.time()) - 60)
    assert reporter.post(report(2, 2), token=over) == INVALID
    still = signed_anew(token, kubeconfig.parent, exp=int(time.time()) + 60)
    assert reporter.post(report(2, 2), token=still) == (200, "")


def test_a_report_that_another_replica_took_costs_no_pass_and_is_shown(
    kube: Kube, kubeconfig: Path, operator: Operator, namespace: str, workers: list[Json]
) -> None:
    def write(step: int) -> None:
        """As a replica that does not lead does it."""
        known = {"attempt": 0, "activity": "Evaluating" if step % 2 else "Training"}
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        numbers = {"step": step, "totalSteps": 40, "percent": step, "lastUpdateTime": moment}
        path = f"{GROUP}/namespaces/{namespace}/finetunejobs/docs/status"
        body = {
            "apiVersion": "finetune-operator.io/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "docs", "namespace": namespace},
            "status": {"progress": known | numbers},
        }
        query = "?fieldManager=finetune-operator-progress&force=true"
        code, answer = kube.call("PATCH", path + query, body, "application/apply-patch+yaml")
        assert code == 200, answer
        series = f'finetune_job_step{{job="docs",namespace="{namespace}"}}'
        eventually(f"step {step} to be shown", lambda: operator.metrics().get(series) == step)

    write(1)
    heard = f"that docs of {namespace} reports to be said"
    eventually(heard, lambda: is_true(kube.job(namespace, "docs"), "ProgressReported"))
    asked = AuditLog(kubeconfig, "finetune-operator/")
    for step in range(2, 12):
        write(step)
    targets = [entry.get("objectRef") or {} for entry in asked.requests()]
    passes = [t for t in targets if t.get("namespace") == namespace and t.get("name") == "docs"]
    assert len(passes) <= 2  # of what came before


def is_true(job: Json, type_: str) -> bool:
    return any(c["type"] == type_ and c["status"] == "True" for c in job["status"]["conditions"])


def signed_anew(token: str, directory: Path, **claims: Any) -> str:
    """A token with other claims, under the API server's own key (ES256)."""
    (path,) = directory.rglob("sa.key")
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    header, body, _ = token.split(".")
    found = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    body = _part(json.dumps(found | claims).encode())
    signature = key.sign(f"{header}.{body}".encode(), ec.ECDSA(hashes.SHA256()))
    both = b"".join(number.to_bytes(32, "big") for number in decode_dss_signature(signature))
    return f"{header}.{body}.{_part(both)}"


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def test_other_pods_of_the_namespace_are_refused_whatever_they_call_themselves(
    kube: Kube, namespace: str, workers: list[Json], reporter: Reporter
) -> None:
    path = f"/api/v1/namespaces/{namespace}/pods"
    labels = workers[0]["metadata"]["labels"]
    (job,) = workers[0]["metadata"]["ownerReferences"]
    not_controlled = job | {"controller": False}
    template = {"spec": {**pod("x")["spec"], "restartPolicy": "Never"}}
    body = {"metadata": {"name": "mine"}, "spec": {"suspend": True, "template": template}}
    mine = kube.create(f"/apis/batch/v1/namespaces/{namespace}/jobs", body)
    of_another = job | {"uid": mine["metadata"]["uid"], "name": "mine"}
    plain = {name: value for name, value in labels.items() if "batch" not in name}
    others = [
        kube.create(path, pod("plain")),
        kube.create(path, pod("labelled", labels=plain)),
        kube.create(path, pod("owned", labels=plain, ownerReferences=[not_controlled])),
        kube.create(path, pod("fostered", labels=plain, ownerReferences=[of_another])),
        kube.pods(namespace, "docs-prepare")[0],
    ]
    wanted = audience(namespace, "docs")
    tokens = [reporter.make_token(wanted, other) for other in others]
    assert [reporter.post(report(1, 1), token=t) for t in tokens] == [NOT_OURS] * 5
    assert progress(kube, namespace) == {}


def test_the_pod_of_an_older_attempt_is_refused(
    kube: Kube, operator: Operator, namespace: str, workers: list[Json], reporter: Reporter
) -> None:
    assert reporter.post(report(25, 10)) == (200, "")
    kube.end(workers[1], 137)
    kube.end(workers[0], 205, builders.failure("PeerLost", "a peer is gone", 9e9).to_message())
    second = pods(kube, namespace, "docs-train-1", 2)
    for worker in second:
        kube.run(worker)
    phase(kube, namespace, "Running")
    # Its pod is there, and its token still is a good one: only its attempt is over.
    assert reporter.post(report(90, 36)) == (409, "this attempt is over")
    assert Reporter(kube, operator, namespace, second[0]).post(report(30, 12)) == (200, "")
    found = progress(kube, namespace)
    assert (found["attempt"], found["step"], found["percent"]) == (1, 12, 30)


def test_what_is_no_honest_report_is_refused(
    kube: Kube, namespace: str, reporter: Reporter
) -> None:
    assert reporter.post(report(25, 10)) == (200, "")
    assert [
        reporter.post(b"x" * 70_000),
        reporter.post(b"not json"),
        reporter.post(report(50, 20, "nan")),
        reporter.post(report(50, 20, "-inf")),
        reporter.post(report(50, 9)),
        reporter.post(report(50, 20), job="other"),
    ] == [
        (413, "the body is larger than 65536 bytes"),
        (422, "not a trainer status: Invalid JSON: expected ident at line 1 column 2"),
        (422, "loss is not finite"),
        (422, "loss is not finite"),
        (422, "current_step went back from 10 to 9"),
        INVALID,
    ]
    assert progress(kube, namespace)["step"] == 10


def test_a_job_that_is_not_there_is_not_found(
    kube: Kube, namespace: str, workers: list[Json], reporter: Reporter
) -> None:
    token = reporter.make_token(audience(namespace, "absent"), workers[0])
    assert reporter.post(report(1, 1), token=token, job="absent") == (
        404,
        f"there is no FineTuneJob {namespace}/absent",
    )


def test_names_that_are_not_ours_are_read_past(
    kube: Kube, namespace: str, reporter: Reporter
) -> None:
    body = report(25, 10)
    body["trainerStatus"]["metrics"] += [
        {"name": "rewards/chosen", "value": "1.5"},
        {"name": "entropy", "value": "nan"},
    ]
    assert reporter.post(body) == (200, "")
    assert set(progress(kube, namespace)) == {
        *("attempt", "step", "totalSteps", "percent", "etaSeconds", "loss", "tokensPerSecond"),
        *("firstStep", "firstStepTime", "stepTime", "lastUpdateTime", "history"),
    }


def test_a_flood_is_refused_with_the_time_to_wait_and_writes_nothing(
    kube: Kube, namespace: str, reporter: Reporter
) -> None:
    answers = [reporter.send(report(25, 10)) for _ in range(20)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) >= 5
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
    version = kube.job(namespace, "docs")["metadata"]["resourceVersion"]
    reporter.send(report(30, 12))
    assert kube.job(namespace, "docs")["metadata"]["resourceVersion"] == version


def test_a_job_made_anew_under_the_name_is_not_reported_on_by_the_pods_of_the_old_one(
    kube: Kube, operator: Operator, namespace: str, reporter: Reporter
) -> None:
    assert reporter.post(report(25, 10)) == (200, "")
    path = f"{GROUP}/namespaces/{namespace}/finetunejobs/docs"
    kube.call("DELETE", path, {"propagationPolicy": "Orphan"})
    eventually("the job to be gone", lambda: kube.get(path) is None)
    apply(kube, namespace)
    eventually("the new one to be seen", lambda: kube.job(namespace, "docs").get("status"))
    assert reporter.post(report(50, 20)) in (NOT_OURS, INVALID)
    assert progress(kube, namespace) == {}


def test_the_last_word_comes_with_the_end_of_the_workers_though_nobody_took_the_report(
    kube: Kube, operator: Operator, namespace: str, workers: list[Json], reporter: Reporter
) -> None:
    """The operator is away when training ends; the termination message has what it reported."""
    assert reporter.post(report(25, 10)) == (200, "")
    operator.stop(signal.SIGKILL)
    kube.end(workers[0], 0, builders.OUTCOMES["train"].to_message())
    kube.end(workers[1], 0)
    operator.start()
    phase(kube, namespace, "Exporting")
    facts = builders.OUTCOMES["train"].train
    assert facts is not None
    found = progress(kube, namespace)
    assert (found["step"], found["percent"], found["activity"], found["loss"]) == (
        *(facts.step, 100, "Done"),
        facts.loss,
    )

"""The operator with an API server that fails in every way it can, through a proxy that makes it."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import builders
import pytest
from apiserver import api_server, stop_process, up
from audit import AuditLog
from fault_proxy import PASS, Answer, Delay, Drop, FaultProxy, Request, Silence, Verdict
from kube import GROUP, Kube, eventually
from operator_process import LEASE, Operator, install_api
from running_jobs import make_running_jobs, no_controllers

Json = dict[str, Any]
Start = Callable[..., Operator]
COUNT = iter(range(1000))


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    """An API server where no other operator acts, and which may be stopped."""
    with api_server() as kubeconfig:
        install_api(Kube(kubeconfig))
        yield kubeconfig


@pytest.fixture
def kube(server: Path) -> Kube:
    return Kube(server)


@pytest.fixture
def proxy(server: Path, tmp_path: Path) -> Iterator[FaultProxy]:
    with FaultProxy(server, tmp_path) as found:
        yield found


@pytest.fixture
def namespace(kube: Kube) -> str:
    return kube.namespace(f"team-{next(COUNT)}")


@pytest.fixture
def start(kube: Kube, tmp_path: Path, namespace: str) -> Iterator[Start]:
    """Starts the operator for the test's namespace alone."""
    kube.call("DELETE", LEASE)
    started: list[Operator] = []

    def start_operator(kubeconfig: Path, **settings: str) -> Operator:
        operator = Operator(kubeconfig, tmp_path, WATCH_NAMESPACES=namespace, **settings)
        started.append(operator)
        operator.start()
        return operator

    yield start_operator
    for operator in started:
        if operator.running:
            operator.stop(signal.SIGKILL)


def apply(kube: Kube, namespace: str, name: str = "docs", **spec: Any) -> None:
    body = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
            "dataset": {"uri": "pvc://team-data/docs.jsonl"},
            **spec,
        },
    }
    kube.create(f"{GROUP}/namespaces/{namespace}/finetunejobs", body)


def phase(kube: Kube, namespace: str, name: str = "docs") -> str | None:
    found: str | None = kube.job(namespace, name).get("status", {}).get("phase")
    return found


def play_stage(kube: Kube, namespace: str, job: str, stage: str) -> None:
    """The kubelet's part of one stage that ends well."""
    pods: list[Json] = eventually(f"a pod of {job}", lambda: kube.pods(namespace, job), 60)
    kube.run(pods[0])
    kube.end(pods[0], 0, builders.OUTCOMES[stage].to_message())


def play(kube: Kube, namespace: str) -> None:
    """A whole life."""
    for stage, job in (("prepare", "prepare"), ("train", "train-0"), ("export", "export")):
        play_stage(kube, namespace, f"docs-{job}", stage)
    eventually("success", lambda: phase(kube, namespace) == "Succeeded", 60)


def test_a_connection_that_went_silent_is_found_and_what_it_hid_is_seen(
    kube: Kube, proxy: FaultProxy, namespace: str, start: Start
) -> None:
    # The default is 70 s, with which the same takes less than 90 s.
    operator = start(proxy.kubeconfig, WATCH_SILENCE_SECONDS="5", RESYNC_SECONDS="3600")
    apply(kube, namespace)
    eventually("the first job to be seen", lambda: phase(kube, namespace) == "Preparing")
    proxy.go_silent()
    apply(kube, namespace, "another")
    eventually(
        "the second job to be seen", lambda: phase(kube, namespace, "another") == "Preparing", 45
    )
    eventually("all to be well", lambda: operator.page("healthz") == (200, "ok"), 5)


def test_a_deletion_that_a_watch_missed_is_found_when_it_lists_anew(
    kube: Kube, proxy: FaultProxy, namespace: str, start: Start
) -> None:
    operator = start(proxy.kubeconfig, WATCH_SILENCE_SECONDS="3", RESYNC_SECONDS="3600")
    apply(kube, namespace)
    series = f'finetune_jobs{{namespace="{namespace}",phase="Preparing",profile="cpu"}}'
    shown = "the job to be shown, and no other"
    eventually(shown, lambda: operator.metrics().get(series) == 1)
    hide = {"DELETED", "MODIFIED"}
    proxy.events = lambda _, event: [] if event["type"] in hide else [event]
    kube.delete(f"{GROUP}/namespaces/{namespace}/finetunejobs/docs")
    gone = {
        "type": "ERROR",
        "object": {"kind": "Status", "code": 410, "message": "too old resource version"},
    }
    proxy.events = lambda _, __: [gone]
    apply(kube, namespace, "another")  # an event, by which the watch hears that it lost its place
    eventually("the new job to be seen", lambda: phase(kube, namespace, "another"))
    proxy.events = None
    eventually(shown, lambda: operator.metrics().get(series) == held(operator)["statuses"] == 1)


def test_who_failed_first_is_told_though_its_pod_is_gone_before_anybody_looks(
    kube: Kube, server: Path, namespace: str, start: Start
) -> None:
    """The Job controller removes peers of a pod that failed, those that have just failed, too."""
    operator = start(server)
    apply(kube, namespace, workers={"numNodes": 2})
    play_stage(kube, namespace, "docs-prepare", "prepare")
    both: list[Json] = eventually(
        "both workers", lambda: len(p := kube.pods(namespace, "docs-train-0")) == 2 and p
    )
    for worker in both:
        kube.run(worker)
    eventually("the job to run", lambda: phase(kube, namespace) == "Running")
    with no_controllers(server):
        peer = builders.failure("PeerLost", "a peer is gone", time.time(), rank=0)
        first = builders.failure("Hang", "rank 1 stands still", time.time() + 1, rank=1)
        kube.end(both[0], 205, peer.to_message())
        kube.end(both[1], 204, first.to_message())
        eventually("a look at both", lambda: held(operator)["ended"] == 2)
        path = f"/api/v1/namespaces/{namespace}/pods/{both[1]['metadata']['name']}"
        kube.patch(path, {"metadata": {"finalizers": None}})
        kube.delete(f"{path}?gracePeriodSeconds=0")
        eventually("the pod to be gone", lambda: kube.get(path) is None)
    eventually("the end of the attempt", lambda: phase(kube, namespace) == "Restarting", 60)
    failure = kube.job(namespace, "docs")["status"]["lastFailure"]
    found = (failure["class"], failure["rank"], failure["message"], failure["exitCode"])
    assert found == ("Hang", 1, "rank 1 stands still", 204)


def test_rounds_find_what_no_watch_tells(
    kube: Kube, proxy: FaultProxy, namespace: str, start: Start
) -> None:
    proxy.events = lambda _, __: []
    start(proxy.kubeconfig, RESYNC_SECONDS="1")
    apply(kube, namespace)
    play_stage(kube, namespace, "docs-prepare", "prepare")
    eventually("the job to go on", lambda: kube.pods(namespace, "docs-train-0"))


def test_events_that_are_lost_repeated_and_out_of_order_change_no_end(
    kube: Kube, proxy: FaultProxy, namespace: str, start: Start
) -> None:
    seed = int(os.environ.get("SEED", "0"))
    source, kept_back = random.Random(seed), defaultdict[str, list[Json]](list)

    def disturb(request: Request, event: Json) -> list[Json]:
        fate = source.choice(("lost", "twice", "later", "now"))
        if event["type"] in ("BOOKMARK", "ERROR"):
            return [event]
        if fate in ("lost", "twice"):
            return [event] * (2 if fate == "twice" else 0)
        mine = kept_back[request.path]
        mine.append(event)
        return [mine.pop() for _ in range(len(mine))] if fate == "now" else []

    proxy.events = disturb
    start(proxy.kubeconfig, RESYNC_SECONDS="2")
    apply(kube, namespace)
    play(kube, namespace)
    jobs = kube.items(f"/apis/batch/v1/namespaces/{namespace}/jobs")
    names = {job["metadata"]["name"] for job in jobs}
    assert names == {"docs-prepare", "docs-train-0", "docs-export"}, f"SEED={seed}"
    status = kube.job(namespace, "docs")["status"]
    assert (status["attempt"], status.get("restarts")) == (0, None), f"SEED={seed}"


def test_liveness_fails_when_a_watch_stays_deaf_and_names_it(
    kube: Kube, proxy: FaultProxy, namespace: str, start: Start
) -> None:
    operator = start(proxy.kubeconfig, WATCH_SILENCE_SECONDS="8")
    assert operator.page("healthz") == (200, "ok")
    proxy.decide = lambda r: Silence() if r.path.endswith(f"{namespace}/pods") else PASS
    proxy.go_silent()
    _, text = eventually(
        "liveness to fail", lambda: (p := operator.page("healthz"))[0] == 503 and p, 30
    )
    path = f"/api/v1/namespaces/{namespace}/pods"
    assert text.startswith(f"nothing was heard of {path} for "), text
    proxy.decide = lambda _: PASS
    proxy.go_silent()
    eventually("liveness to be back", lambda: operator.page("healthz") == (200, "ok"), 30)


def test_a_job_gets_to_its_end_whatever_every_third_request_meets(
    kube: Kube, proxy: FaultProxy, namespace: str, start: Start
) -> None:
    faults: list[Verdict] = [
        Answer(429, headers={"Retry-After": "1"}),
        Answer(500),
        Answer(409),
        Answer(503),
        Drop(),
        Drop(after=True),
        Delay(0.5),
    ]
    turn, injected = itertools.count(1), itertools.cycle(faults)

    def decide(request: Request) -> Verdict:
        if request.is_watch or request.is_lease or next(turn) % 3:
            return PASS
        fault = next(injected)
        # A 409 to what makes an object says that it is there already: no fault, but a lie.
        return PASS if fault == Answer(409) and request.method != "PATCH" else fault

    proxy.decide = decide
    operator = start(proxy.kubeconfig)
    apply(kube, namespace)
    play(kube, namespace)
    events = [e["reason"] for e in kube.items(f"/api/v1/namespaces/{namespace}/events")]
    phases = {"Preparing", "Starting", "Running", "Exporting", "Succeeded"}
    assert set(events) & phases >= {"Preparing", "Starting", "Exporting"}, events
    jobs = kube.items(f"/apis/batch/v1/namespaces/{namespace}/jobs")
    names = sorted(job["metadata"]["name"] for job in jobs)
    assert names == ["docs-export", "docs-prepare", "docs-train-0"]
    assert operator.running


def test_the_pause_that_the_api_server_asks_for_is_kept(
    kube: Kube, proxy: FaultProxy, namespace: str, start: Start
) -> None:
    refused: list[float] = []

    def decide(request: Request) -> Verdict:
        if request.is_write and not request.is_lease and not refused:
            refused.append(time.monotonic())
            return Answer(429, headers={"Retry-After": "3"})
        return PASS

    proxy.decide = decide
    start(proxy.kubeconfig)
    apply(kube, namespace)
    eventually("the job to be prepared", lambda: phase(kube, namespace) == "Preparing")
    first, again = proxy.writes()[:2]
    assert (first.method, first.path) == (again.method, again.path)
    assert again.time - first.time >= 3


def test_an_api_server_that_refuses_connections_for_seconds_is_waited_for(
    kube: Kube, proxy: FaultProxy, namespace: str, start: Start
) -> None:
    operator = start(proxy.kubeconfig, LEASE_SECONDS="30")
    proxy.refuse()
    apply(kube, namespace)
    refused = time.monotonic()
    eventually("five seconds to pass", lambda: time.monotonic() - refused > 5)
    proxy.accept()
    eventually("the job to be prepared", lambda: phase(kube, namespace) == "Preparing")
    assert operator.running


def test_an_api_server_that_is_restarted_in_the_middle_is_survived(
    kube: Kube, server: Path, namespace: str, start: Start
) -> None:
    operator = start(server, LEASE_SECONDS="60")
    apply(kube, namespace)
    play_stage(kube, namespace, "docs-prepare", "prepare")
    stop_process(server, "kube-apiserver")
    up(server.parent)
    play_stage(kube, namespace, "docs-train-0", "train")
    play_stage(kube, namespace, "docs-export", "export")
    eventually("success", lambda: phase(kube, namespace) == "Succeeded", 60)
    assert operator.running


def test_who_cannot_reach_the_api_server_beyond_its_lease_ends_and_goes_on_when_started_anew(
    kube: Kube, proxy: FaultProxy, namespace: str, start: Start
) -> None:
    operator = start(proxy.kubeconfig, LEASE_SECONDS="3")
    proxy.refuse()
    assert operator.wait(20) == 1, operator.log.read_text()
    assert "Traceback" not in operator.log.read_text()
    proxy.accept()
    apply(kube, namespace)
    operator.start()
    eventually("the job to be prepared", lambda: phase(kube, namespace) == "Preparing")


def test_a_restart_among_running_jobs_writes_nothing_and_their_deletion_leaves_nothing(
    kube: Kube, server: Path, namespace: str, start: Start
) -> None:
    count = 50
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
    eventually("what every pod needs, and a controller makes", lambda: kube.get(account))
    with no_controllers(server):
        make_running_jobs(server, namespace, count)
        asked = AuditLog(server, "finetune-operator/")
        operator = start(server)
        running = f'finetune_jobs{{namespace="{namespace}",phase="Running",profile="cpu"}}'
        eventually("all jobs to be seen", lambda: operator.metrics().get(running) == count)
        assert asked.writes() == []
        # The round: lists of jobs, children and pods, profiles, and a ConfigMap for each job; the
        # watches: four lists, and the watches themselves; and the Lease.
        assert len(asked.reads()) <= count + 12, asked.reads()

        for number in range(count):
            kube.delete(f"{GROUP}/namespaces/{namespace}/finetunejobs/job-{number}")
        eventually("nothing to be held", lambda: held(operator) == NOTHING_HELD, 60)
    selector = "?labelSelector=finetune-operator.io/job"
    paths = [
        f"/apis/batch/v1/namespaces/{namespace}/jobs",
        f"/api/v1/namespaces/{namespace}/pods",
        f"/api/v1/namespaces/{namespace}/services",
        f"/api/v1/namespaces/{namespace}/configmaps",
        f"/api/v1/namespaces/{namespace}/persistentvolumeclaims",
        f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
    ]
    eventually(
        "the garbage collector to take all that was theirs",
        lambda: not [i for path in paths for i in kube.items(path + selector)],
        90,
    )


NOTHING_HELD = {"ended": 0, "queue": 0, "statuses": 0, "tokens": 0, "told": 0}


def held(operator: Operator) -> dict[str, float]:
    """What it has in memory."""
    found = operator.metrics()
    return {what: found[f'finetune_operator_held{{what="{what}"}}'] for what in NOTHING_HELD}


def test_jobs_that_come_and_go_leave_nothing_in_the_cluster_and_in_memory(
    kube: Kube, server: Path, namespace: str, start: Start
) -> None:
    operator = start(server)
    for round_ in range(2):
        names = [f"job-{round_}-{number}" for number in range(5)]
        for name in names:
            apply(kube, namespace, name)
        for name in names:
            eventually(f"{name} to be prepared", lambda n=name: phase(kube, namespace, n))
        for name in names:
            kube.delete(f"{GROUP}/namespaces/{namespace}/finetunejobs/{name}")
    eventually("nothing to be held", lambda: held(operator) == NOTHING_HELD, 60)
    selector = "?labelSelector=finetune-operator.io/job"
    kinds = ("services", "configmaps", "pods", "persistentvolumeclaims")
    paths = [f"/api/v1/namespaces/{namespace}/{kind}" for kind in kinds]
    paths.append(f"/apis/batch/v1/namespaces/{namespace}/jobs")
    eventually(
        "everything to be gone",
        lambda: not [i for p in paths for i in kube.items(p + selector)],
        90,
    )

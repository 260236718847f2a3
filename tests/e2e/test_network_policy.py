"""The NetworkPolicies of a job, by traffic on a node that enforces them: who reaches whom before,
and after. The pods of the stages are played by pods with their labels, which listen and try; the
policies are those that the operator made for a real job."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from e2e_jobs import kubectl, run
from kube import Kube, eventually, kubeconfig

from localcluster.layout import Layout

Json = dict[str, Any]
Matrix = dict[str, dict[str, bool]]
ROOT = Path(__file__).parents[2]
PODS = "/api/v1/namespaces/demo/pods"
PORT = 29_501
PUBLIC, LINK_LOCAL = "203.0.113.7", "169.254.77.7"
"""Given to this machine for the test: an address of those for documentation, which no private range
contains, and one like that of a cloud's metadata service."""
STAGES = {"worker-0": "train", "worker-1": "train", "preparing": "prepare", "exporting": "export"}

TRY = """
import concurrent.futures, json, socket, struct, sys
def tcp(host, port):
    try:
        socket.create_connection((host, port), 4).close()
        return True
    except OSError:
        return False
def dns(host, port):
    parts = "kubernetes.default.svc.cluster.local".split(".")
    name = b"".join(bytes([len(part)]) + part.encode() for part in parts)
    query = struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + name + b"\\0" + struct.pack(">HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.settimeout(4)
        found.sendto(query, (host, port))
        try:
            return found.recv(512)[:2] == b"\\0\\7"
        except OSError:
            return False
targets = json.loads(sys.argv[1])
with concurrent.futures.ThreadPoolExecutor(len(targets)) as pool:
    tried = {n: pool.submit(dns if n == "dns" else tcp, *t) for n, t in targets.items()}
    print(json.dumps({n: t.result() for n, t in tried.items()}))
"""


@pytest.fixture(scope="module")
def layout(kube: Kube) -> Iterator[Layout]:
    """The local cluster, which enforces nothing before and after."""
    found = Layout.of(kubeconfig().parent)
    state = found.load()
    if state is None or state.nodes != 1:
        pytest.skip("enforcing is for a local cluster with one node")
    yield found
    _localcluster(found, "policies", "--off")


def _localcluster(layout: Layout, *arguments: str) -> None:
    command = [sys.executable, "-m", "localcluster", *arguments, "--dir", str(layout.directory)]
    subprocess.run(command, cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def job(kube: Kube) -> str:
    """A job that fetches its model, so that prepare may go out; that it fails does not matter."""
    name = run(kube, "policies", model={"uri": "hf://nobody/nothing"})
    policies = "/apis/networking.k8s.io/v1/namespaces/demo/networkpolicies"
    for stage in ("prepare", "train", "export"):
        eventually(f"the policy of {stage}", lambda s=stage: kube.get(f"{policies}/{name}-{s}"), 60)
    return name


def _pod(name: str, image: str, labels: dict[str, str]) -> Json:
    """Listens on one port until it is deleted; fits PodSecurity `restricted`."""
    return {
        "metadata": {"name": name, "labels": labels | {"test": "policies"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "listener",
                    "image": image,
                    "command": ["python", "-m", "http.server", str(PORT)],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }


@pytest.fixture(scope="module")
def addresses(kube: Kube, job: str) -> Iterator[dict[str, str]]:
    """A pod for each part, by name, and its address."""
    path = f"/apis/batch/v1/namespaces/demo/jobs/{job}-prepare"
    image = kube.get(path)["spec"]["template"]["spec"]["containers"][0]["image"]  # type: ignore[index]
    group = "finetune-operator.io"
    for name, stage in STAGES.items():
        kube.create(PODS, _pod(name, image, {f"{group}/job": job, f"{group}/stage": stage}))
    kube.create(PODS, _pod("stranger", image, {f"{group}/stage": "train"}))
    kube.create(
        PODS, _pod("of-another-job", image, {f"{group}/job": "x", f"{group}/stage": "train"})
    )
    names = (*STAGES, "stranger", "of-another-job")

    def address(name: str) -> str | None:
        status = (kube.get(f"{PODS}/{name}") or {}).get("status", {})
        return status.get("podIP") if status.get("phase") == "Running" else None

    yield {n: eventually(f"{n} to run", lambda n=n: address(n), 120) for n in names}
    for name in names:
        kube.delete(f"{PODS}/{name}")


@contextmanager
def listening(*where: tuple[str, int]) -> Iterator[None]:
    """Addresses of this machine on which somebody takes connections."""
    sockets = [socket.create_server(address) for address in where]

    def serve(server: socket.socket) -> None:
        while True:
            try:
                server.accept()[0].close()
            except OSError:
                return

    for server in sockets:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
    try:
        yield
    finally:
        for server in sockets:
            server.close()


@pytest.fixture(scope="module")
def outside(layout: Layout) -> Iterator[dict[str, tuple[str, int]]]:
    """Three hosts outside the cluster: a public one, a private one, a link-local one."""
    state = layout.load()
    assert state is not None
    added = [f"{PUBLIC}/32", f"{LINK_LOCAL}/32"]
    for address in added:
        subprocess.run(["ip", "addr", "add", address, "dev", "lo"], check=True)
    found = {
        "public": (PUBLIC, 443),
        "link-local": (LINK_LOCAL, 80),
        "private": (state.addresses.host_end, 10_443),
    }
    try:
        with listening(*found.values()):
            yield found
    finally:
        for address in added:
            subprocess.run(["ip", "addr", "del", address, "dev", "lo"], check=True)


@pytest.fixture(scope="module")
def targets(
    kube: Kube, layout: Layout, addresses: dict[str, str], outside: dict[str, tuple[str, int]]
) -> dict[str, tuple[str, int]]:
    """What every pod tries to reach."""
    state = layout.load()
    assert state is not None
    services = kube.items("/api/v1/services")
    (operator,) = [s for s in services if any(p["port"] == 8443 for p in s["spec"]["ports"])]
    selector = ",".join(f"{k}={v}" for k, v in operator["spec"]["selector"].items())
    namespace = operator["metadata"]["namespace"]
    pods = kube.items(f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}")
    return {
        **outside,
        "dns": (state.addresses.dns, 53),
        "API server": (state.addresses.api_server, int(urlsplit(kube.server).port or 443)),
        "API server's Service": (state.addresses.first_service, 443),
        "progress endpoint": (operator["spec"]["clusterIP"], 8443),
        "operator's metrics": (pods[0]["status"]["podIP"], 8080),
        **{name: (address, PORT) for name, address in addresses.items()},
    }


def reached(targets: dict[str, tuple[str, int]]) -> Matrix:
    """Who reaches what, oneself left out."""
    found: Matrix = {}
    for name in (*STAGES, "stranger"):
        others = {n: target for n, target in targets.items() if n != name}
        script = ["python", "-c", TRY, json.dumps(others)]
        found[name] = json.loads(kubectl("-n", "demo", "exec", name, "--", *script))
    return found


def only(targets: dict[str, tuple[str, int]], name: str, *allowed: str) -> dict[str, bool]:
    return {target: target in allowed for target in targets if target != name}


def test_each_stage_reaches_what_it_needs_and_nothing_else_where_policies_are_enforced(
    kube: Kube, layout: Layout, targets: dict[str, tuple[str, int]]
) -> None:
    everything = {n: only(targets, n, *targets) for n in (*STAGES, "stranger")}
    assert reached(targets) == everything, "the network carries all of it"
    _localcluster(layout, "policies")
    strangers = ["of-another-job", "public", "private", "link-local", "dns", "API server"]
    strangers += ["API server's Service", "progress endpoint", "operator's metrics"]
    expected = {
        "worker-0": only(targets, "worker-0", "worker-1", "dns", "progress endpoint"),
        "worker-1": only(targets, "worker-1", "worker-0", "dns", "progress endpoint"),
        "preparing": only(targets, "preparing", "public", "dns"),
        "exporting": only(targets, "exporting"),
        "stranger": only(targets, "stranger", *strangers),
    }
    found: Matrix = {}

    def as_expected() -> bool:
        found.update(reached(targets))
        return found == expected

    try:
        eventually("the agent to know all pods", as_expected, 60)
    except AssertionError:
        assert found == expected, os.linesep.join(
            layout.log("netpol-agent").read_text().splitlines()[-20:]
        )

"""What a cluster with nodes has besides them: Service rules, DNS, dynamic volumes."""

from __future__ import annotations

import urllib.request
from functools import partial
from pathlib import Path

from localcluster.api import Api, Object
from localcluster.layout import Layout, State, write_atomically
from localcluster.pki import component_kubeconfig
from localcluster.processes import Processes
from localcluster.waiting import wait_for

PROVISIONER = "localcluster.finetune-operator.io/directory"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"


def storage_class() -> Object:
    """Return the default StorageClass."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": "standard",
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    }


def role(name: str, rules: list[tuple[str, list[str], list[str]]]) -> Object:
    """Return a ClusterRole; each rule is an API group, resources and verbs."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": [
            {"apiGroups": [group], "resources": resources, "verbs": verbs}
            for group, resources, verbs in rules
        ],
    }


def binding(name: str, role: str, user: str) -> Object:
    """Return a ClusterRoleBinding of one user."""
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    }


def corefile(layout: Layout, state: State) -> str:
    """Return the configuration of CoreDNS."""
    kubeconfig = component_kubeconfig(layout, "coredns")
    resolv_conf = layout.config / "resolv.conf"
    forward = f"forward . {resolv_conf}" if resolv_conf.read_text() else ""
    return f"""
.:53 {{
    bind {state.addresses.dns}
    errors
    ready {state.addresses.dns}:8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl 5
        fallthrough in-addr.arpa ip6.arpa
    }}
    cache 5 {{
        denial 1000 1
    }}
    {forward}
}}
"""


def apply(api: Api) -> None:
    """Create the objects that the parts below need, and the StorageClass."""
    dns, volumes = "system:coredns", "localcluster:provisioner"
    reading = ["list", "watch"]
    for wanted in (
        role(
            dns,
            [
                ("", ["endpoints", "services", "pods", "namespaces"], reading),
                ("discovery.k8s.io", ["endpointslices"], reading),
            ],
        ),
        role(volumes, [("", ["nodes"], ["get", *reading])]),
    ):
        api.apply(f"{_RBAC}/clusterroles", wanted)
    for name, granted, user in (
        (dns, dns, "system:coredns"),
        (f"{volumes}-nodes", volumes, "system:provisioner"),
        (f"{volumes}-volumes", "system:persistent-volume-provisioner", "system:provisioner"),
    ):
        api.apply(f"{_RBAC}/clusterrolebindings", binding(name, granted, user))
    api.apply("/apis/storage.k8s.io/v1/storageclasses", storage_class())


def start_without_nodes(
    layout: Layout, state: State, processes: Processes, programs: dict[str, Path]
) -> None:
    """Start DNS and the volume provisioner."""
    path = layout.config / "Corefile"
    write_atomically(path, corefile(layout, state))
    processes.start("coredns", [programs["coredns"], "-conf", path], in_netns=True)
    command = [
        programs["provisioner"],
        f"--kubeconfig={component_kubeconfig(layout, 'provisioner')}",
        f"--root={layout.volumes}",
        f"--name={PROVISIONER}",
    ]
    processes.start("provisioner", command, in_netns=True)


def start_proxy(
    layout: Layout, state: State, processes: Processes, programs: dict[str, Path]
) -> None:
    """Start kube-proxy: one for all nodes, as they share a network namespace."""
    command = [
        programs["kube-proxy"],
        "--proxy-mode=nftables",
        f"--kubeconfig={component_kubeconfig(layout, 'kube-proxy')}",
        f"--cluster-cidr={state.addresses.pods}",
        "--hostname-override=node-1",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
    ]
    processes.start("kube-proxy", command, in_netns=True)


def wait_until_ready(layout: Layout, state: State, processes: Processes) -> None:
    """Wait until DNS answers and Services work; see that the provisioner lives."""
    urls = {
        "coredns": f"http://{state.addresses.dns}:8181/ready",
        "kube-proxy": f"http://{state.addresses.node(1)}:10256/healthz",
    }
    for name, url in urls.items():
        wait_for(
            f"{name} to be ready",
            partial(_answers, url),
            timeout=60,
            logs=(layout.log(name),),
            alive=partial(processes.alive, name),
        )
    wait_for(
        "the provisioner to stay alive",
        lambda: processes.alive("provisioner"),
        timeout=0,
        logs=(layout.log("provisioner"),),
    )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False

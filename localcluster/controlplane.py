"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler."""

from __future__ import annotations

import json
from pathlib import Path

from localcluster import tools
from localcluster.api import Api, Object
from localcluster.layout import ClusterError, Layout, State, free_ports, write_atomically
from localcluster.pki import component_kubeconfig, ensure_pki
from localcluster.processes import Processes
from localcluster.waiting import wait_for

NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
ISSUER = "https://kubernetes.default.svc.cluster.local"


def admission_configuration() -> Object:
    """Return what the API server is told of admission: PodSecurity for every namespace."""
    pod_security = {
        "apiVersion": "pod-security.admission.config.k8s.io/v1",
        "kind": "PodSecurityConfiguration",
        "defaults": {
            "enforce": "baseline",
            "enforce-version": "latest",
            "warn": "restricted",
            "warn-version": "latest",
        },
        # The cluster's own parts are processes of the machine: nothing needs an exemption.
        "exemptions": {"usernames": [], "runtimeClasses": [], "namespaces": []},
    }
    return {
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AdmissionConfiguration",
        "plugins": [{"name": "PodSecurity", "configuration": pod_security}],
    }


def audit_policy() -> Object:
    """Return the audit policy: one line for each request, without bodies."""
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata"}],
    }


def etcd_command(program: Path, layout: Layout, state: State) -> list[str]:
    """Return the command line of etcd."""
    client = f"http://127.0.0.1:{state.etcd_port}"
    peer = f"http://127.0.0.1:{state.etcd_peer_port}"
    return [
        str(program),
        f"--data-dir={layout.etcd}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",  # nothing here has to survive a power cut
        "--log-level=warn",
    ]


def apiserver_command(program: Path, layout: Layout, state: State) -> list[str]:
    """Return the command line of the API server."""
    pki = layout.pki
    command = [
        str(program),
        f"--etcd-servers=http://127.0.0.1:{state.etcd_port}",
        f"--bind-address={state.api_address}",
        f"--secure-port={state.api_port}",
        f"--cert-dir={pki}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--service-account-key-file={pki / 'sa.pub'}",
        f"--service-account-signing-key-file={pki / 'sa.key'}",
        f"--service-account-issuer={ISSUER}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--admission-control-config-file={layout.config / 'admission.json'}",
        f"--audit-policy-file={layout.config / 'audit.json'}",
        f"--audit-log-path={layout.logs / 'audit.log'}",
        "--audit-log-maxsize=200",
        "--audit-log-maxbackup=2",
        "--allow-privileged=true",
    ]
    if state.nodes == 0:
        return [
            *command,
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--advertise-address={state.api_address}",
            "--endpoint-reconciler-type=none",  # an endpoint may not be a loopback address
        ]
    return [
        *command,
        f"--service-cluster-ip-range={state.addresses.services}",
        f"--advertise-address={state.api_address}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'kubelet-client.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
    ]


def controller_manager_command(program: Path, layout: Layout) -> list[str]:
    """Return the command line of the controller manager."""
    kubeconfig = component_kubeconfig(layout, "kube-controller-manager")
    return [
        str(program),
        f"--kubeconfig={kubeconfig}",
        f"--service-account-private-key-file={layout.pki / 'sa.key'}",
        f"--root-ca-file={layout.pki / 'ca.crt'}",
        f"--cluster-signing-cert-file={layout.pki / 'ca.crt'}",
        f"--cluster-signing-key-file={layout.pki / 'ca.key'}",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        "--secure-port=0",
    ]


def scheduler_command(program: Path, layout: Layout) -> list[str]:
    """Return the command line of the scheduler."""
    kubeconfig = component_kubeconfig(layout, "kube-scheduler")
    return [str(program), f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--secure-port=0"]


def write_configuration(layout: Layout) -> None:
    """Write the configuration files of the API server."""
    write_atomically(layout.config / "admission.json", json.dumps(admission_configuration()))
    write_atomically(layout.config / "audit.json", json.dumps(audit_policy()))
    layout.logs.mkdir(parents=True, exist_ok=True)


def start(layout: Layout, state: State, processes: Processes) -> None:
    """Start what does not run and wait until the control plane is ready for work."""
    programs = tools.ensure(tools.CONTROL_PLANE)
    for attempt in range(3):
        try:
            _start_store_and_server(layout, state, processes, programs)
            break
        except ClusterError as error:
            # Somebody else may have taken a port between choosing and using it.
            if "address already in use" not in str(error) or state.nodes or attempt == 2:
                raise
            processes.stop("kube-apiserver", "etcd")
            state.api_port, state.etcd_port, state.etcd_peer_port = free_ports(3)
            layout.save(state)
    inside = state.nodes > 0
    for name, command in (
        ("kube-controller-manager", controller_manager_command),
        ("kube-scheduler", scheduler_command),
    ):
        processes.start(name, command(programs[name], layout), in_netns=inside)
    _wait_for_controllers(layout, state, processes)


def _start_store_and_server(
    layout: Layout, state: State, processes: Processes, programs: dict[str, Path]
) -> None:
    ensure_pki(layout, state)
    write_configuration(layout)
    inside = state.nodes > 0
    processes.start("etcd", etcd_command(programs["etcd"], layout, state), in_netns=inside)
    command = apiserver_command(programs["kube-apiserver"], layout, state)
    processes.start("kube-apiserver", command, in_netns=inside)
    api = Api(layout, state)
    wait_for(
        "the API server to be ready",
        lambda: api.succeeds("/readyz"),
        timeout=90,
        logs=(layout.log("etcd"), layout.log("kube-apiserver")),
        alive=lambda: processes.alive("etcd") and processes.alive("kube-apiserver"),
    )


def _wait_for_controllers(layout: Layout, state: State, processes: Processes) -> None:
    api = Api(layout, state)
    name = "kube-controller-manager"
    wait_for(
        "the controller manager to make the default service account",
        lambda: api.succeeds("/api/v1/namespaces/default/serviceaccounts/default"),
        timeout=60,
        logs=(layout.log(name),),
        alive=lambda: processes.alive(name),
    )
    wait_for(
        "the scheduler to stay alive",
        lambda: processes.alive("kube-scheduler"),
        timeout=0,
        logs=(layout.log("kube-scheduler"),),
    )

"""Enforcing NetworkPolicies: the first packet of every connection of a pod is judged by the
controller of kube-network-policies (`netpol/`), which gets it by NFQUEUE.

The packets are sent there by iptables, because the controller's own nftables rules need a kernel
with CONFIG_NFT_QUEUE. What pods send to addresses of the machine itself (the API server, DNS) takes
the INPUT hook, everything else POSTROUTING, after a Service's address has become a pod's. Nobody
else's packets are judged: a kubelet reaches its pods, as Kubernetes demands.
"""

from __future__ import annotations

from pathlib import Path

from localcluster import network, tools
from localcluster.addons import binding, role
from localcluster.api import Api
from localcluster.layout import ClusterError, Layout, State, locked
from localcluster.pki import component_kubeconfig, ensure_pki
from localcluster.processes import Processes
from localcluster.waiting import wait_for

AGENT = "netpol-agent"
QUEUE = 100
USER = "system:netpol-agent"
ROLE = "localcluster:netpol-agent"
CHAIN = "NETPOL"
HOOKS = ("INPUT", "POSTROUTING")


def rules(pods: str) -> list[str]:
    """Return the arguments of iptables that send what pods begin to the queue."""
    new = f"-s {pods} -m conntrack --ctstate NEW -j NFQUEUE --queue-num {QUEUE}"
    return [
        f"-N {CHAIN}",
        f"-A {CHAIN} {new}",
        *(f"-I {hook} -j {CHAIN}" for hook in HOOKS),
    ]


def undoing() -> list[str]:
    """Return the arguments of iptables that take `rules` back."""
    return [*(f"-D {hook} -j {CHAIN}" for hook in HOOKS), f"-F {CHAIN}", f"-X {CHAIN}"]


def start(layout: Layout) -> None:
    """Enforce NetworkPolicies from here on; nothing, where that is done already."""
    program = tools.ensure((AGENT,))[AGENT]
    with locked(layout.lock):
        state, processes = _running(layout), Processes(layout)
        if processes.alive(AGENT):
            return
        ensure_pki(layout, state)  # of a cluster that was started by an older version
        _grant(Api(layout, state))
        _remove_rules(layout)
        processes.start(AGENT, _command(program, layout), in_netns=True)
        _wait_until_it_judges(layout, processes)
        for rule in rules(state.addresses.pods):
            network.inside(layout, "iptables", "-w", "-t", "mangle", *rule.split())
    print(f"NetworkPolicies are enforced; log: {layout.log(AGENT)}")


def stop(layout: Layout) -> None:
    """Enforce them no longer."""
    with locked(layout.lock):
        _running(layout)
        _remove_rules(layout)
        Processes(layout).stop(AGENT)


def _running(layout: Layout) -> State:
    state = layout.load()
    if state is None or state.nodes == 0:
        raise ClusterError(f"no cluster with nodes runs in {layout.directory}: nothing to enforce")
    return state


def _grant(api: Api) -> None:
    reading = ["list", "watch"]
    wanted = role(
        ROLE,
        [
            ("", ["pods", "namespaces"], reading),
            ("networking.k8s.io", ["networkpolicies"], reading),
        ],
    )
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    api.apply(f"{rbac}/clusterroles", wanted)
    api.apply(f"{rbac}/clusterrolebindings", binding(ROLE, ROLE, USER))


def _command(program: Path, layout: Layout) -> list[str]:
    kubeconfig = component_kubeconfig(layout, AGENT)
    return [
        str(program),
        f"--kubeconfig={kubeconfig}",
        "--node=node-1",
        f"--queue={QUEUE}",
        "--v=2",
    ]


def _wait_until_it_judges(layout: Layout, processes: Processes) -> None:
    """Until somebody listens to the queue, the kernel drops what is sent there."""
    wait_for(
        f"{AGENT} to listen to queue {QUEUE}",
        lambda: listens(network.inside(layout, "cat", "/proc/net/netfilter/nfnetlink_queue")),
        timeout=60,
        logs=(layout.log(AGENT),),
        alive=lambda: processes.alive(AGENT),
    )


def listens(queues: str) -> bool:
    """Say whether the kernel's list of queues has ours."""
    return str(QUEUE) in [line.split()[0] for line in queues.splitlines() if line.strip()]


def _remove_rules(layout: Layout) -> None:
    for rule in undoing():
        network.inside(layout, "iptables", "-w", "-t", "mangle", *rule.split(), check=False)

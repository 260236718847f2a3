"""The nodes: a containerd and a kubelet each, and kube-proxy for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from localcluster import addons, cleanup, containers, images, network, nodeconfig, tools
from localcluster.api import Api, Object
from localcluster.layout import ClusterError, Layout, State, write_atomically
from localcluster.pki import component_kubeconfig
from localcluster.processes import Processes
from localcluster.waiting import last_lines, wait_for

KEPT = ("containerd", "buildkit")  # what `down` leaves of a node's folder: image stores
GPU = "nvidia.com/gpu"
_ESCAPED_GPU = GPU.replace("/", "~1")


def containerd_name(number: int) -> str:
    """Return the process name of a node's containerd."""
    return f"containerd-{number}"


def kubelet_name(number: int) -> str:
    """Return the process name of a node's kubelet."""
    return f"kubelet-{number}"


def start_all(layout: Layout, state: State, processes: Processes) -> None:
    """Start what does not run of all nodes; wait until they are Ready."""
    programs = tools.ensure(tools.NODE)
    numbers = range(1, state.nodes + 1)
    began, new_kubelets = datetime.now(UTC).replace(microsecond=0), set[int]()
    network.write_resolv_conf(layout)
    layout.volumes.mkdir(exist_ok=True)
    for number in numbers:
        start_store(layout, state, processes, number)
    for number in numbers:
        containers.ensure_pause(layout, number, programs["pause"])
        if _start_kubelet(layout, state, processes, number, programs["kubelet"]):
            new_kubelets.add(number)
    images.synchronise(layout, state)
    api = Api(layout, state)
    addons.apply(api)
    addons.start_without_nodes(layout, state, processes, programs)
    for number in numbers:
        again = partial(_start_kubelet, layout, state, processes, number, programs["kubelet"])
        _wait_until_registered(api, layout, processes, number, again)
    addons.start_proxy(layout, state, processes, programs)
    for number in numbers:
        # A kubelet that crashed has left a Ready that means nothing any more.
        since = began if number in new_kubelets else datetime.fromtimestamp(0, UTC)
        _wait_until_ready(api, layout, processes, number, since)
        set_gpus(api, number, state.gpus)
    addons.wait_until_ready(layout, state, processes)


def start_store(layout: Layout, state: State, processes: Processes, number: int) -> None:
    """Start a node's containerd, which has its images, and wait until it answers."""
    cleanup.make_cgroup(layout.cgroup(number))
    if _start_containerd(layout, state, processes, number):
        processes.stop("buildkitd")  # it would hold on to the old connection
    _wait_for_containerd(layout, processes, number)


def _start_containerd(layout: Layout, state: State, processes: Processes, number: int) -> bool:
    name = containerd_name(number)
    if processes.alive(name):
        return False
    home = layout.node(number)
    home.mkdir(parents=True, exist_ok=True)
    layout.sockets.mkdir(mode=0o700, exist_ok=True)
    network_folder = home / "cni.d"
    write_atomically(network_folder / "10-pods.conflist", nodeconfig.cni(layout, state))
    config = home / "containerd.toml"
    write_atomically(config, nodeconfig.containerd(layout, number))
    processes.start(name, ["containerd", "--config", config], in_netns=True)
    return True


def _wait_for_containerd(layout: Layout, processes: Processes, number: int) -> None:
    name = containerd_name(number)
    wait_for(
        f"{name} to answer",
        lambda: containers.answers(layout, number),
        timeout=60,
        logs=(layout.log(name),),
        alive=lambda: processes.alive(name),
    )


def _start_kubelet(
    layout: Layout, state: State, processes: Processes, number: int, program: Path
) -> bool:
    name = kubelet_name(number)
    if processes.alive(name):
        return False
    config = layout.node(number) / "kubelet.json"
    write_atomically(config, nodeconfig.kubelet(layout, state, number))
    command = [
        program,
        f"--config={config}",
        f"--kubeconfig={component_kubeconfig(layout, f'node-{number}')}",
        f"--hostname-override=node-{number}",
        f"--root-dir={layout.node(number) / 'kubelet'}",
        f"--node-ip={state.addresses.node(number)}",
        "--v=1",
    ]
    return processes.start(name, command, in_netns=True)


def ended_too_early(log: str) -> bool:
    """Say whether a kubelet has ended because containerd, which answers, was not ready for it."""
    return "server is not initialized yet" in log


def _wait_until_registered(
    api: Api,
    layout: Layout,
    processes: Processes,
    number: int,
    again: Callable[[], bool],
) -> None:
    name = kubelet_name(number)

    def alive() -> bool:
        if processes.alive(name):
            return True
        return ended_too_early(last_lines(layout.log(name), 5)) and again()

    wait_for(
        f"{name} to register node-{number}",
        lambda: api.succeeds(f"/api/v1/nodes/node-{number}"),
        timeout=60,
        logs=(layout.log(name),),
        alive=alive,
    )


def is_ready(node: Object, since: datetime) -> bool:
    """Say whether a node is Ready by a report that is not older than a moment."""
    for condition in node.get("status", {}).get("conditions", []):
        if condition["type"] == "Ready" and condition["status"] == "True":
            return datetime.fromisoformat(condition["lastHeartbeatTime"]) >= since
    return False


def _wait_until_ready(
    api: Api, layout: Layout, processes: Processes, number: int, since: datetime
) -> None:
    name = kubelet_name(number)
    path = f"/api/v1/nodes/node-{number}"
    wait_for(
        f"node-{number} to be Ready",
        lambda: is_ready(api.get(path) or {}, since),
        timeout=120,
        logs=(layout.log(name), layout.log(containerd_name(number))),
        alive=lambda: processes.alive(name),
        interval=0.3,
    )


def set_gpus(api: Api, number: int, gpus: int) -> None:
    """Make a node advertise so many GPUs (the kubelet keeps what it does not know)."""
    path = f"/api/v1/nodes/node-{number}"

    def advertised() -> bool:
        status = (api.get(path) or {}).get("status", {})
        values = [status.get(part, {}).get(GPU, "0") for part in ("capacity", "allocatable")]
        return values == [str(gpus), str(gpus)]

    def reached() -> bool:
        if advertised():
            return True
        parts = ("capacity", "allocatable")
        with contextlib.suppress(ClusterError):  # the node changed meanwhile: tried again
            api.patch(
                f"{path}/status",
                [
                    {"op": "add", "path": f"/status/{part}/{_ESCAPED_GPU}", "value": str(gpus)}
                    for part in parts
                ],
            )
        return advertised()

    wait_for(f"node-{number} to advertise {gpus} GPUs", reached, timeout=30)


def remove(layout: Layout, state: State, processes: Processes, number: int) -> None:
    """Take one node out of a running cluster."""
    stop(layout, processes, [number])
    cleanup.remove_cgroup(layout.cgroup(number))
    api = Api(layout, state)
    if api.succeeds("/readyz"):
        api.delete(f"/api/v1/nodes/node-{number}")


def stop(layout: Layout, processes: Processes, numbers: Iterable[int]) -> None:
    """Stop the nodes with all their containers; the image stores stay."""
    known = [n for n in numbers if layout.node(n).exists()]
    processes.stop(*(kubelet_name(n) for n in known), "kube-proxy", "coredns", "provisioner")
    processes.stop("buildkitd")
    for number in known:
        cleanup.kill_cgroup(layout.cgroup(number))
        if processes.alive(containerd_name(number)):
            containers.remove_all(layout, number)
        processes.stop(containerd_name(number))
        containers.stop_shims(layout, number)
    if known:
        cleanup.unmount_all(layout)

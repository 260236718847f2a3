"""Bringing a whole cluster up, checking it, and taking it down."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

from localcluster import baseimage, cleanup, controlplane, network, node, packages, tools
from localcluster.layout import ClusterError, Layout, State, free_ports, locked
from localcluster.processes import Processes

MAX_NODES = 2
API_PORT_ON_NODES = 6443
ETCD_PORTS = (2379, 2380)


def _new_state(nodes: int, gpus: int) -> State:
    if nodes == 0:
        return State(0, gpus, *free_ports(3))
    return State(nodes, gpus, API_PORT_ON_NODES, *ETCD_PORTS)


def _adjust(layout: Layout, nodes: int, gpus: int, processes: Processes) -> State:
    """Return the state to bring about: the remembered one, changed as far as it can be."""
    state = layout.load()
    if state is None:
        return _new_state(nodes, gpus)
    if state.nodes == 0 and nodes > 0:
        # The control plane moves into the cluster's network namespace.
        processes.stop(*controlplane.NAMES)
        return _new_state(nodes, gpus)
    if state.nodes > 0 and nodes == 0:
        raise ClusterError(
            f"{layout.directory} runs {state.nodes} node(s): take it down first "
            "(`python -m localcluster down`) to get a control plane alone"
        )
    for number in range(nodes + 1, state.nodes + 1):
        node.remove(layout, state, processes, number)
    state.nodes, state.gpus = nodes, gpus
    return state


def open_store(layout: Layout) -> None:
    """Make the nodes' image stores ready for builds: all that `up` does of them, and no more.

    Images can be built by then, while the programs of the cluster are still being compiled.
    """
    packages.ensure()
    tools.ensure(tools.IMAGE)
    layout.directory.mkdir(parents=True, exist_ok=True)
    with locked(layout.lock):
        state = layout.load() or _new_state(1, 0)
        if state.nodes == 0:
            raise ClusterError(
                f"{layout.directory} runs a control plane without nodes: images are built into a "
                "node's store; take it down first (`python -m localcluster down`), or use another "
                "--dir"
            )
        network.ensure(layout, state)
        layout.save(state)
        processes = Processes(layout)
        for number in range(1, state.nodes + 1):
            node.start_store(layout, state, processes, number)


def prefetch() -> None:
    """Build every program and the base image, at the same time: one needs the processors, the other
    waits for the network and the disk."""
    packages.ensure()
    with ThreadPoolExecutor(2) as pool:
        base = pool.submit(baseimage.ensure)
        kubectl = () if shutil.which("kubectl") else ("kubectl",)
        tools.ensure((*tools.EVERYDAY, *kubectl))
        base.result()


def up(layout: Layout, nodes: int, gpus: int) -> None:
    """Make the cluster run as asked for; do nothing but check if it does already."""
    if not 0 <= nodes <= MAX_NODES:
        raise ClusterError(f"--nodes can be 0 to {MAX_NODES}")
    if gpus < 0:
        raise ClusterError("--gpus cannot be negative")
    if nodes:
        packages.ensure()
    tools.ensure(tools.CONTROL_PLANE + (tools.NODE if nodes else ()))
    began = time.monotonic()
    layout.directory.mkdir(parents=True, exist_ok=True)
    with locked(layout.lock):
        processes = Processes(layout)
        state = _adjust(layout, nodes, gpus, processes)
        if nodes:
            network.ensure(layout, state)
        layout.save(state)
        controlplane.start(layout, state, processes)
        if nodes:
            node.start_all(layout, state, processes)
    print(f"ready after {time.monotonic() - began:.1f} s: {_summary(nodes, gpus)}")
    print(f"  export KUBECONFIG={layout.kubeconfig}")


def _summary(nodes: int, gpus: int) -> str:
    if nodes == 0:
        return "a control plane without nodes"
    each = f", {gpus} GPUs each (pretended)" if gpus else ""
    return f"{nodes} node{'s' if nodes > 1 else ''}{each}"


def down(layout: Layout, *, purge: bool) -> None:
    """Stop and remove everything that belongs to the directory; keep the image stores."""
    if not layout.directory.exists():
        print(f"nothing in {layout.directory}")
        return
    with locked(layout.lock):
        state = layout.load()
        nodes = state.nodes if state else 0
        if (nodes or cleanup.leftovers(layout)) and os.geteuid() != 0:
            raise ClusterError("this cluster has nodes: taking it down needs root")
        processes = Processes(layout)
        numbers = range(1, MAX_NODES + 1)
        node.stop(layout, processes, numbers)
        processes.stop(*processes.names(), patience=2)  # its data goes too: no need to be gentle
        processes.sweep()
        if os.geteuid() == 0:
            cleanup.cleanup(layout, numbers)
            network.remove(layout)
        _remove_files(layout, purge)
    if purge:
        shutil.rmtree(layout.directory)
    print(f"down: {layout.directory}")


def _remove_files(layout: Layout, purge: bool) -> None:
    for path in (layout.pki, layout.config, layout.run, layout.etcd, layout.volumes):
        shutil.rmtree(path, ignore_errors=True)
    for path in (layout.directory / "cluster.json", layout.kubeconfig):
        path.unlink(missing_ok=True)
    for folder in layout.directory.glob("node-*"):
        for path in folder.iterdir():
            if purge or path.name not in node.KEPT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

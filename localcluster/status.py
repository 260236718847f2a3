"""The table that `status` prints."""

from __future__ import annotations

from localcluster.api import Api
from localcluster.layout import Layout
from localcluster.processes import Processes


def _nodes(api: Api) -> list[str]:
    listed = api.get("/api/v1/nodes")
    if listed is None:
        return ["the API server does not answer"]
    lines = []
    for item in listed["items"]:
        conditions = {c["type"]: c["status"] for c in item["status"].get("conditions", [])}
        ready = "Ready" if conditions.get("Ready") == "True" else "NotReady"
        gpus = item["status"].get("allocatable", {}).get("nvidia.com/gpu", "0")
        lines.append(f"{item['metadata']['name']}: {ready}, {gpus} GPUs")
    return lines or ["no nodes (a control plane alone)"]


def show(layout: Layout) -> int:
    """Print what runs and what does not; return 0 if everything does."""
    state = layout.load()
    if state is None:
        print(f"no cluster in {layout.directory}")
        return 1
    processes = Processes(layout)
    names = processes.names()
    width = max([len(name) for name in names], default=7)
    print(f"{'PROCESS':<{width}}  {'PID':>8}  {'ALIVE':<5}  LOG")
    healthy = bool(names)
    for name in names:
        identity = processes.find(name)
        alive = identity is not None and identity.alive
        healthy = healthy and alive
        pid = str(identity.pid) if identity else "?"
        print(f"{name:<{width}}  {pid:>8}  {'yes' if alive else 'NO':<5}  {layout.log(name)}")
    nodes = _nodes(Api(layout, state))
    healthy = healthy and not any("not" in line.lower() for line in nodes)
    print("\nnodes: " + "; ".join(nodes))
    print(f"API server: {state.api_url}")
    print(f"kubeconfig: {layout.kubeconfig}")
    return 0 if healthy else 1

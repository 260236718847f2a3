"""One network namespace for a cluster with nodes, and its link to the host.

Everything of the cluster (control plane, kubelets, pods, kube-proxy's rules) lives in that
namespace, so two clusters never share a port or a rule. The host routes the cluster's whole
range into it: pods, ClusterIPs and the API server can be reached from the host.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from localcluster.layout import Addresses, ClusterError, Layout, State, cache_directory, locked

BLOCKS = range(100, 200)


def _run(*command: str, text: str | None = None, check: bool = True) -> str:
    result = subprocess.run(command, input=text, capture_output=True, text=True)
    if check and result.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed: {result.stderr.strip()}")
    return result.stdout


def inside(layout: Layout, *command: str, text: str | None = None, check: bool = True) -> str:
    """Run a command in the cluster's network namespace; return what it prints."""
    # Not `ip netns exec`: that mounts a fresh /sys, and containers need the real one.
    return _run("nsenter", f"--net=/run/netns/{layout.netns}", *command, text=text, check=check)


def overlapping(candidate: str, used: Iterable[str]) -> bool:
    """Say whether a network overlaps one of those in use."""
    wanted = ipaddress.IPv4Network(candidate)
    return any(wanted.overlaps(ipaddress.IPv4Network(text, strict=False)) for text in used)


def choose_block(used: Iterable[str]) -> int:
    """Return the first block of addresses that overlaps no network in use."""
    networks = list(used)
    for block in BLOCKS:
        if not overlapping(Addresses(block).everything, networks):
            return block
    raise ClusterError("no free address range between 10.100.0.0/16 and 10.199.0.0/16")


def _networks_in_use() -> list[str]:
    routes = json.loads(_run("ip", "-4", "-json", "route", "show", "table", "all") or "[]")
    targets = [route["dst"] for route in routes if route["dst"] != "default"]
    resolver = Path("/etc/resolv.conf")
    lines = resolver.read_text().splitlines() if resolver.exists() else []
    return targets + nameservers("\n".join(lines))


def nameservers(text: str) -> list[str]:
    """Return the IPv4 name servers of a resolv.conf."""
    words = [line.split() for line in text.splitlines()]
    found = [w[1] for w in words if len(w) > 1 and w[0] == "nameserver"]
    return [server for server in found if ":" not in server]


def pod_resolv_conf(candidates: Iterable[str]) -> str:
    """Return the resolv.conf for pods: the first whose servers are not the host's loopback."""
    for text in candidates:
        servers = [s for s in nameservers(text) if not s.startswith("127.")]
        if servers:
            return "".join(f"nameserver {server}\n" for server in servers)
    return ""


def _links(layout: Layout, within: bool) -> set[str]:
    command = ("ip", "-json", "link")
    text = inside(layout, *command) if within else _run(*command)
    return {link["ifname"] for link in json.loads(text)}


def _mtu() -> str:
    routes = json.loads(_run("ip", "-4", "-json", "route", "show", "default") or "[]")
    if not routes:
        return "1500"
    links = json.loads(_run("ip", "-json", "link", "show", "dev", routes[0]["dev"]))
    return str(min(int(links[0]["mtu"]), 1500))


def ensure(layout: Layout, state: State) -> None:
    """Make the namespace, its link and its routes, as far as they are not there."""
    # One lock for all directories: the range has to be routed before another cluster chooses.
    with locked(cache_directory() / "network.lock"):
        exists = Path(f"/run/netns/{layout.netns}").exists()
        linked = layout.host_link in _links(layout, False)
        if exists != linked or (exists and state.block is None):
            remove(layout)  # of a cluster that was not taken down properly
            exists = False
        if state.block is None:
            state.block = choose_block(_networks_in_use())
        elif not exists and overlapping(state.addresses.everything, _networks_in_use()):
            raise ClusterError(
                f"{state.addresses.everything} was this cluster's, but the machine uses it for "
                f"something else by now: `python -m localcluster down --dir {layout.directory}`"
            )
        if not exists:
            _make_namespace(layout, state.addresses)
        _run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        _masquerade(layout, state.addresses)
    for number in range(1, state.nodes + 1):
        inside(layout, "ip", "addr", "replace", f"{state.addresses.node(number)}/32", "dev", "lo")


def _make_namespace(layout: Layout, addresses: Addresses) -> None:
    _run("ip", "netns", "add", layout.netns)
    mtu = ("mtu", _mtu())
    peer = ("peer", "name", layout.inner_link, *mtu, "netns", layout.netns)
    _run("ip", "link", "add", layout.host_link, *mtu, "type", "veth", *peer)
    for end, link, run in (
        (addresses.inner_end, layout.inner_link, lambda *c: inside(layout, *c)),
        (addresses.host_end, layout.host_link, _run),
    ):
        run("ip", "addr", "add", f"{end}/30", "dev", link)
        run("ip", "link", "set", link, "up")
    inside(layout, "ip", "link", "set", "lo", "up")
    for address in (addresses.api_server, addresses.dns):
        inside(layout, "ip", "addr", "add", f"{address}/32", "dev", "lo")
    inside(layout, "ip", "route", "add", "default", "via", addresses.host_end)
    inside(layout, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    _run("ip", "route", "replace", addresses.everything, "via", addresses.inner_end)


def masquerade_rules(table: str, link: str, addresses: Addresses) -> str:
    """Return the nftables rules by which the cluster's traffic leaves the machine."""
    return f"""
table ip {table} {{}}
delete table ip {table}
table ip {table} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ip saddr {addresses.everything} oifname != "{link}" masquerade
  }}
}}
"""


def _masquerade(layout: Layout, addresses: Addresses) -> None:
    rules = masquerade_rules(layout.nft_table, layout.host_link, addresses)
    _run("nft", "-f", "-", text=rules)


def write_resolv_conf(layout: Layout) -> Path:
    """Write the resolv.conf that pods with host DNS, and CoreDNS, forward to."""
    files = [Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")]
    path = layout.config / "resolv.conf"
    path.write_text(pod_resolv_conf(file.read_text() for file in files if file.exists()))
    return path


def remove(layout: Layout) -> None:
    """Delete the namespace, the link and the rules, as far as they exist."""
    if Path(f"/run/netns/{layout.netns}").exists():
        _run("ip", "netns", "delete", layout.netns, check=False)
    _run("ip", "link", "delete", layout.host_link, check=False)
    _run("nft", "delete", "table", "ip", layout.nft_table, check=False)

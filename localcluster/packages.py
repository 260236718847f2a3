"""The Debian packages that nodes need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from localcluster.layout import ClusterError

# package -> a file or a command (looked up on PATH and in the sbin folders) that it brings
NEEDED = {
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/ptp",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "nftables": "nft",
    "iproute2": "ip",
    "util-linux": "nsenter",
    "debootstrap": "debootstrap",
    "ca-certificates": "/etc/ssl/certs/ca-certificates.crt",
    "openssl": "openssl",
}
_SEARCHED = os.pathsep + os.pathsep.join(["/usr/local/sbin", "/usr/sbin", "/sbin"])


def is_there(what: str) -> bool:
    """Say whether a file (absolute path) or a command exists."""
    if what.startswith("/"):
        return Path(what).exists()
    return shutil.which(what, path=os.environ.get("PATH", "") + _SEARCHED) is not None


def missing() -> list[str]:
    """Return the packages of which the machine lacks the part that is used."""
    return [package for package, part in NEEDED.items() if not is_there(part)]


def parse_os_release(text: str) -> set[str]:
    """Return the distribution's names from /etc/os-release (ID and ID_LIKE)."""
    pairs = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return set(f"{pairs.get('ID', '')} {pairs.get('ID_LIKE', '')}".replace('"', "").split())


def is_debian() -> bool:
    """Say whether this is Debian, Ubuntu or a relative of theirs."""
    path = Path("/etc/os-release")
    return path.exists() and bool({"debian", "ubuntu"} & parse_os_release(path.read_text()))


def report() -> int:
    """Print which packages are there and which are missing; return 0 if none is missing."""
    absent = missing()
    for package, part in NEEDED.items():
        print(f"{'missing' if package in absent else 'ok':<8} {package} ({part})")
    return 1 if absent else 0


def ensure() -> int:
    """Install what is missing, or say why that is not possible here."""
    absent = missing()
    if os.geteuid() != 0:
        lacking = f"; also missing: {' '.join(absent)}" if absent else ""
        raise ClusterError(
            "nodes need root (they make namespaces, mounts and control groups): run as root, "
            f"or use --nodes 0 for a control plane alone{lacking}"
        )
    if not absent:
        return 0
    if not is_debian():
        raise ClusterError(
            f"missing on this machine: {', '.join(NEEDED[name] for name in absent)} "
            f"(in Debian's packages {' '.join(absent)}); install them by your package manager"
        )
    print(f"installing Debian packages: {' '.join(absent)}", file=sys.stderr, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *absent],
    ):
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        if result.returncode:
            raise ClusterError(f"`{' '.join(command)}` failed:\n{result.stdout}{result.stderr}")
    still = missing()
    if still:
        raise ClusterError(f"installed, but still missing: {' '.join(still)}")
    return 0

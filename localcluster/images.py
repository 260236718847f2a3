"""Building Dockerfiles straight into the image stores of the nodes, by BuildKit."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from localcluster import baseimage, containers, tools
from localcluster.layout import ClusterError, Layout, State, locked, write_atomically
from localcluster.nodeconfig import PAUSE_IMAGE
from localcluster.processes import Processes
from localcluster.waiting import wait_for

CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
BUILDKITD = "buildkitd"


def declares_base(dockerfile: str) -> bool:
    """Say whether a Dockerfile lets its base image be chosen by `ARG BASE`."""
    return re.search(r"^\s*ARG\s+BASE\b", dockerfile, re.MULTILINE | re.IGNORECASE) is not None


def build_command(
    program: Path,
    layout: Layout,
    tag: str,
    dockerfile: Path,
    context: Path,
    build_args: Mapping[str, str],
) -> list[str]:
    """Return the command line of a build."""
    output = f"type=image,name={tag},unpack=true,compression=uncompressed"
    options = [
        f"filename={dockerfile.name}",
        "force-network-mode=host",
        "image-resolve-mode=local",
        "cmdline=",  # the built-in frontend, whatever `# syntax=` says: it would be pulled
        *(f"build-arg:{key}={value}" for key, value in build_args.items()),
    ]
    command = [str(program), f"--addr=unix://{layout.buildkit_socket}", "build"]
    command += ["--frontend=dockerfile.v0", "--progress=plain", "--allow=network.host"]
    command += [f"--local=context={context}", f"--local=dockerfile={dockerfile.parent}"]
    command += [f"--opt={option}" for option in options]
    if CA_BUNDLE.exists():
        command.append(f"--secret=id=ca,src={CA_BUNDLE}")
    return [*command, f"--output={output}"]


def buildkitd_config(layout: Layout) -> str:
    """Return the configuration of buildkitd: the first node's containerd does the work."""
    return f"""root = "{layout.node(1) / "buildkit"}"
insecure-entitlements = ["network.host"]

[grpc]
  address = ["unix://{layout.buildkit_socket}"]

[worker.oci]
  enabled = false

[worker.containerd]
  enabled = true
  address = "{layout.containerd_socket(1)}"
  namespace = "k8s.io"
  snapshotter = "overlayfs"
  networkMode = "host"
  defaultCgroupParent = "/{layout.cgroup(1)}/buildkit"
  gc = true
"""


def _start_buildkitd(layout: Layout, processes: Processes, programs: Mapping[str, Path]) -> None:
    config = layout.node(1) / "buildkitd.toml"
    write_atomically(config, buildkitd_config(layout))
    command = [programs["buildkitd"], f"--config={config}"]
    processes.start(BUILDKITD, command, in_netns=True)
    probe = [str(programs["buildctl"]), f"--addr=unix://{layout.buildkit_socket}", "debug"]
    wait_for(
        "buildkitd to answer",
        lambda: subprocess.run([*probe, "workers"], capture_output=True).returncode == 0,
        timeout=60,
        logs=(layout.log(BUILDKITD),),
        alive=lambda: processes.alive(BUILDKITD),
    )


def _ensure_base(layout: Layout) -> None:
    archive = baseimage.ensure()
    note = layout.node(1) / "containerd" / ".base-image"  # which recipe is in the store
    current = note.read_text() if note.exists() else ""
    if current != archive.name or not containers.has_image(layout, 1, baseimage.REFERENCE):
        containers.import_image(layout, 1, archive)
        write_atomically(note, archive.name)


def _running(layout: Layout, processes: Processes) -> State:
    state = layout.load()
    if state is None or state.nodes == 0 or not processes.alive("containerd-1"):
        raise ClusterError(
            f"no image store runs in {layout.directory}: "
            f"`python -m localcluster up --dir {layout.directory}`"
        )
    return state


def build(
    layout: Layout, tag: str, dockerfile: Path, context: Path, build_args: Mapping[str, str]
) -> None:
    """Build an image into the store of every node."""
    processes = Processes(layout)
    state = _running(layout, processes)
    programs = tools.ensure(tools.IMAGE)
    try:
        text = dockerfile.read_text()
    except OSError as error:
        raise ClusterError(f"cannot read the Dockerfile: {error}") from error
    arguments = dict(build_args)
    began = time.monotonic()
    with locked(layout.directory / ".image.lock"):
        if declares_base(text) and "BASE" not in arguments:
            _ensure_base(layout)
            arguments["BASE"] = baseimage.REFERENCE
        _start_buildkitd(layout, processes, programs)
    command = build_command(
        programs["buildctl"], layout, tag, dockerfile.resolve(), context.resolve(), arguments
    )
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise ClusterError(f"building {tag} failed: see above, and {layout.log(BUILDKITD)}")
    synchronise(layout, state)
    for number in range(1, state.nodes + 1):
        containers.forget_superseded(layout, number)
    print(f"built {tag} in {time.monotonic() - began:.1f} s")


def synchronise(layout: Layout, state: State) -> None:
    """Copy the images that were built into the first node's store to the other nodes."""
    ours = containers.image_digests(layout, 1)
    for number in range(2, state.nodes + 1):
        theirs = containers.image_digests(layout, number)
        for reference, digest in ours.items():
            if reference in (PAUSE_IMAGE, baseimage.REFERENCE) or theirs.get(reference) == digest:
                continue
            print(f"copying {reference} to node-{number} ...", file=sys.stderr, flush=True)
            containers.copy_image(layout, 1, number, reference)

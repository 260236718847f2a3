"""What is asked of a node's containerd, by its own client `ctr`."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from localcluster import oci
from localcluster.layout import ClusterError, Layout
from localcluster.nodeconfig import PAUSE_IMAGE
from localcluster.processes import Identity, start_time, stop_all


def _command(layout: Layout, number: int, *arguments: str) -> list[str]:
    socket = str(layout.containerd_socket(number))
    return ["ctr", "--address", socket, "--namespace", "k8s.io", *arguments]


def _ctr(layout: Layout, number: int, *arguments: str, check: bool = True) -> str:
    command = _command(layout, number, *arguments)
    result = subprocess.run(command, capture_output=True, text=True)
    if check and result.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed: {result.stderr.strip()}")
    return result.stdout


def answers(layout: Layout, number: int) -> bool:
    """Say whether a node's containerd answers."""
    command = _command(layout, number, "version")
    return subprocess.run(command, capture_output=True).returncode == 0


def has_image(layout: Layout, number: int, reference: str) -> bool:
    """Say whether a node has an image."""
    return reference in _ctr(layout, number, "images", "list", "--quiet").split()


def import_image(layout: Layout, number: int, archive: Path) -> None:
    """Put the image of an archive into a node's store."""
    _ctr(layout, number, "images", "import", str(archive))


def copy_image(layout: Layout, source: int, target: int, reference: str) -> None:
    """Copy an image from one node's store to another's, without a file between."""
    with subprocess.Popen(
        _command(layout, source, "images", "export", "-", reference), stdout=subprocess.PIPE
    ) as export:
        command = _command(layout, target, "images", "import", "-")
        result = subprocess.run(command, stdin=export.stdout, capture_output=True, text=True)
    if export.returncode or result.returncode:
        raise ClusterError(f"copying {reference} to node-{target} failed: {result.stderr}")


def _images(layout: Layout, number: int) -> dict[str, str]:
    lines = _ctr(layout, number, "images", "list").splitlines()[1:]
    return {line.split()[0]: line.split()[2] for line in lines}


def _is_ours(reference: str) -> bool:
    return not reference.startswith(("sha256:", "import-")) and "@" not in reference


def image_digests(layout: Layout, number: int) -> dict[str, str]:
    """Return the images of a node that have a name of ours, with their digests."""
    return {ref: digest for ref, digest in _images(layout, number).items() if _is_ours(ref)}


def superseded(images: Mapping[str, str]) -> list[str]:
    """Of references with their digests, those by id whose image has lost its name to a newer one.

    The kubelet's side of containerd keeps them, and with them the layers: five gigabytes each.
    """
    named = {digest for reference, digest in images.items() if _is_ours(reference)}
    return sorted(r for r, d in images.items() if r.startswith("sha256:") and d not in named)


def forget_superseded(layout: Layout, number: int) -> None:
    """Remove images of a node that another build has taken the name of."""
    found = superseded(_images(layout, number))
    if found:
        _ctr(layout, number, "images", "remove", *found, check=False)


def ensure_pause(layout: Layout, number: int, program: Path) -> None:
    """Make the image of the pods' sandboxes and put it into a node's store."""
    if has_image(layout, number, PAUSE_IMAGE):
        return
    with tempfile.TemporaryDirectory() as folder:
        layer, archive = Path(folder) / "layer.tar", Path(folder) / "image.tar"
        oci.write_layer(layer, {"pause": program})
        oci.write_archive(archive, PAUSE_IMAGE, layer, {"Entrypoint": ["/pause"], "User": "65535"})
        import_image(layout, number, archive)


def kill(layout: Layout, number: int, container: str) -> None:
    """Kill the first process of a container behind the kubelet's back, as the kernel would."""
    _ctr(layout, number, "tasks", "kill", "--signal", "SIGKILL", container)


def remove_all(layout: Layout, number: int) -> None:
    """Remove all containers of a node (their processes are gone)."""
    for task in _ctr(layout, number, "tasks", "list", "--quiet", check=False).split():
        _ctr(layout, number, "tasks", "delete", "--force", task, check=False)
    names = _ctr(layout, number, "containers", "list", "--quiet", check=False).split()
    if names:
        _ctr(layout, number, "containers", "delete", *names, check=False)


def stop_shims(layout: Layout, number: int) -> None:
    """Stop the shims that outlived a node's containerd."""
    socket = str(layout.containerd_socket(number))
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        started = start_time(int(entry.name))
        if "containerd-shim" in words[0] and socket in words and started is not None:
            found.append(Identity(int(entry.name), started))
    stop_all(found, patience=2)

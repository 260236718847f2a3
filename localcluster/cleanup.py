"""Removing what a node leaves in the kernel: control groups and mounts; and its files in /run."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from localcluster.layout import ClusterError, Layout
from localcluster.processes import Identity, start_time, stop_all

CGROUPS = Path("/sys/fs/cgroup")


def _hierarchies() -> list[Path]:
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def make_cgroup(name: str) -> None:
    """Make a control group in every hierarchy, with all of the machine's CPUs and memory."""
    for root in _hierarchies():
        group = root / name
        group.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):  # version 1 starts with none
            source, target = root / setting, group / setting
            if source.exists() and not target.read_text().strip():
                target.write_text(source.read_text())
        available = root / "cgroup.controllers"
        if root == CGROUPS and available.exists():
            wanted = " ".join(f"+{controller}" for controller in available.read_text().split())
            for parent in (root, group):
                (parent / "cgroup.subtree_control").write_text(wanted)


def _groups(name: str) -> list[Path]:
    found: list[Path] = []
    for root in _hierarchies():
        top = root / name
        if top.exists():
            found += [top, *(path for path in top.rglob("*") if path.is_dir())]
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def kill_cgroup(name: str) -> None:
    """End every process in a control group (the containers of a node)."""
    pids: set[int] = set()
    for group in _groups(name):
        try:
            pids.update(int(line) for line in (group / "cgroup.procs").read_text().split())
        except OSError:
            continue  # it went away meanwhile
    started = {pid: start_time(pid) for pid in pids}
    stop_all((Identity(pid, at) for pid, at in started.items() if at is not None), patience=2)


def remove_cgroup(name: str) -> None:
    """Remove a control group and those below it; its processes are gone by now."""
    deadline = time.monotonic() + 5
    while groups := _groups(name):
        for group in groups:
            with contextlib.suppress(OSError):  # a process in it is about to end: tried again
                group.rmdir()
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


def decode_mount_point(field: str) -> str:
    """Return the path of a mount point as it stands in /proc/self/mountinfo."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def mounts_below(mountinfo: str, folders: Iterable[Path]) -> list[str]:
    """Return the mount points in these folders, those mounted last first."""
    points = [decode_mount_point(line.split()[4]) for line in mountinfo.splitlines()]
    inside = [p for p in points if any(p.startswith(f"{folder}/") for folder in folders)]
    return inside[::-1]


def _folders(layout: Layout) -> list[Path]:
    return [layout.directory, layout.sockets]


def leftovers(layout: Layout) -> bool:
    """Say whether a node of this directory left something in the kernel."""
    mounts = mounts_below(Path("/proc/self/mountinfo").read_text(), _folders(layout))
    return bool(mounts) or Path(f"/run/netns/{layout.netns}").exists()


def unmount_all(layout: Layout) -> None:
    """Unmount everything below the cluster's folders."""
    mountinfo = Path("/proc/self/mountinfo")
    for point in mounts_below(mountinfo.read_text(), _folders(layout)):
        if subprocess.run(["umount", point], capture_output=True).returncode:
            subprocess.run(["umount", "--lazy", point], capture_output=True)
    left = mounts_below(mountinfo.read_text(), _folders(layout))
    if left:  # deleting files now could reach through a mount into somebody's data
        raise ClusterError(f"could not unmount {', '.join(left)}")


def cleanup(layout: Layout, numbers: Iterable[int]) -> None:
    """Remove the mounts, control groups and files in /run and /var/log of the nodes."""
    unmount_all(layout)
    for number in numbers:
        remove_cgroup(layout.cgroup(number))
    shutil.rmtree(layout.sockets, ignore_errors=True)
    logs = Path("/var/log/containers")  # the kubelet's links into its folder of pod logs
    for link in logs.glob("*.log") if logs.is_dir() else ():
        if link.is_symlink() and str(link.readlink()).startswith(f"{layout.directory}/"):
            link.unlink()

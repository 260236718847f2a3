"""Starting, finding and stopping the processes of one cluster, and no others.

A process is ours if its pid *and* its start time are those written down when it was
started. As a second net each process carries a mark in its environment, which finds
processes whose pid file got lost (and containerd's shims, which inherit the mark).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from localcluster.layout import ClusterError, Layout, write_atomically
from localcluster.waiting import last_lines

MARK = "FINETUNE_LOCALCLUSTER_PROCESS"


def parse_start_time(stat: str) -> int | None:
    """Return the start time from the text of /proc/<pid>/stat; None for a zombie."""
    # The name (second field) is in parentheses and may itself hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def start_time(pid: int) -> int | None:
    """Return when a process started (clock ticks since boot); None if it does not run."""
    try:
        return parse_start_time(Path(f"/proc/{pid}/stat").read_text())
    except (OSError, IndexError, ValueError):
        return None


@dataclass(frozen=True)
class Identity:
    """One process, not to be confused with a later one that got the same pid."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return start_time(self.pid) == self.started

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def stop_all(identities: Iterable[Identity], patience: float = 10) -> None:
    """Ask processes to end, wait, and kill those that did not."""
    everybody = list(identities)
    for number, time_limit in ((signal.SIGTERM, patience), (signal.SIGKILL, 10.0)):
        for identity in everybody:
            identity.send(number)
        deadline = time.monotonic() + time_limit
        while any(identity.alive for identity in everybody):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return


def marked(directory: Path) -> Iterator[tuple[Identity, str, str]]:
    """Find the running processes with a cluster's mark; yield with them the names of
    the process they belong to and of their program."""
    prefix = f"{MARK}={directory}#"
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            program = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[0]
        except OSError:
            continue
        started = start_time(int(entry.name))
        mark = next((v for v in variables if v.startswith(prefix)), None)
        if started is not None and mark is not None:
            name = mark.removeprefix(prefix)
            yield Identity(int(entry.name), started), name, os.path.basename(program)


class Processes:
    """The processes of one cluster."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def names(self) -> list[str]:
        """Return the names of all processes that were started and not stopped."""
        return sorted(path.stem for path in self._layout.run.glob("*.json"))

    def find(self, name: str) -> Identity | None:
        """Return what was written down of a process, whether it still runs or not."""
        try:
            content = json.loads((self._layout.run / f"{name}.json").read_text())
            return Identity(int(content["pid"]), int(content["started"]))
        except (OSError, ValueError, KeyError):
            return None

    def alive(self, name: str) -> bool:
        """Say whether a process runs."""
        identity = self.find(name)
        return identity is not None and identity.alive

    def start(self, name: str, command: Sequence[object], *, in_netns: bool = False) -> bool:
        """Start a process unless it runs already; return whether it was started."""
        if self.alive(name):
            return False
        mark = f"{self._layout.directory}#{name}"
        program = os.path.basename(str(command[0]))
        lost = marked(self._layout.directory)
        stop_all(found for found, of, its in lost if of == name and its == program)
        log = self._layout.log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        words = [str(word) for word in command]
        if in_netns:
            words = ["nsenter", f"--net=/run/netns/{self._layout.netns}", *words]
        environment = {k: v for k, v in os.environ.items() if k != "KUBECONFIG"}
        environment[MARK] = mark
        environment["PATH"] = environment.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
        with log.open("ab") as output:
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self._layout.directory,
                start_new_session=True,
            )
        started = start_time(child.pid)
        if started is None:
            raise ClusterError(f"{name} ended at once\n{last_lines(log)}")
        child.returncode = 0  # it is meant to outlive this object: no ResourceWarning
        text = json.dumps({"pid": child.pid, "started": started, "command": words})
        write_atomically(self._layout.run / f"{name}.json", text + "\n")
        return True

    def stop(self, *names: str, patience: float = 10) -> None:
        """Stop processes, those whose pid file got lost included."""
        found = {name: self.find(name) for name in names}
        stop_all((i for i in found.values() if i is not None), patience)
        for name in names:
            (self._layout.run / f"{name}.json").unlink(missing_ok=True)

    def sweep(self) -> None:
        """Stop whatever else carries this cluster's mark: lost processes, containerd's shims."""
        stop_all((found for found, *_ in marked(self._layout.directory)), patience=3)

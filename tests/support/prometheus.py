"""A real Prometheus: the one on PATH, or Debian's, unpacked into the cache without being installed.

From Go modules it takes longer to build than all the tests here (its server and 700 packages).
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import requests
import yaml
from operator_process import free_port

from localcluster.layout import cache_directory, locked


@functools.cache
def program() -> str:
    """Path of `prometheus`; the first call on a machine downloads 19 MB."""
    found = shutil.which("prometheus")
    if found is not None:
        return found
    folder = cache_directory() / "prometheus"
    unpacked = folder / "usr/bin/prometheus"
    with locked(cache_directory() / "prometheus.lock"):
        if not unpacked.exists():
            _unpack(folder)
    return str(unpacked)


def _unpack(folder: Path) -> None:
    if shutil.which("apt-get") is None:
        raise RuntimeError("no `prometheus` on PATH, and no apt-get to get Debian's: install one")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if _run(["apt-get", "download", "prometheus"], folder):  # a fresh image has no lists
        for command in (["apt-get", "update", "-qq"], ["apt-get", "download", "prometheus"]):
            problem = _run(command, folder)
            if problem:
                raise RuntimeError(f"{command} failed:\n{problem}")
    (package,) = folder.glob("*.deb")
    problem = _run(["dpkg", "-x", package.name, "."], folder)
    if problem:
        raise RuntimeError(f"{package.name} cannot be unpacked:\n{problem}")
    package.unlink()


def _run(command: list[str], folder: Path) -> str:
    """What it says against it; empty: it went well."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return (done.stderr or f"exit code {done.returncode}") if done.returncode else ""


class Prometheus:
    """One that scrapes one target every second, until `stop`."""

    def __init__(self, directory: Path, target: int, rules: Path) -> None:
        self._url = f"http://127.0.0.1:{free_port()}"
        self._log = directory / "prometheus.log"
        scrape = {"job_name": "operator", "honor_labels": True, "scrape_interval": "1s"}
        scrape["static_configs"] = [{"targets": [f"127.0.0.1:{target}"]}]
        file = directory / "prometheus.yaml"
        config = {
            "global": {"evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [scrape],
        }
        file.write_text(yaml.safe_dump(config))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program(),
                    f"--config.file={file}",
                    f"--storage.tsdb.path={directory / 'tsdb'}",
                    f"--web.listen-address={self._url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=log,
            )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query; raises with what Prometheus says against it."""
        assert self._process.poll() is None, self._log.read_text()
        answer = requests.get(f"{self._url}/api/v1/query", {"query": expression}, timeout=10)
        body = answer.json()
        assert body["status"] == "success", f"{expression}: {body}"
        found: list[dict[str, Any]] = body["data"]["result"]
        return found

    def is_ready(self) -> bool:
        """Whether it answers."""
        assert self._process.poll() is None, self._log.read_text()
        try:
            return requests.get(f"{self._url}/-/ready", timeout=2).status_code == 200
        except requests.ConnectionError:
            return False

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)

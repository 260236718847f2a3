"""Compiling an upstream program without one of its imports.

promtool's stock main registers the service discoveries of every cloud, whose SDKs take
ten minutes to compile and which nothing here uses. `go build -overlay` lets the files of the
pinned module stand in a folder of ours that does not exist, less that one import.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from localcluster.layout import ClusterError


def without_import(source: str, dropped: str) -> str:
    """Return Go source without the line that imports a package for its side effects."""
    lines = source.splitlines(keepends=True)
    return "".join(line for line in lines if f'_ "{dropped}"' not in line)


def write(go: Path, target: Path, package: str, dropped: str, folder: Path) -> Path:
    """Write an overlay by which `target` holds the files of `package`; return its path."""
    result = subprocess.run(
        [
            str(go),
            "list",
            "-mod=readonly",
            "-f",
            "{{.Dir}}\n{{range .GoFiles}}{{.}}\n{{end}}",
            package,
        ],
        cwd=target.parent,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise ClusterError(f"cannot find the sources of {package}:\n{result.stderr[-2000:]}")
    source, *names = result.stdout.split()
    replaced = {}
    for name in names:
        copy = folder / name
        copy.write_text(without_import((Path(source) / name).read_text(), dropped))
        replaced[str(target / name)] = str(copy)
    path = folder / "overlay.json"
    path.write_text(json.dumps({"Replace": replaced}))
    return path

"""The base image: Debian with Python, made by debootstrap (there is no image registry here)."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from localcluster import oci
from localcluster.layout import ClusterError, cache_directory, locked

REFERENCE = "localhost/debian-python:bookworm"
SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "ca-certificates")

# What is done to the fresh file system; part of the recipe, hence of the cached file's name.
FINISH = """
set -eu
ln -sf python3 "$1/usr/bin/python"
echo 'nonroot:x:65532:' >> "$1/etc/group"
echo 'nonroot:x:65532:65532:nonroot:/home/nonroot:/usr/sbin/nologin' >> "$1/etc/passwd"
install -d -m 0755 -o 65532 -g 65532 "$1/home/nonroot"
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/var/cache/apt/archives/*.deb
rm -rf "$1"/usr/share/doc/* "$1"/usr/share/man/* "$1"/usr/share/locale/* "$1"/var/log/*
rm -f "$1/etc/resolv.conf" "$1/etc/hostname"
"""
_CONFIG = {"Env": ["PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"]}


def mirror_for(suite: str, texts: list[str]) -> str | None:
    """Return the package mirror that apt's configuration (both formats) has for a suite."""
    for text in texts:
        for paragraph in text.split("\n\n"):
            lines = [line for line in paragraph.splitlines() if not line.startswith("#")]
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
            if suite in fields.get("Suites", "").split() and "deb" in fields.get("Types", ""):
                return fields["URIs"].split()[0]
            for line in lines:
                words = [word for word in line.split() if not word.startswith("[")]
                if words[:1] == ["deb"] and words[2:3] == [suite]:
                    return words[1]
    return None


def _host_mirror() -> str | None:
    apt = Path("/etc/apt")
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    readable = [f for f in files if f.is_file() and f.suffix in (".list", ".sources")]
    return mirror_for(SUITE, [file.read_text() for file in readable])


def archive_path() -> Path:
    """Return where the image is cached; the name changes with the recipe."""
    recipe = "\0".join([SUITE, *PACKAGES, FINISH, str(_CONFIG), oci.architecture()])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    return cache_directory() / "images" / f"debian-python-{SUITE}-{digest}.tar"


def _run(*command: str) -> None:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        tail = "\n".join(result.stdout.splitlines()[-20:])
        raise ClusterError(f"`{' '.join(command[:3])} ...` failed:\n{tail}")


def _make(target: Path) -> None:
    mirror = _host_mirror()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        root, layer, image = (str(Path(folder) / name) for name in ("root", "layer", "image"))
        try:
            _run(
                *("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
                *(SUITE, root),
                *([mirror] if mirror else []),
            )
            _run("sh", "-c", FINISH, "sh", root)
            order = ("--sort=name", "--numeric-owner", "--exclude=./dev/*")
            _run("tar", *order, "-C", root, "-cf", layer, ".")
        finally:
            shutil.rmtree(root, ignore_errors=True)
        oci.write_archive(Path(image), REFERENCE, Path(layer), _CONFIG)
        Path(image).replace(target)


def ensure() -> Path:
    """Return the archive of the base image, made if it is not there."""
    target = archive_path()
    with locked(target.with_suffix(".lock")):
        if not target.exists():
            packages = ", ".join(PACKAGES)
            print(
                f"making the base image {REFERENCE} (Debian {SUITE} with {packages}) ...",
                file=sys.stderr,
                flush=True,
            )
            began = time.monotonic()
            _make(target)
            print(f"made it in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return target

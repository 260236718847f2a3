"""Writing an image archive (OCI layout in a tar file) out of one layer."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def architecture() -> str:
    """Return this machine's architecture, as Go and image registries call it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def write_layer(path: Path, files: Mapping[str, Path]) -> None:
    """Write a layer that consists of a few executables, owned by root."""
    with tarfile.open(path, "w") as tar:
        for name, source in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            entry.size = source.stat().st_size
            with source.open("rb") as content:
                tar.addfile(entry, content)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_archive(path: Path, reference: str, layer: Path, config: Mapping[str, Any]) -> None:
    """Write an archive of an image with one (uncompressed) layer."""
    blobs: dict[str, bytes] = {}

    def blob(content: Any, media_type: str) -> dict[str, Any]:
        data = json.dumps(content, sort_keys=True).encode()
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    oci = "application/vnd.oci.image"
    layer_digest = f"sha256:{_digest(layer)}"
    image = {
        "architecture": architecture(),
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    }
    layer_entry = {
        "mediaType": f"{oci}.layer.v1.tar",
        "digest": layer_digest,
        "size": layer.stat().st_size,
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{oci}.manifest.v1+json",
        "config": blob(image, f"{oci}.config.v1+json"),
        "layers": [layer_entry],
    }
    top = blob(manifest, f"{oci}.manifest.v1+json")
    top["annotations"] = {
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
    }
    top["platform"] = {"architecture": architecture(), "os": "linux"}
    index = {"schemaVersion": 2, "mediaType": f"{oci}.index.v1+json", "manifests": [top]}
    texts = {
        "oci-layout": json.dumps({"imageLayoutVersion": "1.0.0"}).encode(),
        "index.json": json.dumps(index).encode(),
        **{f"blobs/sha256/{digest}": data for digest, data in blobs.items()},
    }
    with tarfile.open(path, "w") as tar:
        for name, data in texts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        tar.add(layer, f"blobs/sha256/{layer_digest.removeprefix('sha256:')}")

"""A certificate for 127.0.0.1, with a key as the chart makes it."""

from __future__ import annotations

import subprocess
from pathlib import Path


def self_signed(directory: Path) -> None:
    """Writes `tls.crt`, `tls.key` and `ca.crt`."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-subj", "/CN=finetune-operator", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(directory / "tls.key"), "-out", str(directory / "tls.crt")),
        ],
        check=True,
        capture_output=True,
    )
    (directory / "ca.crt").write_bytes((directory / "tls.crt").read_bytes())

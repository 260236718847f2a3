"""What the API server itself says of who asked it for what: its audit log."""

from __future__ import annotations

import json
from os import SEEK_END
from pathlib import Path
from typing import Any

Json = dict[str, Any]
LONGEST = 2**20
"""Bytes of a line."""
WRITES = ("create", "update", "patch", "delete", "deletecollection")
NO_CHANGE = ("tokenreviews", "leases")


class AuditLog:
    """The requests of one client since this object was made (`whole`: since the API server was
    started), or since `forget`; a client is known by the beginning of its `User-Agent`."""

    def __init__(self, kubeconfig: Path, client: str, whole: bool = False) -> None:
        self._path = kubeconfig.parent / "logs" / "audit.log"
        self._client = client
        self._start = 0
        if not whole:
            self.forget()

    def forget(self) -> None:
        """Count from here: from the end of the last line, as another may be half written."""
        with self._path.open("rb") as file:
            size = file.seek(0, SEEK_END)
            file.seek(max(0, size - LONGEST))
            rest = file.read(LONGEST).rpartition(b"\n")[2]
            self._start = file.tell() - len(rest)

    def requests(self) -> list[Json]:
        """Entries of the log."""
        with self._path.open("rb") as file:
            file.seek(self._start)
            lines = file.read().split(b"\n")[:-1]
        entries = [json.loads(line) for line in lines]
        return [e for e in entries if (e.get("userAgent") or "").startswith(self._client)]

    def reads(self) -> list[str]:
        """`list pods`, without Leases, and without asking what the API server knows."""
        found = [(e["verb"], (e.get("objectRef") or {}).get("resource")) for e in self.requests()]
        return [f"{v} {r}" for v, r in found if v not in WRITES and r not in (None, "leases")]

    def writes(self) -> list[str]:
        """`patch finetunejobs/status docs`, without Leases and questions about tokens."""
        found = []
        for entry in self.requests():
            target = entry.get("objectRef") or {}
            if entry["verb"] in WRITES and target.get("resource") not in NO_CHANGE:
                part = "/" + target["subresource"] if "subresource" in target else ""
                found.append(f"{entry['verb']} {target['resource']}{part} {target.get('name')}")
        return found

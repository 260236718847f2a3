"""A Hugging Face Hub of our own: the requests that downloads make, answered from a dictionary."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """One repository at one commit; branch `main` and tag `v1` point to it."""

    files: dict[str, bytes]
    token: str | None = None
    """Who reads it must send this token."""
    gated: bool = False
    forbidden: bool = False
    storage: str | None = None
    """Where its files are: downloads are redirected to paths below this URL."""


@dataclass
class Hub:
    """What the server knows, and what it was asked."""

    endpoint: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    """By `models/owner/name` or `datasets/owner/name`."""
    broken_answers: int = 0
    """That many requests get HTTP 503 first."""
    requests: list[str] = field(default_factory=list)


@contextmanager
def running_hub(certificate: Path | None = None) -> Iterator[Hub]:
    """Serve on a free port of this machine until the block ends.

    Args:
        certificate: Directory with `tls.crt` and `tls.key`, to serve by TLS.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "http" if certificate is None else "https"
    hub = Hub(f"{scheme}://127.0.0.1:{server.server_address[1]}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._handle(body=True)

    def do_HEAD(self) -> None:
        self._handle(body=False)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _handle(self, body: bool) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        if hub.broken_answers:
            hub.broken_answers -= 1
            self._send(503, b"{}", {}, body)
            return
        status, content, headers = _answer(hub, path, self.headers.get("Authorization"))
        self._send(status, content, headers, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


Answer = tuple[int, bytes, dict[str, str]]


def _answer(hub: Hub, path: str, authorization: str | None) -> Answer:
    parts = path.strip("/").split("/")
    if parts[0] == "api":
        kind, name, rest = parts[1], "/".join(parts[2:4]), parts[4:]
    else:
        kind = "datasets" if parts[0] == "datasets" else "models"
        parts = parts[1:] if kind == "datasets" else parts
        name, rest = "/".join(parts[:2]), parts[2:]
    repository = hub.repositories.get(f"{kind}/{name}")
    if repository is None:
        return _error(401 if authorization is None else 404, "RepoNotFound")
    if repository.token is not None and authorization != f"Bearer {repository.token}":
        return _error(401, "GatedRepo" if repository.gated else "RepoNotFound")
    if repository.forbidden:
        return _error(403, None)
    revision = rest[1] if len(rest) > 1 else "main"
    if revision not in ("main", "v1", COMMIT):
        return _error(404, "RevisionNotFound")
    if parts[0] == "api":
        if rest and rest[0] == "tree":
            return _tree(repository)
        return _info(name, repository)
    status, content, headers = _file(repository, "/".join(rest[2:]))
    if repository.storage is not None and status == 200:
        size = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": headers["ETag"]}
        return 302, b"", {**headers, **size, "Location": f"{repository.storage}{path}"}
    return status, content, headers


def _error(status: int, code: str | None) -> Answer:
    headers = {"X-Error-Message": "no"} | ({"X-Error-Code": code} if code else {})
    return status, b'{"error": "no"}', headers


def _info(name: str, repository: Repository) -> Answer:
    siblings = [{"rfilename": file} for file in repository.files]
    content = {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
    return 200, json.dumps(content).encode(), {"Content-Type": "application/json"}


def _tree(repository: Repository) -> Answer:
    files = [
        {"type": "file", "path": file, "size": len(content), "oid": _etag(content)}
        for file, content in repository.files.items()
    ]
    return 200, json.dumps(files).encode(), {"Content-Type": "application/json"}


def _file(repository: Repository, name: str) -> Answer:
    if name not in repository.files:
        return _error(404, "EntryNotFound")
    content = repository.files[name]
    headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "none"}
    return 200, content, headers


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()

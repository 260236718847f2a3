"""The few calls to the API server that the cluster itself needs."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any
from urllib.parse import urlsplit

from localcluster.layout import ClusterError, Layout, State

Object = dict[str, Any]


class Api:
    """A minimal client with the administrator's certificate."""

    def __init__(self, layout: Layout, state: State) -> None:
        self._host = urlsplit(state.api_url).netloc
        self._context = ssl.create_default_context(cafile=str(layout.pki / "ca.crt"))
        self._context.load_cert_chain(layout.pki / "admin.crt", layout.pki / "admin.key")

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, str]:
        """Send a request; return the HTTP status and the text of the answer."""
        connection = http.client.HTTPSConnection(self._host, context=self._context, timeout=10)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": content_type})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()

    def succeeds(self, path: str) -> bool:
        """Say whether a GET is answered with success (no answer is no)."""
        try:
            return self.request("GET", path)[0] == http.client.OK
        except (OSError, http.client.HTTPException):
            return False

    def get(self, path: str) -> Object | None:
        """Return an object, or None if there is none or the server does not answer."""
        try:
            status, text = self.request("GET", path)
        except (OSError, http.client.HTTPException):
            return None
        return json.loads(text) if status == http.client.OK else None

    def _change(self, method: str, path: str, body: Any, content_type: str) -> None:
        try:
            status, text = self.request(method, path, body, content_type)
        except (OSError, http.client.HTTPException) as error:
            raise ClusterError(
                f"{method} {path}: the API server does not answer: {error}"
            ) from error
        if status >= http.client.BAD_REQUEST:
            raise ClusterError(f"{method} {path}: {status} {text}")

    def patch(self, path: str, operations: list[Object]) -> None:
        """Change an object by a JSON patch."""
        self._change("PATCH", path, operations, "application/json-patch+json")

    def merge(self, path: str, change: Object) -> None:
        """Change an object by a JSON merge patch."""
        self._change("PATCH", path, change, "application/merge-patch+json")

    def apply(self, collection: str, manifest: Object) -> None:
        """Create an object or make it what it should be (server-side apply)."""
        name = manifest["metadata"]["name"]
        path = f"{collection}/{name}?fieldManager=localcluster&force=true"
        self._change("PATCH", path, manifest, "application/apply-patch+yaml")

    def delete(self, path: str) -> None:
        """Delete an object that may be gone already."""
        try:
            self._change("DELETE", path, None, "application/json")
        except ClusterError as error:
            if " 404 " not in str(error):
                raise

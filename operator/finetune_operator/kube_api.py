"""Reading, listing and writing by kind and name: what `cluster.py` is made of.

Every write asks the fence first, whether this process may write at all: see `lease.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from finetune_operator.lease import LONGEST_WRITE, Fence
from finetune_operator.transport import JSON, ApiError, Json, Permit, Request, Transport

PAGE = 250

PLURALS = {
    "ConfigMap": "configmaps",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Service": "services",
    "NetworkPolicy": "networkpolicies",
    "Job": "jobs",
    "Pod": "pods",
    "FineTuneJob": "finetunejobs",
    "Lease": "leases",
}


@dataclass(frozen=True, slots=True)
class Listing:
    """Objects of one kind at one moment; `version` is the resource version of that moment (of the
    oldest part, where several namespaces were listed)."""

    items: list[Json]
    version: int


def unlimited() -> float:
    """The permit of a request that no lease limits, in seconds."""
    return LONGEST_WRITE


class KubeApi:
    """Verbs of the API server."""

    def __init__(self, transport: Transport, fence: Fence | None = None) -> None:
        self._transport = transport
        self._for_the_leader: Permit = fence.for_the_leader if fence else unlimited
        self._for_anybody: Permit = fence.for_anybody if fence else unlimited

    async def close(self) -> None:
        """Give the connections back."""
        await self._transport.close()

    async def lease(
        self, method: str, namespace: str, name: str | None, body: Json | None, seconds: float
    ) -> Json:
        """One attempt, of so many seconds, to read (`GET`), create (`POST`) or replace (`PUT`) a
        Lease. `ApiError` 404: there is none; 409: it has changed."""
        path = path_of("coordination.k8s.io/v1", "Lease", namespace, name)
        asked = Request(method, path, {}, body, JSON, lambda: seconds)
        return await self._transport.request(asked, attempts=1)

    async def _get(self, path: str) -> Json | None:
        try:
            return await self._request("GET", path)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def _list(self, path: str, query: dict[str, str] | None = None) -> list[Json]:
        return (await self._pages(path, query or {}, _whole)).items

    async def _pages(
        self, path: str, query: Mapping[str, str], trim: Callable[[Json], Json]
    ) -> Listing:
        found: list[Json] = []
        wanted = {**query, "limit": str(PAGE)}
        while True:
            answer = await self._request("GET", path, wanted)
            found += [trim(item) for item in answer["items"]]
            following = answer["metadata"].get("continue")
            if not following:
                return Listing(found, int(answer["metadata"]["resourceVersion"]))
            wanted["continue"] = following

    async def _everywhere(
        self,
        api_version: str,
        kind: str,
        namespaces: tuple[str, ...],
        query: Mapping[str, str],
        trim: Callable[[Json], Json],
    ) -> Listing:
        parts = [
            await self._pages(path_of(api_version, kind, namespace), query, trim)
            for namespace in namespaces or (None,)
        ]
        items = [item for part in parts for item in part.items]
        return Listing(items, min(part.version for part in parts))

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = JSON,
        permit: Permit | None = None,
        accept: str = JSON,
    ) -> Json:
        """Reads are free; a write is the leader's, unless it brings another permit."""
        if permit is None:
            permit = unlimited if method == "GET" else self._for_the_leader
        asked = Request(method, path, query or {}, body, content_type, permit, accept)
        return await self._transport.request(asked)


def _whole(item: Json) -> Json:
    return item


def path_of(api_version: str, kind: str, namespace: str | None, name: str | None = None) -> str:
    """Of a kind in a namespace (None: in all), or of one object."""
    root = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
    scope = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"{root}{scope}/{PLURALS[kind]}" + (f"/{quote(name, safe='')}" if name else "")

"""The only module that talks to the API server: plain JSON in and out, its errors turned into ours.

Requests are made by path, not by the client's classes: manifests stay the dictionaries that the
pure core builds, and the 900 model classes of the client are never loaded into memory.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from kubernetes.aio import client, config

from finetune_api.base import API_VERSION, GROUP, VERSION
from finetune_operator import names

Json = dict[str, Any]
APPLY = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
PAGE = 500
MAX_QUESTIONS = 4
"""Objects whose Events are read in one pass: one that waits explains the others."""
ATTEMPTS = 5
RETRIED = (429, 500, 502, 503, 504)

PLURALS = {
    "ConfigMap": "configmaps",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Service": "services",
    "NetworkPolicy": "networkpolicies",
    "Job": "jobs",
    "Pod": "pods",
    "FineTuneJob": "finetunejobs",
}


class ApiError(Exception):
    """The API server refused; `code` is the HTTP status, the text its message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class NotOursError(Exception):
    """An object has a name that we need and another owner; the text is kind and name."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who presented a token."""

    namespace: str
    pod: str | None
    pod_uid: str | None


async def connect(kubeconfig: str | None = None) -> Cluster:
    """In a pod by its service account, elsewhere by kubeconfig."""
    configuration = client.Configuration()
    if kubeconfig is None and Path(config.incluster_config.SERVICE_TOKEN_FILENAME).exists():
        config.load_incluster_config(  # type: ignore[no-untyped-call]
            client_configuration=configuration
        )
    else:
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            kubeconfig, client_configuration=configuration
        )
    return Cluster(client.ApiClient(configuration))


class Cluster:
    """What the operator reads and writes."""

    def __init__(self, api: Any) -> None:
        self._api = api

    async def close(self) -> None:
        """Give the connections back."""
        await self._api.close()

    async def job(self, namespace: str, name: str) -> Json | None:
        """A FineTuneJob."""
        return await self._get(_path(API_VERSION, "FineTuneJob", namespace, name))

    async def all_jobs(self, namespaces: tuple[str, ...]) -> list[Json]:
        """Every FineTuneJob that is ours to serve."""
        found: list[Json] = []
        for namespace in namespaces or (None,):
            found += await self._list(_path(API_VERSION, "FineTuneJob", namespace))
        return found

    async def profiles(self) -> list[Json]:
        """Every FineTuneProfile."""
        return await self._list(f"/apis/{GROUP}/{VERSION}/finetuneprofiles")

    async def run_config_map(self, namespace: str, job: str) -> Json | None:
        """The ConfigMap that holds what a job started with."""
        return await self._get(_path("v1", "ConfigMap", namespace, names.run_config_map(job)))

    async def children(self, namespace: str, job: str) -> tuple[list[Json], list[Json]]:
        """Kubernetes Jobs and pods of a FineTuneJob."""
        selector = {"labelSelector": f"{names.LABEL_JOB}={job}"}
        jobs, pods = await asyncio.gather(
            self._list(_path("batch/v1", "Job", namespace), selector),
            self._list(_path("v1", "Pod", namespace), selector),
        )
        return jobs, pods

    async def events_about(self, namespace: str, uids: Sequence[str]) -> list[Json]:
        """Events about some objects of a namespace. The API server looks through all of the
        namespace for each, so this is for when nothing else explains what is seen."""
        path = f"/api/v1/namespaces/{quote(namespace)}/events"
        queries = [{"fieldSelector": f"involvedObject.uid={uid}"} for uid in uids[:MAX_QUESTIONS]]
        answers = await asyncio.gather(*(self._list(path, query) for query in queries))
        return [event for answer in answers for event in answer]

    async def pod(self, namespace: str, name: str) -> Json | None:
        """One pod."""
        return await self._get(_path("v1", "Pod", namespace, name))

    async def owns(self, namespace: str, pod: Json, uid: str) -> bool:
        """Whether a pod belongs to the FineTuneJob `uid` by way of a Kubernetes Job: labels can be
        forged by whoever may create pods, the chain of owners is checked by name and uid."""
        for owner in pod["metadata"].get("ownerReferences") or []:
            if owner.get("kind") != "Job":
                continue
            job = await self._get(_path("batch/v1", "Job", namespace, owner["name"]))
            if job is None or job["metadata"]["uid"] != owner["uid"]:
                continue
            owners = job["metadata"].get("ownerReferences") or []
            if uid in [o.get("uid") for o in owners]:
                return True
        return False

    async def apply(self, manifest: Json) -> None:
        """Server-side apply of a child; raises `NotOursError` before touching what is not ours."""
        metadata = manifest["metadata"]
        path = _path(
            manifest["apiVersion"], manifest["kind"], metadata["namespace"], metadata["name"]
        )
        existing = await self._get(path)
        owner = metadata["ownerReferences"][0]["uid"]
        if existing is not None:
            owners = existing["metadata"].get("ownerReferences") or []
            if owner not in [o.get("uid") for o in owners]:
                raise NotOursError(f"{manifest['kind']} {metadata['name']}")
            if existing.get("immutable"):
                return  # a newer operator may write it otherwise, and be refused for ever
        query = {"fieldManager": names.FIELD_OWNER, "force": "true"}
        await self._request("PATCH", path, query, manifest, APPLY)

    async def suspend_job(self, namespace: str, name: str, stop: bool) -> None:
        """Stop a Kubernetes Job, or let it go on. Not by apply: the pods that a newer operator
        would make must not matter to a Job that is there."""
        path = _path("batch/v1", "Job", namespace, name)
        await self._request("PATCH", path, {}, {"spec": {"suspend": stop}}, MERGE_PATCH)

    async def fail_pod(self, namespace: str, name: str, uid: str) -> None:
        """Call a pod failed whose node does not answer, as Kubernetes' own collector of lost pods
        does: its Job takes note of nothing else. Nothing, where it is gone or another one."""
        lost = {"phase": "Failed", "reason": "NodeLost", "message": "its node does not answer"}
        path = _path("v1", "Pod", namespace, name) + "/status"
        body = {"metadata": {"uid": uid}, "status": lost}
        await self._unless_changed("PATCH", path, body, MERGE_PATCH)

    async def force_delete_pod(self, namespace: str, name: str, uid: str) -> None:
        """Remove a pod without its kubelet; nothing, where it is gone or another one."""
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
        await self._unless_changed("DELETE", _path("v1", "Pod", namespace, name), options)

    async def delete_job(self, namespace: str, name: str, uid: str, version: int) -> None:
        """Delete a FineTuneJob as it was read; all it made follows by its owner references.
        Nothing, where it has changed since: that change is an event of its own."""
        path = _path(API_VERSION, "FineTuneJob", namespace, name)
        unchanged = {"uid": uid, "resourceVersion": str(version)}
        options = {"propagationPolicy": "Background", "preconditions": unchanged}
        await self._unless_changed("DELETE", path, options)

    async def apply_status(
        self, namespace: str, name: str, status: Mapping[str, Any], owner: str
    ) -> Json:
        """Server-side apply of (a part of) a FineTuneJob's status; returns the job as it is then.
        `ApiError` 404: it is gone."""
        path = _path(API_VERSION, "FineTuneJob", namespace, name)
        body = {
            "apiVersion": API_VERSION,
            "kind": "FineTuneJob",
            "metadata": {"name": name, "namespace": namespace},
            "status": status,
        }
        query = {"fieldManager": owner, "force": "true"}
        return await self._request("PATCH", f"{path}/status", query, body, APPLY)

    async def post_event(self, event: Json) -> None:
        """Create an Event; the same one twice is one."""
        try:
            path = f"/api/v1/namespaces/{event['metadata']['namespace']}/events"
            await self._request("POST", path, {}, event)
        except ApiError as error:
            if error.code != 409:
                raise

    async def review_token(self, token: str, audience: str) -> Caller | None:
        """Whose token it is; None: not valid for this audience."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        answer = await self._request(
            "POST", "/apis/authentication.k8s.io/v1/tokenreviews", {}, body
        )
        status = answer.get("status") or {}
        if not status.get("authenticated") or audience not in status.get("audiences", []):
            return None
        user = status.get("user") or {}
        parts = user.get("username", "").split(":")
        if parts[:2] != ["system", "serviceaccount"] or len(parts) != 4:
            return None
        extra = user.get("extra") or {}
        return Caller(
            namespace=parts[2],
            pod=next(iter(extra.get("authentication.kubernetes.io/pod-name", [])), None),
            pod_uid=next(iter(extra.get("authentication.kubernetes.io/pod-uid", [])), None),
        )

    async def _unless_changed(
        self, method: str, path: str, body: Json, content_type: str = "application/json"
    ) -> None:
        """What is gone, or no longer as the request's preconditions say, is left alone."""
        try:
            await self._request(method, path, {}, body, content_type)
        except ApiError as error:
            if error.code not in (404, 409):
                raise

    async def _get(self, path: str) -> Json | None:
        try:
            return await self._request("GET", path)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def _list(self, path: str, query: dict[str, str] | None = None) -> list[Json]:
        found: list[Json] = []
        wanted = {**(query or {}), "limit": str(PAGE)}
        while True:
            answer = await self._request("GET", path, wanted)
            found += answer["items"]
            following = answer["metadata"].get("continue")
            if not following:
                return found
            wanted["continue"] = following

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Json:
        """One request; what may work a moment later is tried again with growing pauses."""
        for attempt in range(ATTEMPTS):
            code, text = await self._once(method, path, query or {}, body, content_type)
            if code < 300:
                return json.loads(text) if text else {}
            if code not in RETRIED or attempt == ATTEMPTS - 1:
                break
            await asyncio.sleep(0.2 * 2**attempt)
        raise ApiError(code, _message(text))

    async def _once(
        self, method: str, path: str, query: Mapping[str, str], body: Any, content_type: str
    ) -> tuple[int, str]:
        api = self._api
        headers = {"Accept": "application/json", "Content-Type": content_type}
        await api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = api.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        try:
            answer = await api.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=30
            )
        except (TimeoutError, OSError) as error:
            return 503, f"no answer from the API server: {error}"
        return answer.status, (await answer.read() or b"").decode()


def _path(api_version: str, kind: str, namespace: str | None, name: str | None = None) -> str:
    root = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
    scope = f"/namespaces/{quote(namespace)}" if namespace else ""
    return f"{root}{scope}/{PLURALS[kind]}" + (f"/{quote(name)}" if name else "")


def _message(text: str) -> str:
    try:
        return str(json.loads(text).get("message", text))
    except (ValueError, AttributeError):
        return text

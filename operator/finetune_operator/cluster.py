"""What the operator reads and writes in the API server: plain JSON in and out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from finetune_api.base import API_VERSION, GROUP, VERSION
from finetune_operator import names
from finetune_operator.kube_api import KubeApi, Listing, unlimited
from finetune_operator.kube_api import path_of as _path
from finetune_operator.lease import Fence
from finetune_operator.transport import JSON, METADATA_ALONE, Answered, nobody, open_transport
from finetune_operator.transport import ApiError as ApiError  # part of this module's interface
from finetune_operator.transport import Json as Json

APPLY = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
REFUSALS = (400, 403, 413, 422)
"""What does not change by asking again a moment later."""
MAX_QUESTIONS = 4
"""Objects whose Events are read in one pass: one that waits explains the others."""


class NotOursError(Exception):
    """An object has a name that we need and another owner; the text is kind and name."""


class RefusedError(Exception):
    """The API server does not take an object (it is not valid, a quota is used up, a policy of the
    cluster forbids it); the text is kind, name and its words."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who presented a token."""

    namespace: str
    pod: str | None
    pod_uid: str | None


async def connect(
    kubeconfig: str | None = None,
    fence: Fence | None = None,
    identity: str = "",
    answered: Answered = nobody,
) -> Cluster:
    """In a pod by its service account, elsewhere by kubeconfig. `fence` guards every write; without
    one, all are allowed. `identity` is what the API server's audit log shows; `answered` is told
    the verb and the HTTP status of every answer."""
    agent = f"{names.FIELD_OWNER}/{identity}".rstrip("/")
    return Cluster(await open_transport(kubeconfig, agent, answered=answered), fence)


class Cluster(KubeApi):
    """What the operator reads and writes."""

    async def job(self, namespace: str, name: str) -> Json | None:
        """A FineTuneJob."""
        return await self._get(_path(API_VERSION, "FineTuneJob", namespace, name))

    async def all_jobs(self, namespaces: tuple[str, ...]) -> Listing:
        """Every FineTuneJob that is ours to serve."""
        return await self._everywhere(API_VERSION, "FineTuneJob", namespaces, {}, _lean)

    async def all_children(
        self, namespaces: tuple[str, ...], trim: Callable[[Json], Json]
    ) -> tuple[Listing, Listing]:
        """Kubernetes Jobs and pods of all FineTuneJobs; `trim` keeps of each what is needed, page
        by page: thousands of whole pods would be hundreds of megabytes."""
        selector = {"labelSelector": names.MINE}
        jobs = await self._everywhere("batch/v1", "Job", namespaces, selector, trim)
        pods = await self._everywhere("v1", "Pod", namespaces, selector, trim)
        return jobs, pods

    async def profiles(self) -> list[Json]:
        """Every FineTuneProfile."""
        return await self._list(f"/apis/{GROUP}/{VERSION}/finetuneprofiles")

    async def namespace_labels(self, namespace: str) -> Mapping[str, str]:
        """Labels of a namespace; none, where the operator may not read it (namespaced mode)."""
        try:
            found = await self._get(f"/api/v1/namespaces/{namespace}")
        except ApiError as error:
            if error.code != 403:
                raise
            return {}
        labels: Mapping[str, str] = (found or {"metadata": {}})["metadata"].get("labels") or {}
        return labels

    async def run_config_map(self, namespace: str, job: str) -> Json | None:
        """The ConfigMap that holds what a job started with."""
        return await self._get(_path("v1", "ConfigMap", namespace, names.run_config_map(job)))

    async def stage_job(self, namespace: str, name: str) -> Json | None:
        """One Kubernetes Job."""
        return await self._get(_path("batch/v1", "Job", namespace, name))

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
            if owner.get("kind") != "Job" or not owner.get("controller"):
                continue
            job = await self._get(_path("batch/v1", "Job", namespace, owner["name"]))
            if job is None or job["metadata"]["uid"] != owner["uid"]:
                continue
            owners = job["metadata"].get("ownerReferences") or []
            if uid in [o.get("uid") for o in owners]:
                return True
        return False

    async def apply(self, manifest: Json) -> None:
        """Make a child, or bring it to what it should be; raises `NotOursError` before touching
        what is not ours, `RefusedError` where the API server does not take it.

        What is not there is created, not applied: an apply would take over what somebody else has
        made a moment ago. What is there is applied to this very object, and no other of its name.
        """
        metadata = manifest["metadata"]
        where = manifest["apiVersion"], manifest["kind"], metadata["namespace"]
        path = _path(*where, metadata["name"])
        existing = await self._get(path)
        if existing is None:
            if await self._create(_path(*where), manifest):
                return
            existing = await self._get(path)
        if existing is None:
            raise ApiError(409, f"{manifest['kind']} {metadata['name']} comes and goes")
        owner = metadata["ownerReferences"][0]["uid"]
        owners = existing["metadata"].get("ownerReferences") or []
        if owner not in [o.get("uid") for o in owners]:
            raise NotOursError(f"{manifest['kind']} {metadata['name']}")
        if existing.get("immutable"):
            return  # a newer operator may write it otherwise, and be refused for ever
        query = {"fieldManager": names.FIELD_OWNER, "force": "true"}
        this = {"uid": existing["metadata"]["uid"]}
        body = manifest | {"metadata": metadata | this}
        await self._child("PATCH", path, query, body, APPLY)

    async def _create(self, path: str, manifest: Json) -> bool:
        """False: there is one already, of somebody else or by a request whose answer was lost."""
        try:
            await self._child("POST", path, {"fieldManager": names.FIELD_OWNER}, manifest)
        except ApiError as error:
            if error.code != 409:
                raise
            return False
        return True

    async def _child(
        self, method: str, path: str, query: Json, manifest: Json, content_type: str = JSON
    ) -> None:
        try:
            await self._request(method, path, query, manifest, content_type)
        except ApiError as error:
            if error.code not in REFUSALS:
                raise
            what = f"{manifest['kind']} {manifest['metadata']['name']}"
            raise RefusedError(f"{what}: {error.text}") from error

    async def suspend_job(self, namespace: str, name: str, stop: bool) -> None:
        """Stop a Kubernetes Job, or let it go on. Not by apply: the pods that a newer operator
        would make must not matter to a Job that is there. One that is stopped leaves its queue, so
        that nobody else lets it go on."""
        path = _path("batch/v1", "Job", namespace, name)
        try:
            body: Json = {"spec": {"suspend": stop}}
            if stop:
                body["metadata"] = {"labels": {names.LABEL_QUEUE: None}}
            await self._request("PATCH", path, {}, body, MERGE_PATCH)
        except ApiError as error:
            if error.code != 404:  # what is gone is stopped; what to do next, the next look tells
                raise

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
        self,
        namespace: str,
        name: str,
        status: Mapping[str, Any],
        owner: str,
        version: int | None = None,
    ) -> Json:
        """Server-side apply of (a part of) a FineTuneJob's status; returns the job as it is then.
        `ApiError` 404: it is gone; 409: it is not at this resource version any more, or is another
        one under its name."""
        path, body = _status(namespace, name, status, version)
        query = {"fieldManager": owner, "force": "true"}
        return await self._request("PATCH", path, query, body, APPLY)

    async def report_progress(
        self, namespace: str, name: str, status: Mapping[str, Any], version: int, uid: str
    ) -> int:
        """`apply_status` of a trainer's progress and what follows from it, which a standby may do
        as well: the version makes sure that it overwrites nothing which it has not seen. Returns
        the new version; all else of the answer is known, and thousands are not read for nothing."""
        path, body = _status(namespace, name, status, version, uid)
        query = {"fieldManager": names.PROGRESS_FIELD_OWNER, "force": "true"}
        permit = self._for_anybody
        answer = await self._request("PATCH", path, query, body, APPLY, permit, METADATA_ALONE)
        return int(answer["metadata"]["resourceVersion"])

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
            "POST", "/apis/authentication.k8s.io/v1/tokenreviews", {}, body, permit=unlimited
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
        self, method: str, path: str, body: Json, content_type: str = JSON
    ) -> None:
        """What is gone, or no longer as the request's preconditions say, is left alone."""
        try:
            await self._request(method, path, {}, body, content_type)
        except ApiError as error:
            if error.code not in (404, 409):
                raise


def _status(
    namespace: str,
    name: str,
    status: Mapping[str, Any],
    version: int | None = None,
    uid: str | None = None,
) -> tuple[str, Json]:
    """Path and body of an apply of (a part of) a FineTuneJob's status, only onto a version or to
    an object of this identity, where they are given."""
    metadata = {"name": name, "namespace": namespace}
    if version is not None:
        metadata["resourceVersion"] = str(version)
    if uid is not None:
        metadata["uid"] = uid
    kind = {"apiVersion": API_VERSION, "kind": "FineTuneJob"}
    path = _path(API_VERSION, "FineTuneJob", namespace, name) + "/status"
    return path, {**kind, "metadata": metadata, "status": status}


def _lean(item: Json) -> Json:
    """Without the list of who wrote which field, which nobody here reads: half of an object."""
    item["metadata"].pop("managedFields", None)
    return item

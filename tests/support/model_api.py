"""An API server in memory for one FineTuneJob: what `finetune_operator.cluster.Cluster` offers,
with versions, conflicts, owners of fields and the rule that freezes a spec. Every status that is
written passes the invariants first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from model_objects import START, Json, ModelJob, ModelPod, stamp

from finetune_api.v1alpha1 import CHANGEABLE, FineTuneJobSpec
from finetune_operator import names
from finetune_operator.cluster import ApiError

CAMEL = {FineTuneJobSpec.model_fields[name].alias for name in CHANGEABLE}
"""Fields of the spec that may change once a job has started."""

Watcher = Callable[[Json, Json, str], None]
"""Status before, status after, field owner."""


class ModelApi:
    """The objects of one job, and everybody's way to read and write them."""

    def __init__(self, body: Json, profiles: dict[str, Json]) -> None:
        self.body = body
        self.profile_specs = profiles
        self.clock = START
        self.deleted_at: float | None = None
        """When the operator has deleted the FineTuneJob."""
        self.others: dict[tuple[str, str], Json] = {}
        """Children that are not Jobs, by kind and name."""
        self.jobs: dict[str, ModelJob] = {}
        self.pods: dict[str, ModelPod] = {}
        self.made: list[str] = []
        """Names of all Jobs ever created, in order."""
        self.writes: list[str] = []
        self.events: list[str] = []
        self.watchers: list[Watcher] = []
        self.shown: tuple[list[Json], list[Json]] = ([], [])
        """The last answer to a list of children."""

    def now(self) -> str:
        return stamp(self.clock)

    @property
    def status(self) -> Json:
        found: Json = self.body.get("status") or {}
        return found

    # What the operator calls.

    async def job(self, namespace: str, name: str) -> Json | None:
        gone = self.deleted_at is not None or name != self.body["metadata"]["name"]
        return None if gone else self.body

    async def profiles(self) -> list[Json]:
        return [{"metadata": {"name": n}, "spec": s} for n, s in self.profile_specs.items()]

    async def run_config_map(self, namespace: str, job: str) -> Json | None:
        return self.others.get(("ConfigMap", names.run_config_map(job)))

    async def stage_job(self, namespace: str, name: str) -> Json | None:
        return self.jobs[name].raw() if name in self.jobs else None

    async def children(self, namespace: str, job: str) -> tuple[list[Json], list[Json]]:
        jobs = [job.raw() for job in self.jobs.values()]
        self.shown = jobs, [pod.raw() for pod in self.pods.values()]
        return self.shown

    async def apply(self, manifest: Json) -> None:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if self.others.get((kind, name), {}).get("immutable"):
            return
        self.writes.append(f"apply {kind} {name}")
        if kind != "Job":
            self.others[kind, name] = manifest
        elif name not in self.jobs:
            self.made.append(name)
            uid = f"uid-{len(self.made)}"
            self.jobs[name] = ModelJob(manifest=manifest, uid=uid)
        else:
            self._immutable(self.jobs[name].manifest, manifest)

    async def suspend_job(self, namespace: str, name: str, stop: bool) -> None:
        if name not in self.jobs:
            return
        self.writes.append(f"{'suspend' if stop else 'resume'} Job {name}")
        self.jobs[name] = replace(self.jobs[name], suspend=stop)

    async def apply_status(
        self, namespace: str, name: str, status: Json, owner: str, version: int | None = None
    ) -> Json:
        current = int(self.body["metadata"]["resourceVersion"])
        if version is not None and version != current:
            raise ApiError(409, "the object has been modified")
        old, progress = self.status, self.status.get("progress")
        if owner == names.PROGRESS_FIELD_OWNER:
            new = {**old, **status}
        else:
            new = {**status, **({"progress": progress} if progress else {})}
        for watch in self.watchers:
            watch(old, new, owner)
        self.writes.append(f"status {new.get('phase')}" if owner == names.FIELD_OWNER else owner)
        if new != old:
            self._store({**self.body, "status": new})
        return self.body

    async def fail_pod(self, namespace: str, name: str, uid: str) -> None:
        if name in self.pods:
            self.writes.append(f"fail Pod {name}")
            lost = {"phase": "Failed", "status_reason": "NodeLost"}
            self.pods[name] = replace(self.pods[name], **lost)

    async def force_delete_pod(self, namespace: str, name: str, uid: str) -> None:
        if self.pods.pop(name, None) is not None:
            self.writes.append(f"delete Pod {name}")

    async def delete_job(self, namespace: str, name: str, uid: str, version: int) -> None:
        if version == int(self.body["metadata"]["resourceVersion"]):
            self.writes.append("delete FineTuneJob")
            self.deleted_at = self.clock

    async def events_about(self, namespace: str, uids: Any) -> list[Json]:
        return []

    async def post_event(self, event: Json) -> None:
        said = f"{event['type']} {event['reason']}: {event['message']}"
        if said not in self.events:
            self.events.append(said)

    # What people do.

    def edit(self, **spec: Any) -> bool:
        """Change fields of the spec; None removes one. False: refused, the job has started."""
        changed = {**self.body["spec"], **spec}
        changed = {name: value for name, value in changed.items() if value is not None}
        if changed == self.body["spec"] or self.deleted_at is not None:
            return True
        differs = {n for n in spec if self.body["spec"].get(n) != changed.get(n)}
        if "startTime" in self.status and not differs <= CAMEL:
            return False
        metadata = self.body["metadata"]
        self._store(
            {
                **self.body,
                "metadata": metadata | {"generation": metadata["generation"] + 1},
                "spec": changed,
            }
        )
        return True

    def _store(self, body: Json) -> None:
        version = str(int(body["metadata"]["resourceVersion"]) + 1)
        self.body = {**body, "metadata": body["metadata"] | {"resourceVersion": version}}

    @staticmethod
    def _immutable(old: Json | None, new: Json) -> None:
        if old is not None and old["spec"] != new["spec"]:
            raise ApiError(422, f"{new['kind']} {new['metadata']['name']}: field is immutable")

"""A cluster in memory, just enough to play a job's whole life: what is applied exists, Jobs run
when told to. The operator that looks at it may be a new one at every pass."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import builders

from finetune_api.status import FineTuneJobStatus
from finetune_operator.observe import observe
from finetune_operator.reconcile import Step, World, parse_job, step
from finetune_operator.waiting import questions

Json = dict[str, Any]


class SimulatedCluster:
    """One FineTuneJob and its children."""

    def __init__(self, body: Json, world: World) -> None:
        self.body = body
        self.world = world
        self.objects: dict[tuple[str, str], Json] = {}
        self.pods: list[Json] = []
        self.writes: list[str] = []
        self.events: list[str] = []
        self.kube_events: list[Json] = []
        """What others say about the children."""
        self.clock = 0
        self.deleted = False

    def now(self) -> str:
        self.clock += 1
        moment = datetime(2026, 11, 22, 6, tzinfo=UTC) + timedelta(seconds=self.clock)
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

    def look(self) -> Step:
        """What an operator would do now."""
        job = parse_job(self.body)
        config_map = self.objects.get(("ConfigMap", f"{job.name}-run"))
        jobs = [o for (kind, _), o in self.objects.items() if kind == "Job"]
        now = self.now()
        observed = observe(config_map, jobs, self.pods, job.uid)
        if asked := questions(observed, job.status, now):
            told = [e for e in self.kube_events if e["involvedObject"]["uid"] in asked]
            observed = observe(config_map, jobs, self.pods, job.uid, told)
        return step(job, observed, self.world, now)

    def writes_of(self, done: Step) -> list[tuple[str, Any]]:
        """The writes of a pass, in order."""
        found: list[tuple[str, Any]] = [("apply", manifest) for manifest in done.apply]
        found += [("suspend", change) for change in done.suspend.items()]
        found += [("give up", pod) for pod in done.give_up]
        if done.progress is not None:
            found.append(("progress", done.progress))
        if done.status is not None:
            found.append(("status", done.status))
        found += [("event", event) for event in done.events]
        found += [("force delete", pod) for pod in done.force_delete]
        return found + ([("delete", None)] if done.delete else [])

    def write(self, kind: str, what: Any) -> None:
        """Perform one write."""
        if kind == "apply":
            self._apply(what)
        elif kind == "suspend":
            name, stop = what
            self.objects[("Job", name)]["spec"]["suspend"] = stop
            seen = {"type": "Suspended", "status": str(stop), "lastTransitionTime": builders.LATER}
            self.objects[("Job", name)]["status"]["conditions"] = [seen]
            self.writes.append(f"{'suspend' if stop else 'resume'} Job {name}")
        elif kind == "give up":
            lost = next(p for p in self.pods if p["metadata"]["uid"] == what.uid)
            lost["status"] |= {"phase": "Failed", "reason": "NodeLost", "containerStatuses": []}
            self.writes.append(f"give up Pod {what.name}")
        elif kind == "force delete":
            self.pods = [p for p in self.pods if p["metadata"]["uid"] != what.uid]
            self.writes.append(f"force delete Pod {what.name}")
        elif kind == "delete":
            self.deleted = True
            self.writes.append("delete FineTuneJob")
        elif kind == "progress":
            self.body.setdefault("status", {})["progress"] = what.to_json_dict()
            self.writes.append("progress")
        elif kind == "status":
            before = self.body.get("status", {}).get("progress")
            self.body["status"] = what.to_json_dict() | ({"progress": before} if before else {})
            self.writes.append(f"status {what.phase}")
        else:
            self.events.append(f"{what.type} {what.reason}: {what.message}")

    def operator_pass(self, crash_after: int | None = None) -> bool:
        """One pass, cut off after so many writes; says whether anything was written."""
        if self.deleted:
            return False
        todo = self.writes_of(self.look())
        for kind, what in todo[:crash_after]:
            self.write(kind, what)
        return bool(todo)

    def settle(self, limit: int = 20) -> None:
        """Passes until nothing changes."""
        for _ in range(limit):
            if not self.operator_pass():
                return
        raise AssertionError(f"still writing after {limit} passes: {self.writes[-5:]}")

    def _apply(self, manifest: Json) -> None:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        self.writes.append(f"apply {kind} {name}")
        if (kind, name) in self.objects:
            return
        if kind == "Job":
            manifest = manifest | {
                "metadata": manifest["metadata"] | {"uid": f"uid-{name}"},
                "status": {"startTime": builders.NOW},
            }
            count = manifest["spec"].get("completions", 1)
            self.pods += [builders.pod(name, index, "Pending") for index in range(count)]
        self.objects[(kind, name)] = manifest

    def run(self, job: str) -> None:
        """All pods of a Job run."""
        self._replace(job, "Running", [None] * 99)

    def finish(self, job: str, outcome: Any) -> None:
        """All pods of a Job succeed; the first leaves its outcome."""
        self._replace(job, "Succeeded", [outcome] + [None] * 99)
        done = builders.k8s_job(job, "prepare", state="Complete")["status"]
        self.objects[("Job", job)]["status"] = done

    def stopped(self, job: str) -> None:
        """The pods of a Job that was suspended have saved and ended."""
        stopped = builders.failure("Stopped", "the checkpoint of step 7 is saved", 99.0)
        mine = [p for p in self.pods if p["metadata"]["ownerReferences"][0]["name"] == job]
        self.pods = [p for p in self.pods if p not in mine] + [
            builders.pod(job, index, "Failed", stopped, 143) for index in range(len(mine))
        ]

    def suspend(self, value: bool) -> None:
        """A person changes `spec.suspend`."""
        self.body["spec"] = self.body["spec"] | {"suspend": value}

    def edit(self, **spec: Any) -> None:
        """A person changes fields of the spec."""
        self.body["spec"] = self.body["spec"] | spec

    def fail(self, job: str, outcomes: dict[int, Any], **more: Any) -> None:
        """The Job of a gang fails: these pods ended by themselves, the others were stopped."""
        mine = [p for p in self.pods if p["metadata"]["ownerReferences"][0]["name"] == job]
        stopped = builders.failure("Stopped", "asked to stop (SIGTERM)", 99.0)
        self.pods = [p for p in self.pods if p not in mine] + [
            builders.pod(
                job,
                index,
                "Failed",
                outcomes.get(index, stopped),
                143,
                **more if index in outcomes else {},
            )
            for index in range(len(mine))
        ]
        failed = builders.k8s_job(job, "train", state="Failed")["status"]
        self.objects[("Job", job)]["status"] = failed

    def _replace(self, job: str, phase: str, messages: list[Any]) -> None:
        mine = [p for p in self.pods if p["metadata"]["ownerReferences"][0]["name"] == job]
        self.pods = [p for p in self.pods if p not in mine] + [
            builders.pod(job, index, phase, messages[index]) for index in range(len(mine))
        ]

    @property
    def status(self) -> FineTuneJobStatus:
        return FineTuneJobStatus.parse(self.body.get("status") or {})

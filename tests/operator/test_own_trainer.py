"""The life of a job that brings its own trainer."""

from __future__ import annotations

from typing import Any

import builders
from builders import k8s_job, pod

from finetune_api.outcome import ExportFacts, FetchFacts, Outcome
from finetune_api.snapshot import Snapshot, make_snapshot
from finetune_api.status import FineTuneJobStatus
from finetune_operator import objects
from finetune_operator.observe import observe
from finetune_operator.plan import make_plan
from finetune_operator.reconcile import Step, parse_job, step

Json = dict[str, Any]
SPEC = {
    "trainer": {"command": ["torchrun", "train.py"]},
    "workers": {"numNodes": 3, "numProcPerNode": 1},  # 32 sequences are nobody's business
}
ALLOWED = {"default": True, "limits": {"ownTrainer": True}}
FETCHED = FetchFacts(
    parameters=134_515_008,
    architecture="LlamaForCausalLM",
    model_revision="abc123",
    files=1,
    bytes=1000,
)
EXPORTED = ExportFacts(digest="sha256:" + "0" * 64, bytes=1_000_000, files=8, tensors=420)
PROGRESS = {
    "attempt": 0,
    "step": 40,
    "totalSteps": 40,
    "percent": 99,
    "etaSeconds": 3,
    "loss": 1.5,
    "lastUpdateTime": builders.NOW,
}


class Life:
    """Passes over one job, its status taken over from one to the next."""

    def __init__(self, **profile: Any) -> None:
        self.world = builders.world(standard=profile or ALLOWED)
        self.body = builders.job_body(spec=SPEC, status={})
        self.jobs: list[Json] = []
        self.pods: list[Json] = []
        self.config_map: Json | None = None

    def look(self) -> Step:
        job = parse_job(self.body)
        observed = observe(self.config_map, self.jobs, self.pods, job.uid)
        done = step(job, observed, self.world, builders.LATER)
        status = self.body["status"]
        if done.status is not None:
            kept = {"progress": status["progress"]} if "progress" in status else {}
            self.body["status"] = done.status.to_json_dict() | kept
        if done.progress is not None:
            self.body["status"]["progress"] = done.progress.to_json_dict()
        for manifest in done.apply:
            if manifest["kind"] == "ConfigMap":
                self.config_map = manifest
        return done

    @property
    def status(self) -> FineTuneJobStatus:
        return FineTuneJobStatus.parse(self.body["status"])

    def condition(self, type_: str) -> tuple[str, str]:
        return next((c.status, c.reason) for c in self.status.conditions if c.type == type_)

    def prepared(self) -> None:
        self.look()
        self.look()
        self.jobs = [k8s_job("docs-prepare", "prepare", state="Complete")]
        self.pods = [pod("docs-prepare", phase="Succeeded", message=Outcome(fetch=FETCHED))]
        self.look()

    def trains(self, *codes: int | None) -> None:
        """Workers that run (None), or have ended with a code and without a word of ours."""
        state = "Complete" if not any(codes) and None not in codes else "Active"
        if any(codes):
            state = "Failed"
        self.jobs = [self.jobs[0], k8s_job("docs-train-0", "train", state=state)]
        self.jobs[1]["spec"] = {"completions": len(codes)}
        workers = [
            pod("docs-train-0", index)
            if code is None
            else pod("docs-train-0", index, "Failed" if code else "Succeeded", "bye", code)
            for index, code in enumerate(codes)
        ]
        self.pods = [self.pods[0], *workers]


def test_it_goes_from_fetched_files_to_an_artefact_by_exit_codes_alone() -> None:
    life = Life()
    life.prepared()
    assert (life.status.phase, life.condition("Prepared")) == ("Starting", ("True", "Prepared"))
    assert life.status.dataset is None
    assert life.status.resolved is not None
    assert life.status.resolved.to_json_dict() == {
        "profile": "standard",
        "image": "example/finetune-trainer:1",
        "numNodes": 3,
        "numProcPerNode": 1,
        "gracePeriodSeconds": 600,
        "modelRevision": "abc123",
        "outputUri": "pvc://docs-work/output",
        "parameters": 134_515_008,
    }
    life.trains(None, None, None)
    life.look()
    assert life.status.phase == "Running"
    life.body["status"]["progress"] = PROGRESS
    life.trains(0, 0, 0)
    done = life.look()
    assert [m["metadata"]["name"] for m in done.apply] == ["docs-export"]
    assert (life.status.phase, life.condition("Trained")) == ("Exporting", ("True", "Trained"))
    progress = life.status.progress
    assert progress is not None
    assert (progress.percent, progress.activity, progress.eta_seconds, progress.loss) == (
        *(100, "Done", 0),
        1.5,
    )
    life.jobs.append(k8s_job("docs-export", "export", state="Complete"))
    life.pods.append(pod("docs-export", phase="Succeeded", message=Outcome(export=EXPORTED)))
    life.look()
    assert (life.status.phase, life.condition("Complete")) == ("Succeeded", ("True", "Succeeded"))


def test_one_rank_that_is_not_done_yet_is_waited_for() -> None:
    life = Life()
    life.prepared()
    life.trains(0, 0, None)
    life.look()
    assert (life.status.phase, life.status.message) == ("Running", "2 of 3 pods are done")


def test_its_own_failure_ends_the_job_with_the_end_of_its_log() -> None:
    life = Life()
    life.prepared()
    life.trains(None, 1, None)
    life.look()
    failure = life.status.last_failure
    assert failure is not None
    assert (life.status.phase, failure.exit_code, failure.rank, failure.log_tail) == (
        *("Failed", 1, 1),
        "bye",
    )


def test_a_killed_pod_costs_an_attempt_though_its_peers_end_in_error() -> None:
    life = Life()
    life.prepared()
    life.trains(1, 137, 1)
    life.look()
    restarts = life.status.restarts
    assert restarts is not None
    assert (life.status.phase, restarts.counted, restarts.history[0].failure_class) == (
        *("Restarting", 1),
        "Killed",
    )


def test_a_profile_that_does_not_allow_it_fails_the_job_at_once_and_makes_nothing() -> None:
    life = Life(default=True)
    done = life.look()
    said = (
        "spec.trainer: profile 'standard' lets no job bring its own trainer "
        "(spec.limits.ownTrainer is false); remove it, or use a profile that allows it"
    )
    assert (done.apply, life.status.phase, life.status.message) == ((), "Failed", said)
    assert {type_: life.condition(type_) for type_ in ("Validated", "Failed", "Complete")} == {
        "Validated": ("False", "OwnTrainerForbidden"),
        "Failed": ("True", "Configuration"),
        "Complete": ("False", "HasFailed"),
    }


def test_what_the_operator_sets_comes_last_and_cannot_be_overwritten() -> None:
    """Admission refuses such names; an older CRD in the cluster does not."""
    spec = SPEC | {"trainer": {"env": [{"name": "PET_NNODES", "value": "99"}]}}
    job = parse_job(builders.job_body(spec=spec))
    assert not isinstance(job.spec, tuple)
    snapshot = make_snapshot(job.spec, dict(builders.world(standard=ALLOWED).profiles), "image")  # type: ignore[arg-type]
    assert isinstance(snapshot, Snapshot)
    plan = make_plan("team-a", "docs", builders.UID, snapshot)
    made = objects.stage_job(plan, "train", 0, builders.SETTINGS)
    env = made["spec"]["template"]["spec"]["containers"][0]["env"]
    assert [e["value"] for e in env if e["name"] == "PET_NNODES"] == ["3"]

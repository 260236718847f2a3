"""What a job held and what became of it, second by second."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import builders
import pytest

from finetune_api.price import Price
from finetune_api.profile import FineTuneProfileSpec
from finetune_api.progress import TrainerStatus
from finetune_api.status import FineTuneJobStatus, Progress
from finetune_api.usage import Badput, Usage
from finetune_operator.holding import holding
from finetune_operator.observe import observe, pod_facts
from finetune_operator.progress import Rejected, merge
from finetune_operator.reconcile import World, parse_job, step
from finetune_operator.usage import advance, report_part, reported

Json = dict[str, Any]
PROFILE = builders.PROFILE | {"price": {"perGpuHour": "3.60", "currency": "EUR"}}
"""A GPU costs a thousandth of a euro a second."""
CPU = {"default": True, "node": {"accelerator": "CPU", "gpusPerNode": 0}}
BEGIN = datetime(2026, 11, 22, 6, tzinfo=UTC)


def at(second: int) -> str:
    """A moment of the test, in seconds from its beginning."""
    return (BEGIN + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%SZ")


def worker(index: int = 0, bound: int = 100, ended: int | None = None, **more: Any) -> Json:
    """A worker of attempt 0 (or `attempt`) that got its node, and perhaps ended."""
    phase = "Running" if ended is None else "Failed" if more.get("exit_code") else "Succeeded"
    attempt = more.pop("attempt", 0)
    found = builders.pod(f"docs-train-{attempt}", index, more.pop("phase", phase), **more)
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": at(bound)}
    found["status"]["conditions"] = [scheduled, *more.get("conditions", [])]
    if ended is not None:
        state = found["status"]["containerStatuses"][0]["state"]
        state["terminated"]["finishedAt"] = at(ended)
    return found


def training(state: str = "Active", attempt: int = 0, started: int = 90) -> Json:
    job = builders.k8s_job(f"docs-train-{attempt}", "train", attempt, state)
    job["status"]["startTime"] = at(started)
    job["spec"] = {"completions": 2}
    return job


class Life:
    """One job, and an operator that knows nothing but what is in the resource."""

    def __init__(self, profile: Json = PROFILE, **spec: Any) -> None:
        profiles = {"standard": FineTuneProfileSpec.parse(profile)}
        self.world = World(settings=builders.SETTINGS, profiles=profiles, ca_cert="CA")
        self.body = builders.job_body(spec=spec)
        self.config: Json | None = None
        self.jobs: list[Json] = []
        self.pods: list[Json] = []
        self.writes = 0
        self._until_trained()

    def _until_trained(self) -> None:
        self.look(0)
        self.look(0)
        self.jobs.append(builders.k8s_job("docs-prepare", "prepare", state="Complete"))
        self.pods.append(builders.pod("docs-prepare", 0, "Succeeded", builders.OUTCOMES["prepare"]))
        self.look(90)

    def look(self, second: int) -> Usage:
        """Passes of an operator at a moment, until nothing changes."""
        for _ in range(5):
            job = parse_job(self.body)
            done = step(
                job, observe(self.config, self.jobs, self.pods, job.uid), self.world, at(second)
            )
            found = [m for m in done.apply if m["kind"] == "ConfigMap"]
            self.config = found[0] if found else self.config
            if done.status is None:
                break
            self.writes += 1
            progress = self.body.get("status", {}).get("progress")
            if done.progress is not None:
                progress = done.progress.to_json_dict()
            more = {"progress": progress} if progress else {}
            self.body["status"] = done.status.to_json_dict() | more
            if any(m["kind"] == "Job" for m in done.apply):
                break  # the test makes it
        return self.usage

    def report(self, second: int, attempt: int = 0, **said: Any) -> Usage:
        """What rank 0 says, as the endpoint takes it."""
        eta = said.pop("eta", None)
        metrics = [{"name": name, "value": str(value)} for name, value in said.items()]
        told = TrainerStatus.parse({"estimatedRemainingSeconds": eta, "metrics": metrics})
        new = merge(self.status.progress, told, attempt, at(second))
        assert new is not None
        assert not isinstance(new, Rejected), new
        self.body["status"] |= report_part(reported(self.status, new))
        return self.usage

    def run(self, attempt: int = 0, started: int = 90, bound: int = 100, runs: int = 110) -> None:
        """Two workers of eight GPUs."""
        self.jobs = [*self.jobs, training(attempt=attempt, started=started)]
        self.pods = [worker(n, bound, attempt=attempt) for n in (0, 1)]
        self.look(runs)

    @property
    def status(self) -> FineTuneJobStatus:
        return FineTuneJobStatus.parse(self.body["status"])

    @property
    def usage(self) -> Usage:
        found = self.status.usage
        assert found is not None
        return found


def account(usage: Usage) -> Json:
    """The numbers that are not zero, by name."""
    found = {"held": usage.held_seconds, "useful": usage.useful_seconds, "pending": usage.pending}
    found |= usage.badput.model_dump()
    return {name: value for name, value in found.items() if value}


def trained(first: int = 150, **more: Any) -> Life:
    """A job whose first step began at `first`; 16 GPUs are held from second 100 on."""
    life = Life(**more)
    life.run()
    life.report(first, activity="Training", current_step=0)
    return life


def test_a_worker_holds_its_gpus_from_its_node_to_its_end_and_the_account_says_what_for() -> None:
    life = trained()
    assert account(life.usage) == {"held": 800, "start_up": 800}
    life.report(250, current_step=10, checkpoint_step=10, checkpoint_stalled_seconds=5.0, eta=100)
    assert account(life.usage) == {
        "held": 2400,
        "start_up": 800,
        "checkpoint_stall": 80,
        "useful": 1520,
    }
    assert (life.usage.gpu_hours, life.usage.cost_so_far) == (0.6667, "2.40")
    assert life.usage.estimated_cost == "4.00"
    life.jobs[-1] = training("Complete")
    life.pods = [
        worker(0, 100, 350, message=builders.OUTCOMES["train"]),
        worker(1, 100, 345),
    ]
    assert account(life.look(355)) == {
        "held": 3960,
        "start_up": 800,
        "checkpoint_stall": 80,
        "useful": 3080,
    }
    assert (life.usage.holding, life.usage.queue_seconds) == (0, 10)
    assert (life.usage.gpu_hours, life.usage.cost_so_far) == (1.1, "3.96")
    assert life.usage.estimated_cost == "3.96"


def test_steps_since_the_last_checkpoint_are_lost_with_an_attempt_and_restarting_costs_too() -> (
    None
):
    life = trained()
    life.report(250, activity="Training", current_step=10, checkpoint_step=8)
    assert account(life.usage) == {"held": 2400, "start_up": 800, "useful": 1280, "pending": 320}
    life.report(300, activity="Training", current_step=15, checkpoint_step=8)
    killed = {"exit_code": 137, "phase": "Failed"}
    life.pods = [worker(0), worker(1, 100, 310, **killed)]
    life.jobs[-1] = training("Failed")
    life.look(312)
    assert life.status.phase == "Restarting"
    assert account(life.usage) == {
        "held": 3376,
        "start_up": 800,
        "useful": 1280,
        "pending": 1280,
        "restart": 16,
    }
    life.pods = [worker(0, 100, 320, **killed), worker(1, 100, 310, **killed)]
    life.look(321)
    assert account(life.usage) == {
        "held": 3440,
        "start_up": 800,
        "useful": 1280,
        "lost_steps": 1280,
        "restart": 80,
    }
    life.look(340)
    life.run(1, 340, 350, 352)
    life.report(370, 1, activity="Training", current_step=8, checkpoint_step=8)
    assert account(life.usage) == {
        "held": 3760,
        "start_up": 800,
        "useful": 1280,
        "lost_steps": 1280,
        "restart": 400,
    }
    assert (life.usage.attempt, life.usage.counts_as) == (1, "Training")
    assert life.usage.queue_seconds == 20


def test_a_hang_is_counted_from_the_last_step_that_was_reported() -> None:
    life = trained()
    life.report(200, activity="Training", current_step=5)
    life.report(240, activity="Training", current_step=5)
    hung = builders.failure("Hang", "rank 3 hangs", (BEGIN + timedelta(seconds=300)).timestamp())
    life.pods = [worker(n, 100, 300, exit_code=204, phase="Failed", message=hung) for n in (0, 1)]
    life.jobs[-1] = training("Failed")
    assert account(life.look(300)) == {
        "held": 3200,
        "start_up": 800,
        "hang": 1600,
        "lost_steps": 800,
    }
    restarts = life.status.restarts
    assert restarts is not None
    assert (restarts.counted, restarts.hangs) == (1, 1)


def test_a_hang_that_is_only_reported_counts_while_it_lasts() -> None:
    life = trained()
    life.report(200, activity="Training", current_step=5)
    life.report(300, activity="Training", current_step=5, stalled_seconds=90)
    assert life.usage.badput.hang == 16 * 90
    life.report(340, activity="Training", current_step=5, stalled_seconds=130)
    assert life.usage.badput.hang == 16 * 130
    life.report(400, activity="Training", current_step=6)
    assert life.usage.badput.hang == 16 * 130


def test_what_workers_have_saved_before_a_suspension_stays_useful() -> None:
    life = trained()
    life.report(200, activity="Training", current_step=5)
    life.body["spec"]["suspend"] = True
    life.look(260)
    assert account(life.usage) == {"held": 2560, "start_up": 800, "pending": 1760}
    stopped = builders.failure("Stopped", "checkpoint of step 9 is saved", 0.0, step=9)
    life.jobs[-1] |= {"spec": {"completions": 2, "suspend": True}}
    life.jobs[-1]["status"]["conditions"] = [{"type": "Suspended", "status": "True"}]
    life.pods = [
        worker(n, 100, 270, exit_code=143, phase="Failed", message=stopped) for n in (0, 1)
    ]
    saved = {"held": 2720, "start_up": 800, "useful": 1760, "restart": 160}
    assert account(life.look(275)) == saved
    life.pods = []
    assert account(life.look(9000)) == saved, "nothing is held while it is suspended"


def test_a_lost_node_is_held_until_its_pod_is_given_up() -> None:
    life = trained()
    life.report(200, activity="Training", current_step=5)
    gone = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
    life.pods = [worker(0, 100, 300, exit_code=205, phase="Failed"), worker(1, conditions=[gone])]
    life.pods[1]["metadata"] |= {
        "deletionTimestamp": at(400),
        "deletionGracePeriodSeconds": 60,
    }
    life.jobs[-1] = training("Failed")
    life.look(310)
    assert (life.usage.holding, life.usage.badput.restart) == (8, 80)
    lost = life.pods[1]["status"]
    lost |= {"phase": "Failed", "reason": "NodeLost", "containerStatuses": []}
    life.look(600)
    assert (life.usage.holding, life.usage.badput.restart) == (0, 80 + 8 * 290)


def test_a_job_without_gpus_costs_no_gpu_hours_and_has_its_workers_accounted() -> None:
    life = trained(profile=CPU, workers={"numNodes": 2, "numProcPerNode": 1})
    life.report(250, activity="Training", current_step=10, checkpoint_step=10)
    assert account(life.usage) == {"held": 300, "start_up": 100, "useful": 200}
    usage = life.usage
    assert (usage.unit, usage.gpu_hours, usage.holding) == ("Worker", 0.0, 2)
    assert (usage.price, usage.cost_so_far, usage.estimated_cost) == (None, None, None)


def test_time_that_passes_is_no_reason_to_write() -> None:
    life = trained()
    life.report(200, activity="Training", current_step=5)
    life.look(200)
    before, writes = life.usage, life.writes
    for second in (230, 260, 290):
        assert life.look(second) == before
    assert life.writes == writes
    live = advance(before, life.status.progress, life.status.progress, at(290))
    assert (live.held_seconds, live.pending) == (16 * 190, 16 * 140)


@pytest.mark.parametrize("extra", [(), (130, 170, 230, 270, 315, 335, 345, 360)])
def test_another_operator_counts_the_same_however_often_it_looks(extra: tuple[int, ...]) -> None:
    """Every look is that of an operator that has just started."""
    life = Life()
    events: list[tuple[int, Any]] = [(n, None) for n in extra]
    events += [
        (110, lambda: life.run()),
        (150, lambda: life.report(150, activity="Training", current_step=0)),
        (250, lambda: life.report(250, activity="Training", current_step=10, checkpoint_step=8)),
        (312, lambda: _fails(life)),
        (352, lambda: life.run(1, 340, 350, 352)),
        (370, lambda: life.report(370, 1, activity="Training", current_step=8)),
    ]
    for second, event in sorted(events, key=lambda found: found[0]):
        if event is not None:
            event()
        life.look(second)
    assert account(life.usage) == {
        "held": 16 * 210 + 16 * 20,
        "start_up": 800,
        "useful": 1280,
        "lost_steps": 1280,
        "restart": 320,
    }


def _fails(life: Life) -> None:
    life.pods = [worker(n, 100, 310, exit_code=137, phase="Failed") for n in (0, 1)]
    life.jobs[-1] = training("Failed")


def test_seconds_in_each_phase_add_up_to_the_age_of_the_job() -> None:
    life = trained()
    assert life.status.phase_seconds == {"Preparing": 90, "Starting": 20}
    assert (life.status.phase, life.status.phase_time) == ("Running", at(110))


@pytest.mark.parametrize(
    ("why", "pods", "known", "worker_seconds", "left"),
    [
        ("workers that were known are held on", [worker(0), worker(1)], 2, 200.0, 2),
        ("one that is new is held since it has its node", [worker(0, 160)], 0, 40.0, 1),
        (
            "one beside it that ended is held to its end",
            [worker(0), worker(1, 100, 150)],
            2,
            150.0,
            1,
        ),
        ("one that came and went", [worker(0, 120, 150)], 0, 30.0, 0),
        ("one that is gone is held until that was seen", [worker(0)], 2, 200.0, 1),
        ("one of which an old list has told nothing", [worker(0, 20), worker(1, 20)], 0, 200.0, 2),
        ("one that ended before is not held again", [worker(0, 10, 90)], 0, 0.0, 0),
    ],
)
def test_workers_are_held(
    why: str, pods: list[Json], known: int, worker_seconds: float, left: int
) -> None:
    line = holding([pod_facts(pod) for pod in pods], known, at(100), at(200))
    start = line.start
    assert (line.between(start, start + 100), line.at(start + 100)) == (worker_seconds, left), why


def test_costs_are_rounded_to_cents_once() -> None:
    usage = Usage(
        unit="GPU", held_seconds=3601, price=Price(per_gpu_hour="2.50"), time=at(0), holding=0
    )
    progress = Progress(attempt=0, last_update_time=at(0))
    assert advance(usage, None, progress, at(0)) == usage.model_copy(
        update={
            "gpu_hours": 1.0003,
            "cost_so_far": "2.50",
            "estimated_cost": "2.50",
            "badput": Badput(),
        }
    )

"""`simulate(seed)`: a schedule of everything that can happen to a job over some days, played with
the real controller on a modelled cluster, with the invariants checked at every step."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import builders
import invariants
from faulty_cluster import Died, DyingCluster, StaleCluster
from model_api import ModelApi
from model_world import ModelWorld, run

from finetune_operator.cluster import ApiError
from finetune_operator.controller import Controller
from finetune_operator.metrics import Metrics
from finetune_operator.observe import seconds

KEY = ("team-a", "docs")
RESYNC_SECONDS = 300.0
LENGTH = 50
"""Actions of a schedule."""
ROUNDS = 80
"""Rounds in which a job has to come to its end once nothing bad happens any more."""

ACTIONS: dict[str, int] = {
    "flow": 24,
    "look": 16,
    "crash": 10,
    "stale": 4,
    "controllers": 10,
    "kubelets": 10,
    "time": 10,
    "work": 12,
    "finish": 2,
    "suspend": 5,
    "resume": 8,
    "deadline": 2,
    "ttl": 2,
    "edit": 3,
    "racing_edit": 2,
    "profile": 1,
    "kill": 4,
    "memory": 0,
    "user_error": 0,
    "drain": 4,
    "node_down": 2,
    "nodes_up": 4,
    "cluster_full": 2,
    "delete_pod": 2,
    "delete_job": 2,
    "delete_config": 0,
}
"""What can happen, and how often beside the others."""
RARE = ("memory", "user_error", "delete_config")
"""These end a job: in one schedule of three, once."""
HARSH = ("kill", "delete_pod", "delete_job", *RARE)
"""These spend restarts."""
PAUSES = (1, 2, 7, 30, 60, 301, 3600, 6 * 3600)
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that happens: a name of `ACTIONS`, and a number that says to what, or how."""

    name: str
    choice: int


def schedule(seed: int) -> list[Action]:
    """The same for the same seed."""
    source = random.Random(seed)
    names = source.choices(list(ACTIONS), weights=list(ACTIONS.values()), k=LENGTH)
    if seed % 4 == 0:  # nothing but the platform's own doing: must cost no restart
        names = [name for name in names if name not in HARSH]
    elif source.random() < 1 / 3:
        names[source.randrange(LENGTH)] = source.choice(RARE)
    return [Action(name, source.randrange(1000)) for name in names]


class Simulation:
    """The world, and an operator that looks at it when told to."""

    def __init__(self, seed: int) -> None:
        output = {"uri": "pvc://team-models/docs"}  # a TTL after success needs one
        body = builders.job_body(spec={"training": {"globalBatchSize": 32}, "output": output})
        self.api = ModelApi(body, {"standard": builders.PROFILE})
        self.world = ModelWorld(self.api, counts_stopped=seed % 2 == 1)
        invariants.watch(self.api)
        self.again: float | None = None
        """When the operator wants to look again."""
        self.older: list[Any] = []
        """Lists of children as they were at earlier looks."""
        self.passes = 0
        self.metrics = Metrics()
        self.rest: Any = None
        """What the world was like when a pass last had nothing to do: no event, no pass."""

    def play(self, actions: list[Action]) -> None:
        for action in actions:
            self.act(action)
            invariants.one_attempt_lives(self.api)
            invariants.names_are_used_once(self.api)

    def act(self, action: Action) -> None:
        own = getattr(self, action.name, None)
        (own or getattr(self.world, action.name))(action.choice)

    # The operator.

    def look(self, choice: int = 0) -> None:
        """Passes until nothing is left to do; the last one writes nothing."""
        due = self.again is not None and self.again <= self.api.clock
        if self._seen() == self.rest and not due:
            return
        for _ in range(6):
            before = len(self.api.writes)
            self._pass(self.api)
            if len(self.api.writes) == before:
                self.rest = self._seen()
                return
        raise AssertionError(f"does not come to rest: {self.api.writes[-8:]}")

    def crash(self, choice: int) -> None:
        """A pass that ends at its k-th write; the next operator knows nothing of it."""
        self._pass(DyingCluster(self.api, after=choice % 5, lost=choice % 2 == 0))
        self.again, self.rest = self.api.clock, None

    def stale(self, choice: int) -> None:
        """A pass that is shown the children as they were some looks ago."""
        if self.older:
            older = self.older[choice % len(self.older)]
            self._pass(StaleCluster(self.api, older), record=False)
            self.look()

    def racing_edit(self, choice: int) -> None:
        """Somebody edits the job between the reads and the writes of a pass."""
        api, edit = self.api, self.world.edit

        class Racing:
            def __getattr__(self, name: str) -> Any:
                return getattr(api, name)

            async def profiles(self) -> Any:
                edit(choice)
                return await api.profiles()

        self._pass(Racing())
        self.again, self.rest = self.api.clock, None

    def _seen(self) -> Any:
        """All that events tell of."""
        api = self.api
        return api.body, api.profile_specs, dict(api.others), dict(api.jobs), dict(api.pods)

    def _pass(self, cluster: Any, record: bool = True) -> None:
        self.passes += 1
        controller = Controller(cluster, builders.SETTINGS, "CA", self.metrics, clock=self.api.now)
        try:
            again = run(controller.reconcile(KEY))
            self.again = None if again is None else self.api.clock + again
        except Died:
            self.again = None
        except ApiError as error:
            if error.code != 409:  # the queue would try again
                raise
            self.again = self.api.clock
        if record and self.api.shown not in self.older[-1:]:
            self.older = [*self.older[-7:], self.api.shown]

    # Time, and things going their way.

    def time(self, choice: int) -> None:
        """Time passes; the operator looks when it wanted to, and at every resync."""
        until = self.api.clock + PAUSES[choice % len(PAUSES)]
        for _ in range(12):
            due = self.api.clock + RESYNC_SECONDS if self.again is None else self.again
            if due >= until:
                break
            self.api.clock = max(due, self.api.clock)
            self.look()
        self.api.clock = until

    def flow(self, choice: int = 0) -> None:
        """All do their part once, and the operator hears of it."""
        self.api.clock += 1
        self.world.controllers(choice + 1)
        self.look()
        self.world.kubelets(choice)
        self.look()

    def settle(self) -> None:
        """Nothing bad happens any more: the job has to come to its end, and all pods to theirs."""
        self.world.nodes_up()
        self.world.resume()
        self.api.edit(activeDeadlineSeconds=None, startupDeadlineSeconds=None)
        for number in range(ROUNDS):
            self.flow(number)
            invariants.one_attempt_lives(self.api)
            done = self.api.status.get("phase") in invariants.FINAL
            if done and not any(pod.alive for pod in self.api.pods.values()):
                return
            if not done:  # what is left of a job that is over has to be stopped, not to end
                self.world.work(6)
                if number % 3 == 2:
                    self.world.finish()
            self.time(5)
        alive = [pod.name for pod in self.api.pods.values() if pod.alive]
        raise AssertionError(f"no end: {self.api.status.get('phase')}, alive: {alive}")


def simulate(seed: int, actions: list[Action] | None = None) -> Simulation:
    """Play a schedule (that of the seed) to the end of the job, and judge the end."""
    found = Simulation(seed)
    found.play(schedule(seed) if actions is None else actions)
    found.settle()
    judge_end(found)
    return found


def judge_end(found: Simulation) -> None:
    """A job fails only for a reason that was given to it; time is counted right."""
    status, excuses = found.api.status, found.world.excuses
    invariants.what_runs_is_what_the_spec_says(found.api)
    invariants.names_are_used_once(found.api)
    if status["phase"] == "Failed":
        failure = status["lastFailure"]
        needed = {
            "DeadlineExceeded": {"deadline"},
            "Data": {"user"},
            "OutOfMemory": {"user"},
        }.get(failure["class"], {"kill", "config"})
        assert needed & excuses, f"failed without a reason: {failure}; happened: {excuses}"
        if excuses <= {"drain"}:
            raise AssertionError(f"a disruption ended the job: {failure}")
        if "startupDeadlineSeconds" in failure["message"]:
            assert status["attempt"] not in found.world.ran, f"it had started: {failure}"
        if "not started again" in failure["message"]:
            assert status["restarts"]["counted"] > 3, status["restarts"]
    else:
        assert "completionTime" in status
    if excuses <= {"drain", "deadline"}:
        assert status.get("restarts", {}).get("counted", 0) == 0, status["restarts"]
    judge_ttl(found)
    begun, ended = (seconds(status[n]) for n in ("startTime", "completionTime"))
    active = ended - begun - status.get("suspendedSeconds", 0)
    limit = re.search(r"was active for (\d+) s", status["message"])
    assert active >= (int(limit[1]) if limit else 0), f"active for {active} s: {status['message']}"


def judge_ttl(found: Simulation) -> None:
    """A finished job goes when its time is over, not before; one without a TTL stays."""
    api, spec = found.api, found.api.body["spec"]
    limit = spec.get("ttlSecondsAfterFinished", {}).get(api.status["phase"].lower())
    due = seconds(api.status["completionTime"]) + (limit or 0)
    if limit is not None and api.deleted_at is None:
        found.time(PAUSES.index(6 * 3600))
        assert api.deleted_at is not None, f"still there {api.clock - due} s after its time"
    if limit is not None and api.deleted_at is not None:
        assert api.deleted_at >= due, f"gone {due - api.deleted_at} s before its time"


def shrink(actions: list[Action], fails: Callable[[list[Action]], bool]) -> list[Action]:
    """The fewest actions that still fail: leaves out halves, then quarters, then one by one."""
    size = max(1, len(actions) // 2)
    while size:
        start = 0
        while start < len(actions):
            fewer = actions[:start] + actions[start + size :]
            if fails(fewer):
                actions = fewer
            else:
                start += size
        size //= 2
    return actions


def show(actions: list[Action]) -> str:
    """A schedule to be read, and to be played again."""
    return ", ".join(f"{action.name} {action.choice}" for action in actions)


def parse(text: str) -> list[Action]:
    """What `show` has written."""
    pairs = [part.split() for part in text.split(",")]
    return [Action(name, int(choice)) for name, choice in pairs]


def goes_wrong(seed: int, actions: list[Action]) -> str | None:
    """What goes wrong with a schedule, in words; None: nothing."""
    try:
        simulate(seed, actions)
    except Exception as error:  # an invariant, or the operator itself
        return f"{type(error).__name__}: {error}"
    return None

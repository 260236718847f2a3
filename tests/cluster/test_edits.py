"""Every field of the spec changed, alone, on a live job: refused by the API server, or the job gets
to where a fresh one with that spec gets. A change that was wrong can be taken back.

The API server is real; the job is then played on the modelled cluster, once as the one that was
changed and once as a fresh one.
"""

from __future__ import annotations

from typing import Any

import builders
import pytest
from kube import GROUP, Kube
from simulated_days import Simulation
from transitions import SEED, Json, Transition, base, fields, transitions

from finetune_api.v1alpha1 import CHANGEABLE, FineTuneJobSpec

FIELDS = fields()
PROFILE = builders.PROFILE | {"limits": {"maxNodes": 16}}
BEHIND = "startupDeadlineSeconds"
"""A deadline that a job which runs has behind it."""


@pytest.fixture(scope="module")
def namespace(kube: Kube) -> str:
    return kube.namespace("edits")


class Live:
    """A job in the API server; no operator looks at it."""

    def __init__(self, kube: Kube, namespace: str, name: str, spec: Json) -> None:
        self._kube, self._all = kube, f"{GROUP}/namespaces/{namespace}/finetunejobs"
        self.body = kube.create(self._all, self.manifest(name, spec))
        self._path = f"{self._all}/{name}"

    @staticmethod
    def manifest(name: str, spec: Json) -> Json:
        metadata = {"name": name}
        kind = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": "FineTuneJob"}
        return kind | {"metadata": metadata, "spec": spec}

    def start(self) -> None:
        """Its status says that it runs."""
        status = {"phase": "Running", "startTime": builders.NOW, "conditions": []}
        self.body = self._kube.patch(f"{self._path}/status", {"status": status})

    def edit(self, spec: Json) -> Json | str:
        """The body after the change; a sentence: refused."""
        code, answer = self._kube.call("PUT", self._path, {**self.body, "spec": spec})
        if code >= 300:
            assert code == 422 or code == 400, answer
            return str(answer["message"])
        self.body = answer
        return answer

    def fresh(self, spec: Json) -> Json:
        """The spec of a new job, as it would be stored."""
        path = f"{self._all}?dryRun=All"
        code, answer = self._kube.call("POST", path, self.manifest("fresh", spec))
        assert code == 201, answer
        found: Json = answer["spec"]
        return found

    def stored(self) -> Json:
        found = self._kube.get(self._path)
        assert found is not None
        spec: Json = found["spec"]
        return spec


def play(*specs: Json, running: bool = False) -> Simulation:
    """A job with these specs, one after the other; before the last, it waits for its profile, or
    runs."""
    found = Simulation(0)
    found.api.profile_specs = {"standard": PROFILE} if running else {}
    found.api.body = builders.job_body(spec={"zero": None}) | {"spec": specs[0]}
    for spec in specs[1:]:
        if running:
            go_on(found)
        found.look()
        gone = {name: None for name in found.api.body["spec"] if name not in spec}
        assert found.api.edit(**gone, **spec), "the modelled API server refuses the change"
    found.look()
    found.api.profile_specs = {"standard": PROFILE}
    go_on(found)
    return found


def go_on(found: Simulation) -> None:
    """Through prepare to running workers, if nothing keeps it."""
    for _ in range(4):
        found.flow()
        found.flow()
        found.world.work(0)


def reached(found: Simulation) -> Json:
    """What was made, and what is said of it."""
    status = found.api.status
    conditions = {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}
    return {
        "phase": status["phase"],
        "message": status["message"],
        "conditions": conditions,
        "resolved": status.get("resolved"),
        "others": found.api.others,
        "jobs": {name: job.manifest for name, job in found.api.jobs.items()},
    }


def test_there_are_enough_transitions() -> None:
    assert {path[0] for path in FIELDS} == {
        FineTuneJobSpec.model_fields[name].alias for name in FineTuneJobSpec.model_fields
    }
    assert sum(len(transitions(path, schema)) for path, schema in FIELDS.items()) > 300


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_a_field_changed_before_the_start_is_refused_or_is_as_if_written_so_at_once(
    kube: Kube, namespace: str, path: tuple[str, ...]
) -> None:
    name = "-".join(("waiting", *path)).lower()
    live = Live(kube, namespace, name, base(path))
    before = live.body["spec"]
    for change in transitions(path, FIELDS[path]):
        said = f"SEED={SEED}: {change}"
        after = live.edit(change.of(before))
        if isinstance(after, str):
            assert live.stored() == before, said
            continue
        assert after["spec"] == live.fresh(change.of(before)), said
        assert reached(play(before, after["spec"])) == reached(play(after["spec"])), said
        back = live.edit(before)
        assert not isinstance(back, str), f"{said}: cannot be taken back: {back}"
        assert back["spec"] == before, said
    assert reached(play(before, before)) == reached(play(before))


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_a_field_changed_after_the_start_is_refused_or_takes_effect(
    kube: Kube, namespace: str, path: tuple[str, ...]
) -> None:
    name = "-".join(("running", *path)).lower()
    live = Live(kube, namespace, name, base(path))
    live.start()
    before = live.body["spec"]
    for change in transitions(path, FIELDS[path]):
        said = f"SEED={SEED}: {change}"
        after = live.edit(change.of(before))
        if isinstance(after, str):
            assert live.stored() == before, said
            continue
        if after["spec"] != before:
            assert path[0] in changeable(), f"{said}: let in although the job runs"
            effect(before, after["spec"], change, said)
        back = live.edit(before)
        assert not isinstance(back, str), f"{said}: cannot be taken back: {back}"


def changeable() -> set[Any]:
    return {FineTuneJobSpec.model_fields[name].alias for name in CHANGEABLE}


def effect(before: Json, after: Json, change: Transition, said: str) -> None:
    """A running job gets to the phase of a fresh one; taken back, it gets to its end."""
    changed, fresh = play(before, after, running=True), play(after)
    expected = "Running" if change.path[0] == BEHIND else fresh.api.status["phase"]
    assert changed.api.status["phase"] == expected, said
    if expected != "Failed":
        changed.api.edit(**{change.path[0]: before.get(change.path[0])})
        changed.settle()
        assert changed.api.status["phase"] == "Succeeded", said

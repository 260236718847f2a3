"""The operator dies before every single write of a job's life (which is the same as: after the one
before, with the answer lost); another one takes over. The end is that of a life without a death."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import builders
import pytest
from kube import Kube, eventually
from life import KINDS, Life

LIVES_AT_ONCE = 4
LOST = builders.failure("PeerLost", "a peer is gone", 9e9, rank=0)


def create(life: Life) -> None:
    spec = builders.SPEC | {"workers": {"numNodes": 2}}
    metadata = {"name": life.name, "namespace": life.namespace}
    kind = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": "FineTuneJob"}
    life.kube.create(life.path.rpartition("/")[0], kind | {"metadata": metadata, "spec": spec})
    life.look()


def prepare(life: Life) -> None:
    life.end("prepare", life.run("prepare"), (0, builders.OUTCOMES["prepare"]))
    life.look()


def fail_and_restart(life: Life) -> None:
    life.end("train-0", life.run("train-0"), (205, LOST), (137, None))
    life.look()
    life.ahead += timedelta(seconds=11)
    life.look()


def suspend_and_resume(life: Life) -> None:
    workers = life.run("train-1")
    life.edit(suspend=True)
    life.look()
    life.stop("train-1", workers)
    life.look()
    life.edit(suspend=False)
    life.look()


def finish(life: Life) -> None:
    life.end("train-2", life.run("train-2"), (0, builders.OUTCOMES["train"]), (0, None))
    life.look()
    life.end("export", life.run("export"), (0, builders.OUTCOMES["export"]))
    life.look()


FLOWS: tuple[Callable[[Life], None], ...] = (
    create,
    prepare,
    fail_and_restart,
    suspend_and_resume,
    finish,
)


@pytest.fixture(scope="module")
def make(kube: Kube, kubeconfig: Path) -> Iterator[Callable[[str, int | None], Life]]:
    """Lives that share a namespace."""
    namespace = kube.namespace("crashes")
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
    eventually("the account that pods run as", lambda: kube.get(account))
    made: list[Life] = []

    def life(name: str, dies_at: int | None = None) -> Life:
        made.append(Life(kube, kubeconfig, namespace, name, dies_at))
        return made[-1]

    yield life
    for found in made:
        found.close()


@pytest.fixture(scope="module")
def undisturbed(make: Callable[[str, int | None], Life]) -> Life:
    """A life without a fault."""
    found = make("undisturbed", None)
    for flow in FLOWS:
        flow(found)
    return found


def test_an_operator_that_dies_before_any_write_of_a_life_leaves_no_trace(
    make: Callable[[str, int | None], Life], undisturbed: Life
) -> None:
    wanted, events = undisturbed.end_state(), undisturbed.events()
    count = len(undisturbed.writes)
    assert wanted["status"]["phase"] == "Succeeded"
    assert count > 30

    def live(k: int) -> str | None:
        life = make(f"dies-at-{k}", k)
        try:
            for flow in FLOWS:
                flow(life)
            return problem(life)
        except AssertionError as error:
            return f"{error}; written: {life.writes[max(0, k - 2) : k + 4]}"

    def problem(life: Life) -> str | None:
        assert life.died
        assert life.end_state() == wanted
        more = Counter(of(life)) - Counter(of(undisturbed))
        assert all(extra == 1 for extra in more.values()), f"written more than once again: {more}"
        assert life.orphans() == []
        told, rest = life.events(), iter(events)
        lost = Counter(events) - Counter(told)
        assert lost.total() <= 1, f"Events lost: {lost}"
        assert all(event in rest for event in told), f"Events in another order: {told}"
        return None

    with ThreadPoolExecutor(LIVES_AT_ONCE) as pool:
        found = dict(zip(range(count), pool.map(live, range(count)), strict=True))
    assert {k: why for k, why in found.items() if why} == {}


def test_all_that_was_made_goes_with_the_job_and_an_operator_that_looks_makes_nothing(
    make: Callable[[str, int | None], Life],
) -> None:
    life = make("deleted", None)
    for flow in FLOWS:
        flow(life)
    before = len(life.writes)
    life.kube.delete(life.path)
    life.look()
    kinds = [kind for kind in KINDS if kind != "PersistentVolumeClaim"]  # kept for pods that ran
    for kind in kinds:
        eventually(f"no {kind} of it", lambda k=kind: not life.children(k), 60)
        life.look()
    assert life.writes[before:] == []


@pytest.mark.parametrize("lag", range(4))
def test_lists_from_the_past_change_no_end(
    make: Callable[[str, int | None], Life], undisturbed: Life, lag: int
) -> None:
    life = make(f"lags-{lag}", None)
    life.lag = lag
    for flow in FLOWS:
        flow(life)
    assert life.end_state() == undisturbed.end_state()
    # What is applied again is there already; nothing else is applied, above all no other attempt.
    made = [{w for w in of(found) if w.startswith("apply ")} for found in (life, undisturbed)]
    assert made[0] == made[1]


def of(life: Life) -> list[str]:
    """Its writes, by object."""
    return [write.replace(life.name, "NAME").partition(".")[0] for write in life.writes]

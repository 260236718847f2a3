"""Who leads and for how long it may write, over all that clocks and others can do."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator import lease
from finetune_operator.lease import Fence, LeaseLostError, Moment, Seen

TIME = 1_800_000_000.0


class Clocks:
    """Two clocks to be moved."""

    def __init__(self) -> None:
        self.moment = Moment(100.0, TIME)

    def __call__(self) -> Moment:
        return self.moment

    def pass_(self, monotonic: float, wall: float | None = None) -> None:
        wall = monotonic if wall is None else wall
        self.moment = Moment(self.moment.monotonic + monotonic, self.moment.wall + wall)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def fence(clocks: Clocks) -> Fence:
    """Of a leader that has just renewed a lease of ten seconds."""
    found = Fence(10, clocks)
    found.renewed(clocks())
    return found


def test_a_write_may_take_what_is_left_of_the_lease_without_its_margin(
    fence: Fence, clocks: Clocks
) -> None:
    assert fence.for_the_leader() == 8
    clocks.pass_(3)
    assert fence.for_the_leader() == 5


def test_a_lease_counts_from_when_its_renewal_was_sent(fence: Fence, clocks: Clocks) -> None:
    clocks.pass_(5)
    sent = clocks()
    clocks.pass_(2)
    fence.renewed(sent)
    assert fence.for_the_leader() == 6


@pytest.mark.parametrize(
    ("monotonic", "wall"),
    [
        pytest.param(8, 8, id="stopped"),
        pytest.param(0, 8, id="the machine slept"),
        pytest.param(8, 0, id="the wall clock was set back"),
        pytest.param(0, 3600, id="the wall clock was set forward"),
    ],
)
def test_who_was_away_for_longer_than_the_lease_never_writes_again(
    fence: Fence, clocks: Clocks, monotonic: float, wall: float
) -> None:
    clocks.pass_(monotonic, wall)
    for permit in (fence.for_the_leader, fence.for_anybody):
        with pytest.raises(LeaseLostError):
            permit()
    fence.renewed(clocks())
    assert (fence.lost, fence.leading, fence.remaining()) == (True, False, 0)


def test_a_standby_writes_nothing_but_progress(clocks: Clocks) -> None:
    standby = Fence(10, clocks)
    assert standby.for_anybody() == lease.LONGEST_WRITE
    with pytest.raises(LeaseLostError):
        standby.for_the_leader()


def test_who_gives_up_writes_nothing_whatever_is_left(fence: Fence) -> None:
    fence.give_up()
    for permit in (fence.for_the_leader, fence.for_anybody):
        with pytest.raises(LeaseLostError):
            permit()


def body(version: str, holder: str) -> dict[str, Any]:
    spec = {
        "holderIdentity": holder,
        "leaseDurationSeconds": 10,
        "acquireTime": "2020-01-01T00:00:00.000000Z",
        "renewTime": "2020-01-01T00:00:00.000000Z",
        "leaseTransitions": 3,
    }
    return {"metadata": {"name": "ft", "resourceVersion": version}, "spec": spec}


def test_a_lease_is_free_when_it_was_not_renewed_for_its_duration_by_our_own_clock(
    clocks: Clocks,
) -> None:
    seen = lease.see(body("7", "other"), None, clocks())
    assert lease.seconds_until_free(seen, "me", clocks()) == 10, "its times are somebody else's"
    clocks.pass_(4)
    seen = lease.see(body("7", "other"), seen, clocks())
    assert lease.seconds_until_free(seen, "me", clocks()) == 6
    seen = lease.see(body("8", "other"), seen, clocks())
    assert lease.seconds_until_free(seen, "me", clocks()) == 10, "it was renewed"
    clocks.pass_(10)
    assert lease.seconds_until_free(seen, "me", clocks()) == 0


def test_a_clock_that_is_set_forward_frees_no_lease(clocks: Clocks) -> None:
    seen = lease.see(body("7", "other"), None, clocks())
    clocks.pass_(1, 3600)
    assert lease.seconds_until_free(seen, "me", clocks()) == 9


@pytest.mark.parametrize("holder", ["", "me"])
def test_a_lease_that_is_released_or_ours_is_free_at_once(clocks: Clocks, holder: str) -> None:
    seen = lease.see(body("7", holder), None, clocks())
    assert lease.seconds_until_free(seen, "me", clocks()) == 0
    assert lease.seconds_until_free(None, "me", clocks()) == 0


def test_a_new_leader_is_written_down_and_a_renewal_changes_only_its_time(clocks: Clocks) -> None:
    def written(seen: Seen | None) -> dict[str, Any]:
        return lease.lease("ft", "system", "me", 10, seen, TIME)

    now = "2027-01-15T08:00:00.000000Z"
    spec = {
        "holderIdentity": "me",
        "leaseDurationSeconds": 10,
        "acquireTime": now,
        "renewTime": now,
        "leaseTransitions": 0,
    }
    assert written(None) == {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "ft", "namespace": "system"},
        "spec": spec,
    }
    taken = written(lease.see(body("7", "other"), None, clocks()))
    assert taken["metadata"]["resourceVersion"] == "7"
    assert taken["spec"] == spec | {"leaseTransitions": 4}
    renewed = written(lease.see(body("7", "me"), None, clocks()))
    assert renewed["spec"] == spec | {
        "acquireTime": "2020-01-01T00:00:00.000000Z",
        "leaseTransitions": 3,
    }

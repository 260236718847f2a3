"""How much is let through."""

from __future__ import annotations

from finetune_operator.rate import Bucket, Buckets, Rate

RATE = Rate(burst=2, per_second=0.5)


def test_a_bucket_lets_a_burst_through_and_then_says_how_long_to_wait() -> None:
    bucket = Bucket(RATE, 100)
    assert [bucket.take(now) for now in (100, 100, 100, 101, 102, 102)] == [0, 0, 2, 1, 0, 2]


def test_a_bucket_never_holds_more_than_a_burst() -> None:
    bucket = Bucket(RATE, 0)
    assert [bucket.take(1000) for _ in range(3)] == [0, 0, 2]


def test_looking_takes_nothing() -> None:
    bucket = Bucket(Rate(1, 1), 0)
    assert [bucket.wait(0), bucket.wait(0), bucket.take(0), bucket.wait(0)] == [0, 0, 0, 1]


def test_the_buckets_not_used_for_longest_are_forgotten() -> None:
    buckets = Buckets(Rate(1, 1), most=2)
    taken = [buckets.of(key, 0).take(0) for key in ("a", "b", "a", "c", "b", "c")]
    assert (taken, len(buckets)) == ([0, 0, 1, 0, 0, 1], 2)

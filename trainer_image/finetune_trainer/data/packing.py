"""Puts several examples into one row, whole ones only: best fit, the longest first."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit-decreasing bin packing.

    Each example goes into the fullest row that still has room for it. Rows are looked up by the
    room they have left, of which there are at most `capacity` kinds, so a million examples take
    seconds.

    Args:
        lengths: Tokens of each example, each from 1 to `capacity`.
        capacity: Tokens of a row.

    Returns:
        The rows, each a list of indices into `lengths`. Every index occurs exactly once.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of `by_room`, ascending

    def offer(row: int, room: int) -> None:
        if room == 0:
            return
        if room not in by_room:
            by_room[room] = []
            insort(rooms, room)
        by_room[room].append(row)

    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for index in order:
        length = lengths[index]
        if not 1 <= length <= capacity:
            raise ValueError(f"example {index} has {length} tokens, the row {capacity}")
        at = bisect_left(rooms, length)
        if at == len(rooms):
            rows.append([index])
            offer(len(rows) - 1, capacity - length)
            continue
        room = rooms[at]
        row = by_room[room].pop()
        if not by_room[room]:
            del by_room[room]
            rooms.pop(at)
        rows[row].append(index)
        offer(row, room - length)
    return rows


def one_each(lengths: Sequence[int]) -> list[list[int]]:
    """No packing: one example a row."""
    return [[index] for index in range(len(lengths))]

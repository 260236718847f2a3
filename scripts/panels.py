"""What a panel of a dashboard is: a question, with the queries that answer it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel."""

    kind: str
    """`stat`, `table` or `timeseries`."""
    title: str
    text: str
    queries: dict[str, str]
    """PromQL by legend; `{{label}}` stands for a label. Of a table: by the name of the column."""
    unit: str = "short"
    width: int = 8
    height: int = 8
    may_be_empty: bool = False
    """Where nothing is wrong there is nothing to show."""
    units: dict[str, str] = field(default_factory=dict)
    """Of columns that have another one."""

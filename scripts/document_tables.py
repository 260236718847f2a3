"""Generated tables inside a document that people write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

Tables = Mapping[str, Callable[[], list[str]]]
"""Names of tables, and what makes their lines."""


def filled(document: Path, text: str, tables: Tables) -> str:
    """The text of a document with its tables made anew, each between two comments.

    Raises:
        SystemExit: it has no place for one of them.
    """
    for name, table in tables.items():
        begin, end = f"<!-- table {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise SystemExit(f"{document} has no place for the table {name!r}")
        text = before + begin + "\n".join(table()) + "\n" + end + after
    return text

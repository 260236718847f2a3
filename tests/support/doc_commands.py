"""The commands that a page of the documentation tells people to run: those of its ```sh blocks."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_HEREDOC = re.compile(r"<<'?(\w+)'?")


def commands_of(page: str) -> list[str]:
    """Every command of a page, in order, as it stands there: with its continued lines and its
    here-document, without comments.

    Args:
        page: Its path from the top of the repository.
    """
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.M)
    return [command for block in blocks for command in split(block)]


def split(block: str) -> list[str]:
    """The commands of one block."""
    found: list[str] = []
    lines = iter(block.splitlines())
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        command = [line]
        while command[-1].endswith("\\"):
            command.append(next(lines))
        heredoc = _HEREDOC.search(line)
        while heredoc and command[-1] != heredoc[1]:
            command.append(next(lines))
        found.append("\n".join(command))
    return found


def watches(command: str) -> bool:
    """Whether it goes on until somebody stops it."""
    return command.endswith((" -w", " --watch"))

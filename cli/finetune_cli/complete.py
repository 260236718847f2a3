"""Completion: what may follow the words so far. One function for bash, zsh, fish and kubectl."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from finetune_cli.exits import CliError
from finetune_cli.parser import build

FILES = ("FILE", "DIR", "PATH", "NAME=DIR")
NO_FILES = ":4"
"""kubectl's word for: nothing else, and no names of files."""

SCRIPTS = {
    "bash": """# source <(finetune completion bash)
_finetune() {
  local IFS=$'\\n'
  local found=$(kubectl_complete-finetune "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
  COMPREPLY=($(grep -v '^:' <<<"$found"))
  [ ${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o filenames -F _finetune finetune
""",
    "zsh": """#compdef finetune
# source <(finetune completion zsh)
_finetune() {
  local -a found
  found=(${(f)"$(kubectl_complete-finetune "${words[@]:1:$((CURRENT-1))}" 2>/dev/null)"})
  found=(${found:#:*})
  if (( ${#found} )); then compadd -a found; else _files; fi
}
compdef _finetune finetune
""",
    "fish": """# finetune completion fish | source
function __finetune
  set -l words (commandline -opc) (commandline -ct)
  kubectl_complete-finetune $words[2..-1] 2>/dev/null | string match -v ':*'
end
complete -c finetune -a '(__finetune)'
""",
}


def candidates(
    parser: argparse.ArgumentParser, words: Sequence[str], jobs: Callable[[], list[str]]
) -> list[str]:
    """What the last word may become, sorted.

    Args:
        words: After the program's name; the last one is being written, and may be empty.
        jobs: Names of jobs, asked for where one may stand.
    """
    *before, current = words or [""]
    commands = _subparsers(parser)
    if not before:
        return _starting([*commands, *_flags(parser)], current)
    if before[0] not in commands:
        return []
    command = commands[before[0]]
    pending = _pending(command, before[1:])
    if pending is not None:
        return _starting([str(choice) for choice in pending.choices or []], current)
    if current.startswith("-"):
        return _starting(_flags(command), current)
    place = _positional(command, before[1:])
    if place is None:
        return []
    if place.choices:
        return _starting([str(choice) for choice in place.choices], current)
    named = str(place.metavar or "").startswith("JOB")
    return _starting([n for n in jobs() if n not in before[1:]], current) if named else []


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _starting(words: list[str], start: str) -> list[str]:
    return sorted(word for word in words if word.startswith(start))


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [max(a.option_strings, key=len) for a in parser._actions if a.option_strings]


def _pending(command: argparse.ArgumentParser, before: Sequence[str]) -> argparse.Action | None:
    """The option whose value is being written."""
    option = command._option_string_actions.get(before[-1]) if before else None
    return option if option is not None and option.nargs != 0 else None


def _positional(command: argparse.ArgumentParser, before: Sequence[str]) -> argparse.Action | None:
    """The positional argument that is being written."""
    count, takes = 0, False
    for word in before:
        if takes:
            takes = False
        elif word.startswith("-") and word != "-":
            option = command._option_string_actions.get(word)
            takes = option is not None and option.nargs != 0
        else:
            count += 1
    places = [action for action in command._actions if not action.option_strings]
    if not places:
        return None
    last = places[-1]
    return places[count] if count < len(places) else last if last.nargs in ("*", "+") else None


def main() -> int:
    """`kubectl_complete-finetune WORDS`: a candidate a line, then what kubectl wants to hear."""
    words = sys.argv[1:]
    parser = build("finetune")
    for word in candidates(parser, words, lambda: _jobs(words)):
        print(word)
    print(NO_FILES if not _wants_file(parser, words) else ":0")
    return 0


def _wants_file(parser: argparse.ArgumentParser, words: Sequence[str]) -> bool:
    command = _subparsers(parser).get(words[0]) if words else None
    if command is None or len(words) < 2:
        return False
    place = _pending(command, words[1:-1]) or _positional(command, words[1:-1])
    return place is not None and place.metavar in FILES


def _jobs(words: Sequence[str]) -> list[str]:
    """From the cluster; none where it does not answer: a completion says nothing."""
    from finetune_cli.cluster import connect

    def value(*names: str) -> str | None:
        at = [i for i, word in enumerate(words[:-2]) if word in names]
        return words[at[-1] + 1] if at else None

    try:
        cluster = connect(value("--kubeconfig"), value("--context"))
        found = cluster.jobs(value("-n", "--namespace") or cluster.namespace)
    except CliError:
        return []
    return [body["metadata"]["name"] for body in found]

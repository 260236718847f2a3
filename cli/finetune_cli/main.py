"""`finetune`, also `kubectl-finetune`: reads the command line, ends with an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_cli.exits import CliError, Exit
from finetune_cli.output import note
from finetune_cli.parser import build

if TYPE_CHECKING:
    from finetune_cli.session import Session


def main(argv: Sequence[str] | None = None) -> int:
    """One call of the program; its exit code."""
    program = "kubectl finetune" if Path(sys.argv[0]).name == "kubectl-finetune" else "finetune"
    args = build(program).parse_args(argv)
    from finetune_cli.session import Session  # here, so that --help does not wait for it

    try:
        code = _command(args.command)(Session(args, program))
        sys.stdout.flush()
    except CliError as error:
        note(f"{program}: {error}")
        return int(error.code)
    except KeyboardInterrupt:
        return int(Exit.INTERRUPTED)
    except BrokenPipeError:
        # `| head` has read enough; Python must not complain about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(Exit.OK)
    return int(code)


def _command(name: str) -> Callable[[Session], int]:
    """Each command's modules are imported when it is called: `--help` is fast."""
    from finetune_cli import commands, fetch, local, logs, submit, watch

    found: dict[str, Callable[[Session], int]] = {
        "init": submit.init_command,
        "validate": submit.validate_command,
        "submit": submit.submit_command,
        "watch": watch.watch_command,
        "logs": logs.logs_command,
        "explain": commands.explain_command,
        "suspend": commands.suspend_command,
        "resume": commands.resume_command,
        "plot": commands.plot_command,
        "compare": commands.compare_command,
        "fetch": fetch.fetch_command,
        "run": local.run_command,
        "completion": commands.completion_command,
    }
    return found[name]


if __name__ == "__main__":
    raise SystemExit(main())

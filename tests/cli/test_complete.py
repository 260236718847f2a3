"""What the shell proposes."""

from __future__ import annotations

import subprocess

import pytest

from finetune_cli.complete import SCRIPTS, candidates
from finetune_cli.parser import build

JOBS = ["docs", "docs-2", "style"]
COMMANDS = [
    *("compare", "completion", "explain", "fetch", "init", "logs", "plot", "resume", "run"),
    *("submit", "suspend", "validate", "watch"),
]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", ["--help", "--version", *COMMANDS]),
        ("su", ["submit", "suspend"]),
        ("explain ", JOBS),
        ("explain -n team-a do", ["docs", "docs-2"]),
        ("explain docs ", []),
        ("watch docs ", ["docs-2", "style"]),
        ("compare docs ", ["docs-2", "style"]),
        ("fetch docs ", []),
        ("fetch ", JOBS),
        ("logs docs --st", ["--stage"]),
        ("logs docs --stage ", ["export", "prepare", "train"]),
        ("logs -o ", ["json", "table", "yaml"]),
        ("logs --follow d", ["docs", "docs-2"]),
        ("completion z", ["zsh"]),
        ("validate ", []),
        ("nonsense ", []),
    ],
)
def test_what_may_follow(words: str, expected: list[str]) -> None:
    assert candidates(build("finetune"), words.split(" "), lambda: JOBS) == expected


def test_no_cluster_is_asked_where_no_job_may_stand() -> None:
    def never() -> list[str]:
        raise AssertionError("the cluster was asked")

    for words in ("", "exp", "logs docs --stage ", "validate ", "watch --in"):
        candidates(build("finetune"), words.split(" "), never)


def test_the_script_for_bash_is_right_and_completes_a_command() -> None:
    script = SCRIPTS["bash"] + (
        'kubectl_complete-finetune() { printf "%s\\n" explain export :4; }\n'
        "COMP_WORDS=(finetune exp); COMP_CWORD=1; _finetune; "
        'printf "%s," "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("explain,export,", "")

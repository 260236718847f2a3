"""The commands of docs/platform.md that need a kubelet, as they stand there."""

from __future__ import annotations

from pathlib import Path

from doc_commands import commands_of
from doc_shell import Shell
from kube import Kube, kubeconfig

NEED = (" logs ", " --raw ")


def test_what_needs_a_kubelet_works_as_documented(kube: Kube, tmp_path: Path) -> None:
    shell = Shell(kubeconfig(), tmp_path)
    found = [c for c in commands_of("docs/platform.md") if any(part in c for part in NEED)]
    assert len(found) == 2
    for command in found:
        shell.run(command)

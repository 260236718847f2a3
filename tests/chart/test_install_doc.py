"""What docs/install.md tells people to set is what the chart knows."""

from __future__ import annotations

import re

from chart import CHART, default_values, helm_template, leaves
from tools import ROOT

TEXT = (ROOT / "docs" / "install.md").read_text()


def commands() -> list[str]:
    """Each helm command of the page, on one line."""
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("helm ")]


def test_every_value_that_is_set_is_one_of_the_chart() -> None:
    settings = [re.findall(r"--set ('[^']*'|\S+)", line) for line in commands()]
    flat = [setting.replace("'", "") for found in settings for setting in found]
    assert len(flat) >= 3
    options = [part for setting in flat for part in ("--set", setting)]
    done = helm_template({}, *options)
    assert done.returncode == 0, done.stderr


def test_every_value_that_is_named_is_one_of_the_chart() -> None:
    values = leaves(default_values())
    tops = "|".join(default_values())
    named = set(re.findall(rf"[`\s]((?:{tops})\.[A-Za-z.]+)", TEXT))
    assert len(named) >= 6
    unknown = [n for n in named if not any(v == n or v.startswith(f"{n}.") for v in values)]
    assert unknown == []


def test_the_commands_name_the_release_its_namespace_and_the_chart() -> None:
    verbs = [line.split()[1] for line in commands()]
    assert verbs == ["install", "test", "upgrade", "upgrade", "rollback", "uninstall"]
    for line in commands():
        assert line.split()[2] == "finetune-operator"
        assert "--namespace finetune-system" in line
    paths = {word for line in commands() for word in line.split() if word.startswith("charts/")}
    assert paths == {str(CHART.relative_to(ROOT))}

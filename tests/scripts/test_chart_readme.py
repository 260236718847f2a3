"""The README of the chart says what values.yaml says."""

from __future__ import annotations

import chart_readme
import yaml


def test_the_readme_of_the_chart_has_the_values_as_they_are() -> None:
    text = chart_readme.DOCUMENT.read_text()
    assert chart_readme.written(text) == text, "`make generate` writes it anew"


def test_every_value_is_documented() -> None:
    docs = chart_readme.value_docs()
    values = chart_readme.leaves(yaml.safe_load((chart_readme.CHART / "values.yaml").read_text()))
    assert len(values) >= 40
    undocumented = [
        path
        for path in values
        if not any(path == doc or path.startswith(f"{doc}.") for doc in docs)
    ]
    assert undocumented == []

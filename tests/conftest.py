"""Options and fixtures of all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write expected files anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, Any], None]:
    """Compares a list of manifests with `tests/golden/<name>.yaml`, whole."""
    import yaml

    def check(name: str, found: Any) -> None:
        path = GOLDEN / f"{name}.yaml"
        text = yaml.safe_dump_all(found, sort_keys=False, width=100)
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert list(yaml.safe_load_all(path.read_text())) == list(yaml.safe_load_all(text))

    return check

"""What the tests of the trainer share."""

from __future__ import annotations

from pathlib import Path

import peft  # noqa: F401
import pytest

# With bitsandbytes, before anything imports it without (`model.adapters.import_peft`): tests of
# QLoRA share their process with the others.


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them: a file that nobody marked would be run by no command."""
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.trainer)

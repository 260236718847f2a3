"""What the tests of the trainer share."""

from __future__ import annotations

import peft  # noqa: F401

# With bitsandbytes, before anything imports it without (`model.adapters.import_peft`): tests of
# QLoRA share their process with the others.

"""How everything here imports peft."""

from __future__ import annotations

import sys
from typing import Any


def import_peft(quantized: bool = False) -> Any:
    """The module peft, without bitsandbytes where nothing is quantized.

    Peft imports bitsandbytes wherever it is installed, which takes 2 to 3 s of every start and
    logs what it does not find.
    """
    if not quantized and not {"peft", "bitsandbytes"} & set(sys.modules):
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # peft looks at every use
    import peft

    return peft

"""Makes an image of a release the default of the chart:
`python scripts/release_values.py operator|trainer REPOSITORY TAG DIGEST`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

VALUES = Path(__file__).parents[1] / "charts" / "finetune-operator" / "values.yaml"


def released(text: str, part: str, repository: str, tag: str, digest: str) -> str:
    """values.yaml with another default image; its comments stay.

    Raises:
        ValueError: the digest is none, or there is no such image in the text.
    """
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(f"{digest!r} is no digest")
    before, found, after = text.partition(f"\n{part}:\n  image:\n")
    if not found:
        raise ValueError(f"values.yaml has no image of {part!r}")
    for key, value in (("repository", repository), ("tag", f'"{tag}"'), ("digest", digest)):
        after, count = re.subn(rf"(?m)^(    {key}:) .*$", rf"\1 {value}", after, count=1)
        if count != 1:
            raise ValueError(f"the image of {part!r} has no {key}")
    return before + found + after


if __name__ == "__main__":
    VALUES.write_text(released(VALUES.read_text(), *sys.argv[1:]))

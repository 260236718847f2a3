"""Building Dockerfiles straight into the image stores of the nodes, by BuildKit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from localcluster.layout import ClusterError, Layout


def build(
    layout: Layout, tag: str, dockerfile: Path, context: Path, build_args: Mapping[str, str]
) -> None:
    """Build an image into the store of every node."""
    raise ClusterError("not yet")
